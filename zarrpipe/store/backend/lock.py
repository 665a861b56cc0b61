"""One writer at a time: a lock on a local store that names its holder and dies with it.

The lock is the operating system's (flock) on the file ``meta/atoms_ptr/.lock``, where Zarr tools
that list a group's members do not meet it. The text of the file only says who holds it. A reader
needs no lock. What is promised depends on where the store is:

local disks
    A second writer gets an error that names the holder. A holder that is killed, or whose machine
    stops, loses the lock at once. A forked child does not inherit it.
NFS
    Linux turns the lock into one of byte ranges that the server keeps, so it holds between hosts
    where the server has locks (NFSv4, or v3 with lockd); a mount with ``nolock`` or ``local_lock``
    keeps it to one host. The server takes the lock of a host that stopped after its lease, most
    often a minute or two. SMB and most cluster file systems (Lustre with ``flock``, GPFS, CephFS)
    hold it between hosts as well.
file systems without locks
    Some FUSE mounts and Lustre without ``flock`` answer that they have none. A writer warns once
    and goes on; at each append it looks whether another wrote or took the store meanwhile, and
    raises. Two that append at the same moment may still harm each other's last samples.
object stores, and other stores that are not on a local file system
    There is no lock. The same look at each append.
memory
    A store in memory is one process's own; two writers there are told from each other as above.
"""

import errno
import functools
import gc
import json
import os
import socket
import stat
import time
import warnings
import weakref
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

from zarrpipe.errors import StoreFormatError, StoreLockedError, StoreReadOnlyError
from zarrpipe.store.backend import files

LOCK_FILE = "meta/atoms_ptr/.lock"
"""Place of the lock in a store."""

_NO_LOCKS = frozenset(
    getattr(errno, name, -1) for name in ("ENOLCK", "ENOTSUP", "EOPNOTSUPP", "ENOSYS")
)
_NOT_ALLOWED = (errno.EACCES, errno.EPERM, errno.EROFS)
_MOST_TEXT = 4096
_TRIALS = 8


@dataclass(frozen=True)
class Holder:
    """Who writes a store.

    Parameters
    ----------
    host
        Name of the machine.
    pid
        Process there.
    since
        When it took the lock, in seconds since 1970.
    """

    host: str
    pid: int
    since: float

    def __str__(self) -> str:
        when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(self.since))
        return f"process {self.pid} on {self.host} since {when}"


def holder_of(directory: Path) -> Holder | None:
    """Whom the lock file of a store names; None if nobody.

    A holder that was killed is still named, though the lock is free. Nothing is locked or changed.
    """
    try:
        descriptor = files.open_to_read(directory / LOCK_FILE)
    except OSError:
        return None
    try:
        return _holder(os.pread(descriptor, _MOST_TEXT, 0))
    except OSError:  # a directory, or a FIFO
        return None
    finally:
        os.close(descriptor)


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
    StoreReadOnlyError
        If the directory must not be written to.
    StoreFormatError
        If something else than a file stands in the place of the lock.
    """

    def __init__(self, directory: Path) -> None:
        self.enforced = False
        self._text = ""
        self._descriptor = _opened(directory / LOCK_FILE, directory)
        self._finalizer = weakref.finalize(self, os.close, self._descriptor)
        try:
            _locks_of_process().add(self)
            held = os.fstat(self._descriptor)
            self._file = held.st_dev, held.st_ino
            self.enforced = _acquire(self._descriptor, directory)
            text = json.dumps(asdict(Holder(socket.gethostname(), os.getpid(), time.time())))
            self._text = text
            files.resize(self._descriptor, 0)
            files.write_at(self._descriptor, memoryview(text.encode()), 0)
        except BaseException:
            self._unlock()
            raise

    @classmethod
    def of_place(cls, directory: Path) -> Self:
        """The lock of the store that is at `directory` once it is held.

        Another writer may put a new store there between the opening of the file and its locking.

        Raises
        ------
        StoreLockedError, StoreReadOnlyError, StoreFormatError
            As the constructor.
        """
        lock: Self | None = None
        try:
            for _ in range(_TRIALS):
                lock = cls(directory)
                if lock.guards(directory):
                    return lock
                lock.release()
        except BaseException:
            if lock is not None:
                lock.release()
            raise
        raise StoreLockedError(f"{directory} is being replaced by another writer: try again")

    @property
    def held(self) -> bool:
        """Whether this process has the lock."""
        return self._finalizer.alive

    def guards(self, directory: Path) -> bool:
        """Whether this is still the lock of what is at `directory` now."""
        try:
            there = os.stat(f"{directory}/{LOCK_FILE}")  # noqa: PTH116  a Path costs more than the call
        except (FileNotFoundError, NotADirectoryError):
            return False
        return (there.st_dev, there.st_ino) == self._file

    def stolen_by(self) -> Holder | None:
        """Who took a lock that the file system does not enforce; None while it is still ours."""
        text = os.pread(self._descriptor, _MOST_TEXT, 0)
        return None if text == self._text.encode() else _holder(text)

    def release(self) -> None:
        """Give the lock up, also where its file cannot be changed; a second call does nothing.

        After an interrupt the second call does the rest: the lock is given up before the
        descriptor is forgotten.
        """
        try:
            if self.held and (self.enforced or self.stolen_by() is None):
                files.resize(self._descriptor, 0)
        except OSError:  # who holds nothing any more may still be named, as after a kill
            pass
        finally:
            self._unlock()

    def _unlock(self) -> None:
        if self.held:
            _unflock(self._descriptor)
            self._finalizer()


def _acquire(descriptor: int, directory: Path) -> bool:
    """Lock an open file; whether the file system keeps others out."""
    taken = _flock(descriptor)
    if taken is False and _may_be_ours(_holder(os.pread(descriptor, _MOST_TEXT, 0))):
        gc.collect()  # a sink of this process that was dropped, not closed, may be in a cycle
        taken = _flock(descriptor)
    if taken is not True:
        _refuse_or_warn(directory, _holder(os.pread(descriptor, _MOST_TEXT, 0)), taken)
    return bool(taken)


def _may_be_ours(holder: Holder | None) -> bool:
    """Whether a holder is this process; one that was interrupted has not given its name."""
    return holder is None or holder.pid == os.getpid()


def _refuse_or_warn(directory: Path, holder: Holder | None, taken: bool | None) -> None:
    if taken is None:
        last = f" It was last taken by {holder}, which may still write it." if holder else ""
        warnings.warn(
            f"the file system of {directory} has no locks, so nothing keeps a second writer out: "
            f"make sure that there is one.{last} Each append looks whether another wrote.",
            RuntimeWarning,
            stacklevel=5,
        )
        return
    raise StoreLockedError(
        f"{directory} is being written by {holder or 'a process that has not said its name yet'}: "
        "one writer at a time; close that one, or write a store of its own beside it and read both "
        "as one dataset"
    )


def _opened(path: Path, directory: Path) -> int:
    try:
        files.make_folders(path.parent)
        descriptor = files.open_or_create(path)
    except OSError as error:
        if error.errno in _NOT_ALLOWED:
            raise StoreReadOnlyError(
                f"{directory} must not be written to ({error.strerror}: {error.filename}): change "
                "its permissions, or write to another place"
            ) from error
        if os.path.lexists(path):
            files.check_regular(path)
        raise
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise StoreFormatError(f"{path} is not a regular file, expected the lock of a store")
    return descriptor


def _flock(descriptor: int) -> bool | None:
    """Whether a file was locked; None where the file system has no locks."""
    import fcntl  # noqa: PLC0415  absent on Windows, where no store counts as local

    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno in _NO_LOCKS:
            return None
        raise
    return True


def _unflock(descriptor: int) -> None:
    """Give up the lock of a file, also where another descriptor shares it."""
    import fcntl  # noqa: PLC0415  absent on Windows, where no store counts as local

    with suppress(OSError):  # a file system without locks; closing the file does the same
        fcntl.flock(descriptor, fcntl.LOCK_UN)


def _holder(text: bytes) -> Holder | None:
    """Whom the text of a lock file names."""
    try:
        said = json.loads(text)
        holder = Holder(str(said["host"]), int(said["pid"]), float(said["since"]))
        str(holder)
    except (ValueError, KeyError, TypeError, OverflowError, OSError, RecursionError):
        return None
    return holder


@functools.cache
def _locks_of_process() -> "weakref.WeakSet[WriterLock]":
    """Locks whose descriptors a forked child closes, so that they do not outlive the parent."""
    locks = weakref.WeakSet[WriterLock]()

    def leave_to_parent() -> None:
        for lock in [*locks]:
            lock._finalizer()

    os.register_at_fork(after_in_child=leave_to_parent)
    return locks
