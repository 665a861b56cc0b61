"""Pointers, masks and ids that cannot be mapped, kept in memory."""

from typing import Any

import numpy as np
import zarr

from zarrpipe.data.csr import AnyArray
from zarrpipe.errors import StoreFormatError
from zarrpipe.store.backend.array_reader import AbsentChunks, MissingChunks, OpenArray, check_rows
from zarrpipe.store.format.validate import native, translate_zarr_errors

_LOADED_AT_ONCE = 1 << 20


class LoadedArray:
    """Rows of any Zarr array, read through zarr-python and kept in memory.

    With `padded`, rows after the end of the array read as the fill value.
    """

    def __init__(
        self,
        open_array: OpenArray,
        array: zarr.Array[Any],
        absent_chunks: AbsentChunks = "any",
        *,
        padded: bool = False,
    ) -> None:
        self._missing, self._padded = MissingChunks(absent_chunks), padded
        self._open, self._array = open_array, array
        self._buffer = np.empty((0, *array.shape[1:]), dtype=native(np.dtype(array.dtype)))
        self._rows = 0

    @property
    def data(self) -> AnyArray:
        """Loaded rows; see `ArrayReader.data`."""
        view = self._buffer[: self._rows]
        view.flags.writeable = False
        return view

    @property
    def stored(self) -> int:
        """Rows that the array had when it was opened last."""
        return int(self._array.shape[0])

    def ensure(self, rows: int) -> None:
        """Load further rows up to `rows`; see `ArrayReader.ensure`."""
        if rows <= self._rows:
            return
        if rows > self._array.shape[0]:
            self._array = self._open()
        array = self._array
        if not self._padded:
            check_rows(array.store_path, array.shape[0], rows)
        before = self._rows
        self._load(array, before, rows)
        try:
            self._missing.refuse(array, before, self._buffer[before : min(rows, array.shape[0])])
        except StoreFormatError:
            self._rows = before
            raise

    def grow(self) -> None:
        """Load rows that are new or were not committed; see `ArrayReader.grow`.

        Loading stops after the last non-zero row, since the shape may be far ahead, or absurd.
        Raises StoreFormatError if the last committed row has changed.
        """
        array = self._array = self._open()
        first = stop = int(np.count_nonzero(self._buffer[: self._rows]))
        last = self._buffer[first : first + 1].copy()
        while stop < array.shape[0]:
            start, stop = stop, min(array.shape[0], max(2 * stop, stop + _LOADED_AT_ONCE))
            self._load(array, start, stop)
            if not self._buffer[stop - 1]:
                break
        if first and self._buffer[first] != last:
            self._buffer[first : self._rows] = 0
            self._buffer[first] = last[0]
            raise StoreFormatError(
                f"{array.store_path} was emptied or rewritten since it was opened: open the store "
                "again to read what it has now"
            )
        zeros = np.flatnonzero(self._buffer[max(first, 1) : self._rows] == 0)
        if len(zeros):  # chunks are read concurrently, so a later one may be newer
            self._buffer[max(first, 1) + zeros[0] : self._rows] = 0

    def _load(self, array: zarr.Array[Any], start: int, stop: int) -> None:
        with translate_zarr_errors(f"rows {start} to {stop} of {array.store_path}"):
            if stop > len(self._buffer):
                rows = max(stop, 2 * len(self._buffer))
                larger = np.empty((rows, *array.shape[1:]), self._buffer.dtype)
                larger[:start] = self._buffer[:start]
                self._buffer = larger
            end = max(start, min(stop, array.shape[0])) if self._padded else stop
            if end > start:
                self._buffer[start:end] = array[start:end]
            self._buffer[end:stop] = array.fill_value
        self._rows = stop
