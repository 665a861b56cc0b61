"""Prefetch of mapped arrays into the page cache.

A page fault that reads the disk costs a thousand times the copy of the page, and page faults are
sequential. A thread reads arrays that fit into memory once, in file order. For larger arrays, the
pages of upcoming samples are requested together.
"""

import mmap
import os
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from zarrpipe.data.csr import AnyArray, Int64Array
from zarrpipe.data.levels import Level
from zarrpipe.store.backend.mapped_memory import libc

_STEP = 1 << 19  # a system may limit each request to the disk to this
_WARM = 0.98
_SHARE = 0.7
PAGE = mmap.PAGESIZE


class PageCache:
    """Prefetches the mapped arrays of a store, given with the levels of their rows."""

    def __init__(self, arrays: Sequence[tuple[AnyArray, Level]]) -> None:
        self._arrays = arrays
        self._thread: threading.Thread | None = None
        cold = sum(cold_bytes(array) for array, _ in arrays)
        total = sum(array.nbytes for array, _ in arrays)
        self._warm = cold <= (1 - _WARM) * total
        self._fits = cold < _SHARE * available_memory()

    def prefetch(self, segments: Callable[[Level], tuple[Int64Array, Int64Array]]) -> None:
        """Load rows in the background; `segments` returns their starts and stops at a level."""
        if self._warm:
            return
        if not self._fits:
            for level in {level for _, level in self._arrays}:
                self._request(level, *segments(level))
        elif self._thread is None:
            whole = [array for array, _ in self._arrays]
            self._thread = threading.Thread(
                target=_read_through, args=(whole,), name="zarrpipe-page-cache", daemon=True
            )
            self._thread.start()
        elif not self._thread.is_alive():
            self._warm = True

    def _request(self, level: Level, starts: Int64Array, stops: Int64Array) -> None:
        for array, own in self._arrays:
            if own == level:
                row = array.strides[0]
                first = array.ctypes.data + starts * row
                sizes = (stops - starts) * row
                for address, size in zip(first.tolist(), sizes.tolist(), strict=True):
                    will_need(address, size)


def _read_through(arrays: Sequence[AnyArray]) -> None:
    """Load whole arrays in step, so that the same samples of all arrays are loaded together."""
    steps = max(-(-array.nbytes // _STEP) for array in arrays)
    for step in range(steps):
        for array in arrays:
            start = array.nbytes * step // steps
            stop = array.nbytes * (step + 1) // steps
            will_need(array.ctypes.data + start, stop - start)


def will_need(address: int, nbytes: int) -> None:
    """Advise the system to load the pages of a mapping, if it supports this."""
    if nbytes <= 0 or not hasattr(mmap, "MADV_WILLNEED"):
        return
    start = address - address % PAGE
    libc().madvise(start, address + nbytes - start, mmap.MADV_WILLNEED)


def cold_bytes(array: AnyArray) -> int:
    """Bytes of a mapping that are not in the page cache; 0 if the system cannot tell."""
    if array.nbytes == 0 or not hasattr(libc(), "mincore"):
        return 0
    start = array.ctypes.data - array.ctypes.data % PAGE
    size = array.ctypes.data + array.nbytes - start
    resident = np.zeros(-(-size // PAGE), dtype=np.uint8)
    if libc().mincore(start, size, resident.ctypes.data) != 0:
        return 0
    return int(np.count_nonzero((resident & 1) == 0)) * PAGE


def available_memory() -> int:
    """Bytes that are available without swapping, by the kernel and the control group."""
    kernel = [line.split() for line in _lines(Path("/proc/meminfo"))]
    available = [int(words[1]) * 1024 for words in kernel if words[0] == "MemAvailable:"]
    group = [line.strip() for line in _lines(Path("/sys/fs/cgroup/memory.max"))]
    limits = [int(text) for text in group if text != "max"]
    return min([os.sysconf("SC_PHYS_PAGES") * PAGE, *available, *limits])


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except OSError:
        return []
