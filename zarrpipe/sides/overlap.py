"""Structures that a model is trained on and evaluated with."""

import warnings
from collections.abc import Iterator

import numpy as np

from zarrpipe.data.ids import UInt64Array
from zarrpipe.dataset import ZarrDataset
from zarrpipe.epochs.plans import IndexArray

_BLOCK = 1 << 20

Source = tuple[ZarrDataset, IndexArray | None]
"""A dataset and positions in it, None for all."""


def warn_of_overlap(name: str, train: Source, side: Source) -> None:
    """Warn if samples of a side have the id, and so the structure, of a training sample."""
    count, every = overlap(train, side)
    if count:
        warnings.warn(
            f"{count} of the {every} {name} samples have the same structure (id) as a training "
            f"sample, so that the errors of {name} are smaller than those of unseen structures: "
            f"expected others; leave them out of {name}, or name what to train on in an index file "
            "(zarrpipe.write_split)",
            stacklevel=6,
        )


def overlap(train: Source, side: Source) -> tuple[int, int]:
    """Number of samples of a side whose id a training sample has, and of all of them.

    The ids of the side are held, those of training go by in blocks.
    """
    ids, counts = np.unique(np.concatenate([_NONE, *_ids(side)]), return_counts=True)
    met = np.zeros(len(ids), dtype=bool)
    if len(ids):
        for some in _ids(train):
            some.sort()  # neighbours are found near each other
            places = np.searchsorted(ids[:-1], some)
            met[places[ids[places] == some]] = True
    return int(counts[met].sum()), int(counts.sum())


_NONE = np.zeros(0, dtype=np.uint64)


def _ids(source: Source) -> Iterator[UInt64Array]:
    """Ids of samples, block by block."""
    dataset, rows = source
    count = len(dataset) if rows is None else len(rows)
    for start in range(0, count, _BLOCK):
        end = min(start + _BLOCK, count)
        yield dataset.ids_of(np.arange(start, end) if rows is None else rows[start:end])
