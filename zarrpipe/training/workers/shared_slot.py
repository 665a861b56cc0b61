"""Shared memory without a name, so that no kill leaves it behind."""

import mmap
import os
import tempfile
from multiprocessing import reduction
from typing import Any

import numpy as np

from zarrpipe.data.buffers import Bytes

_LEAST = 1 << 20


class Slot:
    """Memory for one message, which either process may enlarge.

    A new process inherits the descriptor, and each process maps it. It does not use ``/dev/shm``,
    which containers keep small.
    """

    def __init__(self) -> None:
        self._descriptor = _unnamed()
        self._bytes: Bytes = np.empty(0, dtype=np.uint8)

    def __getstate__(self) -> Any:
        return reduction.DupFd(self._descriptor)

    def __setstate__(self, descriptor: Any) -> None:
        self._descriptor = descriptor.detach()
        self._bytes = np.empty(0, dtype=np.uint8)

    def room(self, nbytes: int = 0) -> Bytes:
        """The memory, [n] uint8 with n of at least `nbytes`."""
        if nbytes > len(self._bytes):
            size = os.fstat(self._descriptor).st_size
            if size < nbytes:
                size = max(_LEAST, 1 << (nbytes - 1).bit_length())
                os.ftruncate(self._descriptor, size)
            self._bytes = np.frombuffer(mmap.mmap(self._descriptor, size), dtype=np.uint8)
        return self._bytes

    def close(self) -> None:
        """Free the memory; a second call does nothing."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
        self._descriptor, self._bytes = -1, np.empty(0, dtype=np.uint8)


def _unnamed() -> int:
    """Descriptor of an empty file without a name."""
    if hasattr(os, "memfd_create"):
        return os.memfd_create("zarrpipe-batch")
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())
