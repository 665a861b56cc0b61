"""Ranges of addresses into which files are mapped where we say."""

import ctypes
import mmap
import os
import weakref

from zarrpipe.store.libc import libc

_MAP_FIXED = 0x10
_PROT_NONE = 0


class AddressRange:
    """Reserved addresses, given back when nothing refers to them any more.

    ``np.asarray`` of it is a read-only array of its bytes, which may be touched where something
    was mapped.

    Parameters
    ----------
    size
        Bytes.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_NORESERVE", 0)
        self.address = _mmap(None, size, _PROT_NONE, flags, -1)
        self._finalizer = weakref.finalize(self, libc().munmap, self.address, size)
        self._finalizer.atexit = False  # a thread may still be reading
        self.__array_interface__ = {
            "version": 3,
            "shape": (size,),
            "typestr": "|u1",
            "data": (self.address, True),
        }

    def map(self, start: int, size: int, descriptor: int) -> None:
        """Map the beginning of a file, shared and read only; zeros for a descriptor of -1."""
        kind = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS if descriptor < 0 else mmap.MAP_SHARED
        _mmap(self.address + start, size, mmap.PROT_READ, kind | _MAP_FIXED, descriptor)

    def leave(self, size: int) -> None:
        """Let go of the memory of what is mapped in the first bytes; it is read again if needed."""
        libc().madvise(self.address, size, mmap.MADV_DONTNEED)


def _mmap(address: int | None, size: int, protection: int, flags: int, descriptor: int) -> int:
    """Call mmap, which Python's own module cannot place at an address."""
    result = libc().mmap(address, size, protection, flags, descriptor, 0)
    if result is None or result == ctypes.c_void_p(-1).value:
        error = ctypes.get_errno()
        raise OSError(error, f"cannot map {size} bytes: {os.strerror(error)}")
    return int(result)
