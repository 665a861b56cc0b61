"""Samples of a dataset or an iterable as batches of bounded size."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch

from zarrpipe.adapters.assemble import has_positions, item_blocks, position_blocks
from zarrpipe.adapters.registry import as_batch, has_adapter
from zarrpipe.data.batch import Batch

_NO_STREAMS = (list, tuple, str, bytes, Mapping, np.ndarray, torch.Tensor)
"""What can be iterated over, but is one batch or none."""


def is_stream(obj: Any) -> bool:
    """Whether an object is a dataset of samples, or an iterable that `as_batch` does not take."""
    if isinstance(obj, _NO_STREAMS) or has_adapter(obj):
        return False
    return has_positions(obj) or hasattr(obj, "__iter__")


def stream_length(source: Any) -> int | None:
    """Number of samples of a dataset; None for an iterable."""
    return len(source) if has_positions(source) else None


def stream_batches(source: Any) -> Iterator[Batch]:
    """Batches of about 32 MB with the samples of a dataset or an iterable, in order.

    A dataset is read by its ``__getitems__``, as torch's loader does. An item of an iterable may be
    whatever `as_batch` takes.
    """
    if has_positions(source):
        return position_blocks(source, as_batch)
    return item_blocks(source, _joined)


def _joined(items: list[Any]) -> Batch | None:
    """Batch of items, the lists among them joined; None where all lists are empty."""
    lists = (item if isinstance(item, list | tuple) else [item] for item in items)
    joined = [one for some in lists for one in some]
    return as_batch(joined) if joined else None
