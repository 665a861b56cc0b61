"""Parsl's pool of workers, with queues that no killed worker leaves locked.

A worker that waits for a task holds a lock of the pool's queue. It is a semaphore, which nobody
gives back where the worker is killed (by the kernel, short of memory, or by hand): the pool's
other workers then wait for ever. The queues of this pool have locks on files, which the kernel
gives back.
"""

import fcntl
import multiprocessing
import os
import runpy
import tempfile
import time
import weakref
from multiprocessing.context import SpawnContext
from multiprocessing.queues import Queue
from typing import Any

POOL = "parsl.executors.high_throughput.process_worker_pool"
_POLL = 0.01


class FileLock:
    """Lock between processes, not between threads; it ends with the process that holds it.

    Parameters
    ----------
    path
        File of the lock; by default a new one, which is removed with this object.
    """

    def __init__(self, path: str | None = None) -> None:
        if path is None:
            number, path = tempfile.mkstemp(prefix="parsl-queue-", suffix=".lock")
            os.close(number)
            weakref.finalize(self, os.unlink, path)
        self._path = path
        self._file = os.open(path, os.O_RDWR)
        weakref.finalize(self, os.close, self._file)

    def __reduce__(self) -> tuple[Any, ...]:
        return FileLock, (self._path,)

    def acquire(self, block: bool = True, timeout: float | None = None) -> bool:
        """Take the lock; False if another process has it until `timeout` seconds are over."""
        if block and timeout is None:
            fcntl.flock(self._file, fcntl.LOCK_EX)
            return True
        deadline = time.monotonic() + (timeout or 0.0 if block else 0.0)
        while True:
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    return False
                time.sleep(_POLL)
            else:
                return True

    def release(self) -> None:
        """Give the lock back."""
        fcntl.flock(self._file, fcntl.LOCK_UN)

    def __enter__(self) -> bool:
        return self.acquire()

    def __exit__(self, *_: object) -> None:
        self.release()


class FileLockContext(SpawnContext):
    """Makes queues with locks on files."""

    def Lock(self) -> FileLock:  # type: ignore[override]  # noqa: N802  multiprocessing's name
        """Lock that ends with the process that holds it."""
        return FileLock()


def queue(maxsize: int = 0) -> "Queue[Any]":
    """Queue between processes that may be killed."""
    return Queue(maxsize, ctx=FileLockContext())


def start() -> None:
    """Run Parsl's pool with such queues, with the arguments of the command line."""
    multiprocessing.get_context("spawn").Queue = queue  # type: ignore[method-assign]
    runpy.run_module(POOL, run_name="__main__", alter_sys=True)
