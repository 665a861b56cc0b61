"""A plain local array as one NumPy array: its chunk files, mapped one after another.

A chunk file is checked before it is mapped and again at a refresh: the last chunk of an array each
time, the others a few at a time. If a file is truncated in between, an access to its rows stops the
process with SIGBUS, which no library can turn into an exception. zarrpipe never shortens a chunk
file.
"""

import math
import mmap
import os
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import zarr

from zarrpipe.data.csr import AnyArray
from zarrpipe.errors import StoreFormatError
from zarrpipe.store.backend.array_reader import AbsentChunks, OpenArray, check_rows
from zarrpipe.store.backend.local_store import open_regular
from zarrpipe.store.backend.mapped_memory import AddressRange, maps_left
from zarrpipe.store.format.layout import is_plain, resized_by_another

_MOST_OPEN = 8
_LOOKED_AT = 3  # chunks besides the last one, at each refresh
_MOST_FILES = 1 << 14  # a process may have 65,530 maps
_LARGEST_FILLED = 1 << 30
_RESERVE_FACTOR = 4
_LEAST_RESERVE = 1 << 26


def can_be_mapped(array: zarr.Array[Any], directory: Path | None) -> bool:
    """Whether an array can be mapped; `directory` is that of the array, if it is local."""
    few = -(-array.shape[0] // max(array.chunks[0], 1)) <= min(_MOST_FILES, maps_left())
    return directory is not None and few and is_plain(array) and MappedArray.fits(array)


class MappedArray:
    """Chunk files of a plain local array, mapped one after another and read-only.

    Arrays from `data` stay valid when the mapping moves or files are unlinked. An absent chunk file
    reads as the fill value; `absent_chunks` limits which ones may be absent. `directory` is that of
    the array. `reopen` opens the array again to read its shape; without it, the shape is not
    checked.
    """

    def __init__(
        self,
        array: zarr.Array[Any],
        directory: Path,
        reopen: OpenArray | None = None,
        *,
        absent_chunks: AbsentChunks = "any",
    ) -> None:
        self._directory = directory
        self._path_parts = f"{directory}{os.sep}c{os.sep}", f"{os.sep}0" * (array.ndim - 1)
        self._reopen, self._absent_chunks = reopen, absent_chunks
        self._allocated = int(array.shape[0])
        self._dtype, self._row_shape = np.dtype(array.dtype), array.shape[1:]
        self._chunk_rows = int(array.chunks[0])
        self._chunk_bytes = self._chunk_rows * self._dtype.itemsize * math.prod(self._row_shape)
        self._fill = array.fill_value
        self._range = AddressRange(self._reserve(1))
        self._inodes: list[int | None] = []
        self._holes: set[int] = set()
        self._next = 0
        self._filled: int | None = None
        self._data = self._view()

    @staticmethod
    def fits(array: zarr.Array[Any]) -> bool:
        """Whether each chunk is a whole number of pages."""
        row_bytes = np.dtype(array.dtype).itemsize * math.prod(array.shape[1:])
        chunk_bytes = int(array.chunks[0]) * row_bytes
        return chunk_bytes > 0 and chunk_bytes % mmap.ALLOCATIONGRANULARITY == 0

    @property
    def data(self) -> AnyArray:
        """Rows of the mapped chunks; see `ArrayReader.data`."""
        return self._data

    @property
    def first_file(self) -> int | None:
        """Inode of the first chunk file, not reused by the system while the file is mapped."""
        return self._inodes[0] if self._inodes else None

    def drop_pages(self) -> None:
        """Drop the accessed pages from this process; the page cache keeps them."""
        self._range.drop_pages(len(self._inodes) * self._chunk_bytes)

    def in_file(self) -> "PointerFile":
        """Files of a one-dimensional array, for access to rows that may not be committed."""
        return PointerFile(self._data, self._inodes, self._path, self._fill)

    def within(self, rows: int) -> int:
        """Number of the first `rows` that are within the shape of the array."""
        if rows > self._allocated and self._reopen is not None:
            array = self._reopen()
            self._allocated = int(array.shape[0])
            if resized_by_another(array):  # which may leave out chunks of fill values
                self._absent_chunks = "any"
        return rows if self._reopen is None else min(rows, self._allocated)

    def ensure(self, rows: int) -> None:
        """Map the chunks of the first `rows`; see `ArrayReader.ensure`."""
        chunks = -(-rows // self._chunk_rows)
        check_rows(self._directory, self.within(rows), rows)
        if chunks <= len(self._inodes) and not self._holes:
            return
        self._fill_holes()
        if chunks > len(self._inodes):
            self._room_for(chunks)
            new = [self._opened(index) for index in range(len(self._inodes), chunks)]
            self._check_holes([*self._inodes, *new], rows)
            self._inodes += new
            self._data = self._view()

    def grow(self) -> None:
        """Map further chunk files as long as they exist; see `ArrayReader.grow`."""
        before = len(self._inodes)
        self._fill_holes()
        while os.path.lexists(self._path(len(self._inodes))):
            self._room_for(len(self._inodes) + 1)
            inode = self._map(len(self._inodes))
            if inode is None:
                break
            self._inodes.append(inode)
        if len(self._inodes) != before:
            self._data = self._view()

    def verify(self) -> None:
        """Check mapped files again, and map those that were replaced.

        Zarr replaces a chunk file when it writes to it. A removed file stays mapped. Each call
        checks the last chunk, and a few of the others in turn. Raises StoreFormatError if a file
        has another size; its rows must not be accessed any more.
        """
        last = len(self._inodes) - 1
        if last < 0:
            return
        others = min(last, _LOOKED_AT)
        for index in (*((self._next + step) % last for step in range(others)), last):
            inode = self._inodes[index]
            if inode is None:
                continue
            try:
                found = os.stat(self._path(index))  # noqa: PTH116  in less time
            except FileNotFoundError:
                continue
            if found.st_ino != inode or found.st_size != self._chunk_bytes:
                self._inodes[index] = self._map(index) or inode
        self._next = (self._next + others) % max(last, 1)

    def _path(self, index: int) -> str:
        """Same as `chunk_file` of the layout, but faster."""
        before, after = self._path_parts
        return f"{before}{index}{after}"

    def _reserve(self, chunks: int) -> int:
        return max(_RESERVE_FACTOR * chunks * self._chunk_bytes, _LEAST_RESERVE)

    def _view(self) -> AnyArray:
        mapped = np.asarray(self._range)[: len(self._inodes) * self._chunk_bytes]
        return mapped.view(self._dtype).reshape(-1, *self._row_shape)

    def _room_for(self, chunks: int) -> None:
        """Move to a larger address range if the chunks exceed the reserved one."""
        if chunks * self._chunk_bytes <= self._range.size:
            return
        before = self._range
        self._range = AddressRange(self._reserve(chunks))
        try:
            self._inodes = [self._opened(index) for index in range(len(self._inodes))]
        except BaseException:
            self._range = before
            raise

    def _check_holes(self, inodes: Sequence[int | None], rows: int) -> None:
        """Refuse an absent chunk that follows an existing one or is only partly committed."""
        if self._absent_chunks != "leading":
            return
        there = [index for index, inode in enumerate(inodes) if inode is not None]
        for index, inode in enumerate(inodes):
            last = index == len(inodes) - 1 and rows % self._chunk_rows > 0
            if inode is None and (last or (there and index > there[0])):
                raise self._lacks(index)

    def _opened(self, index: int) -> int | None:
        """Map a chunk file, or fill values if it is absent, and return its inode."""
        inode = self._map(index)
        if inode is None:
            if self._absent_chunks == "none" or (
                index < len(self._inodes) and self._inodes[index] is not None
            ):
                raise self._lacks(index)
            self._map_fill(index)
        return inode

    def _map(self, index: int) -> int | None:
        """Map a chunk file and return its inode, or None if it is absent."""
        path = self._path(index)
        try:
            descriptor = open_regular(path)
        except FileNotFoundError:
            return None
        try:
            found = os.fstat(descriptor)
            if found.st_size != self._chunk_bytes:
                raise StoreFormatError(
                    f"{path} has {found.st_size} bytes, expected {self._chunk_bytes}: the file was "
                    "truncated or belongs to another array"
                )
            self._place(index, descriptor)
        finally:
            os.close(descriptor)
        return found.st_ino

    def _place(self, index: int, descriptor: int) -> None:
        self._range.map(index * self._chunk_bytes, self._chunk_bytes, descriptor)

    def _map_fill(self, index: int) -> None:
        """Map fill values for an absent chunk."""
        fill = np.full(1, self._fill, dtype=self._dtype)
        if not fill.view(np.uint8).any():
            self._place(index, -1)
        elif self._chunk_bytes > _LARGEST_FILLED:
            raise self._lacks(index)
        else:
            if self._filled is None:
                self._filled = self._filled_chunk()
                weakref.finalize(self, os.close, self._filled)
            self._place(index, self._filled)
        self._holes.add(index)

    def _lacks(self, index: int) -> StoreFormatError:
        return StoreFormatError(
            f"{self._path(index)} is not there, and should hold {self._chunk_bytes} bytes of rows "
            "that are committed: it was removed, the store was not copied whole, or it was copied "
            "with Zarr, which needs write_empty_chunks=True for that"
        )

    def _filled_chunk(self) -> int:
        """Descriptor of an unnamed file with a chunk of fill values, which all holes share."""
        descriptor = os.memfd_create("zarrpipe-fill") if hasattr(os, "memfd_create") else _unnamed()
        values = np.full(self._chunk_bytes // self._dtype.itemsize, self._fill, self._dtype)
        with open(descriptor, "wb", closefd=False) as file:
            file.write(values.view(np.uint8).data)
        return descriptor

    def _fill_holes(self) -> None:
        for index in sorted(self._holes):
            self._inodes[index] = inode = self._map(index)
            if inode is not None:
                self._holes.discard(index)


class PointerFile:
    """A mapped one-dimensional array, read from its files instead of through the map.

    On tmpfs, an access to a hole through a map allocates a page, and stops the process with SIGBUS
    if the file system is full. Reading the file allocates nothing. `inodes` are those of the chunk
    files, None for absent ones, which read as `fill`; `path` returns the path of a chunk file.
    """

    def __init__(
        self,
        data: AnyArray,
        inodes: Sequence[int | None],
        path: Callable[[int], str],
        fill: Any,
    ) -> None:
        self._data, self._inodes, self._path, self._fill = data, inodes, path, fill
        self._opened: dict[int, int | None] = {}

    @contextmanager
    def opened(self) -> Iterator["PointerFile"]:
        """Keep the last few files open until the end of the block."""
        try:
            yield self
        finally:
            self._close_all_but(0)

    def _close_all_but(self, last: int) -> None:
        while len(self._opened) > last:
            descriptor = self._opened.pop(next(iter(self._opened)))
            if descriptor is not None:
                os.close(descriptor)

    def __len__(self) -> int:
        return len(self._data)

    def __getitem__(self, key: int | slice) -> Any:
        if not isinstance(key, slice):
            return self._rows(key, key + 1)[0]
        start, stop, _ = key.indices(len(self._data))
        if start >= stop:
            return self._data[:0]
        rows = len(self._data) // len(self._inodes)
        cuts = [start, *range((start // rows + 1) * rows, stop, rows), stop]
        pieces = [self._rows(*piece) for piece in pairwise(cuts)]
        return pieces[0] if len(pieces) == 1 else np.concatenate(pieces)

    def _rows(self, start: int, stop: int) -> AnyArray:
        """Rows of one chunk."""
        index, place = divmod(start, len(self._data) // len(self._inodes))
        if self._inodes[index] is None:
            return np.full(stop - start, self._fill, self._data.dtype)
        descriptor = self._open(index)
        if descriptor is None:
            return self._data[start:stop]
        size, content = self._data.itemsize, b""
        while left := (stop - start) * size - len(content):  # a read may return less
            more = os.pread(descriptor, left, place * size + len(content))
            if not more:
                raise StoreFormatError(f"{self._path(index)} was truncated")
            content += more
        return np.frombuffer(content, self._data.dtype)

    def _open(self, index: int) -> int | None:
        """Open a chunk file; None if it is not the mapped one any more."""
        if index not in self._opened:
            self._close_all_but(_MOST_OPEN - 1)
            self._opened[index] = None
            try:
                descriptor = open_regular(self._path(index))
            except FileNotFoundError:
                return None
            if os.fstat(descriptor).st_ino == self._inodes[index]:
                self._opened[index] = descriptor
            else:
                os.close(descriptor)
        return self._opened[index]


def _unnamed() -> int:
    """Descriptor of a file without a name, for systems without memfd."""
    import tempfile  # noqa: PLC0415  rarely needed

    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())
