"""What the files of a cache need of the operating system: locks, holes, whole writes."""

import os
import struct
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np

from zarrpipe.data.csr import AnyArray
from zarrpipe.store.backend.mapping import AddressRange, libc

_KEEP_SIZE, _PUNCH_HOLE = 1, 2
_PAUSE = 0.005


class UnitLocks:
    """Locks of the units of an array, between the threads and the processes of one machine.

    A byte of `path` is locked for each unit, for an open file description, so that a killed
    holder loses it. Where the system has no such locks, the whole file is locked as long as this
    process holds any unit: processes then fetch one after the other.

    Parameters
    ----------
    path : Path, optional
        File whose bytes are locked; None where no other process can see the cache.
    by_unit : bool, optional
        Whether to lock single bytes; by default where the system can.
    """

    def __init__(self, path: Path | None, by_unit: bool | None = None) -> None:
        self._changed = threading.Condition()
        self._held: set[int] = set()
        self._by_unit = has_unit_locks() if by_unit is None else by_unit
        self._descriptor = -1 if path is None else os.open(path, os.O_RDWR | os.O_CLOEXEC)
        self._locked = False

    def take(self, unit: int, *, wait: bool) -> bool:
        """Lock a unit; False if another thread or process has it and `wait` is not set."""
        with self._changed:
            while unit in self._held:
                if not wait:
                    return False
                self._changed.wait()
            self._held.add(unit)
        taken = False
        try:
            taken = self._descriptor < 0 or self._lock(unit, wait=wait)
        finally:
            if not taken:
                self._drop(unit)
        return taken

    def give(self, unit: int) -> None:
        """Unlock a unit that `take` locked."""
        if self._descriptor >= 0 and self._by_unit:
            _range_lock(self._descriptor, unit, "unlock", wait=False)
        self._drop(unit)

    def close(self) -> None:
        """Let go of the file, and so of every lock, in this process alone."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)

    def _lock(self, unit: int, *, wait: bool) -> bool:
        if self._by_unit:
            return _range_lock(self._descriptor, unit, "lock", wait=wait)
        while True:
            with self._changed:
                self._locked = self._locked or flock(self._descriptor, "exclusive")
                if self._locked or not wait:
                    return self._locked
            time.sleep(_PAUSE)

    def _drop(self, unit: int) -> None:
        with self._changed:
            self._held.discard(unit)
            if not self._held and self._locked:
                flock(self._descriptor, "unlock")
                self._locked = False
            self._changed.notify_all()


class FileLock:
    """A lock of one file, between the threads and the processes of one machine.

    Parameters
    ----------
    path : Path, optional
        The file, made if it is not there; None where no other process can see the cache.
    """

    def __init__(self, path: Path | None) -> None:
        self._mutex = threading.RLock()
        self._depth = 0
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
        self.descriptor = -1 if path is None else os.open(path, flags, 0o666)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Hold the lock; the thread that holds it may do so again."""
        with self._mutex:
            if self._depth == 0 and self.descriptor >= 0:
                flock(self.descriptor, "exclusive", wait=True)
            self._depth += 1
            try:
                yield
            finally:
                self._depth -= 1
                if self._depth == 0 and self.descriptor >= 0:
                    flock(self.descriptor, "unlock")

    def close(self) -> None:
        """Let go of the file."""
        descriptor, self.descriptor = self.descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)


class SharedRows:
    """A file mapped read only, with room to grow in place.

    Rows beyond the end of the file must not be touched. The mapping lives as long as an array
    that was taken from it.
    """

    def __init__(self, descriptor: int, size: int) -> None:
        self._range = AddressRange(size)
        self.size = size
        self._range.map(0, size, descriptor)

    def rows(self, count: int, shape: tuple[int, ...], dtype: np.dtype[Any]) -> AnyArray:
        """First `count` rows."""
        size = count * dtype.itemsize * int(np.prod(shape, dtype=np.int64))
        return np.asarray(self._range)[:size].view(dtype).reshape(count, *shape)


def has_unit_locks() -> bool:
    """Whether the system locks byte ranges for open file descriptions, as Linux does."""
    import fcntl  # noqa: PLC0415  absent on Windows

    return hasattr(fcntl, "F_OFD_SETLK") and struct.calcsize("P") == 8


def flock(
    descriptor: int, kind: Literal["exclusive", "shared", "unlock"], *, wait: bool = False
) -> bool:
    """Lock a whole file; False if another holds it and `wait` is not set."""
    import fcntl  # noqa: PLC0415  absent on Windows

    kinds = {"exclusive": fcntl.LOCK_EX, "shared": fcntl.LOCK_SH, "unlock": fcntl.LOCK_UN}
    try:
        fcntl.flock(descriptor, kinds[kind] | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    return True


def _range_lock(descriptor: int, byte: int, kind: Literal["lock", "unlock"], *, wait: bool) -> bool:
    import fcntl  # noqa: PLC0415  absent on Windows

    lock = fcntl.F_WRLCK if kind == "lock" else fcntl.F_UNLCK
    command = getattr(fcntl, "F_OFD_SETLKW" if wait else "F_OFD_SETLK")
    try:
        fcntl.fcntl(descriptor, command, struct.pack("hhqqi", lock, os.SEEK_SET, byte, 1, 0))
    except (BlockingIOError, PermissionError):
        return False
    return True


def memory_file(name: str) -> int:
    """Descriptor of a file without a name, in memory where the system has such files."""
    if hasattr(os, "memfd_create"):
        return os.memfd_create(f"zarrpipe-{name}", os.MFD_CLOEXEC)
    import tempfile  # noqa: PLC0415  rarely needed

    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


def punch(descriptor: int, offset: int, size: int) -> bool:
    """Give the storage of a range of a file back; False where the file system cannot."""
    if not hasattr(libc(), "fallocate64"):
        return False
    mode = _KEEP_SIZE | _PUNCH_HOLE
    return bool(libc().fallocate64(descriptor, mode, offset, size) == 0)


def boot_id() -> str:
    """Name of the time since the machine was started; a new one each time where it has none."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return str(uuid.uuid4())
