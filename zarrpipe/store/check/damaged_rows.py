"""Read the rows of an array that may be damaged: record broken chunks and skip their rows."""

import errno
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import zarr

from zarrpipe.compat import sync
from zarrpipe.data.csr import AnyArray, Int64Array
from zarrpipe.errors import StoreFormatError
from zarrpipe.store.backend import files
from zarrpipe.store.backend.array_reader import chunk_place, find_absent_chunks
from zarrpipe.store.backend.local_store import open_regular
from zarrpipe.store.check.report import Finding, Severity, some
from zarrpipe.store.format.layout import chunk_file, is_dense, is_plain, resized_by_another
from zarrpipe.store.format.validate import translate_zarr_errors
from zarrpipe.store.write.array_writer import ArrayWriter, open_array_writer

BoolArray = npt.NDArray[np.bool_]
AddFinding = Callable[[Finding], object]

BLOCK_SAMPLES = 1 << 16
_WINDOW = 1 << 23
_NO_RESOURCES = (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN)
"""Errors for lack of resources, which are no damage of the store."""


class CheckedRows:
    """Rows of the array at `path` of a store, read in any order, but fast from front to back."""

    def __init__(self, path: str, array: zarr.Array[Any], directory: Path | None) -> None:
        self.path, self.array = path, array
        self.plain = directory is not None and is_plain(array)
        self.dense, self.resized = is_dense(array), resized_by_another(array)
        self._directory = directory
        self.chunk_rows = int(array.chunks[0])
        self.object_rows = int((array.shards or array.chunks)[0])
        self.row_bytes = int(array.dtype.itemsize * np.prod(array.shape[1:], dtype=np.int64))
        self._from, self._window, self._good = 0, self._empty(0), np.ones(0, dtype=bool)
        self._broken: dict[int, str] = {}
        self._missing: set[int] = set()
        self.read_bytes = 0

    def __len__(self) -> int:
        return int(self.array.shape[0])

    def read(self, start: int, stop: int) -> tuple[AnyArray, BoolArray]:
        """Rows [n, ...], zero where they cannot be read, and which [n] can be read."""
        values, good = self._empty(stop - start), np.zeros(stop - start, dtype=bool)
        at = start
        while at < min(stop, len(self)):
            if not self._from <= at < self._from + len(self._window):
                self._move_to(at, stop)
            here = slice(at - self._from, stop - self._from)
            rows = self._window[here]
            values[at - start : at - start + len(rows)] = rows
            good[at - start : at - start + len(rows)] = self._good[here]
            at += len(rows)
        return values, good

    def value(self, row: int) -> int:
        """Entry of an array of integers."""
        return int(self.read(row, row + 1)[0][0])

    def missing(self, start: int, stop: int) -> BoolArray:
        """Which rows [n], all of which were read before, are in missing chunks."""
        units = np.arange(start, stop) // self.chunk_rows
        return np.isin(units, list(self._missing)) if self._missing else np.zeros(len(units), bool)

    def absent(self, rows: int) -> list[int]:
        """Numbers of the missing stored objects (chunks or shards) of the first rows."""
        objects = range(-(-rows // self.object_rows))
        return [index for index in objects if not sync(chunk_place(self.array, index).exists())]

    @property
    def lost(self) -> list[int]:
        """Missing chunks of an array that stores every chunk."""
        return sorted(self._missing) if self.dense else []

    @property
    def broken(self) -> list[int]:
        """Chunks that could not be read completely."""
        return sorted(self._broken)

    def report_broken(self, add: AddFinding, samples: Int64Array, drop: str) -> None:
        """Report broken chunks and the samples with rows in them."""
        if not self._broken:
            return
        message = (
            f"{some(self.broken, 'chunk')} of {self.chunk_rows:,} rows cannot be read: "
            f"{self._broken[self.broken[0]]}; put them back from a copy of the store"
        )
        if len(samples):
            message += f", or delete {some(samples, 'sample')} with rows in them"
        add(Finding("chunk", Severity.ERROR, self.path, message, drop=drop))

    def open_writer(self) -> ArrayWriter:
        """Open the array for a repair."""
        return open_array_writer(self.array, self._directory)

    def discard_broken(self) -> None:
        """Prepare broken chunks for being written again.

        A plain chunk file is resized. An encoded object is removed if none of its chunks can be
        read, and then reads as the fill value.
        """
        if self.plain and self._directory is not None:
            for index in self.broken:
                path = chunk_file(self._directory, index, self.array.ndim)
                descriptor = files.reopen(path)
                try:
                    files.resize(descriptor, self.chunk_rows * self.row_bytes)
                finally:
                    os.close(descriptor)
            return
        each, last = self.object_rows // self.chunk_rows, -(-len(self) // self.chunk_rows)
        for index in sorted({chunk // each for chunk in self._broken}):
            if self._broken.keys() >= {*range(index * each, min((index + 1) * each, last))}:
                sync(chunk_place(self.array, index).delete())

    def _empty(self, rows: int) -> AnyArray:
        return np.zeros((rows, *self.array.shape[1:]), dtype=self.array.dtype)

    def _move_to(self, at: int, stop: int) -> None:
        """Read chunks into the window, from that of row `at` on."""
        unit = self.chunk_rows
        first = at // unit
        fit = max(1, _WINDOW // max(1, unit * self.row_bytes))
        units = min(fit, -(-stop // unit) - first)
        start, end = first * unit, min((first + units) * unit, len(self))
        if self.plain and fit == 1:  # a part of a large chunk
            start = at
            end = min(end, at + max(1, _WINDOW // max(1, self.row_bytes)))
        self._from = start
        values, good, error = self._try_load(start, end)
        if error:
            parts = [self._load_chunk(low, min(low + unit, end)) for low in range(start, end, unit)]
            values, good = map(np.concatenate, zip(*parts, strict=True))
        self._window, self._good = values, good
        self.read_bytes += values.nbytes

    def _load_chunk(self, start: int, stop: int) -> tuple[AnyArray, BoolArray]:
        """Rows of one chunk, which is recorded if it cannot be read."""
        values, good, error = self._try_load(start, stop)
        if error:
            self._broken[start // self.chunk_rows] = error
        return values, good

    def _try_load(self, start: int, stop: int) -> tuple[AnyArray, BoolArray, str]:
        """Rows, which of them exist, and the error if they cannot be read."""
        try:
            with translate_zarr_errors(self.array.store_path):
                return *self._load(start, stop), ""
        except (StoreFormatError, OSError) as error:  # reported as a finding
            if isinstance(error, OSError) and error.errno in _NO_RESOURCES:
                raise
            text = _first_line(error.__cause__ or error)
            return self._empty(stop - start), np.zeros(stop - start, dtype=bool), text

    def _load(self, start: int, stop: int) -> tuple[AnyArray, BoolArray]:
        """Rows, and which of them exist."""
        unit, good = self.chunk_rows, np.ones(stop - start, dtype=bool)
        if not self.plain:
            values = np.asarray(self.array[start:stop])
            each = self.object_rows // unit
            for index in find_absent_chunks(self.array, start, values):
                self._missing.update(range(index * each, (index + 1) * each))
            return values, good
        values = np.full(
            (stop - start, *self.array.shape[1:]), self.array.fill_value, self.array.dtype
        )
        for index in range(start // unit, -(-stop // unit)):
            low, high = max(start, index * unit), min(stop, (index + 1) * unit)
            content = self._bytes(index, (low - index * unit) * self.row_bytes, high - low)
            if content is None:
                self._missing.add(index)
                continue
            rows = len(content) // max(1, self.row_bytes)
            block = np.frombuffer(content, self.array.dtype, count=rows * values[0].size)
            values[low - start : low - start + rows] = block.reshape(rows, *values.shape[1:])
            good[low - start + rows : high - start] = False
        return values, good

    def _bytes(self, index: int, offset: int, rows: int) -> bytes | None:
        """Bytes of rows of a chunk file, fewer if it is too short; None if it is missing."""
        path = chunk_file(self._directory or Path(), index, self.array.ndim)
        try:
            descriptor = open_regular(path)
        except FileNotFoundError:
            return None
        with os.fdopen(descriptor, "rb", buffering=0) as file:
            size, whole = os.fstat(descriptor).st_size, self.chunk_rows * self.row_bytes
            if size != whole:
                self._broken[index] = f"{path} has {size:,} bytes, expected {whole:,}"
            file.seek(offset)
            content = b""
            while part := file.read(rows * self.row_bytes - len(content)):
                content += part
            return content


def _first_line(error: BaseException) -> str:
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0][:200]}" if text else type(error).__name__


def runs(flags: BoolArray) -> Iterator[tuple[int, int]]:
    """Begin and end of each run of True.

    >>> list(runs(np.array([True, True, False, True])))
    [(0, 2), (3, 4)]
    """
    edges = np.flatnonzero(np.diff(np.concatenate([[False], flags, [False]]).astype(np.int8)))
    yield from zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True)
