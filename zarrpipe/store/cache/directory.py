"""Which cache belongs to a store, the directory that holds it, and the lock of that directory."""

import errno
import hashlib
import json
import os
import shutil
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal

import zarr
from zarr.storage import LocalStore, MemoryStore, StorePath

from zarrpipe.data.fields import SEGMENTED
from zarrpipe.errors import StoreFormatError
from zarrpipe.store.format.layout import SAMPLES_MASK, find_array
from zarrpipe.store.format.metadata import Attributes

FORMAT = 1
_NOTE, _LOCK, _USERS, _GONE = "cache.json", "lock", "users", ".gone"
_OPEN_OR_CREATE = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC


def cache_identity(place: StorePath, group: zarr.Group, attributes: Attributes) -> str:
    """Name of the cache of a store in its present generation.

    It changes with the generation and with the place, since a copy may grow differently. A store
    without a generation is identified by its attributes and the metadata of its arrays; one in
    memory gets a name of its own each time.
    """
    state: Any = attributes.generation
    if not attributes.generation:
        if isinstance(place.store, MemoryStore):
            state = uuid.uuid4().hex
        else:
            state = [group.attrs.asdict(), _described(group, attributes), _changed(place)]
    return f"{_digest(str(place))}-{_digest([state, attributes.deleted])}"


def _digest(content: Any) -> str:
    text = json.dumps(content, sort_keys=True, default=str)
    return hashlib.blake2b(text.encode(), digest_size=10).hexdigest()


def _described(group: zarr.Group, attributes: Attributes) -> list[str]:
    """Metadata of the arrays that are read, found by name: not every store can be listed."""
    fields = [f"{part}/{name}" for name in sorted(attributes.levels) for part in ("core", "custom")]
    found = [find_array(group, path) for path in (*SEGMENTED.values(), SAMPLES_MASK, *fields)]
    return [str(array.metadata.to_dict()) for array in found if array is not None]


def _changed(place: StorePath) -> int:
    """When the root of a local store was last changed, in nanoseconds; 0 for other stores."""
    if not isinstance(place.store, LocalStore):
        return 0
    return (Path(place.store.root) / place.path / "zarr.json").stat().st_mtime_ns


class FileLock:
    """A lock of one file, or of nothing, between the threads and the processes of one machine."""

    def __init__(self, path: Path | None) -> None:
        self._mutex = threading.RLock()
        self._depth = 0
        self.descriptor = -1 if path is None else os.open(path, _OPEN_OR_CREATE, 0o666)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Hold the lock; the thread that holds it may do so again."""
        with self._mutex:
            if self._depth == 0 and self.descriptor >= 0:
                flock(self.descriptor, "exclusive", wait=True)
            self._depth += 1
            try:
                yield
            finally:
                self._depth -= 1
                if self._depth == 0 and self.descriptor >= 0:
                    flock(self.descriptor, "unlock")

    def close(self) -> None:
        """Close the file."""
        descriptor, self.descriptor = self.descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)


class CacheDirLock:
    """The right to use the directory of a cache, held from construction to `close`."""

    def __init__(self, directory: Path | None, identity: str) -> None:
        self.directory = None if directory is None else directory / identity
        self._users = -1
        self.lock = FileLock(None)
        if self.directory is None:
            return
        while True:
            _make(self.directory, identity)
            _check(self.directory, identity)
            with suppress(FileNotFoundError):
                self.lock = FileLock(self.directory / _LOCK)
                self._users = os.open(self.directory / _USERS, _OPEN_OR_CREATE, 0o666)
                return

    def enter(self) -> bool | None:
        """Become a user of the cache, `lock` being held.

        True for the only user, False beside others, None if the directory was removed meanwhile.
        """
        if self.directory is None:
            return True
        try:
            there = (self.directory / _LOCK).stat()
        except FileNotFoundError:
            return None
        if not os.path.samestat(os.fstat(self.lock.descriptor), there):
            return None
        alone = flock(self._users, "exclusive")
        flock(self._users, "shared", wait=True)
        return alone

    def close(self) -> None:
        """Give up the right, in this process alone."""
        self.lock.close()
        users, self._users = self._users, -1
        if users >= 0:
            os.close(users)


def _make(directory: Path, identity: str) -> None:
    """Make the directory of a cache together with its note, by one rename."""
    if directory.exists() and any(directory.iterdir()):
        return
    directory.parent.mkdir(parents=True, exist_ok=True)
    partial = directory.with_name(f"{identity}.{uuid.uuid4().hex}.partial")
    partial.mkdir()
    note = {"zarrpipe_cache": FORMAT, "identity": identity}
    (partial / _NOTE).write_text(json.dumps(note))
    try:
        partial.rename(directory)
    except OSError as error:
        shutil.rmtree(partial)
        if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
            raise  # otherwise another process was faster


def _check(directory: Path, identity: str) -> None:
    found = _note(directory)
    if found is None:
        raise StoreFormatError(
            f"{directory} holds files that do not belong to a cache: give another cache_dir"
        )
    if found != {"zarrpipe_cache": FORMAT, "identity": identity}:
        raise StoreFormatError(
            f"{directory} is the cache {found}, expected format {FORMAT} and identity "
            f"{identity!r}: delete it, or give another cache_dir"
        )


def _note(directory: Path) -> dict[str, Any] | None:
    """The content of the note of a cache; None where a directory has no such note."""
    try:
        note = json.loads((directory / _NOTE).read_text())
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError, ValueError):
        return None
    return note if isinstance(note, dict) and "zarrpipe_cache" in note else None


def remove_superseded(directory: Path, identity: str) -> None:
    """Remove the unused caches of earlier generations of a store."""
    place = identity.partition("-")[0]
    for other in directory.glob(f"{place}-*"):
        with suppress(OSError):
            own = (_note(other) or {}).get("identity")
            if own is not None and other.name.startswith(own) and other.name.endswith(_GONE):
                shutil.rmtree(other, ignore_errors=True)
            elif own == other.name != identity:
                _remove_unused(other)


def _remove_unused(directory: Path) -> None:
    lock = FileLock(directory / _LOCK)
    try:
        with lock.held():
            users = os.open(directory / _USERS, _OPEN_OR_CREATE, 0o666)
            try:
                if flock(users, "exclusive"):
                    gone = directory.with_name(f"{directory.name}.{uuid.uuid4().hex}{_GONE}")
                    shutil.rmtree(directory.rename(gone))
            finally:
                os.close(users)
    finally:
        lock.close()


def flock(
    descriptor: int, kind: Literal["exclusive", "shared", "unlock"], *, wait: bool = False
) -> bool:
    """Lock a whole file; False if another holds it and `wait` is not set."""
    import fcntl  # noqa: PLC0415  absent on Windows

    kinds = {"exclusive": fcntl.LOCK_EX, "shared": fcntl.LOCK_SH, "unlock": fcntl.LOCK_UN}
    try:
        fcntl.flock(descriptor, kinds[kind] | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    return True


def boot_id() -> str:
    """Name of the machine's present uptime; a new one each time where the system has none."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return str(uuid.uuid4())
