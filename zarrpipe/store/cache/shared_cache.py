"""The cache of one store: how much it holds, what is evicted, what survives a power cut.

A header that all processes of the machine map has the bytes in use and counts evictions. An
eviction is counted before anything is given back, so that a reader who finds the count as it was
before it copied knows that it copied what it wanted.
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
from zarrpipe.store.cache.directory import CacheDirLock, remove_superseded
from zarrpipe.store.cache.files import boot_id
from zarrpipe.store.cache.units import GENERATION, KEPT, ROWS, STAMP, SYNCED, Folder, UnitFile

_BOOT, _BOOT_2, _USED, _EVICTIONS, _COMMITS = range(5)
_HEADER_BYTES = 4096
_SLACK = 16
"""An eviction makes this part of the limit free, so that not every fetch has to evict."""


class SharedCache:
    """Decoded units of the arrays of one store, shared by the processes of a machine.

    Parameters
    ----------
    identity : str
        Name of the cache; see `cache_identity`.
    directory : Path, optional
        Directory of caches on a local disk. None keeps everything in memory of this process.
    limit : int, optional
        Bytes to hold at most; it is passed only where units in use need more.

    Raises
    ------
    StoreFormatError
        If the place is taken by something else or used by another machine.
    """

    def __init__(self, identity: str, directory: Path | None, limit: int | None) -> None:
        self.limit = limit
        self.passed = ""
        self._files: dict[str, UnitFile] = {}
        if directory is not None:
            remove_superseded(directory, identity)
        while not self._open(CacheDirLock(directory, identity)):
            pass  # it was removed at that moment, as that of an earlier generation

    @property
    def name(self) -> str:
        """Where the cache is, for a message."""
        return "in memory" if self._folder.directory is None else str(self._folder.directory)

    @property
    def evictions(self) -> int:
        """Count of evictions by any process."""
        return self._header[_EVICTIONS]

    @property
    def commits(self) -> int:
        """Count of times that units were added by any process."""
        return self._header[_COMMITS]

    @property
    def used(self) -> int:
        """Bytes that are held."""
        return self._header[_USED]

    def file(self, path: str, unit_rows: int, row_bytes: int) -> UnitFile:
        """Units of the array at `path`."""
        with self._lock.held():
            known = self._files.get(path)
            if known is None or (known.unit_rows, known.row_bytes) != (unit_rows, row_bytes):
                name = quote(path, safe="")
                self._files[path] = UnitFile(self._folder, name, unit_rows, row_bytes)
            return self._files[path]

    def allocate(self, file: UnitFile, rows: int) -> None:
        """Make room for the first rows of an array, without holding any."""
        with self._lock.held():
            file.allocate(rows)

    def reserve(self, file: UnitFile, unit: int, rows: int) -> int:
        """Count a unit that is about to be written, and evict others for it; the rows it had.

        The caller holds the lock of the unit, and goes on with `commit` or `abandon`.
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
        """Evict what is over the limit and not in use any more."""
        if self.limit is not None and self.used > self.limit:
            with self._lock.held():
                self._evict(0)

    def abandon(self, file: UnitFile, unit: int, rows: int, before: int) -> None:
        """Take back what `reserve` did: the rows could not be written, or not be trusted."""
        with self._lock.held():
            held = max(before, 0)
            if held == 0:
                file.clear(unit)
                file.punch(unit)
            self._header[_USED] -= (rows - held) * file.row_bytes

    def commit(self, file: UnitFile, written: Iterable[tuple[int, int, int]], stamp: int) -> None:
        """Say of each (unit, rows, rows before) that the rows are there; all were written."""
        with self._lock.held():
            for unit, rows, _ in written:
                line = file.table[unit]
                line[STAMP] = max(int(line[STAMP]), stamp)
                line[SYNCED] = 0
                line[ROWS] = rows
            self._header[_COMMITS] += 1

    def keep(self, units: Iterable[tuple[UnitFile, Int64Array, Int64Array]]) -> bool:
        """Let units stay for as long as the cache is open; False if one is not there any more.

        Parameters
        ----------
        units
            Of each array the units and the generations in which they were seen.
        """
        with self._lock.held():
            there = True
            for file, some, generations in units:
                file.use(some, KEPT)
                there &= bool((file.table[some, GENERATION] == generations).all())
            return there

    def sync(self) -> None:
        """Let what is held survive a power cut."""
        if self._folder.directory is None:
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
        """Let go of the files in this process alone, as after a fork."""
        self._claim.close()
        for file in self._files.values():
            file.close()
        os.close(self._header_file)

    def _open(self, claim: CacheDirLock) -> bool:
        """Become a user of a cache; False if it is not there any more."""
        try:
            return self._enter(claim)
        except BaseException:
            claim.close()  # or the next to come would take it for one in use
            raise

    def _enter(self, claim: CacheDirLock) -> bool:
        with claim.lock.held():
            alone = claim.enter()
            if alone is None:
                claim.close()
                return False
            self._claim, self._lock, self._folder = claim, claim.lock, Folder(claim.directory)
            self._header_file = self._folder.open("header")
            if os.fstat(self._header_file).st_size < _HEADER_BYTES:
                write_at(self._header_file, memoryview(bytes(_HEADER_BYTES)), 0)
            self._header = memoryview(mmap.mmap(self._header_file, _HEADER_BYTES)).cast("q")
            digest = hashlib.blake2b(boot_id().encode(), digest_size=16).digest()
            boot = np.frombuffer(digest, dtype=np.int64).tolist()
            same = self._header[_BOOT : _BOOT_2 + 1].tolist() == boot
            if alone:
                self._recover(trusted=same)
                self._header[_BOOT], self._header[_BOOT_2] = boot
        if not (alone or same):
            self.forget()
            raise StoreFormatError(
                f"{self._folder.directory} is in use on another machine: give each machine a "
                "cache directory on a disk of its own"
            )
        return True

    def _recover(self, *, trusted: bool) -> None:
        """Drop what killed processes left half done, and after a reboot what was not synced."""
        for file in self._all():
            rows = file.table[:, ROWS]
            lost = rows < 0 if trusted else (rows != 0) & (file.table[:, SYNCED] == 0)
            for unit in np.flatnonzero(lost).tolist():
                file.clear(unit)
                file.punch(unit)
            file.table[:, STAMP] = 0
        self._count()

    def _all(self) -> Iterable[UnitFile]:
        """Units of every array of the cache, those that only other processes have open too."""
        if self._folder.directory is not None:
            for path in self._folder.directory.glob("*.units"):
                name = unquote(path.stem)
                if name not in self._files:
                    self._files[name] = UnitFile(self._folder, path.stem)
        return [file for file in self._files.values() if file.unit_rows]

    def _count(self) -> None:
        self._header[_USED] = int(sum(file.held_bytes.sum() for file in self._all()))

    def _evict(self, need: int) -> None:
        """Evict the units that were used longest ago until `need` more bytes fit."""
        limit = self.limit or 0
        files = list(self._all())
        self._count()
        excess = self.used + need - limit
        if excess <= 0:
            return
        owner, unit, size = _by_age(files)
        freed = 0
        taken: list[tuple[UnitFile, int]] = []
        for which, number, held in zip(owner, unit, size, strict=True):
            if freed >= max(excess, limit // _SLACK):
                break
            if files[which].locks.take(number, wait=False):
                taken.append((files[which], number))
                freed += held
        try:
            if not self._give_back(taken):
                self.passed = "this file system cannot make holes in files"
                self.limit, freed = None, 0
        finally:
            for file, number in taken:
                file.locks.give(number)
        self._count()
        if need and freed < excess:
            self.passed = self.passed or "what is in use at once needs more"

    def _give_back(self, taken: Sequence[tuple[UnitFile, int]]) -> bool:
        """Give the storage of units back, whose locks are held; False if that cannot be.

        They leave their tables first, then the eviction is counted, and then holes are made: who
        finds the count as it was copied no holes.
        """
        if taken and not taken[0][0].punch(len(taken[0][0].table)):
            return False  # beyond the last unit is nothing, so that this only asks
        synced = {file.name: file for file, unit in taken if file.table[unit, SYNCED]}
        for file, unit in taken:
            file.clear(unit)
        for file in synced.values():
            file.sync_table()  # or a power cut would leave lines that promise what was punched
        self._header[_EVICTIONS] += 1
        for file, unit in taken:
            file.punch(unit)
        return True


def _by_age(files: Sequence[UnitFile]) -> tuple[list[int], list[int], list[int]]:
    """File, number and bytes of the units that may be evicted, the longest unused first."""
    now = time.monotonic_ns()
    units = [np.flatnonzero(file.evictable(now)) for file in files]
    owner = np.repeat(np.arange(len(files)), [len(some) for some in units])
    pairs = list(zip(files, units, strict=True))
    stamps = _joined([file.table[some, STAMP] for file, some in pairs])
    sizes = _joined([file.held_bytes[some] for file, some in pairs])
    order = np.argsort(stamps, kind="stable")
    return owner[order].tolist(), _joined(units)[order].tolist(), sizes[order].tolist()


def _joined(parts: Sequence[Int64Array]) -> Int64Array:
    return np.concatenate([np.zeros(0, dtype=np.int64), *parts])
