"""Write the rows of one array: by position into plain local chunk files, or through Zarr.

Both keep the shape of the array ahead of its rows by whole chunks, so that few appends write
metadata; `trim` makes the shape exact. Rows may be overwritten, but they never move.
"""

from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import zarr

from zarrpipe.compat import sync
from zarrpipe.data.csr import AnyArray
from zarrpipe.store.backend.array_reader import chunk_place, lost_chunk
from zarrpipe.store.format.layout import (
    is_dense,
    is_plain,
    made_dense,
    record_rows,
    resized_by_another,
)
from zarrpipe.store.format.validate import translate_zarr_errors
from zarrpipe.store.write.plain_array_writer import PlainArrayWriter


class ArrayWriter(Protocol):
    """Writer of the rows of one array."""

    @property
    def chunk_rows(self) -> int:
        """Rows of a chunk."""
        ...

    @property
    def rows(self) -> int:
        """Allocated rows, which may be ahead of those that were written."""
        ...

    @property
    def fill(self) -> Any:
        """Value of rows that were never written."""
        ...

    def write(self, start: int, values: AnyArray) -> None:
        """Write `values` [n, ...], already of the array's dtype, from row `start` on."""
        ...

    def commit(self, start: int, values: AnyArray) -> None:
        """Write rows like `write`, but so that row `start` appears after all others."""
        ...

    def reserve(self, rows: int) -> None:
        """Extend the shape beyond `rows` by whole chunks, without writing any."""
        ...

    def read(self, start: int, stop: int) -> AnyArray:
        """Rows from `start` to `stop`, whether committed or not."""
        ...

    def require(self, rows: int) -> None:
        """Raise StoreFormatError if a dense array has lost the chunk of row ``rows - 1``."""
        ...

    def take_over(self, rows: int) -> None:
        """Store chunks of the first `rows` that another writer, which resized it, left out."""
        ...

    def clear_from(self, row: int) -> None:
        """Set rows from `row` on to zero, the last of them first."""
        ...

    def clear_all(self) -> None:
        """Remove all rows, the first chunk first."""
        ...

    def trim(self, rows: int) -> None:
        """Set the shape to exactly `rows`."""
        ...

    def sync(self) -> None:
        """Sync written rows, if the writer is durable."""
        ...

    def close(self) -> None:
        """Close files."""
        ...


def open_array_writer(
    array: zarr.Array[Any], directory: Path | None, *, durable: bool = False
) -> ArrayWriter:
    """Open the writer of an array; `directory` is that of the array, if it is local.

    A durable writer syncs rows at `sync`, and any other change before the call returns. For an
    array that is written through Zarr, the durability is up to its store.
    """
    if directory is not None and is_plain(array):
        return PlainArrayWriter(array, directory, durable=durable)
    return ZarrArrayWriter(array)


class ZarrArrayWriter:
    """Writes rows through zarr-python: compressed, sharded, in memory or remote."""

    def __init__(self, array: zarr.Array[Any]) -> None:
        self._dense, self._resized = is_dense(array), resized_by_another(array)
        if made_dense(array):  # readers treat an absent chunk as data loss, so write empty ones
            array = array.with_config({"write_empty_chunks": True})
        self._array = array
        self._unit = int((array.shards or array.chunks)[0])

    @property
    def chunk_rows(self) -> int:
        """Rows of a stored object: a chunk or a shard."""
        return self._unit

    @property
    def rows(self) -> int:
        """Allocated rows; see `ArrayWriter.rows`."""
        return int(self._array.shape[0])

    @property
    def fill(self) -> Any:
        """Value of rows that were never written."""
        return self._array.fill_value

    def write(self, start: int, values: AnyArray) -> None:
        """Write rows; see `ArrayWriter.write`."""
        for first, last in self._reserved(start, len(values)):
            self._write_chunk(first, values[first - start : last - start])

    def commit(self, start: int, values: AnyArray) -> None:
        """Write the first chunk last; see `ArrayWriter.commit`."""
        for first, last in reversed(self._reserved(start, len(values))):
            self._write_chunk(first, values[first - start : last - start])

    def _reserved(self, start: int, count: int) -> list[tuple[int, int]]:
        """Reserve rows, and split them at the borders of chunks."""
        stop, unit = start + count, self._unit
        self.reserve(stop)
        borders = [start, *range(start - start % unit + unit, stop, unit), stop]
        return list(pairwise(borders)) if count else []

    def _write_chunk(self, start: int, values: AnyArray) -> None:
        with translate_zarr_errors(
            self._array.store_path
        ):  # a chunk that is partly written is decoded first
            self._array[start : start + len(values)] = values

    def reserve(self, rows: int) -> None:
        """Extend the shape by whole chunks; see `ArrayWriter.reserve`."""
        if rows > self._array.shape[0]:
            self._reshape(-(-rows // self._unit) * self._unit)

    def read(self, start: int, stop: int) -> AnyArray:
        """Rows from `start` to `stop`; see `ArrayWriter.read`."""
        with translate_zarr_errors(self._array.store_path):
            return np.asarray(self._array[start:stop])

    def require(self, rows: int) -> None:
        """Refuse a lost chunk of committed rows; see `ArrayWriter.require`."""
        index = (rows - 1) // self._unit
        place = chunk_place(self._array, index)
        if self._dense and not sync(place.exists()):
            raise lost_chunk(place, index * self._unit, rows)

    def take_over(self, rows: int) -> None:
        """Store chunks that another writer left out; see `ArrayWriter.take_over`."""
        if not self._resized:
            return
        dense, unit = made_dense(self._array), self._unit
        for start in range(0, rows, unit) if dense else ():
            if not sync(chunk_place(self._array, start // unit).exists()):
                self._array[start : min(start + unit, rows)] = self.fill
        self._reshape(self.rows)
        self._resized, self._dense = False, dense

    def clear_from(self, row: int) -> None:
        """Set rows from `row` on to zero; see `ArrayWriter.clear_from`."""
        if row < self._array.shape[0]:
            with translate_zarr_errors(self._array.store_path):
                self._array[row:] = np.zeros((), dtype=self._array.dtype)

    def clear_all(self) -> None:
        """Remove all rows, the first chunk first."""
        if self._array.shape[0]:
            self._array[: self._unit] = np.zeros((), dtype=self._array.dtype)
            self.trim(0)

    def trim(self, rows: int) -> None:
        """Set the shape to exactly `rows`."""
        if self._array.shape[0] != rows:
            self._reshape(rows)

    def _reshape(self, rows: int) -> None:
        record_rows(self._array.metadata.attributes, rows)  # zarr writes one document
        self._array.resize((rows, *self._array.shape[1:]))

    def sync(self) -> None:
        """Do nothing, since a durable store syncs every write."""

    def close(self) -> None:
        """Do nothing, since no file is open."""
