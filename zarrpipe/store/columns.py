"""Writing the rows of one array: by position into plain local chunk files, or through Zarr.

Both keep the array's shape ahead of its rows by whole chunks, so that hardly an append touches
metadata, and `trim` makes the shape exact. Rows may be written again; nothing is ever moved.
"""

import json
import math
import os
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import zarr

from zarrpipe.data.csr import AnyArray
from zarrpipe.errors import StoreFormatError
from zarrpipe.store.layout import chunk_file, is_plain, write_json

_BLOCK = 1 << 20


class Column(Protocol):
    """Rows of one array, as a writer sees them."""

    @property
    def chunk_rows(self) -> int:
        """Rows of a chunk."""
        ...

    @property
    def fill(self) -> Any:
        """What rows hold that were never written."""
        ...

    def write(self, start: int, values: AnyArray) -> None:
        """Write `values` [n, ...], already of the array's dtype, from row `start` on."""
        ...

    def reserve(self, rows: int) -> None:
        """Let the shape run ahead of `rows` by whole chunks, without writing any."""
        ...

    def read(self, start: int, stop: int) -> AnyArray:
        """Rows as they are, whether committed or not."""
        ...

    def clear_from(self, row: int) -> None:
        """Make rows from `row` on read as zeros, the last of them first."""
        ...

    def clear_all(self) -> None:
        """Drop every row, the first chunk first."""
        ...

    def trim(self, rows: int) -> None:
        """Make the shape exact."""
        ...

    def close(self) -> None:
        """Release files."""
        ...


def open_column(array: zarr.Array[Any], directory: Path | None) -> Column:
    """Column of an array; `directory` is the array's own where it is a local one."""
    if directory is not None and is_plain(array):
        return PlainColumn(array, directory)
    return ZarrColumn(array)


class PlainColumn:
    """Rows written by position into chunk files that have their full size from the beginning.

    A new chunk file is sparse and appears under its name only when it has its size, so that
    every file that a reader meets is a valid chunk. Its holes read as zeros.
    """

    def __init__(self, array: zarr.Array[Any], directory: Path) -> None:
        self._directory = directory
        self._shape = list(array.shape)
        self._chunk_rows = int(array.chunks[0])
        self._dtype = np.dtype(array.dtype)
        row_items = int(np.prod(array.shape[1:], dtype=np.int64))
        self._row_bytes = self._dtype.itemsize * row_items
        self._fill = array.fill_value
        self._open: tuple[int, int] | None = None

    @property
    def chunk_rows(self) -> int:
        """Rows of a chunk."""
        return self._chunk_rows

    @property
    def fill(self) -> Any:
        """What rows hold that were never written."""
        return self._fill

    def write(self, start: int, values: AnyArray) -> None:
        """Write rows; see `Column.write`."""
        stop = start + len(values)
        if stop > self._shape[0]:
            self.reserve(stop)
        if not values.size:
            return
        values = np.ascontiguousarray(values)
        if self._open is not None:  # most often all rows are in the chunk that is open
            index, descriptor = self._open
            first = start - index * self._chunk_rows
            if first >= 0 and first + len(values) <= self._chunk_rows:
                _write_all(descriptor, values.data, first * self._row_bytes)
                return
        row = start
        while row < stop:
            index, first = divmod(row, self._chunk_rows)
            end = min(stop, row - first + self._chunk_rows)
            piece = values[row - start : end - start].data
            _write_all(self._chunk(index), piece, first * self._row_bytes)
            row = end

    def reserve(self, rows: int) -> None:
        """Let the shape run ahead, to twice what is needed; see `Column.reserve`.

        To replace a metadata document costs more than several appends.
        """
        if rows > self._shape[0]:
            self._reshape(2 * -(-rows // self._chunk_rows) * self._chunk_rows)

    def read(self, start: int, stop: int) -> AnyArray:
        """Rows as they are; see `Column.read`."""
        values = np.full((stop - start, *self._shape[1:]), self._fill, dtype=self._dtype)
        flat = values.reshape(stop - start, math.prod(self._shape[1:]))
        row = start
        while row < stop:
            index, first = divmod(row, self._chunk_rows)
            last = min(first + stop - row, self._chunk_rows)
            path = chunk_file(self._directory, index, len(self._shape))
            if path.exists():
                with path.open("rb") as file:
                    file.seek(first * self._row_bytes)
                    content = file.read((last - first) * self._row_bytes)
                if len(content) != (last - first) * self._row_bytes:
                    raise StoreFormatError(
                        f"{path} has {path.stat().st_size} bytes, expected "
                        f"{self._chunk_rows * self._row_bytes}: the file was truncated"
                    )
                piece = np.frombuffer(content, self._dtype)
                flat[row - start : row - start + last - first] = piece.reshape(last - first, -1)
            row += last - first
        return values

    def clear_from(self, row: int) -> None:
        """Make rows from `row` on read as zeros; see `Column.clear_from`."""
        self.close()
        index, first = divmod(row, self._chunk_rows)
        for number in sorted(self._chunk_numbers(), reverse=True):
            if number >= index:
                start = first * self._row_bytes if number == index else 0
                _clear(chunk_file(self._directory, number, len(self._shape)), start)

    def clear_all(self) -> None:
        """Drop every row, the first chunk first."""
        self.close()
        for number in sorted(self._chunk_numbers()):
            chunk_file(self._directory, number, len(self._shape)).unlink()
        self.trim(0)

    def trim(self, rows: int) -> None:
        """Make the shape exact."""
        if self._shape[0] != rows:
            self._reshape(rows)

    def close(self) -> None:
        """Close the chunk file."""
        opened, self._open = self._open, None  # first, so that no interrupt leaves it behind
        if opened is not None:
            os.close(opened[1])

    def _chunk_numbers(self) -> list[int]:
        folder = self._directory / "c"
        names = [entry.name for entry in folder.iterdir()] if folder.is_dir() else []
        numbers = [int(name) for name in names if name.isdecimal()]
        return [n for n in numbers if chunk_file(self._directory, n, len(self._shape)).exists()]

    def _chunk(self, index: int) -> int:
        """Descriptor of a chunk file, which is made if it is not there."""
        if self._open is not None and self._open[0] == index:
            return self._open[1]
        self.close()
        path = chunk_file(self._directory, index, len(self._shape))
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            descriptor = _create_sized(path, self._chunk_rows * self._row_bytes)
        self._open = (index, descriptor)
        return descriptor

    def _reshape(self, rows: int) -> None:
        path = self._directory / "zarr.json"
        metadata = json.loads(path.read_text())
        metadata["shape"][0] = rows
        write_json(path, metadata)
        self._shape[0] = rows


def _create_sized(path: Path, size: int) -> int:
    """Create a sparse file that appears under its name with its full size, and open it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.partial")
    flags = os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
    descriptor = os.open(partial, flags, 0o666)
    try:
        os.ftruncate(descriptor, size)
        partial.replace(path)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _clear(path: Path, start: int) -> None:
    """Write zeros over what is not zero from an offset on, the last block first.

    The file stays, since a reader that has mapped it does not look for another of its name.
    """
    with path.open("r+b", buffering=0) as file:
        descriptor, size = file.fileno(), os.fstat(file.fileno()).st_size
        for offset in reversed(range(start, size, _BLOCK)):
            block = os.pread(descriptor, min(_BLOCK, size - offset), offset)
            found = np.flatnonzero(np.frombuffer(block, np.uint8))
            if len(found):  # holes stay holes: there may be no room to fill them
                first, last = int(found[0]), int(found[-1])
                _write_all(descriptor, memoryview(bytes(last + 1 - first)), offset + first)


def _write_all(descriptor: int, data: memoryview, offset: int) -> None:
    """Write all of a contiguous buffer, the rest of it too where the system took a part."""
    written = os.pwrite(descriptor, data, offset)
    while written < data.nbytes:
        rest = data.cast("B")[written:]
        written += os.pwrite(descriptor, rest, offset + written)


class ZarrColumn:
    """Rows written through zarr-python: compressed, sharded, in memory or far away."""

    def __init__(self, array: zarr.Array[Any]) -> None:
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
        """Write rows; see `Column.write`."""
        stop = start + len(values)
        self.reserve(stop)
        row = start
        while row < stop:  # one after the other, so that a kill leaves a prefix
            end = min(stop, row - row % self._unit + self._unit)
            self._array[row:end] = values[row - start : end - start]
            row = end

    def reserve(self, rows: int) -> None:
        """Let the shape run ahead; see `Column.reserve`."""
        if rows > self._array.shape[0]:
            self._array.resize((-(-rows // self._unit) * self._unit, *self._array.shape[1:]))

    def read(self, start: int, stop: int) -> AnyArray:
        """Rows as they are; see `Column.read`."""
        return np.asarray(self._array[start:stop])

    def clear_from(self, row: int) -> None:
        """Make rows from `row` on read as zeros; see `Column.clear_from`."""
        if row < self._array.shape[0]:
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

    def close(self) -> None:
        """Nothing is held open."""
