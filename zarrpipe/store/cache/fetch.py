"""Fetch units in threads: once per machine, written to the cache and then committed in groups."""

import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field

import numpy as np

from zarrpipe.data.csr import Int64Array
from zarrpipe.errors import StoreClosedError, ZarrPipeError
from zarrpipe.store.cache.array import CachedArray
from zarrpipe.store.cache.shared_cache import SharedCache
from zarrpipe.store.cache.unit_file import UnitFile
from zarrpipe.store.format.validate import translate_zarr_errors

_MOST_BYTES = 1 << 28
"""Most bytes of all running fetches."""

_RUN_UNITS, _RUN_BYTES = 4, 1 << 20
_GROUP_UNITS, _GROUP_SECONDS = 256, 0.05
_SYNC_SECONDS = 30.0


class Task(Future[None]):
    """Work for a thread, of `size` bytes, which calls `finish` when it is done."""

    def __init__(self, work: Callable[["Task"], None], size: int) -> None:
        super().__init__()
        self.work, self.size = work, size
        self.last_used = 0

    def finish(self, error: BaseException | None = None) -> None:
        """End the task."""
        if error is None:
            self.set_result(None)
        else:
            self.set_exception(error)


class FetchPool:
    """Up to `threads` daemon threads that process an urgent queue and another one."""

    def __init__(self, threads: int) -> None:
        self._most = threads
        self._changed = threading.Condition()
        self._urgent: deque[Task] = deque()
        self._later: deque[Task] = deque()
        self._threads = self._idle = self._busy_bytes = 0
        self._closed = False

    @property
    def waiting(self) -> int:
        """Number of queued tasks."""
        return len(self._urgent) + len(self._later)

    def submit(self, task: Task, *, urgent: bool) -> None:
        """Queue a task, an urgent one before all others."""
        with self._changed:
            if self._closed:
                raise _closed_meanwhile()
            if self._idle <= self.waiting and self._threads < self._most:
                self._start()
            (self._urgent if urgent else self._later).append(task)
            self._changed.notify()

    def make_urgent(self, tasks: list[Task]) -> None:
        """Move tasks to the urgent queue."""
        wanted = set(map(id, tasks))
        with self._changed:
            if self._later:
                self._urgent.extend(task for task in self._later if id(task) in wanted)
                self._later = deque(task for task in self._later if id(task) not in wanted)

    def close(self) -> None:
        """Start no further tasks; queued tasks end with an error."""
        with self._changed:
            self._closed = True
            left = [*self._urgent, *self._later]
            self._urgent.clear()
            self._later.clear()
            self._changed.notify_all()
        for task in left:
            task.finish(_closed_meanwhile())

    def join(self, timeout: float | None = None) -> bool:
        """Wait after `close` until all threads end; False after the timeout."""
        with self._changed:
            return self._changed.wait_for(lambda: self._threads == 0, timeout)

    def _start(self) -> None:
        """Start a thread, unless the system has none left and others are running."""
        self._threads += 1
        try:
            threading.Thread(target=self._serve, name="zarrpipe-fetch", daemon=True).start()
        except RuntimeError:
            self._threads -= 1
            if not self._threads:
                raise

    def _serve(self) -> None:
        while (task := self._next()) is not None:
            try:
                task.work(task)
            except BaseException as error:  # noqa: BLE001  raised where the task is waited for
                task.finish(error)
            with self._changed:
                self._busy_bytes -= task.size
            del task

    def _next(self) -> Task | None:
        """Wait for a task that fits; None after `close`."""
        with self._changed:
            self._idle += 1
            try:
                while not self._closed:
                    queue = self._urgent or self._later
                    if queue and self._fits(queue[0]):
                        task = queue.popleft()
                        self._busy_bytes += task.size
                        self._changed.notify()  # another may fit, too
                        return task
                    self._changed.wait()
                self._threads -= 1
                self._changed.notify_all()
                return None
            finally:
                self._idle -= 1

    def _fits(self, task: Task) -> bool:
        return not self._busy_bytes or self._busy_bytes + task.size <= _MOST_BYTES


@dataclass(frozen=True)
class _Run:
    """Consecutive units that one task fetches; it has locked `units`."""

    array: CachedArray
    file: UnitFile
    task: Task
    asked: Sequence[int]
    units: list[int] = field(default_factory=list)
    written: list[tuple[int, int, int]] = field(default_factory=list)
    """Unit, its number of rows in the file, and in the table."""


class Fetcher:
    """Fetches units of the arrays of one store into their cache; see `RowCache`."""

    def __init__(
        self, cache: SharedCache, check: Callable[[], object] | None, threads: int
    ) -> None:
        self._cache, self._check = cache, check
        self.pool = FetchPool(threads)
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
        last_used: int,
        *,
        urgent: bool = True,
        wait: bool = False,
    ) -> list[Task]:
        """Start tasks that fetch units, and return these and running ones.

        Without `wait`, units that another process is fetching are skipped.
        """
        tasks: dict[int, Task] = {}
        with self._mutex:
            new = []
            for unit in units.tolist():
                task = self._tasks.get((array.path, unit))
                if task is None or task.done():
                    new.append(unit)
                else:
                    task.last_used = max(task.last_used, last_used)
                    tasks[id(task)] = task
            for run in _runs(new, 1 if wait else _run_length(array.file)):
                task = self._task(array, run, wait=wait)
                task.last_used = last_used
                self.pool.submit(task, urgent=urgent)  # first, since it may raise
                tasks[id(task)] = task
                self._tasks.update(dict.fromkeys(((array.path, unit) for unit in run), task))
        return list(tasks.values())

    def end(self, timeout: float | None) -> None:
        """Stop fetching and close the cache, unless a fetch exceeds the timeout."""
        self.pool.close()
        if self.pool.join(timeout):
            self._cache.sync()
            self._cache.forget()

    def _task(self, array: CachedArray, units: Sequence[int], *, wait: bool) -> Task:
        file = array.file
        return Task(
            lambda task: self._fetch(_Run(array, file, task, units), wait=wait),
            len(units) * file.unit_bytes,
        )

    def _fetch(self, run: _Run, *, wait: bool) -> None:
        try:
            run.units.extend(unit for unit in run.asked if run.file.locks.take(unit, wait=wait))
        except BaseException as error:  # noqa: BLE001  raised where the task is waited for
            self._done(run, error)
            return
        with self._mutex:
            self._reading += 1
        try:
            missing = run.array.look(np.array(run.units, dtype=np.int64))[1].tolist()
            for part in _runs(missing, len(missing)):
                self._write(run, part)
        except BaseException as error:  # noqa: BLE001  raised where the task is waited for
            self._undo(run, error)
            self._commit(None)
        else:
            self._commit(run)

    def _write(self, run: _Run, units: Sequence[int]) -> None:
        """Fetch consecutive units and write them to the file."""
        array, file, first = run.array, run.file, units[0] * run.file.unit_rows
        try:
            with translate_zarr_errors(array.named(units)):
                values = array.read(first, (units[-1] + 1) * file.unit_rows)
        except ZarrPipeError:
            raise
        except OSError as error:
            text = f"cannot fetch {array.named(units)}: {error!r}"
            raise (OSError(error.errno, text) if error.errno else OSError(text)) from error
        for unit in units:
            start, rows = unit * file.unit_rows - first, array.committed_in(unit)
            before = self._cache.reserve(file, unit, rows)
            run.written.append((unit, rows, before))
            cached = max(before, 0)
            try:
                file.write(unit, cached, values[start + cached : start + rows])
            except OSError as error:
                raise OSError(
                    error.errno,
                    f"cannot write {array.named([unit])} to the cache {self._cache.name} "
                    f"({error.strerror}): free space, give a smaller cache_bytes or another "
                    "cache_dir",
                ) from error

    def _commit(self, run: _Run | None) -> None:
        """Commit the fetched rows if the store has not changed.

        One thread at a time checks this for all units written so far, after all running reads have
        ended or when too many units wait.
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
                self._cache.commit(run.file, run.written, run.task.last_used)
        except BaseException as error:  # noqa: BLE001  raised where the tasks are waited for
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
            run.file.locks.release(unit)
        with self._mutex:
            for unit in run.asked:
                if self._tasks.get((run.array.path, unit)) is run.task:
                    del self._tasks[run.array.path, unit]
        run.task.finish(error)


def in_order(tasks: Sequence[Task], threads: int) -> Iterable[Task]:
    """Iterate over tasks, with a progress bar on a terminal if there are many."""
    if len(tasks) <= 2 * threads or not sys.stderr.isatty():
        return tasks
    try:
        from tqdm import tqdm  # noqa: PLC0415  optional
    except ImportError:
        return tasks
    bar: Iterable[Task] = tqdm(tasks, desc="fetching", unit=" units", delay=1.0, leave=False)
    return bar


def _closed_meanwhile() -> StoreClosedError:
    return StoreClosedError("the cache was closed during a fetch: open the store again")


def _run_length(file: UnitFile) -> int:
    return min(_RUN_UNITS, max(1, _RUN_BYTES // max(file.unit_bytes, 1)))


def _runs(units: Sequence[int], most: int) -> Iterable[list[int]]:
    """Split ascending units into runs of up to `most` consecutive ones."""
    run: list[int] = []
    for unit in units:
        if run and (unit != run[-1] + 1 or len(run) == most):
            yield run
            run = []
        run.append(unit)
    if run:
        yield run
