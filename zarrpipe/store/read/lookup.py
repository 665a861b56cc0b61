"""One store's side of a gather: where its arrays are, and which rows samples have in them."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from zarrpipe.data.csr import AnyArray, Int64Array
from zarrpipe.data.schema import Field
from zarrpipe.errors import StoreFormatError
from zarrpipe.store.backend.array_reader import ArrayReader
from zarrpipe.store.cache.array import CachedArray
from zarrpipe.store.format.commit_log import RowCounts
from zarrpipe.store.format.layout import ATOMS_PTR, EDGES_PTR, field_path, present_path
from zarrpipe.store.read.kernels import DAMAGED, LEVELS, OUTSIDE, Kernels, Rows, segments
from zarrpipe.store.read.mapped import MappedArray
from zarrpipe.store.read.page_cache import ReadAhead
from zarrpipe.store.read.snapshot import Snapshot

Segments = tuple[Int64Array, Int64Array]

_NONE = np.zeros(0, dtype=np.int64)


class Unit(NamedTuple):
    """A shard of an array, or a chunk where there are no shards.

    Parameters
    ----------
    level
        Number of the array's level; see `zarrpipe.store.read.kernels`.
    rows, row_bytes
        Rows of a unit, and bytes of one.
    cached
        Whether rows are fetched into a cache.
    """

    level: int
    rows: int
    row_bytes: int
    cached: bool


@dataclass(frozen=True)
class BatchArray:
    """One array of a batch: a field, or which samples have one.

    Parameters
    ----------
    name
        Of the field.
    level
        Number of the level; see `zarrpipe.store.read.kernels`.
    dtype, shape
        Of a row.
    field
        The field; None for an array that says which samples have it.
    """

    name: str
    level: int
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    field: Field | None

    @classmethod
    def of(cls, item: Field) -> "BatchArray":
        """Column of a field."""
        return cls(item.name, LEVELS[item.level], item.dtype, item.shape, item)

    @classmethod
    def of_presence(cls, name: str) -> "BatchArray":
        """Column that says which samples have a field."""
        return cls(name, 0, np.dtype("bool"), (), None)

    @property
    def row_bytes(self) -> int:
        """Bytes of a row."""
        return self.dtype.itemsize * math.prod(self.shape)

    def path(self, snapshot: Snapshot) -> str | None:
        """Place of the array in a store; None if it has none."""
        if self.field is None:
            return present_path(self.name) if self.name in snapshot.attributes.nullable else None
        own = snapshot.schema.get(self.name)
        return None if own is None else field_path(own)

    def array(self, snapshot: Snapshot) -> ArrayReader | None:
        """Array of a store; None if it has none."""
        path, extent = self.path(snapshot), snapshot.extent
        rows = (extent.samples, extent.atoms, extent.edges)[self.level]
        return None if path is None else snapshot.array(path, rows)

    def unit(self, snapshot: Snapshot) -> Unit | None:
        """How the array of a store is cut; None if it has none."""
        path, flat = self.path(snapshot), self.array(snapshot)
        if path is None or flat is None:
            return None
        rows = snapshot.unit_rows(path)
        return Unit(self.level, rows, self.row_bytes, isinstance(flat, CachedArray))

    def fill(self, snapshot: Snapshot) -> Any:
        """What stands in the batch for samples of a store that has no such array."""
        return self.name in snapshot.schema if self.field is None else self.field.fill


class Lookup:
    """What a gather needs of one store.

    Parameters
    ----------
    snapshot
        The store.
    columns
        What is read.
    with_edges
        Whether pointers to edges are needed.
    """

    def __init__(
        self, snapshot: Snapshot, columns: Sequence[BatchArray], *, with_edges: bool
    ) -> None:
        self._root, self._columns = snapshot.root, columns
        self._ahead: ReadAhead | None = None
        self._stored = snapshot.extent.samples
        self._flats = flats = [column.array(snapshot) for column in columns]
        cached = [flat for flat in flats if isinstance(flat, CachedArray)]
        self._row_cache = snapshot.row_cache if cached else None
        if self._row_cache is not None:
            self._row_cache.open(cached)
        self._cached = [
            (flat, column.level)
            for flat, column in zip(flats, columns, strict=True)
            if isinstance(flat, CachedArray)
        ]
        self._arrays = [None if flat is None else flat.data for flat in flats]
        self._check_arrays(snapshot.extent)
        addresses = [0 if array is None else array.ctypes.data for array in self._arrays]
        self.addresses = np.array(addresses, dtype=np.int64)
        """Where each column's array begins, 0 for none."""
        self.lacking = [
            (place, column.fill(snapshot))
            for place, (column, array) in enumerate(zip(columns, self._arrays, strict=True))
            if array is None
        ]
        """Columns that the store has not, with what stands there instead."""
        self._active = _NONE if snapshot.active is None else snapshot.active
        self._atoms_ptr = snapshot.pointers(ATOMS_PTR)
        self._edges_ptr = snapshot.pointers(EDGES_PTR) if with_edges else _NONE
        extent = snapshot.extent
        self._limits = np.array([snapshot.count, extent.atoms, extent.edges])

    def _check_arrays(self, extent: RowCounts) -> None:
        """Refuse arrays that are not what the columns say, of which rows would be read wrongly."""
        counts = (extent.samples, extent.atoms, extent.edges)
        for column, array in zip(self._columns, self._arrays, strict=True):
            wanted = (column.dtype, column.shape)
            if array is None or (
                len(array) >= counts[column.level] and (array.dtype, array.shape[1:]) == wanted
            ):
                continue
            raise StoreFormatError(
                f"{self._root}: the array of {column.name!r} has dtype {array.dtype} and shape "
                f"{array.shape}, expected {column.dtype} and at least {counts[column.level]} rows "
                f"of shape {column.shape}: it was rewritten, or is damaged"
            )

    def locate(
        self, kernels: Kernels, samples: Int64Array, places: Int64Array, table: Int64Array
    ) -> None:
        """Look samples up; see `Kernels.locate`."""
        status = kernels.locate(
            samples, places, self._active, self._limits, self._atoms_ptr, self._edges_ptr, table
        )
        if status == OUTSIDE:
            raise self._outside(samples)
        if status == DAMAGED:
            raise self._damaged()

    def rows(self, samples: Int64Array) -> tuple[tuple[Rows, Rows, Rows], Int64Array, Int64Array]:
        """Rows of samples by level, and their pointers to atoms and edges."""
        if len(samples) and samples.view(np.uint64).max() >= self._limits[0]:
            raise self._outside(samples)
        chosen = self._active[samples] if len(self._active) else samples
        atoms = segments(chosen, self._atoms_ptr, 1, int(self._limits[1]))
        edges: tuple[Rows, Int64Array] | None = _no_rows(samples)
        if len(self._edges_ptr):
            edges = segments(chosen, self._edges_ptr, 0, int(self._limits[2]))
        if atoms is None or edges is None:
            raise self._damaged()
        return (_run(chosen), atoms[0], edges[0]), atoms[1], edges[1]

    def take(self, place: int, rows: Rows, out: AnyArray) -> None:
        """Copy rows of one column."""
        array = self._arrays[place]
        if array is None:
            out[...] = dict(self.lacking)[place]
        elif isinstance(rows, slice):
            out[...] = array[rows]
        else:
            array.take(rows, axis=0, out=out, mode="clip")

    def segments(self, samples: Int64Array, level: int) -> Segments:
        """Where the rows of samples start and stop."""
        chosen = self._active[samples] if len(self._active) else samples
        ptr = (np.arange(0), self._atoms_ptr, self._edges_ptr)[level]
        return (ptr[chosen], ptr[chosen + 1]) if level else (chosen, chosen + 1)

    def shift(self, samples: Int64Array, atoms_ptr: Int64Array) -> Int64Array:
        """What is added to an atom's number in the store to have that in the batch, by sample."""
        chosen = self._active[samples] if len(self._active) else samples
        shift: Int64Array = atoms_ptr[:-1] - self._atoms_ptr[chosen]
        return shift

    def read(self, segments: Callable[[int], Segments], copy: Callable[[], None]) -> None:
        """Have `copy` done when the rows that it needs are at hand.

        Parameters
        ----------
        segments
            Gives the starts [J] and stops [J] of the rows of a level.
        copy
            Copies them; called again if they were taken away meanwhile.
        """
        if self._row_cache is None:
            copy()
            return
        if self._row_cache.read_settled([array for array, _ in self._cached], copy):
            return
        by_level = {level: segments(level) for level in {level for _, level in self._cached}}
        self._row_cache.read([(array, *by_level[level]) for array, level in self._cached], copy)

    def advise(self, samples: Int64Array) -> None:
        """Say that samples will be read soon; those that do not exist are passed over."""
        known = samples[(samples >= 0) & (samples < self._limits[0])]
        if self._ahead is None:
            limits = (self._stored, *self._limits[1:].tolist())
            mapped = [
                (flat.data[: limits[column.level]], column.level)
                for flat, column in zip(self._flats, self._columns, strict=True)
                if isinstance(flat, MappedArray)
            ]
            self._ahead = ReadAhead([rows for rows, _ in mapped], [level for _, level in mapped])
        self._ahead.advise(partial(self.segments, known))
        if self._row_cache is not None and len(known):
            wanted = [(array, *self.segments(known, level)) for array, level in self._cached]
            self._row_cache.prefetch(wanted)

    def _outside(self, samples: Int64Array) -> IndexError:
        return IndexError(
            f"samples {samples.min()} to {samples.max()} of a store of {self._limits[0]}: "
            f"{self._root}"
        )

    def _damaged(self) -> StoreFormatError:
        return StoreFormatError(
            f"{self._root}: {ATOMS_PTR} or {EDGES_PTR} falls, is negative or runs past the rows "
            "that there are: it is damaged"
        )


def _run(rows: Int64Array) -> Rows:
    """The same rows, as a slice where they follow each other."""
    first, last = (int(rows[0]), int(rows[-1])) if len(rows) else (0, -1)
    if last - first != len(rows) - 1 or not (np.diff(rows) == 1).all():
        return rows
    return slice(first, last + 1)


def _no_rows(samples: Int64Array) -> tuple[Rows, Int64Array]:
    return slice(0, 0), np.zeros(len(samples) + 1, dtype=np.int64)
