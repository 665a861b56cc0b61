"""Reading: every array of a store as one flat NumPy array that grows in place.

A plain local array is mapped: its chunk files stand back to back in one reserved address range,
so that the page cache is the array. Pointers, masks and ids of other stores are loaded through
zarr-python; their fields are staged. What a reader does with any of them is the same gather.
"""

import mmap
import os
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import zarr

from zarrpipe.data.csr import AnyArray
from zarrpipe.errors import StoreFormatError
from zarrpipe.store.addresses import AddressRange
from zarrpipe.store.layout import chunk_file, is_plain

_RESERVE_FACTOR = 4
_LEAST_RESERVE = 1 << 26


class FlatArray(Protocol):
    """Rows of one array as one NumPy array."""

    @property
    def data(self) -> AnyArray:
        """Read-only array of the rows that are at hand."""
        ...

    def ensure(self, rows: int) -> None:
        """Bring at least the first `rows` to hand; they are committed."""
        ...

    def grow(self) -> None:
        """Bring to hand what is allocated, committed or not, as it is now."""
        ...


def can_be_mapped(array: zarr.Array[Any], directory: Path | None) -> bool:
    """Whether the chunk files of an array are its rows; `directory` is its own if it is local."""
    return directory is not None and is_plain(array) and MappedArray.fits(array)


class MappedArray:
    """Chunk files of a plain local array, mapped back to back and read only.

    Arrays that were taken from `data` stay valid when the mapping moves or the files are
    unlinked. A chunk file that is not there reads as the fill value.
    """

    def __init__(self, array: zarr.Array[Any], directory: Path) -> None:
        self._directory, self._ndim = directory, array.ndim
        self._dtype, self._row_shape = np.dtype(array.dtype), array.shape[1:]
        self._chunk_rows = int(array.chunks[0])
        self._row_bytes = self._dtype.itemsize * int(np.prod(self._row_shape, dtype=np.int64))
        self._chunk_bytes = self._chunk_rows * self._row_bytes
        self._fill = array.fill_value
        self._range = AddressRange(self._reserve(1))
        self._chunks = 0
        self._holes: set[int] = set()
        self._filled: int | None = None
        self._data = self._view()

    @staticmethod
    def fits(array: zarr.Array[Any]) -> bool:
        """Whether each chunk is a whole number of pages."""
        row_items = int(np.prod(array.shape[1:], dtype=np.int64))
        chunk_bytes = int(array.chunks[0]) * np.dtype(array.dtype).itemsize * row_items
        return chunk_bytes > 0 and chunk_bytes % mmap.ALLOCATIONGRANULARITY == 0

    @property
    def data(self) -> AnyArray:
        """Rows of the mapped chunks; see `FlatArray.data`."""
        return self._data

    def leave(self) -> None:
        """Take pages out of this process that it has touched; the page cache keeps them."""
        self._range.leave(self._chunks * self._chunk_bytes)

    def ensure(self, rows: int) -> None:
        """Map the chunks of the first `rows`; see `FlatArray.ensure`."""
        chunks = -(-rows // self._chunk_rows)
        if chunks <= self._chunks and not self._holes:
            return
        self._fill_holes()
        if chunks > self._chunks:
            self._room_for(chunks)
            for index in range(self._chunks, chunks):
                if not self._map(index):
                    self._map_fill(index)
            self._chunks = chunks
            self._data = self._view()

    def grow(self) -> None:
        """Map further chunk files as long as there are; see `FlatArray.grow`."""
        before = self._chunks
        self._fill_holes()
        while self._path(self._chunks).exists():
            self._room_for(self._chunks + 1)
            if not self._map(self._chunks):
                break
            self._chunks += 1
        if self._chunks != before:
            self._data = self._view()

    def _path(self, index: int) -> Path:
        return chunk_file(self._directory, index, self._ndim)

    def _reserve(self, chunks: int) -> int:
        return max(_RESERVE_FACTOR * chunks * self._chunk_bytes, _LEAST_RESERVE)

    def _view(self) -> AnyArray:
        flat = np.asarray(self._range)[: self._chunks * self._chunk_bytes]
        return flat.view(self._dtype).reshape(-1, *self._row_shape)

    def _room_for(self, chunks: int) -> None:
        """Move to a larger range when the one that is reserved would be outgrown."""
        if chunks * self._chunk_bytes <= self._range.size:
            return
        self._range = AddressRange(self._reserve(chunks))
        for index in range(self._chunks):
            if not self._map(index):
                self._map_fill(index)

    def _map(self, index: int) -> bool:
        """Map a chunk file; False if it is not there."""
        path = self._path(index)
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return False
        try:
            size = os.fstat(descriptor).st_size
            if size != self._chunk_bytes:
                raise StoreFormatError(
                    f"{path} has {size} bytes, expected {self._chunk_bytes}: the file was "
                    "truncated or belongs to another array"
                )
            self._place(index, descriptor)
        finally:
            os.close(descriptor)
        return True

    def _place(self, index: int, descriptor: int) -> None:
        self._range.map(index * self._chunk_bytes, self._chunk_bytes, descriptor)

    def _map_fill(self, index: int) -> None:
        """Let a chunk that is not there read as the fill value."""
        self._holes.add(index)
        fill = np.full(1, self._fill, dtype=self._dtype)
        if not fill.view(np.uint8).any():
            self._place(index, -1)
            return
        if self._filled is None:
            self._filled = self._filled_chunk()
            weakref.finalize(self, os.close, self._filled)
        self._place(index, self._filled)

    def _filled_chunk(self) -> int:
        """Descriptor of an unnamed file with a chunk of fill, which all holes share."""
        descriptor = os.memfd_create("zarrpipe-fill") if hasattr(os, "memfd_create") else _unnamed()
        values = np.full(self._chunk_bytes // self._dtype.itemsize, self._fill, self._dtype)
        with open(descriptor, "wb", closefd=False) as file:
            file.write(values.view(np.uint8).data)
        return descriptor

    def _fill_holes(self) -> None:
        self._holes = {index for index in self._holes if not self._map(index)}


class LoadedArray:
    """Rows of any Zarr array, read through zarr-python and kept in memory."""

    def __init__(self, open_array: Callable[[], zarr.Array[Any]], array: zarr.Array[Any]) -> None:
        self._open, self._array = open_array, array
        self._buffer = np.empty((0, *array.shape[1:]), dtype=array.dtype)
        self._rows = 0

    @property
    def data(self) -> AnyArray:
        """Rows that were loaded; see `FlatArray.data`."""
        view = self._buffer[: self._rows]
        view.flags.writeable = False
        return view

    def ensure(self, rows: int) -> None:
        """Load further rows up to `rows`; see `FlatArray.ensure`."""
        if rows <= self._rows:
            return
        if rows > self._array.shape[0]:
            self._array = self._open()
        array = self._array
        if rows > array.shape[0]:
            raise StoreFormatError(
                f"{array.store_path} has {array.shape[0]} rows, the pointers say {rows}: "
                "the array was cut or belongs to another store"
            )
        self._load(array, self._rows, rows)

    def grow(self) -> None:
        """Load again what is not yet committed, and what is new; see `FlatArray.grow`."""
        array = self._array = self._open()
        first = int(np.count_nonzero(self._buffer[: self._rows]))
        self._load(array, first, array.shape[0])
        zeros = np.flatnonzero(self._buffer[max(first, 1) : self._rows] == 0)
        if len(zeros):  # chunks are read side by side: a later one may be of a later moment
            self._buffer[max(first, 1) + zeros[0] : self._rows] = 0

    def _load(self, array: zarr.Array[Any], start: int, stop: int) -> None:
        if stop > len(self._buffer):
            larger = np.empty((max(stop, 2 * len(self._buffer)), *array.shape[1:]), array.dtype)
            larger[:start] = self._buffer[:start]
            self._buffer = larger
        if stop > start:
            self._buffer[start:stop] = array[start:stop]
        self._rows = stop


def _unnamed() -> int:
    """Descriptor of a file without a name, where the system has no memfd."""
    import tempfile  # noqa: PLC0415  rarely needed

    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())
