"""A batch with some fields made anew."""

from collections.abc import Mapping

import torch

from zarrpipe.data.batch import Batch


def replaced(batch: Batch, fields: Mapping[str, torch.Tensor]) -> Batch:
    """Batch that shares all tensors but those of fields that it has, and presence with them."""
    return Batch._trusted(
        {**batch.fields, **fields},
        dict(batch.levels),
        batch.batch_ptr,
        batch.edge_ptr,
        {name: batch.present(name) for name in batch.partly_present},
        buffer=batch._buffer,
    )
