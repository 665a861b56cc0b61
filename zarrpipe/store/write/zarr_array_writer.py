"""Writing the rows of one array through zarr-python; `columns` says what a column is."""

from typing import Any

import numpy as np
import zarr

from zarrpipe.compat import sync
from zarrpipe.data.csr import AnyArray
from zarrpipe.store.backend.missing import chunk_place, lost_chunk
from zarrpipe.store.format.layout import is_dense
from zarrpipe.store.format.validate import translate_zarr_errors


class ZarrArrayWriter:
    """Rows written through zarr-python: compressed, sharded, in memory or far away."""

    def __init__(self, array: zarr.Array[Any]) -> None:
        self._dense = is_dense(array)
        if self._dense:  # of which a reader misses what is not there
            array = array.with_config({"write_empty_chunks": True})
        self._array = array
        self._unit = int((array.shards or array.chunks)[0])

    @property
    def chunk_rows(self) -> int:
        """Rows of what is stored as one object: a chunk, or a shard of them."""
        return self._unit

    @property
    def fill(self) -> Any:
        """What rows hold that were never written."""
        return self._array.fill_value

    def write(self, start: int, values: AnyArray) -> None:
        """Write rows; see `ArrayWriter.write`."""
        stop = start + len(values)
        self.reserve(stop)
        row = start
        while row < stop:  # one after the other, so that a kill leaves a prefix
            end = min(stop, row - row % self._unit + self._unit)
            with translate_zarr_errors(
                self._array.store_path
            ):  # a chunk that is there in part is decoded first
                self._array[row:end] = values[row - start : end - start]
            row = end

    def reserve(self, rows: int) -> None:
        """Let the shape run ahead; see `ArrayWriter.reserve`."""
        if rows > self._array.shape[0]:
            self._array.resize((-(-rows // self._unit) * self._unit, *self._array.shape[1:]))

    def read(self, start: int, stop: int) -> AnyArray:
        """Rows as they are; see `ArrayWriter.read`."""
        with translate_zarr_errors(self._array.store_path):
            return np.asarray(self._array[start:stop])

    def require(self, rows: int) -> None:
        """Refuse a chunk of committed rows that is not there; see `ArrayWriter.require`."""
        index = (rows - 1) // self._unit
        place = chunk_place(self._array, index)
        if self._dense and not sync(place.exists()):
            raise lost_chunk(place, index * self._unit, rows)

    def clear_from(self, row: int) -> None:
        """Make rows from `row` on read as zeros; see `ArrayWriter.clear_from`."""
        if row < self._array.shape[0]:
            with translate_zarr_errors(self._array.store_path):
                self._array[row:] = np.zeros((), dtype=self._array.dtype)

    def clear_all(self) -> None:
        """Drop every row, the first chunk first."""
        if self._array.shape[0]:
            self._array[: self._unit] = np.zeros((), dtype=self._array.dtype)
            self.trim(0)

    def trim(self, rows: int) -> None:
        """Make the shape exact."""
        if self._array.shape[0] != rows:
            self._array.resize((rows, *self._array.shape[1:]))

    def sync(self) -> None:
        """A durable store has what was written on the disk already."""

    def close(self) -> None:
        """Nothing is held open."""
