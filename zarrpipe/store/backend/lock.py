"""One writer at a time: a lock on a local store that names its holder and dies with it.

The lock is a flock on the file ``meta/atoms_ptr/.lock``, which Zarr tools do not list as a member
of a group. The text of the file only names the holder. Readers need no lock. The guarantees depend
on the place of the store:

local disks
    A second writer gets an error that names the holder. A holder that is killed, or whose machine
    stops, loses the lock at once. A forked child does not inherit it.
NFS
    Linux turns the lock into a byte-range lock on the server, which is valid between hosts if the
    server has locks (NFSv4, or v3 with lockd); a mount with ``nolock`` or ``local_lock`` limits it
    to one host. If a host stops, the server frees its lock after a lease of usually a minute or
    two. SMB and most cluster file systems (Lustre with ``flock``, GPFS, CephFS) lock between hosts
    as well.
file systems without locks
    Some FUSE mounts, and Lustre without ``flock``. A writer warns once and goes on. At each append
    it raises if another writer wrote or took the store meanwhile. Two simultaneous appends may
    still damage each other's last samples.
object stores, and other stores that are not on a local file system
    There is no lock, but the same check at each append.
memory
    A store in memory belongs to one process, which makes the same check.
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
    """The process that holds a lock; `since` is in seconds since 1970."""

    host: str
    pid: int
    since: float

    def __str__(self) -> str:
        when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(self.since))
        return f"process {self.pid} on {self.host} since {when}"


def holder_of(directory: Path) -> Holder | None:
    """The holder that the lock file of a store names, even after it was killed, or None."""
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
    """The right to write a local store, from construction to `release`.

    The directory is created if necessary. Raises StoreLockedError if another writer holds the lock,
    StoreReadOnlyError if the directory is not writable, and StoreFormatError if the lock is not a
    regular file.
    """

    fence, lapsed = None, False  # the system releases the lock when its holder has ended

    def __init__(self, directory: Path) -> None:
        self.enforced = False
        self._text = ""
        self._descriptor = _opened(directory / LOCK_FILE, directory)
        self._finalizer = weakref.finalize(self, os.close, self._descriptor)
        try:
            _locks_of_process().add(self)
            locked = os.fstat(self._descriptor)
            self._file = locked.st_dev, locked.st_ino
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
        """Lock the store at `directory`, again if another writer replaces the store meanwhile."""
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
        """Whether this is the lock of the present store at `directory`."""
        try:
            there = os.stat(f"{directory}/{LOCK_FILE}")  # noqa: PTH116  a Path costs more than the call
        except (FileNotFoundError, NotADirectoryError):
            return False
        return (there.st_dev, there.st_ino) == self._file

    def stolen_by(self) -> Holder | None:
        """The writer that took a lock without enforcement; None while this one has it."""
        text = os.pread(self._descriptor, _MOST_TEXT, 0)
        return None if text == self._text.encode() else _holder(text)

    def check(self, place: object) -> None:
        """Raise StoreLockedError if another writer took a lock without enforcement."""
        other = None if self.enforced else self.stolen_by()
        if other is not None:
            raise StoreLockedError(f"{place} was taken by {other}: one writer at a time")

    def release(self, *, failed: bool = False) -> None:
        """Release the lock, even if its file cannot be changed; a second call does nothing.

        After an interrupt, a second call completes the first. A file has no late changes of a
        `failed` writer.
        """
        del failed
        try:
            if self.held and (self.enforced or self.stolen_by() is None):
                files.resize(self._descriptor, 0)
        except OSError:  # the file may still name this holder, as after a kill
            pass
        finally:
            self._unlock()

    def _unlock(self) -> None:
        if self.held:
            _unflock(self._descriptor)
            self._finalizer()


def _acquire(descriptor: int, directory: Path) -> bool:
    """Lock an open file, and return whether the file system enforces the lock."""
    locked = _flock(descriptor)
    if locked is False and _may_be_ours(_holder(os.pread(descriptor, _MOST_TEXT, 0))):
        gc.collect()  # a sink of this process that was not closed may be in a reference cycle
        locked = _flock(descriptor)
    if locked is not True:
        _refuse_or_warn(directory, _holder(os.pread(descriptor, _MOST_TEXT, 0)), locked)
    return bool(locked)


def _may_be_ours(holder: Holder | None) -> bool:
    """Whether a holder may be this process; an interrupted one has not written its name."""
    return holder is None or holder.pid == os.getpid()


def _refuse_or_warn(directory: Path, holder: Holder | None, locked: bool | None) -> None:
    if locked is None:
        last = f" It was last taken by {holder}, which may still write it." if holder else ""
        warnings.warn(
            f"the file system of {directory} has no locks, so nothing keeps a second writer out: "
            f"make sure that only one writes.{last} Each append checks whether another wrote.",
            RuntimeWarning,
            stacklevel=5,
        )
        return
    raise StoreLockedError(
        f"{directory} is being written by {holder or 'a process that has not said its name yet'}: "
        "one writer at a time; close that writer, or write another store and read both as one "
        "dataset"
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
        raise StoreFormatError(
            f"{path} is not a regular file, expected the lock of a store: remove it"
        )
    return descriptor


def _flock(descriptor: int) -> bool | None:
    """Try to lock a file; None if the file system has no locks."""
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
    """Release the lock of a file, even if another descriptor shares it."""
    import fcntl  # noqa: PLC0415  absent on Windows, where no store counts as local

    with suppress(OSError):  # without locks; closing the file releases one anyway
        fcntl.flock(descriptor, fcntl.LOCK_UN)


def _holder(text: bytes) -> Holder | None:
    """The holder that the text of a lock file names."""
    try:
        content = json.loads(text)
        holder = Holder(str(content["host"]), int(content["pid"]), float(content["since"]))
        str(holder)
    except (ValueError, KeyError, TypeError, OverflowError, OSError, RecursionError):
        return None
    return holder


@functools.cache
def _locks_of_process() -> "weakref.WeakSet[WriterLock]":
    """Locks of this process; a forked child closes them, so that they do not outlive the parent."""
    locks = weakref.WeakSet[WriterLock]()

    def leave_to_parent() -> None:
        for lock in [*locks]:
            lock._finalizer()

    os.register_at_fork(after_in_child=leave_to_parent)
    return locks
