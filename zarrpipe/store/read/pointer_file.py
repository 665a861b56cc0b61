"""Looking at rows of a chunk file that may never have been written.

A page of a hole that is touched through a map is made by tmpfs, and where that is full the process
is stopped with SIGBUS. Read as a file, a hole costs nothing.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import numpy as np

from zarrpipe.data.csr import AnyArray
from zarrpipe.errors import StoreFormatError
from zarrpipe.store.backend.local_store import open_regular

_MOST_OPEN = 8


class PointerFile:
    """An array of one dimension, of which rows are read from its files instead of through its map.

    Parameters
    ----------
    data
        The rows of all chunks, as they are mapped.
    inodes
        Of the chunk files; None for one that is not there.
    path
        Gives the path of a chunk file.
    fill
        What rows hold that have no chunk file.
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
        """Files, the last few at a time, are open until the end of the block."""
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
        while left := (stop - start) * size - len(content):  # a file system may give less at once
            more = os.pread(descriptor, left, place * size + len(content))
            if not more:
                raise StoreFormatError(f"{self._path(index)} was truncated")
            content += more
        return np.frombuffer(content, self._data.dtype)

    def _open(self, index: int) -> int | None:
        """Open a chunk file; None if it is not the one any more that is mapped."""
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
