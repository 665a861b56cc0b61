"""One writer at a time: a lock on a local store that names its holder and dies with it.

The lock is the operating system's (flock), so that a killed holder loses it at once; the file
beside it only says who holds it. It stands in the folder of the pointer array, where Zarr tools
that list a group's members do not meet it. A reader needs no lock. Stores that are not on a local
file system have none: there, one writer is the user's duty.
"""

import gc
import json
import os
import socket
import time
import weakref
from pathlib import Path
from typing import Any

from zarrpipe.errors import StoreLockedError

_PLACE = "meta/atoms_ptr/.lock"


class WriterLock:
    """The right to write a local store, held from construction to `release`.

    Parameters
    ----------
    directory
        Directory of the store; made if it is not there.

    Raises
    ------
    StoreLockedError
        If another writer holds it, naming host, process and start.
    """

    def __init__(self, directory: Path) -> None:
        path = directory / _PLACE
        path.parent.mkdir(parents=True, exist_ok=True)
        self._descriptor = _acquire(path, directory)
        held = os.fstat(self._descriptor)
        self._file = held.st_dev, held.st_ino
        holder = {"host": socket.gethostname(), "pid": os.getpid(), "since": time.time()}
        os.ftruncate(self._descriptor, 0)
        os.pwrite(self._descriptor, json.dumps(holder).encode(), 0)
        self._finalizer = weakref.finalize(self, os.close, self._descriptor)
        this = weakref.ref(self)
        os.register_at_fork(after_in_child=lambda: _leave_to_parent(this))

    @property
    def held(self) -> bool:
        """Whether this process has the lock."""
        return self._finalizer.alive

    def guards(self, directory: Path) -> bool:
        """Whether this is still the lock of what is at `directory` now."""
        try:
            there = os.stat(f"{directory}/{_PLACE}")  # noqa: PTH116  a Path costs more than the call
        except (FileNotFoundError, NotADirectoryError):
            return False
        return (there.st_dev, there.st_ino) == self._file

    def release(self) -> None:
        """Give the lock up; a second call does nothing."""
        if self.held:
            os.ftruncate(self._descriptor, 0)
        self._finalizer()


def _acquire(path: Path, directory: Path) -> int:
    import fcntl  # noqa: PLC0415  absent on Windows, where no store counts as local

    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    for attempt in (1, 2):
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = _holder(os.pread(descriptor, 4096, 0))
            if attempt == 1 and holder.get("pid") == os.getpid():
                gc.collect()  # a sink that was dropped, not closed, may wait in a cycle
                continue
            os.close(descriptor)
            raise StoreLockedError(
                f"{directory} is being written by {_named(holder)}: one writer at a time; close "
                "that one, or write a store of its own beside it and read both as one dataset"
            ) from None
        break
    return descriptor


def _holder(text: bytes) -> dict[str, Any]:
    try:
        holder = json.loads(text)
    except ValueError:
        return {}
    return holder if isinstance(holder, dict) else {}


def _named(holder: dict[str, Any]) -> str:
    try:
        since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(holder["since"]))
        return f"process {holder['pid']} on {holder['host']} since {since}"
    except (KeyError, TypeError):
        return "a process that has not said its name yet"


def _leave_to_parent(this: "weakref.ref[WriterLock]") -> None:
    """Close the inherited descriptor in a forked child, so that it does not outlive the parent."""
    lock = this()
    if lock is not None:
        lock._finalizer()
