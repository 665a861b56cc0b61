"""The part of a gather for one store: its arrays, and the rows of samples in them."""

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from zarrpipe.data.categories import Int32Array, translation
from zarrpipe.data.csr import AnyArray, Int64Array
from zarrpipe.data.levels import Level
from zarrpipe.data.schema import Field
from zarrpipe.errors import StoreFormatError
from zarrpipe.store.backend.array_reader import ArrayReader
from zarrpipe.store.cache.array import CachedArray
from zarrpipe.store.format.layout import present_path
from zarrpipe.store.read.mapped import MappedArray
from zarrpipe.store.read.page_cache import PageCache
from zarrpipe.store.read.snapshot import Snapshot

Segments = tuple[Int64Array, Int64Array]


class Unit(NamedTuple):
    """A shard, or a chunk of an array without shards: `rows` rows of `row_bytes` bytes.

    A `cached` unit is fetched into a cache.
    """

    level: Level
    rows: int
    row_bytes: int
    cached: bool


@dataclass(frozen=True)
class BatchArray:
    """An array of a batch that is copied from stores, with rows of `shape`.

    If `field` is None, it records which samples have the field `name`.
    """

    name: str
    level: Level
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    field: Field | None

    @classmethod
    def of(cls, item: Field) -> "BatchArray":
        """Array of the rows of a field."""
        return cls(item.name, item.level, item.dtype, item.shape, item)

    @classmethod
    def of_presence(cls, name: str) -> "BatchArray":
        """Array that records which samples have a field."""
        return cls(name, Level.SYSTEM, np.dtype("bool"), (), None)

    @property
    def row_bytes(self) -> int:
        """Bytes of a row."""
        return self.dtype.itemsize * math.prod(self.shape)

    @property
    def index_of(self) -> Level | None:
        """Level whose row numbers the values are; None for other values."""
        return None if self.field is None else self.field.index_of

    def path(self, snapshot: Snapshot) -> str | None:
        """Path of the array in a store; None if it has none."""
        if self.field is None:
            return present_path(self.name) if self.name in snapshot.attributes.nullable else None
        own = snapshot.schema.get(self.name)
        return None if own is None else own.path

    def reader(self, snapshot: Snapshot) -> ArrayReader | None:
        """Reader of the array of a store; None if it has none."""
        path, extent = self.path(snapshot), snapshot.extent
        return None if path is None else snapshot.array(path, extent.rows(self.level))

    def unit(self, snapshot: Snapshot) -> Unit | None:
        """Unit of the array of a store; None if it has none."""
        path, reader = self.path(snapshot), self.reader(snapshot)
        if path is None or reader is None:
            return None
        rows = snapshot.unit_rows(path)
        return Unit(self.level, rows, self.row_bytes, isinstance(reader, CachedArray))

    def translation(self, snapshot: Snapshot) -> Int32Array | None:
        """Code in the batch of each code of a store; None where codes stay as they are."""
        own = None if self.field is None else snapshot.schema.get(self.name)
        if own is None or own.categories is None or self.field is None:
            return None
        return translation(own.categories, self.field.categories or ())

    def fill(self, snapshot: Snapshot) -> Any:
        """Value in the batch for samples of a store that lacks the array."""
        return self.name in snapshot.schema if self.field is None else self.field.fill


class Source:
    """The arrays of one store that a gather reads, and the pointers of `needed` ones of `levels`.

    Raises StoreFormatError if an array has another dtype or row shape, or too few rows.
    """

    def __init__(
        self,
        snapshot: Snapshot,
        arrays: Sequence[BatchArray],
        levels: Sequence[Level],
        needed: Collection[Level],
    ) -> None:
        self._root = snapshot.root
        self._page_cache: PageCache | None = None
        readers = [array.reader(snapshot) for array in arrays]
        cached = [reader for reader in readers if isinstance(reader, CachedArray)]
        self.row_cache = snapshot.row_cache if cached else None
        if self.row_cache is not None:
            self.row_cache.open(cached)
        self._cached = [
            (reader, array.level)
            for reader, array in zip(readers, arrays, strict=True)
            if isinstance(reader, CachedArray)
        ]
        rows = [None if reader is None else reader.data for reader in readers]
        extent = snapshot.extent
        for array, values in zip(arrays, rows, strict=True):
            self._check(array, values, extent.rows(array.level))
        self._mapped = [
            (reader.data[: extent.rows(array.level)], array.level)
            for reader, array in zip(readers, arrays, strict=True)
            if isinstance(reader, MappedArray)
        ]
        self.missing = [
            (place, array.fill(snapshot))
            for place, (array, values) in enumerate(zip(arrays, rows, strict=True))
            if values is None
        ]
        """Positions of the arrays that the store lacks, and their fill values."""
        self.translations = [
            (place, table)
            for place, array in enumerate(arrays)
            if (table := array.translation(snapshot)) is not None
        ]
        """Positions of fields of strings, and the batch's code of each code of the store."""
        self._active = snapshot.active
        self._pointers = {
            level: snapshot.pointers(level.pointers)
            for level in snapshot.schema.pointer_levels
            if level in needed
        }
        self.samples = snapshot.count
        vector = [snapshot.count, _address(self._active)]
        for level in levels:
            address = _address(self._pointers.get(level))
            vector += [extent.rows(level), address, level.least]
        self._rows = rows  # keeps the arrays alive, whose addresses follow
        self.vector = np.array([*vector, *map(_address, rows)], dtype=np.int64)
        """Description of the store; see `zarrpipe.store.read.kernels`."""

    def _check(self, array: BatchArray, values: AnyArray | None, rows: int) -> None:
        """Refuse an array whose rows would be misread."""
        wanted = (array.dtype, array.shape)
        if values is not None and (
            len(values) < rows or (values.dtype, values.shape[1:]) != wanted
        ):
            raise StoreFormatError(
                f"{self._root}: the array of {array.name!r} has dtype {values.dtype} and shape "
                f"{values.shape}, expected {array.dtype} and at least {rows} rows of shape "
                f"{array.shape}: it was rewritten, or is damaged"
            )

    def read(self, segments: Callable[[Level], Segments], copy: Callable[[], None]) -> None:
        """Call `copy` when its rows are in memory, and again if they were evicted meanwhile.

        `segments` returns the starts [J] and stops [J] of the rows of a level.
        """
        if self.row_cache is None:
            copy()
            return
        if self.row_cache.read_settled([array for array, _ in self._cached], copy):
            return
        by_level = {level: segments(level) for level in {level for _, level in self._cached}}
        self.row_cache.read([(array, *by_level[level]) for array, level in self._cached], copy)

    def prefetch(self, samples: Int64Array) -> None:
        """Load samples in the background, except those that do not exist."""
        known = samples[(samples >= 0) & (samples < self.samples)]
        if self._page_cache is None:
            self._page_cache = PageCache(self._mapped)
        self._page_cache.prefetch(partial(self._segments, known))
        if self.row_cache is not None and len(known):
            wanted = [(array, *self._segments(known, level)) for array, level in self._cached]
            self.row_cache.prefetch(wanted)

    def _segments(self, samples: Int64Array, level: Level) -> Segments:
        """Starts [J] and stops [J] of the rows of samples [J] at a level."""
        rows = samples if self._active is None else self._active[samples]
        pointers = self._pointers.get(level)
        return (rows, rows + 1) if pointers is None else (pointers[rows], pointers[rows + 1])

    def outside(self, samples: Int64Array) -> IndexError:
        """Error for samples that do not exist."""
        return IndexError(
            f"samples {samples.min()} to {samples.max()} of a store of {self.samples}: {self._root}"
        )

    def damaged(self) -> StoreFormatError:
        """Error for invalid pointers."""
        names = " or ".join(level.pointers for level in self._pointers)
        return StoreFormatError(
            f"{self._root}: {names} falls, is negative or runs past the rows that there are: it "
            "is damaged"
        )


def _address(array: AnyArray | None) -> int:
    return 0 if array is None else array.ctypes.data
