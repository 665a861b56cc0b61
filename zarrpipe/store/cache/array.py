"""One cached array: its cached units, and its rows as one NumPy array."""

import math
import threading
import weakref
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import zarr

from zarrpipe.data.csr import AnyArray, Int64Array, pointers, segment_rows
from zarrpipe.errors import StoreClosedError
from zarrpipe.store.backend.array_reader import AbsentChunks, MissingChunks, OpenArray, check_rows
from zarrpipe.store.cache.shared_cache import SharedCache
from zarrpipe.store.cache.unit_file import GENERATION, ROWS, UnitFile
from zarrpipe.store.format.validate import native

_LEAST_UNIT_BYTES = 1 << 16


class RowFetcher(Protocol):
    """Fetches rows into a cache; see `RowCache`."""

    @property
    def cache(self) -> SharedCache:
        """The cache of the rows."""
        ...

    def keep(self, array: "CachedArray", rows: int) -> None:
        """Cache the first rows of an array, and protect them from eviction."""
        ...


class CachedArray:
    """An `ArrayReader` that fetches rows of a Zarr array into a cache on demand.

    A unit is a shard, a chunk of an array without shards, or enough of these for 64 KiB. Only rows
    that `commit` has announced are fetched.
    """

    def __init__(
        self,
        fetcher: RowFetcher,
        path: str,
        open_array: OpenArray,
        absent_chunks: AbsentChunks = "any",
    ) -> None:
        self.path, self._missing = path, MissingChunks(absent_chunks)
        # Weak reference: files and threads are freed by refcount, not by the garbage collector.
        self._fetcher, self._open = weakref.ref(fetcher), open_array
        self._committed = 0
        self.forget()

    def forget(self) -> None:
        """Drop the array and its files, which are opened again on the next use."""
        self._opening = threading.RLock()
        self._array: zarr.Array[Any] | None = None
        self._file: UnitFile | None = None
        self._data: AnyArray | None = None
        self._dtype: np.dtype[Any] = np.dtype("V")
        self._complete, self._kept, self._settled = 0, 0, -1
        self._settled_at: tuple[int, ...] = ()

    @property
    def data(self) -> AnyArray:
        """Allocated rows, read-only; only cached rows have valid values."""
        if self._data is None:
            self.follow()
        return self._data  # type: ignore[return-value]

    @property
    def file(self) -> UnitFile:
        """Files of the units."""
        if self._file is None:
            self.follow()
        return self._file  # type: ignore[return-value]

    @property
    def outdated(self) -> bool:
        """Whether the array has to be opened, initially or because it has grown."""
        return self._data is None or len(self._data) < self._committed

    @property
    def division(self) -> tuple[int, int]:
        """Number of rows of a unit, and of committed rows."""
        return self.file.unit_rows, self._committed

    def commit(self, rows: int) -> None:
        """Announce that the first `rows` are committed."""
        self._committed = max(self._committed, rows)

    def ensure(self, rows: int) -> None:
        """Cache the first `rows` of a small array and protect them from eviction."""
        self.commit(rows)
        if rows > self._kept:
            self._source().keep(self, rows)
            self._kept = rows

    def grow(self) -> None:
        """Extend the array to all allocated rows, without fetching uncommitted ones."""
        with self._opening:
            self._array = None
            self.follow()

    def settled(self, evictions: int) -> bool:
        """Whether all committed rows were cached when `evictions` were counted."""
        return self._settled == evictions and self._complete >= self._committed

    def settle(self, evictions: int, commits: int) -> None:
        """Update whether all rows are cached, if the counts of the cache have changed.

        `evictions` was counted before the caller fetched rows.
        """
        counts = (evictions, commits, self._committed)
        if counts == self._settled_at:
            return
        self._settled_at, self._settled = counts, -1
        file, limit = self.file, self._source().cache.limit
        if self._committed * file.row_bytes <= (limit or math.inf):
            _, absent = self.look(np.arange(-(-self._committed // file.unit_rows)))
            if not len(absent):
                self._settled, self._complete = evictions, self._committed

    def units(self, starts: Int64Array, stops: Int64Array) -> Int64Array:
        """Ascending units with rows of the segments."""
        filled = stops > starts
        if not filled.all():
            starts, stops = starts[filled], stops[filled]
        if not len(starts):
            return np.zeros(0, dtype=np.int64)
        if starts.min() < 0 or stops.max() > self._committed:
            raise IndexError(
                f"rows {starts.min()} to {stops.max()} of {self.path} were requested, and "
                f"{self._committed} are committed"
            )
        unit_rows = self.file.unit_rows
        first, last = starts // unit_rows, (stops - 1) // unit_rows
        touched = np.zeros(-(-self._committed // unit_rows), dtype=bool)
        touched[first] = touched[last] = True
        if (last - first > 1).any():
            touched[segment_rows(first, pointers(last - first + 1))] = True
        return np.flatnonzero(touched)

    def look(self, units: Int64Array) -> tuple[Int64Array, Int64Array]:
        """Generation of each unit, and the units without all of their committed rows."""
        unit_rows, table = self.file.unit_rows, self.file.table
        generations = table[units, GENERATION]  # before the rows; see UnitFile.clear
        wanted = np.minimum(unit_rows, self._committed - units * unit_rows)
        return generations, units[table[units, ROWS] < wanted]

    def committed_in(self, unit: int) -> int:
        """Number of committed rows of a unit."""
        unit_rows = self.file.unit_rows
        return int(min(unit_rows, self._committed - unit * unit_rows))

    def read(self, start: int, stop: int) -> AnyArray:
        """Fetch and decode rows up to `stop` or the end of the array."""
        array = self._array
        if array is None or array.shape[0] < self._committed:
            array = self._reopened()
        values = np.asarray(array[start : min(stop, array.shape[0])], dtype=self._dtype)
        self._missing.refuse(array, start, values[: max(self._committed - start, 0)])
        return values

    def named(self, units: Sequence[int]) -> str:
        """Name of consecutive units, for an error message."""
        start, array = units[0] * self.file.unit_rows, self._array
        stop = min((units[-1] + 1) * self.file.unit_rows, self._committed)
        place = self.path if array is None else str(array.store_path)
        return f"rows {start} to {stop} (unit {units[0]} on) of {place}"

    def follow(self) -> None:
        """Open the array if it is not open or has grown, and allocate its rows."""
        with self._opening:
            if self._data is None or self._array is None or self.outdated:
                self._allocate(self._reopened())

    def _source(self) -> RowFetcher:
        fetcher = self._fetcher()
        if fetcher is None:
            raise StoreClosedError(f"the cache of {self.path} was closed: open the store again")
        return fetcher

    def _reopened(self) -> zarr.Array[Any]:
        array = self._open()
        check_rows(array.store_path, array.shape[0], self._committed)
        self._array, self._dtype = array, native(np.dtype(array.dtype))
        return array

    def _allocate(self, array: zarr.Array[Any]) -> None:
        row_bytes = self._dtype.itemsize * math.prod(array.shape[1:])
        stored_rows = int((array.shards or array.chunks)[0])
        stored_bytes = max(stored_rows * row_bytes, 1)
        unit_rows = stored_rows * max(1, -(-_LEAST_UNIT_BYTES // stored_bytes))
        cache = self._source().cache
        file = cache.file(self.path, unit_rows, row_bytes)
        cache.allocate(file, array.shape[0])
        self._data = file.view(array.shape[0], array.shape[1:], self._dtype)
        self._file = file
