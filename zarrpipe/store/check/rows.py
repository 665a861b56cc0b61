"""Rows of one array, read from its first to its last, whatever state its chunks are in.

A chunk that is cut, missing or cannot be decoded is told once, and its rows are passed over.
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import zarr

from zarrpipe.compat import sync
from zarrpipe.data.csr import AnyArray, Int64Array
from zarrpipe.store.backend.local_store import open_regular
from zarrpipe.store.backend.missing import chunk_place, find_absent_chunks
from zarrpipe.store.check.report import Finding, Severity, some
from zarrpipe.store.format.layout import chunk_file, is_dense, is_plain

BoolArray = npt.NDArray[np.bool_]
Tell = Callable[[Finding], object]

_WINDOW = 1 << 23


class Rows:
    """Rows of an array as a check reads them: in any order, but fast when from front to back.

    Parameters
    ----------
    path
        Place of the array in its store.
    array
        The array.
    directory
        The array's own directory where it is a local one.
    """

    def __init__(self, path: str, array: zarr.Array[Any], directory: Path | None) -> None:
        self.path, self.array = path, array
        self.plain = directory is not None and is_plain(array)
        self.dense = is_dense(array)
        self._directory = directory
        self._unit = int(array.chunks[0])
        self.row_bytes = int(array.dtype.itemsize * np.prod(array.shape[1:], dtype=np.int64))
        self._from, self._window, self._good = 0, self._empty(0), np.ones(0, dtype=bool)
        self._broken: dict[int, str] = {}
        self._missing: set[int] = set()
        self.read_bytes = 0

    def __len__(self) -> int:
        return int(self.array.shape[0])

    def read(self, start: int, stop: int) -> tuple[AnyArray, BoolArray]:
        """Rows, and which of them could be read; those that could not are zero."""
        values, good = self._empty(stop - start), np.zeros(stop - start, dtype=bool)
        at = start
        while at < min(stop, len(self)):
            if not self._from <= at < self._from + len(self._window):
                self._move_to(at, stop)
            here = slice(at - self._from, stop - self._from)
            piece = self._window[here]
            values[at - start : at - start + len(piece)] = piece
            good[at - start : at - start + len(piece)] = self._good[here]
            at += len(piece)
        return values, good

    def missing(self, start: int, stop: int) -> BoolArray:
        """Which rows that were read stand in chunks, or shards, that are not there."""
        units = np.arange(start, stop) // self._unit
        return np.isin(units, list(self._missing)) if self._missing else np.zeros(len(units), bool)

    def absent(self, rows: int) -> list[int]:
        """Stored objects of the first rows that are not there: chunks, or shards."""
        unit = int((self.array.shards or self.array.chunks)[0])
        return [i for i in range(-(-rows // unit)) if not sync(chunk_place(self.array, i).exists())]

    @property
    def lost(self) -> list[int]:
        """Chunks that are not there, of an array that leaves none out."""
        return sorted(self._missing) if self.dense else []

    @property
    def broken(self) -> list[int]:
        """Chunks that could not be read, or not to their end."""
        return sorted(self._broken)

    def tell_broken(self, tell: Tell, samples: Int64Array, drop: str) -> None:
        """Report the chunks that could not be read, and the samples with rows in them."""
        if not self._broken:
            return
        message = (
            f"{some(self.broken, 'chunk')} of {self._unit:,} rows cannot be read: "
            f"{self._broken[self.broken[0]]}; put what is stored back from a copy of the store"
        )
        if len(samples):
            message += f", or give up {some(samples, 'sample')} with rows in what is lost"
        tell(Finding("chunk", Severity.ERROR, self.path, message, drop=drop))

    def _empty(self, rows: int) -> AnyArray:
        return np.zeros((rows, *self.array.shape[1:]), dtype=self.array.dtype)

    def _move_to(self, at: int, stop: int) -> None:
        """Read the units from that of a row on, as many as fit the window."""
        first = at // self._unit
        fit = max(1, _WINDOW // max(1, self._unit * self.row_bytes))
        units = min(fit, -(-stop // self._unit) - first)
        start, end = first * self._unit, min((first + units) * self._unit, len(self))
        if self.plain and fit == 1:  # rows of a large file need not all be at hand
            start = at
            end = min(end, at + max(1, _WINDOW // max(1, self.row_bytes)))
        self._from = start
        try:
            self._window, self._good = self._load(start, end)
        except Exception as error:  # noqa: BLE001  whatever a codec or disk raises is a finding
            if units == 1:
                self._broken[first] = _said(error)
                self._window, self._good = self._empty(end - start), np.zeros(end - start, bool)
            else:
                self._one_by_one(start, end)
        self.read_bytes += self._window.nbytes

    def _one_by_one(self, start: int, end: int) -> None:
        """Find out which units of a window are broken."""
        self._window, self._good = self._empty(end - start), np.zeros(end - start, bool)
        for low in range(start, end, self._unit):
            high = min(low + self._unit, end)
            try:
                values, good = self._load(low, high)
            except Exception as error:  # noqa: BLE001  as above
                self._broken[low // self._unit] = _said(error)
                continue
            self._window[low - start : high - start] = values
            self._good[low - start : high - start] = good

    def _load(self, start: int, stop: int) -> tuple[AnyArray, BoolArray]:
        """Rows, and which of them are there."""
        good = np.ones(stop - start, dtype=bool)
        if not self.plain:
            values = np.asarray(self.array[start:stop])
            each = int((self.array.shards or self.array.chunks)[0]) // self._unit
            for index in find_absent_chunks(self.array, start, values):
                self._missing.update(range(index * each, (index + 1) * each))
            return values, good
        values = np.full(
            (stop - start, *self.array.shape[1:]), self.array.fill_value, self.array.dtype
        )
        for index in range(start // self._unit, -(-stop // self._unit)):
            low, high = max(start, index * self._unit), min(stop, (index + 1) * self._unit)
            offset = (low - index * self._unit) * self.row_bytes
            content = self._bytes(index, offset, (high - low) * self.row_bytes)
            if content is None:
                self._missing.add(index)
                continue
            rows = len(content) // max(1, self.row_bytes)
            piece = np.frombuffer(content, self.array.dtype, count=rows * values[0].size)
            values[low - start : low - start + rows] = piece.reshape(rows, *values.shape[1:])
            good[low - start + rows : high - start] = False
        return values, good

    def _bytes(self, index: int, offset: int, size: int) -> bytes | None:
        """Bytes of a chunk file, fewer if it ends before; None if it is not there."""
        path = chunk_file(self._directory or Path(), index, self.array.ndim)
        try:
            descriptor = open_regular(path)
        except FileNotFoundError:
            return None
        with os.fdopen(descriptor, "rb", buffering=0) as file:
            size_now = os.fstat(descriptor).st_size
            whole = self._unit * self.row_bytes
            if size_now != whole:
                self._broken[index] = f"{path} has {size_now:,} bytes, expected {whole:,}"
            file.seek(offset)
            content = b""
            while piece := file.read(size - len(content)):
                content += piece
            return content


def _said(error: Exception) -> str:
    """First line of an error."""
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0][:200]}" if text else type(error).__name__
