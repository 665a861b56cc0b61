"""Structures that a model is trained on and evaluated with."""

import warnings
from collections.abc import Iterator

import numpy as np
from zarr.storage import LocalStore, MemoryStore

from zarrpipe.data.ids import UInt64Array
from zarrpipe.dataset.zarr_dataset import ZarrDataset
from zarrpipe.store.backend.location import Root
from zarrpipe.store.format.layout import IDS
from zarrpipe.training.epoch.plans import IndexArray

_BLOCK = 1 << 20

Source = tuple[ZarrDataset, IndexArray | None]
"""A dataset and positions in it, None for all."""


class Overlaps:
    """What other sides have of the training side, looked at anew where stores have changed.

    Stores that are not on a local file system or in memory, and those that have no ids, are left
    out: all ids would have to be fetched, or all samples read, before every fit.
    """

    def __init__(self) -> None:
        self._known: dict[str, tuple[object, tuple[int, int]]] = {}

    def warn(self, name: str, train: Source, side: Source) -> None:
        """Warn if samples of a side have the id, and so the structure, of a training sample."""
        if not (_at_hand(train[0]) and _at_hand(side[0])):
            return
        moment = train[0].state_dict(), side[0].state_dict()
        before, counts = self._known.get(name, (None, (0, 0)))
        if before != moment:
            counts = overlap(train, side)
            self._known[name] = moment, counts
        count, every = counts
        if count:
            warnings.warn(
                f"{count} of the {every} {name} samples have the same structure (id) as a training "
                f"sample, so that the errors of {name} are smaller than those of unseen "
                f"structures: expected others; leave them out of {name}, or name what to train on "
                "in an index file (zarrpipe.write_split)",
                stacklevel=6,
            )


def _at_hand(dataset: ZarrDataset) -> bool:
    """Whether ids are to be had without fetching or computing them."""
    return all(
        isinstance(Root.of(view.store).path.store, LocalStore | MemoryStore)
        and view.snapshot.has(IDS)
        for view in dataset._stores.views
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
