"""Looking at rows of a chunk file that may never have been written.

A page of a hole that is touched through a map is made by tmpfs, and where that is full the process
is stopped with SIGBUS. Read as a file, a hole costs nothing.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from zarrpipe.data.csr import AnyArray
from zarrpipe.errors import StoreFormatError
from zarrpipe.store.regular import open_regular


class Entries:
    """An array of one dimension: single rows are read from its files, slices as they are mapped.

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
    def opened(self) -> Iterator["Entries"]:
        """Files are open until the end of the block."""
        try:
            yield self
        finally:
            for descriptor in self._opened.values():
                if descriptor is not None:
                    os.close(descriptor)
            self._opened.clear()

    def __len__(self) -> int:
        return len(self._data)

    def __getitem__(self, key: int | slice) -> Any:
        if isinstance(key, slice):
            return self._data[key]
        index, place = divmod(key, len(self._data) // len(self._inodes))
        if self._inodes[index] is None:
            return self._fill
        descriptor = self._open(index)
        if descriptor is None:
            return self._data[key]
        size = self._data.itemsize
        content = os.pread(descriptor, size, place * size)
        if len(content) < size:
            raise StoreFormatError(f"{self._path(index)} was truncated")
        return np.frombuffer(content, self._data.dtype)[0]

    def _open(self, index: int) -> int | None:
        """Open a chunk file; None if it is not the one any more that is mapped."""
        if index not in self._opened:
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
