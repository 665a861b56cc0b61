"""The decoded rows of one array in a sparse file, and a shared table with a line for each unit.

A unit is fetched, locked and evicted as a whole. Its rows are written before its line of the
table, so that a line never counts absent rows. Rows are not written through their map, so that a
full disk raises an error instead of a signal.
"""

import mmap
import os
import struct
import threading
import time
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from zarrpipe.data.csr import AnyArray, Int64Array
from zarrpipe.errors import StoreFormatError
from zarrpipe.store.backend.files import write_at
from zarrpipe.store.backend.mapped_memory import AddressRange, libc
from zarrpipe.store.cache.directory import flock

ROWS, GENERATION, LAST_USED, SYNCED = range(4)
"""Columns of the table: number of cached rows of a unit (negative while they are being written),
count of its evictions, time of its last use, and whether its rows are synced."""

KEPT = int(np.iinfo(np.int64).max)
"""`LAST_USED` of units that are not evicted while a process has the cache open."""

_LINE = 32
_PAGE = 4096
_RESERVE_FACTOR = 4
_LEAST_RESERVE = 1 << 26
_KEEP_SIZE, _PUNCH_HOLE = 1, 2
_PAUSE = 0.005


class UnitLocks:
    """Locks of the units of an array, between the threads and the processes of one machine.

    A unit is locked by a byte of the file for an open file description, so that a killed holder
    loses it. On systems without such locks, the whole file is locked while this process has any
    unit locked. Without a file, no other process uses the cache.
    """

    def __init__(self, path: Path | None) -> None:
        self._changed = threading.Condition()
        self._locked: set[int] = set()
        self._by_unit = has_unit_locks()
        self._descriptor = -1 if path is None else os.open(path, os.O_RDWR | os.O_CLOEXEC)
        self._file_locked = False

    def take(self, unit: int, *, wait: bool) -> bool:
        """Lock a unit; without `wait`, return False if another thread or process has locked it."""
        with self._changed:
            while unit in self._locked:
                if not wait:
                    return False
                self._changed.wait()
            self._locked.add(unit)
        locked = False
        try:
            locked = self._descriptor < 0 or self._lock(unit, wait=wait)
        finally:
            if not locked:
                self._drop(unit)
        return locked

    def release(self, unit: int) -> None:
        """Unlock a unit that `take` locked."""
        if self._descriptor >= 0 and self._by_unit:
            _range_lock(self._descriptor, unit, "unlock", wait=False)
        self._drop(unit)

    def close(self) -> None:
        """Close the file, which releases every lock of this process."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)

    def _lock(self, unit: int, *, wait: bool) -> bool:
        if self._by_unit:
            return _range_lock(self._descriptor, unit, "lock", wait=wait)
        while True:
            with self._changed:
                self._file_locked = self._file_locked or flock(self._descriptor, "exclusive")
                if self._file_locked or not wait:
                    return self._file_locked
            time.sleep(_PAUSE)

    def _drop(self, unit: int) -> None:
        with self._changed:
            self._locked.discard(unit)
            if not self._locked and self._file_locked:
                flock(self._descriptor, "unlock")
                self._file_locked = False
            self._changed.notify_all()


class UnitFile:
    """The units of one array in two files; without given sizes, those of the files are used."""

    def __init__(
        self,
        directory: Path | None,
        name: str,
        unit_rows: int | None = None,
        row_bytes: int | None = None,
    ) -> None:
        self.name = name
        self.pinned: dict[int, int] = {}
        self._pinning = threading.Lock()
        self._rows_file = open_file(directory, f"{name}.rows")
        self._table_file = open_file(directory, f"{name}.units")
        self.locks = UnitLocks(None if directory is None else directory / f"{name}.units")
        self._map: mmap.mmap
        self._lines: Int64Array
        self._extend(0)
        made = self._lines[0, :2].tolist()
        if made == [0, 0] and unit_rows is not None:
            self._lines[1:] = 0
            self._lines[0, :2] = made = [unit_rows, row_bytes]
        if unit_rows is not None and made != [unit_rows, row_bytes]:
            raise StoreFormatError(
                f"{directory}/{name} was made for units of {made[0]} rows of {made[1]} bytes, the "
                f"array has {unit_rows} rows of {row_bytes}: delete the cache directory"
            )
        self.unit_rows, self.row_bytes = made
        self._range: AddressRange | None = None

    @property
    def table(self) -> Int64Array:
        """Lines of the units, [units, 4] int64, shared by all processes."""
        return self._lines[1:]

    @property
    def unit_bytes(self) -> int:
        """Bytes of a complete unit."""
        return int(self.unit_rows * self.row_bytes)

    @property
    def cached_bytes(self) -> Int64Array:
        """Cached bytes of each unit, [units] int64."""
        cached: Int64Array = np.abs(self.table[:, ROWS]) * self.row_bytes
        return cached

    def allocate(self, rows: int) -> None:
        """Extend the files to `rows`; the caller holds the lock of the cache."""
        self._extend(-(-rows // self.unit_rows))
        if os.fstat(self._rows_file).st_size < rows * self.row_bytes:
            os.ftruncate(self._rows_file, rows * self.row_bytes)

    def view(self, rows: int, shape: tuple[int, ...], dtype: np.dtype[Any]) -> AnyArray:
        """First `rows`, cached or not, as a read-only array whose memory can grow in place."""
        size = rows * self.row_bytes
        if self._range is None or self._range.size < size:
            reserved = max(_RESERVE_FACTOR * size, _LEAST_RESERVE)
            self._range = AddressRange(reserved)
            self._range.map(0, reserved, self._rows_file)
        return np.asarray(self._range)[:size].view(dtype).reshape(rows, *shape)

    def write(self, unit: int, first: int, values: AnyArray) -> None:
        """Write rows of a unit, from its row `first` on; the caller writes its line."""
        data = memoryview(np.ascontiguousarray(values).reshape(-1).view(np.uint8).data)
        write_at(self._rows_file, data, unit * self.unit_bytes + first * self.row_bytes)

    def use(self, units: Int64Array, last_used: int) -> None:
        """Record the time of use of units; a future time protects them until then."""
        self.table[units, LAST_USED] = np.maximum(self.table[units, LAST_USED], last_used)

    def clear(self, unit: int) -> None:
        """Remove a unit from the table.

        The number of rows changes before the generation, which readers read first. So a reader of
        the new generation cannot read the old number.
        """
        line = self.table[unit]
        line[ROWS] = 0
        line[GENERATION] += 1
        line[LAST_USED] = 0
        line[SYNCED] = 0

    def punch(self, unit: int) -> bool:
        """Free the storage of a unit; False if the file system does not support it."""
        return punch(self._rows_file, unit * self.unit_bytes, self.unit_bytes)

    def sync_rows(self) -> None:
        """Sync the written rows."""
        getattr(os, "fdatasync", os.fsync)(self._rows_file)

    def sync_table(self) -> None:
        """Sync the table."""
        self._map.flush()
        os.fsync(self._table_file)

    def pin(self, units: Int64Array, by: int) -> None:
        """Change the number of users of units; this process does not evict units with users."""
        with self._pinning:
            for unit in units.tolist():
                count = self.pinned.get(unit, 0) + by
                if count:
                    self.pinned[unit] = count
                else:
                    del self.pinned[unit]

    def evictable(self, now: int) -> npt.NDArray[np.bool_]:
        """Which units [units] have cached rows and are neither pinned nor protected."""
        if os.fstat(self._table_file).st_size > len(self._map):
            self._extend(0)  # another process has added lines
        rows, last_used = self.table[:, ROWS], self.table[:, LAST_USED]
        evictable: npt.NDArray[np.bool_] = (rows != 0) & (last_used <= now)
        evictable[[unit for unit in list(self.pinned) if unit < len(evictable)]] = False
        return evictable

    def close(self) -> None:
        """Close the files; arrays from `view` stay valid."""
        self.locks.close()
        rows, table, self._rows_file, self._table_file = self._rows_file, self._table_file, -1, -1
        for descriptor in (rows, table):
            if descriptor >= 0:
                os.close(descriptor)

    def _extend(self, units: int) -> None:
        """Map a table of at least `units`, with storage for every page."""
        have = os.fstat(self._table_file).st_size
        want = -(-(units + 1) * _LINE // _PAGE) * _PAGE
        if have < want:
            write_at(self._table_file, memoryview(bytes(want - have)), have)
        self._map = mmap.mmap(self._table_file, max(have, want))
        self._lines = np.frombuffer(self._map, dtype=np.int64).reshape(-1, _LINE // 8)


def has_unit_locks() -> bool:
    """Whether the system has byte-range locks of open file descriptions, as Linux does."""
    import fcntl  # noqa: PLC0415  absent on Windows

    return hasattr(fcntl, "F_OFD_SETLK") and struct.calcsize("P") == 8


def punch(descriptor: int, offset: int, size: int) -> bool:
    """Free the storage of a range of a file; False if the file system does not support it."""
    if not hasattr(libc(), "fallocate64"):
        return False
    mode = _KEEP_SIZE | _PUNCH_HOLE
    return bool(libc().fallocate64(descriptor, mode, offset, size) == 0)


def _range_lock(descriptor: int, byte: int, kind: Literal["lock", "unlock"], *, wait: bool) -> bool:
    import fcntl  # noqa: PLC0415  absent on Windows

    lock = fcntl.F_WRLCK if kind == "lock" else fcntl.F_UNLCK
    command = getattr(fcntl, "F_OFD_SETLKW" if wait else "F_OFD_SETLK")
    try:
        fcntl.fcntl(descriptor, command, struct.pack("hhqqi", lock, os.SEEK_SET, byte, 1, 0))
    except (BlockingIOError, PermissionError):
        return False
    return True


def open_file(directory: Path | None, name: str) -> int:
    """Open or create a file of a cache; without a directory, create one in memory."""
    if directory is not None:
        return os.open(directory / name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    if hasattr(os, "memfd_create"):
        return os.memfd_create(f"zarrpipe-{name}", os.MFD_CLOEXEC)
    import tempfile  # noqa: PLC0415  rarely needed

    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())
