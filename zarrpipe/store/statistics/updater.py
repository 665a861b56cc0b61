"""Counting the labels of a store into sums, and keeping these up to date while it is written."""

from collections.abc import Iterator
from typing import Protocol

import numpy as np
import zarr

from zarrpipe.data.csr import AnyArray
from zarrpipe.data.fields import Level
from zarrpipe.data.schema import Schema
from zarrpipe.store.format.commit_log import RowCounts
from zarrpipe.store.format.layout import (
    ATOMS_PTR,
    EDGES_PTR,
    IDS,
    SAMPLES_MASK,
    field_path,
    present_path,
)
from zarrpipe.store.format.metadata import Attributes
from zarrpipe.store.statistics.label_rows import (
    BUCKETS,
    SUMMED_LABELS,
    Label,
    LabelRows,
    buckets_of,
)
from zarrpipe.store.statistics.stored_sums import (
    StoredSums,
    digest,
    read_sums,
    remove_sums,
    write_sums,
)
from zarrpipe.store.statistics.sums import LabelSums

_BLOCK_SAMPLES, _BLOCK_ATOMS = 1 << 15, 1 << 20
_DUE_SAMPLES, _DUE_ATOMS = 1 << 16, 1 << 21
_FREE_ATOMS, _FEW = 1 << 22, 8


class StoredRows(Protocol):
    """Rows of one array, as they are stored."""

    def read(self, start: int, stop: int) -> AnyArray:
        """Rows from `start` to `stop`."""
        ...


class CountedStore(Protocol):
    """A store whose samples are counted."""

    @property
    def group(self) -> zarr.Group:
        """Root group."""
        ...

    @property
    def schema(self) -> Schema:
        """Fields."""
        ...

    @property
    def attributes(self) -> Attributes:
        """Attributes of the root."""
        ...

    @property
    def counts(self) -> RowCounts:
        """Committed rows."""
        ...

    def array(self, path: str) -> StoredRows:
        """Rows of an array."""
        ...


def sums_over(store: CountedStore, sums: LabelSums) -> StoredSums:
    """Sums over all samples of a store, as they are to be stored."""
    attributes = store.attributes
    return StoredSums(store.counts, attributes.deleted, digest(attributes.generation), sums)


def count_rows(store: CountedStore, sums: LabelSums, start: int) -> None:
    """Add the samples from `start` on that are not deleted to sums."""
    stop = store.counts.samples
    while start < stop:
        end = min(start + _BLOCK_SAMPLES, stop)
        active = store.array(SAMPLES_MASK).read(start, end)
        for rows in _blocks(store, start, end):
            kept = active[: len(rows)]
            active = active[len(rows) :]
            if kept.all():
                sums.add(rows)
            elif kept.any():
                sums.add(rows.take(np.flatnonzero(kept)))
        start = end


def _blocks(store: CountedStore, first: int, last: int) -> Iterator[LabelRows]:
    """Samples in blocks of bounded atoms, but at least one sample."""
    atoms_ptr, edges_ptr = (
        store.array(path).read(first, last + 1).astype(np.int64) for path in (ATOMS_PTR, EDGES_PTR)
    )
    buckets = buckets_of(store.array(IDS).read(first, last))
    start, count = 0, last - first
    while start < count:
        limit = atoms_ptr[start] + _BLOCK_ATOMS
        stop = max(start + 1, int(np.searchsorted(atoms_ptr, limit, side="right")) - 1)
        ptr = atoms_ptr[start : stop + 1]
        atoms, samples = (int(ptr[0]), int(ptr[-1])), (first + start, first + stop)
        yield LabelRows(
            _rows(store, "atomic_numbers", *atoms).astype(np.int64, copy=False),
            ptr - ptr[0],
            buckets[start:stop],
            np.diff(edges_ptr[start : stop + 1]),
            {
                name: _label(store, name, atoms, samples)
                for name in SUMMED_LABELS
                if name in store.schema
            },
        )
        start = stop


def _label(
    store: CountedStore, name: str, atoms: tuple[int, int], samples: tuple[int, int]
) -> Label:
    per_sample = store.schema[name].level is Level.SYSTEM
    values = _rows(store, name, *(samples if per_sample else atoms))
    if name not in store.attributes.nullable:
        return Label(values)
    return Label(values, store.array(present_path(name)).read(*samples))


def _rows(store: CountedStore, name: str, start: int, stop: int) -> AnyArray:
    return store.array(field_path(store.schema[name])).read(start, stop)


class StatisticsUpdater:
    """Sums of a store, as its writer keeps them up to date.

    Rows are read back to be counted, at a flush and every 65,536 samples, so that most appends cost
    nothing. Sums that do not fit the store, because samples were deleted or the sums are damaged,
    are counted again at the next close. A large store without sums stays without.
    """

    def __init__(self) -> None:
        self._stored: StoredSums | None = None
        self._recount = False  # the store had sums, which have to be counted from the beginning
        self._overflown_at: int | None = None  # deleted samples when a sum overflowed
        self._opened = RowCounts()
        self._due = (_DUE_SAMPLES, _DUE_ATOMS)

    def open(self, store: CountedStore) -> None:
        """Continue from the sums of the store, or remove them if they are of something else."""
        self._opened = extent = store.counts
        self._due = (extent.samples + _DUE_SAMPLES, extent.atoms + _DUE_ATOMS)
        if not extent.samples:
            return
        stored = read_sums(store.group)
        if stored is not None and _belongs(stored, store):
            self._stored = stored
        else:
            self._recount = remove_sums(store.group)

    def is_due(self, extent: RowCounts) -> bool:
        """Whether the rows since the last count should be counted before more are written."""
        return extent.samples >= self._due[0] or extent.atoms >= self._due[1]

    def update(self, store: CountedStore, *, every: bool = True) -> None:
        """Count new samples and write the sums; without `every`, a few samples may be left out."""
        extent, deleted, stored = store.counts, store.attributes.deleted, self._stored
        if deleted == self._overflown_at:
            return
        if stored is not None and stored.deleted != deleted:
            self._stored, self._recount, stored = None, True, None
        if stored is not None and not every and not self.is_due(extent):
            known = stored.extent.samples
            if extent.samples - known < known // _FEW:
                return
        self._due = (extent.samples + _DUE_SAMPLES, extent.atoms + _DUE_ATOMS)
        if stored is not None and stored.extent == extent:
            return
        if stored is not None and not stored.sums.complete:
            self._stored, self._recount = None, True
        if self._is_worthwhile(extent, every=every):
            self._count(store)

    def forget(self, group: zarr.Group) -> None:
        """Remove the sums, before counted labels change."""
        self._stored, self._overflown_at = None, None
        self._recount |= remove_sums(group)

    def _is_worthwhile(self, extent: RowCounts, *, every: bool) -> bool:
        """Whether to count what is new: all that this writer wrote, and else only a little."""
        own = extent.atoms - self._opened.atoms
        if self._stored is not None:
            return extent.atoms - self._stored.extent.atoms <= max(_FREE_ATOMS, own)
        if self._recount and every:
            return True
        return (own > 0 or self._recount) and extent.atoms <= max(_FREE_ATOMS, own)

    def _count(self, store: CountedStore) -> None:
        stored, sums, start = self._stored, LabelSums.empty(BUCKETS), 0
        if stored is not None:
            sums, start = stored.sums, stored.extent.samples
        self._stored, self._recount = None, True  # until all is counted and written
        count_rows(store, sums, start)
        stored = sums_over(store, sums)
        write_sums(store.group, stored)
        if sums.finite:
            self._stored, self._recount = stored, False
        else:
            self._overflown_at = stored.deleted


def _belongs(stored: StoredSums, store: CountedStore) -> bool:
    rows = stored.extent.samples
    if rows > store.counts.samples:
        return False
    ends = (int(store.array(path).read(rows, rows + 1)[0]) for path in (ATOMS_PTR, EDGES_PTR))
    active = np.count_nonzero(store.array(SAMPLES_MASK).read(0, rows))
    return stored.belongs(store.attributes, RowCounts((rows, *ends)), active=int(active))
