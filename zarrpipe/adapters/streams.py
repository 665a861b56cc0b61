"""Samples of a dataset or an iterable as batches of bounded size."""

from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any

import numpy as np
import torch

from zarrpipe.adapters.registry import as_batch, has_adapter
from zarrpipe.data.batch import Batch

_BLOCK_BYTES = 1 << 25
_NO_STREAMS = (list, tuple, str, bytes, Mapping, np.ndarray, torch.Tensor)
"""What can be iterated over, but is one batch or none."""


def is_stream(obj: Any) -> bool:
    """Whether an object is a dataset of samples, or an iterable that `as_batch` does not take."""
    if isinstance(obj, _NO_STREAMS) or has_adapter(obj):
        return False
    return _has_positions(obj) or hasattr(obj, "__iter__")


def stream_length(source: Any) -> int | None:
    """Number of samples of a dataset; None for an iterable."""
    return len(source) if _has_positions(source) else None


def stream_batches(source: Any) -> Iterator[Batch]:
    """Batches of about 32 MB with the samples of a dataset or an iterable, in order.

    A dataset is read by its ``__getitems__``, as torch's loader does. An item of an iterable may be
    whatever `as_batch` takes. The first batch has one item, so that large ones are not gathered.
    """
    by_position = _has_positions(source)
    items, count = iter(range(len(source)) if by_position else source), 1
    while chosen := list(islice(items, count)):
        found = source.__getitems__(np.array(chosen)) if by_position else _joined(chosen)
        if isinstance(found, list) and not found:
            continue  # of lists that are empty
        batch = as_batch(found)
        yield batch
        nbytes = sum(value.nbytes for value in batch.fields.values())
        count = max(1, min(2 * count, _BLOCK_BYTES * len(chosen) // max(nbytes, 1)))


def _has_positions(obj: Any) -> bool:
    return hasattr(obj, "__getitems__") and hasattr(obj, "__len__")


def _joined(items: list[Any]) -> list[Any]:
    """Items with the lists among them joined."""
    lists = (item if isinstance(item, list | tuple) else [item] for item in items)
    return [one for some in lists for one in some]
