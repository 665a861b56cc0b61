"""Counting the rows of a store into its sums, and the sums that a writer keeps."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import zarr

from zarrpipe.data.csr import AnyArray, Int64Array
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
from zarrpipe.store.statistics.label_rows import BUCKETS, LabelRows, buckets_of
from zarrpipe.store.statistics.stored import StoredSums, digest, read_sums, remove_sums, write_sums
from zarrpipe.store.statistics.sums import LabelSums

SUMMED = ("energy", "forces")
"""Fields that are summed."""

_BLOCK_SAMPLES, _BLOCK_ATOMS, _GAP = 1 << 15, 1 << 20, 256
_DUE_SAMPLES, _DUE_ATOMS = 1 << 16, 1 << 21
_FREE_ATOMS, _FEW = 1 << 22, 8


class StoredRows(Protocol):
    """Rows of one array, as they are stored."""

    def read(self, start: int, stop: int) -> AnyArray:
        """Rows from `start` to `stop`."""
        ...


@dataclass(frozen=True)
class Stored:
    """A store as it is counted.

    Parameters
    ----------
    group
        Its root.
    column
        Gives the column of an array.
    schema, attributes
        What the root says.
    extent
        What is committed.
    """

    group: zarr.Group
    column: Callable[[str], StoredRows]
    schema: Schema
    attributes: Attributes
    extent: RowCounts


def kept_of(stored: Stored, sums: LabelSums) -> StoredSums:
    """Sums as those over all of a store."""
    attributes = stored.attributes
    return StoredSums(stored.extent, attributes.deleted, digest(attributes.generation), sums)


def rows_of(stored: Stored, samples: Int64Array) -> Iterator[LabelRows]:
    """What is summed of samples, some at a time.

    Parameters
    ----------
    stored
        The store.
    samples : array [K] int64
        Rows of samples, ascending.
    """
    if not len(samples):
        return
    first, last = int(samples[0]), int(samples[-1]) + 1
    atoms_ptr, edges_ptr = (
        stored.column(path).read(first, last + 1).astype(np.int64)
        for path in (ATOMS_PTR, EDGES_PTR)
    )
    ids = stored.column(IDS).read(first, last)
    energy, has_energy = _label(stored, "energy", first, last)
    has_forces = _presence(stored, "forces", first, last)
    for chosen in _runs(samples - first, atoms_ptr):
        here = slice(int(chosen[0]), int(chosen[-1]) + 1)
        ptr = atoms_ptr[here.start : here.stop + 1]
        forces = None
        if "forces" in stored.schema:
            path = field_path(stored.schema["forces"])
            forces = stored.column(path).read(int(ptr[0]), int(ptr[-1]))
        path = field_path(stored.schema["atomic_numbers"])
        numbers = stored.column(path).read(int(ptr[0]), int(ptr[-1]))
        rows = LabelRows(
            numbers.astype(np.int64, copy=False),
            ptr - ptr[0],
            buckets_of(ids[here]),
            np.diff(edges_ptr[here.start : here.stop + 1]),
            None if energy is None else energy[here],
            None if has_energy is None else has_energy[here],
            forces,
            None if has_forces is None else has_forces[here],
        )
        yield rows if len(chosen) == len(rows) else rows.take(chosen - here.start)


def _runs(samples: Int64Array, ptr: Int64Array) -> Iterator[Int64Array]:
    """Samples in runs without wide gaps, of at most so many samples and, but for one, atoms."""
    gaps = np.append(np.flatnonzero(np.diff(samples) > _GAP) + 1, len(samples))
    ends, start = ptr[samples + 1], 0
    while start < len(samples):
        limit = ptr[samples[start]] + _BLOCK_ATOMS
        stop = min(
            int(gaps[np.searchsorted(gaps, start, side="right")]),
            start + _BLOCK_SAMPLES,
            max(start + 1, int(np.searchsorted(ends, limit, side="right"))),
        )
        yield samples[start:stop]
        start = stop


def _label(
    stored: Stored, name: str, first: int, last: int
) -> tuple[AnyArray | None, AnyArray | None]:
    if name not in stored.schema:
        return None, None
    values = stored.column(field_path(stored.schema[name])).read(first, last)
    return values.reshape(-1), _presence(stored, name, first, last)


def _presence(stored: Stored, name: str, first: int, last: int) -> AnyArray | None:
    if name not in stored.attributes.nullable:
        return None
    return stored.column(present_path(name)).read(first, last)


class StatisticsUpdater:
    """Sums of a store as its writer keeps them, up to the samples that were counted last.

    Rows are counted by reading them back, at a flush and now and then, so that an append costs no
    more. A store that has many more rows than this writer wrote, and no sums, is left without.
    """

    def __init__(self) -> None:
        self._kept: StoredSums | None = None
        self._left: StoredSums | None = None  # what a deletion leaves once it is published
        self._written = False
        self._removed = False  # sums that were there, which are counted anew where that is little
        self._hopeless = False  # sums have overflown, and do until something is deleted
        self._opened = RowCounts()
        self._due = (_DUE_SAMPLES, _DUE_ATOMS)

    def open(self, stored: Stored) -> None:
        """Take up what an earlier writer kept; what is not of the store is removed."""
        self._opened = extent = stored.extent
        self._due = (extent.samples + _DUE_SAMPLES, extent.atoms + _DUE_ATOMS)
        if not extent.samples:
            return
        kept = read_sums(stored.group)
        if kept is not None and _belongs(kept, stored):
            self._kept, self._written = kept, True
        else:
            self._removed = remove_sums(stored.group)

    def is_due(self, extent: RowCounts) -> bool:
        """Whether so much was written since the last count that the next one should be."""
        return extent.samples >= self._due[0] or extent.atoms >= self._due[1]

    def keep(self, stored: Stored, *, every: bool = True) -> None:
        """Count what is new, and write the sums; without `every`, not for a few samples more."""
        extent, kept = stored.extent, self._kept
        if self._hopeless:
            return
        if not every and self._written and kept is not None and not self.is_due(extent):
            known = kept.extent.samples
            if extent.samples - known < known // _FEW:
                return
        self._due = (extent.samples + _DUE_SAMPLES, extent.atoms + _DUE_ATOMS)
        if kept is not None and kept.extent == extent and self._written:
            return
        own, before = (
            extent.atoms - self._opened.atoms,
            RowCounts() if kept is None else kept.extent,
        )
        if extent.atoms - before.atoms > max(_FREE_ATOMS, own) or not (
            kept or own or self._removed
        ):
            return
        sums = LabelSums.empty(BUCKETS) if kept is None else kept.sums.copy()
        mask = stored.column(SAMPLES_MASK).read(before.samples, extent.samples)
        for rows in rows_of(stored, np.flatnonzero(mask) + before.samples):
            sums.add(rows)
        self._write(stored, kept_of(stored, sums))

    def take_back(self, stored: Stored, samples: Int64Array) -> None:
        """Write the sums without samples that will be deleted; they count once that is published.

        Parameters
        ----------
        stored
            The store, in which they are not deleted yet.
        samples : array [K] int64
            Rows of samples, ascending, none deleted before.
        """
        kept, self._written = self._kept, False
        self._hopeless = False
        if kept is None:  # but there may be some of a deletion that was not finished
            self.forget(stored.group)
            return
        sums, exact = kept.sums.copy(), True
        for rows in rows_of(stored, samples[samples < kept.extent.samples]):
            exact &= sums.take_back(rows)
        left = replace(kept, sums=sums, deleted=stored.attributes.deleted + len(samples))
        self._left = left if exact and write_sums(stored.group, left) else None
        if self._left is None:
            self.forget(stored.group)

    def settle(self, deleted: int) -> None:
        """Say how many samples are deleted now."""
        known = {kept.deleted: kept for kept in (self._kept, self._left) if kept is not None}
        self._written = self._left is not None and self._left.deleted == deleted
        self._kept, self._left = known.get(deleted), None

    def forget(self, group: zarr.Group) -> None:
        """Remove the sums: what was counted is to change."""
        self._kept = self._left = None
        self._written = False
        self._removed |= remove_sums(group)

    def _write(self, stored: Stored, kept: StoredSums) -> None:
        self._written = False
        self._written = write_sums(stored.group, kept)
        self._kept = kept if self._written else None
        self._hopeless = not self._written


def _belongs(kept: StoredSums, stored: Stored) -> bool:
    rows = kept.extent.samples
    if rows > stored.extent.samples:
        return False
    ends = (int(stored.column(path).read(rows, rows + 1)[0]) for path in (ATOMS_PTR, EDGES_PTR))
    active = np.count_nonzero(stored.column(SAMPLES_MASK).read(0, rows))
    return kept.belongs(stored.attributes, RowCounts((rows, *ends)), active=int(active))
