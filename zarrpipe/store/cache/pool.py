"""Threads that fetch units: those that are waited for first, and not too many bytes at once."""

import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Sequence


class Task:
    """One thing to do, and how it ended.

    Parameters
    ----------
    work
        Called in a thread; it ends the task by `finish`, now or later, unless it raises.
    size
        Bytes that the work holds in memory.
    """

    def __init__(self, work: Callable[["Task"], None], size: int) -> None:
        self.work, self.size = work, size
        self.stamp = 0
        self._ended = threading.Event()
        self._error: BaseException | None = None

    @property
    def ended(self) -> bool:
        """Whether the task has ended."""
        return self._ended.is_set()

    def finish(self, error: BaseException | None = None) -> None:
        """End the task."""
        self._error = error
        self._ended.set()

    def wait(self) -> None:
        """Wait for the end, and raise if it was an error."""
        self._ended.wait()
        if self._error is not None:
            raise self._error


class FetchPool:
    """Daemon threads that work through two queues.

    Parameters
    ----------
    threads
        How many, started as they are needed.
    bytes_at_once
        How much the tasks at work may hold together; a single one may hold more.
    """

    def __init__(self, threads: int, bytes_at_once: int) -> None:
        self._most, self._bytes_at_once = threads, bytes_at_once
        self._changed = threading.Condition()
        self._urgent: deque[Task] = deque()
        self._later: deque[Task] = deque()
        self._threads = self._idle = self._busy_bytes = 0
        self._closed = False

    @property
    def waiting(self) -> int:
        """Number of tasks that were not begun."""
        return len(self._urgent) + len(self._later)

    def submit(self, task: Task, *, urgent: bool) -> None:
        """Do a task, before those that are not urgent if it is."""
        with self._changed:
            if self._closed:
                raise RuntimeError("the stage was closed while it was fetching")
            (self._urgent if urgent else self._later).append(task)
            if self._idle < self.waiting and self._threads < self._most:
                self._threads += 1
                threading.Thread(target=self._serve, name="zarrpipe-fetch", daemon=True).start()
            self._changed.notify()

    def hurry(self, tasks: list[Task]) -> None:
        """Make tasks urgent that were not."""
        wanted = set(map(id, tasks))
        with self._changed:
            if self._later:
                self._urgent.extend(task for task in self._later if id(task) in wanted)
                self._later = deque(task for task in self._later if id(task) not in wanted)

    def close(self) -> None:
        """Begin nothing more; what was not begun ends with an error."""
        with self._changed:
            self._closed = True
            left = [*self._urgent, *self._later]
            self._urgent.clear()
            self._later.clear()
            self._changed.notify_all()
        for task in left:
            task.finish(RuntimeError("the stage was closed while it was fetching"))

    def join(self, timeout: float | None = None) -> bool:
        """Wait until no thread is at work, after `close`; whether that came about."""
        with self._changed:
            return self._changed.wait_for(lambda: self._threads == 0, timeout)

    def _serve(self) -> None:
        while (task := self._next()) is not None:
            try:
                task.work(task)
            except BaseException as error:  # noqa: BLE001  it is raised where the task is waited for
                task.finish(error)
            with self._changed:
                self._busy_bytes -= task.size
            del task

    def _next(self) -> Task | None:
        """Take a task as soon as there is one that fits; None when there will be no more."""
        with self._changed:
            self._idle += 1
            try:
                while not self._closed:
                    queue = self._urgent or self._later
                    if queue and self._fits(queue[0]):
                        task = queue.popleft()
                        self._busy_bytes += task.size
                        self._changed.notify()  # there may be room for another
                        return task
                    self._changed.wait()
                self._threads -= 1
                self._changed.notify_all()
                return None
            finally:
                self._idle -= 1

    def _fits(self, task: Task) -> bool:
        return not self._busy_bytes or self._busy_bytes + task.size <= self._bytes_at_once


def waited_for(tasks: Sequence[Task], threads: int) -> Iterable[Task]:
    """Tasks in their order, with a progress bar on a terminal where it takes long."""
    if len(tasks) <= 2 * threads or not sys.stderr.isatty():
        return tasks
    try:
        from tqdm import tqdm  # noqa: PLC0415  optional
    except ImportError:
        return tasks
    bar: Iterable[Task] = tqdm(tasks, desc="staging", unit=" units", delay=1.0, leave=False)
    return bar
