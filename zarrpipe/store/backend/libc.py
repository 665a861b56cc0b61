"""The calls of the C library that Python does not offer, with their types."""

import ctypes
import functools


@functools.cache
def libc() -> ctypes.CDLL:
    """The C library of the process; what a system lacks is no attribute of it."""
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
