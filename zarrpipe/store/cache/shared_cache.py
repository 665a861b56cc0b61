"""The cache of one store: its size, its evictions, and its recovery after a power cut.

All processes of the machine map a header with the number of cached bytes and a count of evictions.
An eviction is counted before any storage is freed. So a copy of rows is valid if the count is the
same before and after.
"""

import hashlib
import mmap
import os
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from urllib.parse import quote, unquote

import numpy as np

from zarrpipe.data.csr import Int64Array
from zarrpipe.errors import StoreFormatError
from zarrpipe.store.backend.files import write_at
from zarrpipe.store.cache.directory import CacheDirLock, boot_id, remove_superseded
from zarrpipe.store.cache.unit_file import (
    GENERATION,
    KEPT,
    LAST_USED,
    ROWS,
    SYNCED,
    UnitFile,
    open_file,
)

_BOOT, _BOOT_2, _USED, _EVICTIONS, _COMMITS = range(5)
_HEADER_BYTES = 4096
_SLACK = 16
"""An eviction frees this part of the limit, so that few fetches have to evict."""


class SharedCache:
    """Decoded units of the arrays of one store, shared by the processes of a machine.

    It has at most `limit` bytes, unless the units in use at once need more; `excess_reason` says
    why. Without a directory, it is in the memory of this process.
    """

    def __init__(self, identity: str, directory: Path | None, limit: int | None) -> None:
        self.limit = limit
        self.excess_reason = ""
        self._files: dict[str, UnitFile] = {}
        if directory is not None:
            remove_superseded(directory, identity)
        while not self._open(CacheDirLock(directory, identity)):
            pass  # another process removed the directory meanwhile

    @property
    def name(self) -> str:
        """Place of the cache, for a message."""
        return "in memory" if self._directory is None else str(self._directory)

    @property
    def evictions(self) -> int:
        """Count of evictions by any process."""
        return self._header[_EVICTIONS]

    @property
    def commits(self) -> int:
        """Count of commits of units by any process."""
        return self._header[_COMMITS]

    @property
    def used(self) -> int:
        """Number of cached bytes."""
        return self._header[_USED]

    def file(self, path: str, unit_rows: int, row_bytes: int) -> UnitFile:
        """Open the units of the array at `path`."""
        with self._lock.held():
            known = self._files.get(path)
            if known is None or (known.unit_rows, known.row_bytes) != (unit_rows, row_bytes):
                name = quote(path, safe="")
                self._files[path] = UnitFile(self._directory, name, unit_rows, row_bytes)
            return self._files[path]

    def allocate(self, file: UnitFile, rows: int) -> None:
        """Extend the files of an array to a number of rows, without caching any."""
        with self._lock.held():
            file.allocate(rows)

    def reserve(self, file: UnitFile, unit: int, rows: int) -> int:
        """Count a unit before it is written, evicting others, and return its cached rows.

        The caller holds the lock of the unit, and calls `commit` or `abandon` next.
        """
        with self._lock.held():
            before = int(file.table[unit, ROWS])
            need = (rows - abs(before)) * file.row_bytes
            if self.limit is not None and self.used + need > self.limit:
                self._evict(need)
            self._header[_USED] += need
            file.table[unit, SYNCED] = 0
            if before <= 0:
                file.table[unit, ROWS] = -rows
            return before

    def trim(self) -> None:
        """Evict unused units down to the limit."""
        if self.limit is not None and self.used > self.limit:
            with self._lock.held():
                self._evict(0)

    def abandon(self, file: UnitFile, unit: int, rows: int, before: int) -> None:
        """Undo `reserve` if the rows could not be written or are invalid."""
        with self._lock.held():
            cached = max(before, 0)
            if cached == 0:
                file.clear(unit)
                file.punch(unit)
            self._header[_USED] -= (rows - cached) * file.row_bytes

    def commit(
        self, file: UnitFile, written: Iterable[tuple[int, int, int]], last_used: int
    ) -> None:
        """Record units (unit, rows, rows before) whose rows were written."""
        with self._lock.held():
            for unit, rows, _ in written:
                line = file.table[unit]
                line[LAST_USED] = max(int(line[LAST_USED]), last_used)
                line[SYNCED] = 0
                line[ROWS] = rows
            self._header[_COMMITS] += 1

    def keep(self, units: Iterable[tuple[UnitFile, Int64Array, Int64Array]]) -> bool:
        """Protect units of several arrays from eviction while the cache is open.

        Returns False if one was evicted since its generation was read.
        """
        with self._lock.held():
            cached = True
            for file, some, generations in units:
                file.use(some, KEPT)
                cached &= bool((file.table[some, GENERATION] == generations).all())
            return cached

    def sync(self) -> None:
        """Sync the cached units, so that they survive a power cut."""
        if self._directory is None:
            return
        for file in list(self._files.values()):
            written = np.flatnonzero((file.table[:, ROWS] > 0) & (file.table[:, SYNCED] == 0))
            if not len(written):
                continue
            known = file.table[written, : GENERATION + 1]
            file.sync_rows()
            with self._lock.held():
                same = (file.table[written, : GENERATION + 1] == known).all(axis=1)
                file.table[written[same], SYNCED] = 1
            file.sync_table()

    def forget(self) -> None:
        """Close the files of this process."""
        self._dir_lock.close()
        for file in self._files.values():
            file.close()
        os.close(self._header_file)

    def _open(self, dir_lock: CacheDirLock) -> bool:
        """Become a user of a cache; False if it was removed meanwhile."""
        try:
            return self._enter(dir_lock)
        except BaseException:
            dir_lock.close()  # otherwise the directory would look in use
            raise

    def _enter(self, dir_lock: CacheDirLock) -> bool:
        with dir_lock.lock.held():
            only_user = dir_lock.enter()
            if only_user is None:
                dir_lock.close()
                return False
            self._dir_lock, self._lock = dir_lock, dir_lock.lock
            self._directory = dir_lock.directory
            self._header_file = open_file(self._directory, "header")
            if os.fstat(self._header_file).st_size < _HEADER_BYTES:
                write_at(self._header_file, memoryview(bytes(_HEADER_BYTES)), 0)
            self._header = memoryview(mmap.mmap(self._header_file, _HEADER_BYTES)).cast("q")
            digest = hashlib.blake2b(boot_id().encode(), digest_size=16).digest()
            boot = np.frombuffer(digest, dtype=np.int64).tolist()
            same = self._header[_BOOT : _BOOT_2 + 1].tolist() == boot
            if only_user:
                self._recover(trusted=same)
                self._header[_BOOT], self._header[_BOOT_2] = boot
        if not (only_user or same):
            self.forget()
            raise StoreFormatError(
                f"{self._directory} is in use on another machine: give each machine a "
                "cache_dir on a disk of its own"
            )
        return True

    def _recover(self, *, trusted: bool) -> None:
        """Drop incomplete units of killed processes; after a reboot, all that were not synced."""
        for file in self._all():
            rows = file.table[:, ROWS]
            lost = rows < 0 if trusted else (rows != 0) & (file.table[:, SYNCED] == 0)
            for unit in np.flatnonzero(lost).tolist():
                file.clear(unit)
                file.punch(unit)
            file.table[:, LAST_USED] = 0
        self._count()

    def _all(self) -> Iterable[UnitFile]:
        """Unit files of every array, including those that only other processes use."""
        if self._directory is not None:
            for path in self._directory.glob("*.units"):
                name = unquote(path.stem)
                if name not in self._files:
                    self._files[name] = UnitFile(self._directory, path.stem)
        return [file for file in self._files.values() if file.unit_rows]

    def _count(self) -> None:
        self._header[_USED] = int(sum(file.cached_bytes.sum() for file in self._all()))

    def _evict(self, need: int) -> None:
        """Evict the least recently used units until `need` more bytes fit."""
        limit = self.limit or 0
        files = list(self._all())
        self._count()
        excess = self.used + need - limit
        if excess <= 0:
            return
        owner, unit, size = _by_age(files)
        freed = 0
        locked: list[tuple[UnitFile, int]] = []
        for which, number, cached in zip(owner, unit, size, strict=True):
            if freed >= max(excess, limit // _SLACK):
                break
            if files[which].locks.take(number, wait=False):
                locked.append((files[which], number))
                freed += cached
        try:
            if not self._free(locked):
                self.excess_reason = "this file system cannot make holes in files"
                self.limit, freed = None, 0
        finally:
            for file, number in locked:
                file.locks.release(number)
        self._count()
        if need and freed < excess:
            self.excess_reason = self.excess_reason or "the units in use at once need more"

    def _free(self, locked: Sequence[tuple[UnitFile, int]]) -> bool:
        """Free the storage of locked units; False if the file system does not support it.

        They are removed from their tables, then the eviction is counted, and then holes are
        punched. So a reader that finds the count unchanged has copied no holes.
        """
        if locked and not locked[0][0].punch(len(locked[0][0].table)):
            return False  # this call only tries it, since nothing is stored after the last unit
        synced = {file.name: file for file, unit in locked if file.table[unit, SYNCED]}
        for file, unit in locked:
            file.clear(unit)
        for file in synced.values():
            file.sync_table()  # otherwise a power cut would leave lines of freed rows
        self._header[_EVICTIONS] += 1
        for file, unit in locked:
            file.punch(unit)
        return True


def _by_age(files: Sequence[UnitFile]) -> tuple[list[int], list[int], list[int]]:
    """File, number and bytes of the units that may be evicted, least recently used first."""
    now = time.monotonic_ns()
    units = [np.flatnonzero(file.evictable(now)) for file in files]
    owner = np.repeat(np.arange(len(files)), [len(some) for some in units])
    pairs = list(zip(files, units, strict=True))
    last_used = _joined([file.table[some, LAST_USED] for file, some in pairs])
    sizes = _joined([file.cached_bytes[some] for file, some in pairs])
    order = np.argsort(last_used, kind="stable")
    return owner[order].tolist(), _joined(units)[order].tolist(), sizes[order].tolist()


def _joined(parts: Sequence[Int64Array]) -> Int64Array:
    return np.concatenate([np.zeros(0, dtype=np.int64), *parts])
