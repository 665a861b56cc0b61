"""Fetching units: once by each machine, written before they are trusted, trusted in groups."""

import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from zarrpipe.data.csr import Int64Array
from zarrpipe.errors import ZarrPipeError
from zarrpipe.store.cache.array import CachedArray
from zarrpipe.store.cache.pool import FetchPool, Task
from zarrpipe.store.cache.shared_cache import SharedCache
from zarrpipe.store.cache.units import UnitFile
from zarrpipe.store.format.validate import translate_zarr_errors

_BYTES_AT_ONCE = 1 << 28
_RUN_UNITS, _RUN_BYTES = 4, 1 << 20
_GROUP_UNITS, _GROUP_SECONDS = 256, 0.05
_SYNC_SECONDS = 30.0


@dataclass(frozen=True)
class _Run:
    """Units of an array that are asked for by one task; of `units` the locks are held."""

    array: CachedArray
    file: UnitFile
    task: Task
    asked: Sequence[int]
    units: list[int] = field(default_factory=list)
    written: list[tuple[int, int, int]] = field(default_factory=list)
    """Unit, rows that it has now in the file, and rows that the table says it has."""


class Fetcher:
    """Brings units of the arrays of one store into their cache.

    Parameters
    ----------
    cache
        Where to.
    check : callable, optional
        See `RowCache`.
    threads
        Reads at once.
    """

    def __init__(
        self, cache: SharedCache, check: Callable[[], object] | None, threads: int
    ) -> None:
        self._cache, self._check = cache, check
        self.pool = FetchPool(threads, _BYTES_AT_ONCE)
        self._mutex = threading.Lock()
        self._tasks: dict[tuple[str, int], Task] = {}
        self._written: list[_Run] = []
        self._reading = 0
        self._committing = False
        self._committed = self._synced = time.monotonic()

    def tasks(
        self,
        array: CachedArray,
        units: Int64Array,
        stamp: int,
        *,
        urgent: bool = True,
        wait: bool = False,
    ) -> list[Task]:
        """Tasks that fetch units, those that are under way among them.

        Units that another process is fetching are passed over, unless `wait` is set.
        """
        tasks: dict[int, Task] = {}
        with self._mutex:
            new = []
            for unit in units.tolist():
                task = self._tasks.get((array.path, unit))
                if task is None or task.ended:
                    new.append(unit)
                else:
                    task.stamp = max(task.stamp, stamp)
                    tasks[id(task)] = task
            for run in _runs(new, 1 if wait else _run_length(array.file)):
                task = self._task(array, run, wait=wait)
                task.stamp = stamp
                tasks[id(task)] = task
                self._tasks.update(dict.fromkeys(((array.path, unit) for unit in run), task))
                self.pool.submit(task, urgent=urgent)
        return list(tasks.values())

    def _task(self, array: CachedArray, units: Sequence[int], *, wait: bool) -> Task:
        file = array.file
        return Task(
            lambda task: self._fetch(array, file, units, task, wait=wait),
            len(units) * file.unit_bytes,
        )

    def _fetch(
        self, array: CachedArray, file: UnitFile, units: Sequence[int], task: Task, *, wait: bool
    ) -> None:
        run = _Run(array, file, task, units)
        try:
            run.units.extend(unit for unit in units if file.locks.take(unit, wait=wait))
        except BaseException as error:  # noqa: BLE001  it is raised where the task is waited for
            self._done(run, error)
            return
        with self._mutex:
            self._reading += 1
        try:
            lacking = array.look(np.array(run.units, dtype=np.int64))[1].tolist()
            for part in _runs(lacking, len(lacking)):
                self._write(run, part)
        except BaseException as error:  # noqa: BLE001  it is raised where the task is waited for
            self._undo(run, error)
            self._commit(None)
        else:
            self._commit(run)

    def _write(self, run: _Run, units: Sequence[int]) -> None:
        """Fetch units that follow each other and write them to the file."""
        array, file, first = run.array, run.file, units[0] * run.file.unit_rows
        try:
            with translate_zarr_errors(array.named(units)):
                values = array.read(first, (units[-1] + 1) * file.unit_rows)
        except ZarrPipeError:
            raise
        except OSError as error:
            said = f"cannot fetch {array.named(units)}: {error!r}"
            raise (OSError(error.errno, said) if error.errno else OSError(said)) from error
        for unit in units:
            start, rows = unit * file.unit_rows - first, array.committed_in(unit)
            before = self._cache.reserve(file, unit, rows)
            run.written.append((unit, rows, before))
            kept = max(before, 0)
            try:
                file.write(unit, kept, values[start + kept : start + rows])
            except OSError as error:
                raise OSError(
                    error.errno,
                    f"cannot write {array.named([unit])} to the cache {self._cache.name} "
                    f"({error.strerror}): make room, give a smaller limit or another directory",
                ) from error

    def _commit(self, run: _Run | None) -> None:
        """Trust what was fetched, if the store is still the one that it was.

        That is asked by one thread at a time for all that was written until then, and not before
        reads under way have ended, as long as there are not too many.
        """
        with self._mutex:
            self._reading -= 1
            self._written.extend([run] if run is not None else [])
            if self._committing or not self._due():
                return
            self._committing = True
        while True:
            with self._mutex:
                group, self._written = self._written, []
            self._commit_all(group)
            with self._mutex:
                if not self._due():
                    self._committing = False
                    break
        if self._committed - self._synced > _SYNC_SECONDS:
            self._synced = self._committed
            self._cache.sync()

    def _due(self) -> bool:
        if not self._written:
            return False
        units = sum(len(run.units) for run in self._written)
        late = time.monotonic() - self._committed > _GROUP_SECONDS
        return self._check is None or self._reading == 0 or units >= _GROUP_UNITS or late

    def _commit_all(self, group: Sequence[_Run]) -> None:
        try:
            if self._check is not None and any(run.written for run in group):
                self._check()
            for run in group:
                self._cache.commit(run.file, run.written, run.task.stamp)
        except BaseException as error:  # noqa: BLE001  it is raised where the tasks are waited for
            for run in group:
                self._undo(run, error)
        else:
            for run in group:
                self._done(run)
        self._committed = time.monotonic()

    def _undo(self, run: _Run, error: BaseException) -> None:
        for unit, rows, before in run.written:
            self._cache.abandon(run.file, unit, rows, before)
        self._done(run, error)

    def _done(self, run: _Run, error: BaseException | None = None) -> None:
        for unit in run.units:
            run.file.locks.give(unit)
        with self._mutex:
            for unit in run.asked:
                if self._tasks.get((run.array.path, unit)) is run.task:
                    del self._tasks[run.array.path, unit]
        run.task.finish(error)


def end(pool: FetchPool, cache: SharedCache, timeout: float | None) -> None:
    """Stop fetching and let go of the cache, unless a fetch outlasts the timeout."""
    pool.close()
    if pool.join(timeout):
        cache.sync()
        cache.forget()


def _run_length(file: UnitFile) -> int:
    return min(_RUN_UNITS, max(1, _RUN_BYTES // max(file.unit_bytes, 1)))


def _runs(units: Sequence[int], most: int) -> Iterable[list[int]]:
    """Ascending units, cut into runs of at most `most` that follow each other."""
    run: list[int] = []
    for unit in units:
        if run and (unit != run[-1] + 1 or len(run) == most):
            yield run
            run = []
        run.append(unit)
    if run:
        yield run
