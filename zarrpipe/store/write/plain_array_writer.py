"""Write the rows of an uncompressed array by position into its chunk files."""

import json
import math
import os
from io import RawIOBase
from pathlib import Path
from typing import Any

import numpy as np
import zarr

from zarrpipe.data.csr import AnyArray
from zarrpipe.errors import StoreFormatError
from zarrpipe.store.backend import files
from zarrpipe.store.backend.array_reader import lost_chunk
from zarrpipe.store.format.layout import (
    chunk_file,
    is_dense,
    made_dense,
    record_rows,
    resized_by_another,
)

_BLOCK = 1 << 20


class PlainArrayWriter:
    """Writes rows by position into chunk files of full size.

    A new chunk file is sparse and appears under its name only at its full size, so that readers
    find only valid chunks. Its holes read as zeros.
    """

    def __init__(self, array: zarr.Array[Any], directory: Path, *, durable: bool = False) -> None:
        self._directory, self._durable = directory, durable
        self._shape = list(array.shape)
        self._chunk_rows = int(array.chunks[0])
        self._dtype = np.dtype(array.dtype)
        row_items = int(np.prod(array.shape[1:], dtype=np.int64))
        self._row_bytes = self._dtype.itemsize * row_items
        self._fill, self._dense = array.fill_value, is_dense(array)
        self._resized, self._made_dense = resized_by_another(array), made_dense(array)
        self._open: tuple[int, int] | None = None
        self._unsynced = False

    @property
    def chunk_rows(self) -> int:
        """Rows of a chunk."""
        return self._chunk_rows

    @property
    def rows(self) -> int:
        """Allocated rows; see `ArrayWriter.rows`."""
        return int(self._shape[0])

    @property
    def fill(self) -> Any:
        """Value of rows that were never written."""
        return self._fill

    def write(self, start: int, values: AnyArray) -> None:
        """Write rows; see `ArrayWriter.write`."""
        stop = start + len(values)
        if stop > self._shape[0]:
            self.reserve(stop)
        if not values.size:
            return
        values = np.ascontiguousarray(values)
        self._unsynced = True
        if self._open is not None:  # usually, all rows are in the open chunk
            index, descriptor = self._open
            first = start - index * self._chunk_rows
            if first >= 0 and first + len(values) <= self._chunk_rows:
                files.write_at(descriptor, values.data, first * self._row_bytes)
                return
        row = start
        while row < stop:
            index, first = divmod(row, self._chunk_rows)
            end = min(stop, row - first + self._chunk_rows)
            piece = values[row - start : end - start].data
            files.write_at(self._chunk(index, first), piece, first * self._row_bytes)
            row = end

    def commit(self, start: int, values: AnyArray) -> None:
        """Write the first row after all others; see `ArrayWriter.commit`.

        A single item is never written partly, so that a full disk leaves all rows or not the first.
        """
        if len(values) > 1:
            self.write(start + 1, values[1:])
        self.write(start, values[:1])

    def reserve(self, rows: int) -> None:
        """Extend the shape to twice the required size; see `ArrayWriter.reserve`.

        Replacing a metadata document costs more than several appends.
        """
        if rows > self._shape[0]:
            self._reshape(2 * -(-rows // self._chunk_rows) * self._chunk_rows)

    def read(self, start: int, stop: int) -> AnyArray:
        """Rows from `start` to `stop`; see `ArrayWriter.read`."""
        values = np.empty((stop - start, *self._shape[1:]), dtype=self._dtype)
        flat = values.reshape(stop - start, math.prod(self._shape[1:]))
        row = start
        while row < stop:
            index, first = divmod(row, self._chunk_rows)
            last = min(first + stop - row, self._chunk_rows)
            path = chunk_file(self._directory, index, len(self._shape))
            piece = flat[row - start : row - start + last - first]
            if path.exists():
                with path.open("rb", buffering=0) as file:
                    file.seek(first * self._row_bytes)
                    if not _read_into(file, piece):
                        raise self._truncated(path, path.stat().st_size)
            else:
                piece[...] = self._fill
            row += last - first
        return values

    def require(self, rows: int) -> None:
        """Refuse a lost chunk of committed rows; see `ArrayWriter.require`."""
        index = (rows - 1) // self._chunk_rows
        path = chunk_file(self._directory, index, len(self._shape))
        if self._dense and not path.exists():
            raise lost_chunk(path, index * self._chunk_rows, rows)

    def take_over(self, rows: int) -> None:
        """Store chunks that another writer left out; see `ArrayWriter.take_over`."""
        if not self._resized:
            return
        unit = self._chunk_rows
        for index in range(-(-rows // unit)) if self._made_dense else ():
            if not chunk_file(self._directory, index, len(self._shape)).exists():
                count = min(unit, rows - index * unit)
                self.write(
                    index * unit, np.full((count, *self._shape[1:]), self._fill, self._dtype)
                )
        self._reshape(self._shape[0])
        self._resized, self._dense = False, self._made_dense

    def clear_from(self, row: int) -> None:
        """Set rows from `row` on to zero; see `ArrayWriter.clear_from`."""
        self.close()
        index, first = divmod(row, self._chunk_rows)
        for number in sorted(self._chunk_numbers(), reverse=True):
            if number >= index:
                start = first * self._row_bytes if number == index else 0
                path = chunk_file(self._directory, number, len(self._shape))
                files.check_folders(path, self._directory)
                _clear(path, start, durable=self._durable)

    def clear_all(self) -> None:
        """Remove all rows, the first chunk first."""
        self.close()
        for number in sorted(self._chunk_numbers()):
            path = chunk_file(self._directory, number, len(self._shape))
            files.check_folders(path, self._directory)
            files.unlink(path)
            if self._durable:
                files.sync_path(path.parent)
        self.trim(0)

    def trim(self, rows: int) -> None:
        """Set the shape to exactly `rows`."""
        if self._shape[0] != rows:
            self._reshape(rows)

    def sync(self) -> None:
        """Sync written rows, if the writer is durable."""
        if self._durable and self._unsynced and self._open is not None:
            files.sync_data(self._open[1])
        self._unsynced = False

    def close(self) -> None:
        """Close the chunk file."""
        opened, self._open = self._open, None  # first, so that an interrupt cannot keep it
        if opened is not None:
            os.close(opened[1])

    def _chunk_numbers(self) -> list[int]:
        folder = self._directory / "c"
        names = [entry.name for entry in folder.iterdir()] if folder.is_dir() else []
        numbers = [int(name) for name in names if name.isdecimal()]
        return [n for n in numbers if chunk_file(self._directory, n, len(self._shape)).exists()]

    def _chunk(self, index: int, first: int) -> int:
        """Descriptor of a chunk file, which is created if it does not exist.

        A file that a power cut left short is extended, if it has the rows before `first`.
        """
        if self._open is not None and self._open[0] == index:
            return self._open[1]
        self.sync()
        self.close()
        path = chunk_file(self._directory, index, len(self._shape))
        size = self._chunk_rows * self._row_bytes
        files.check_folders(path, self._directory)
        try:
            descriptor = files.reopen(path)
        except FileNotFoundError:
            descriptor = files.create_sized(path, size, durable=self._durable)
        self._open = (index, descriptor)
        there = os.fstat(descriptor).st_size
        if there < size:
            if there < first * self._row_bytes:
                raise self._truncated(path, there)
            files.resize(descriptor, size)
        self._unsynced = True
        return descriptor

    def _truncated(self, path: Path, size: int) -> StoreFormatError:
        return StoreFormatError(
            f"{path} has {size} bytes, expected {self._chunk_rows * self._row_bytes}: the file was "
            "truncated"
        )

    def _reshape(self, rows: int) -> None:
        path = self._directory / "zarr.json"
        metadata = json.loads(path.read_text())
        metadata["shape"][0] = rows
        record_rows(metadata["attributes"], rows)
        files.write_json(path, metadata, durable=self._durable)
        self._shape[0] = rows


def _read_into(file: RawIOBase, rows: AnyArray) -> bool:
    """Fill rows from a file; False if the file ends before."""
    left = rows.reshape(-1).view(np.uint8).data
    while left:
        taken = file.readinto(left)
        if not taken:
            return False
        left = left[taken:]
    return True


def _clear(path: Path, start: int, *, durable: bool) -> None:
    """Overwrite non-zero bytes from an offset on with zeros, the last block first.

    The file is kept, since a reader that has mapped it does not open a new file of the same name.
    """
    descriptor = files.reopen(path)
    try:
        cleared = False
        size = os.fstat(descriptor).st_size
        for offset in reversed(range(start, size, _BLOCK)):
            block = os.pread(descriptor, min(_BLOCK, size - offset), offset)
            found = np.flatnonzero(np.frombuffer(block, np.uint8))
            if len(found):  # holes stay holes, since the disk may be full
                first, last = int(found[0]), int(found[-1])
                files.write_at(descriptor, memoryview(bytes(last + 1 - first)), offset + first)
                cleared = True
        if durable and cleared:
            files.sync_data(descriptor)
    finally:
        os.close(descriptor)
