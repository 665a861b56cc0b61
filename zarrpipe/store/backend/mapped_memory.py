"""Map files into reserved address ranges, by calls of the C library."""

import ctypes
import errno
import functools
import mmap
import os
import weakref

_MAP_FIXED = 0x10
_PROT_NONE = 0
_MOST_MAPS, _COUNT_EACH = 50_000, 256  # Linux gives a process 65,530, threads and libraries too


@functools.cache
def libc() -> ctypes.CDLL:
    """Load the C library; functions that the system lacks are missing as attributes."""
    found = ctypes.CDLL(None, use_errno=True)
    pointer, size, integer = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int
    found.mmap.restype = pointer
    found.mmap.argtypes = [pointer, size, integer, integer, integer, ctypes.c_int64]
    found.munmap.argtypes = [pointer, size]
    found.madvise.argtypes = [pointer, size, integer]
    if hasattr(found, "mincore"):
        found.mincore.argtypes = [pointer, size, pointer]
    if hasattr(found, "statfs"):
        found.statfs.argtypes = [ctypes.c_char_p, pointer]
    if hasattr(found, "fallocate64"):
        found.fallocate64.argtypes = [integer, integer, ctypes.c_int64, ctypes.c_int64]
    return found


def maps_left() -> int:
    """Number of further files that this process may map."""
    return _MOST_MAPS - sum(map(len, list(_STARTS.values())))


class AddressRange:
    """A reserved range of `size` addresses, freed with its last reference.

    ``np.asarray`` of it is a read-only array of its bytes; only mapped bytes may be read.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self.starts: set[int] = set()
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_NORESERVE", 0)
        self.address = _mmap(None, size, _PROT_NONE, flags, -1)
        _STARTS[self.address] = self.starts
        self._finalizer = weakref.finalize(self, _unmap, self.address, size)
        self._finalizer.atexit = False  # a thread may still be reading
        self.__array_interface__ = {
            "version": 3,
            "shape": (size,),
            "typestr": "|u1",
            "data": (self.address, True),
        }

    def map(self, start: int, size: int, descriptor: int) -> None:
        """Map the beginning of a file, shared and read-only; zeros for a descriptor of -1."""
        if start not in self.starts and len(self.starts) % _COUNT_EACH == 0 and maps_left() <= 0:
            raise OSError(
                errno.ENOMEM,
                f"{_MOST_MAPS} chunk files are mapped in this process, near the limit of Linux: "
                "close readers, or rewrite the stores with larger chunks (zarrpipe.compact)",
            )
        kind = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS if descriptor < 0 else mmap.MAP_SHARED
        _mmap(self.address + start, size, mmap.PROT_READ, kind | _MAP_FIXED, descriptor)
        self.starts.add(start)

    def drop_pages(self, size: int) -> None:
        """Drop the pages of the first bytes from this process; later accesses read them again."""
        libc().madvise(self.address, size, mmap.MADV_DONTNEED)


_STARTS: dict[int, set[int]] = {}
"""Offsets of mapped files in each range, by its address."""


def _unmap(address: int, size: int) -> None:
    _STARTS.pop(address, None)  # first, since a free address may be reused at once
    libc().munmap(address, size)


def _mmap(address: int | None, size: int, protection: int, flags: int, descriptor: int) -> int:
    """Call mmap at an address, which Python's module does not support."""
    result = libc().mmap(address, size, protection, flags, descriptor, 0)
    if result is None or result == ctypes.c_void_p(-1).value:
        error = ctypes.get_errno()
        raise OSError(error, f"cannot map {size} bytes: {os.strerror(error)}")
    return int(result)
