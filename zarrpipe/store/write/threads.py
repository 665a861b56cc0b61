"""Threads of a writer: concurrent requests, and calls that no signal interrupts."""

import threading
from _thread import start_new_thread
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor, wait
from queue import SimpleQueue
from typing import Generic, TypeVar

_THREADS = 16

Result = TypeVar("Result")


def run_concurrently(
    tasks: Iterable[Callable[[], Result]], threads: ThreadPoolExecutor | None = None
) -> list[Result]:
    """Run independent tasks in threads; none still runs at return, or after an interrupt.

    An interrupt shuts down `threads`; by default, they are created for this call. Raises the first
    error of the tasks, after all have ended.
    """
    if threads is None:
        with ThreadPoolExecutor(_THREADS, thread_name_prefix="zarrpipe-write") as pool:
            return run_concurrently(tasks, pool)
    try:
        futures = [threads.submit(task) for task in tasks]
        wait(futures)
    except BaseException:
        threads.shutdown(cancel_futures=True)
        raise
    return [future.result() for future in futures]


def run_uninterrupted(task: Callable[[], Result]) -> Result:
    """Run a task to its end, then raise any exception of a signal handler.

    Python runs signal handlers in the main thread only, so another thread runs the task. An
    exception during Zarr's wait for its event loop could leave a lock of `threading.Event` taken,
    on which the event loop would hang forever. The main thread waits in a single C call instead.
    """
    if threading.get_ident() != threading.main_thread().ident:
        return task()
    running = _Uninterrupted(task)
    first: BaseException | None = None
    while not running.ended:
        try:
            running.wait()
        except BaseException as error:  # of a signal handler, or no thread could be started
            if running.withdraw():
                raise
            first = first or error
    if first is not None:
        raise first
    return running.result()


class _Uninterrupted(Generic[Result]):
    """A task for a thread, started at most once, however often `wait` is interrupted."""

    def __init__(self, task: Callable[[], Result]) -> None:
        self._tasks = [task]
        self._done: SimpleQueue[None] = SimpleQueue()
        self._results: list[Result] = []
        self._error: BaseException | None = None
        self.ended = False

    def wait(self) -> None:
        """Start the task if necessary, and wait for its end."""
        if self._tasks:
            start_new_thread(self._run, ())
        self._done.get()

    def withdraw(self) -> bool:
        """Cancel the task, unless it was started; return whether this succeeded."""
        try:
            self._tasks.pop()
        except IndexError:
            return False
        return True

    def _run(self) -> None:
        try:
            task = self._tasks.pop()
        except IndexError:
            return
        try:
            self._results.append(task())
        except BaseException as error:  # noqa: BLE001  it is raised where the caller waits
            self._error = error
        self.ended = True
        self._done.put(None)

    def result(self) -> Result:
        """Return the result of the task, or raise its error."""
        if self._error is not None:
            raise self._error
        return self._results[0]
