"""The cache directory of a store: its config, its name and its lock."""

import errno
import hashlib
import json
import os
import shutil
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import zarr
from zarr.storage import LocalStore, MemoryStore, StorePath

from zarrpipe.data.validate import check_count
from zarrpipe.errors import (
    ArgumentTypeError,
    FieldError,
    StoreFormatError,
    StoreNotADirectoryError,
)
from zarrpipe.store.format.layout import ATOMS_PTR, EDGES_PTR, SAMPLES_MASK, find_array
from zarrpipe.store.format.metadata import Attributes

FORMAT = 1
_NOTE, _LOCK, _USERS, _GONE = "cache.json", "lock", "users", ".gone"
_OPEN_OR_CREATE = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC


@dataclass(frozen=True)
class CacheConfig:
    """Local directory of caches, None for memory, and most bytes of a cache, None for no limit."""

    directory: Path | None = None
    limit: int | None = None

    @classmethod
    def of(cls, cache_dir: str | Path | None, cache_bytes: int | None) -> "CacheConfig":
        """Validate the arguments of a dataset."""
        if cache_bytes is not None:
            cache_bytes = check_count(
                "cache_bytes", cache_bytes, 1, unit="bytes, or None", error=FieldError
            )
        if cache_dir is not None and not isinstance(cache_dir, str | Path):
            raise ArgumentTypeError(f"cache_dir={cache_dir!r}, expected a path or None")
        directory = None if cache_dir is None else Path(cache_dir).expanduser().absolute()
        if directory is not None and directory.exists() and not directory.is_dir():
            raise StoreNotADirectoryError(f"cache_dir {directory} is a file, expected a directory")
        return cls(directory, cache_bytes)


def cache_identity(place: StorePath, group: zarr.Group, attributes: Attributes) -> str:
    """Name of the cache of a store in its present generation.

    It depends on the generation and the place, since a copy may grow differently. A store without a
    generation is identified by its attributes and the metadata of its arrays; in memory, it gets a
    new name each time.
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
    """Metadata of the arrays that are read, found by name, since not every store can be listed."""
    fields = [path for name in sorted(attributes.levels) for path in attributes.paths_of(name)]
    found = [find_array(group, path) for path in (ATOMS_PTR, EDGES_PTR, SAMPLES_MASK, *fields)]
    return [str(array.metadata.to_dict()) for array in found if array is not None]


def _changed(place: StorePath) -> int:
    """Modification time of the root of a local store, in nanoseconds; 0 for other stores."""
    if not isinstance(place.store, LocalStore):
        return 0
    return (Path(place.store.root) / place.path / "zarr.json").stat().st_mtime_ns


class FileLock:
    """A re-entrant lock between the threads and, with a file, the processes of one machine."""

    def __init__(self, path: Path | None) -> None:
        self._mutex = threading.RLock()
        self._depth = 0
        self.descriptor = -1 if path is None else os.open(path, _OPEN_OR_CREATE, 0o666)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Hold the lock."""
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
    """The right to use the directory of a cache, from construction to `close`."""

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
        """Become a user of the cache while `lock` is held.

        True for the only user, False with others, None if the directory was removed meanwhile.
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
        """Release the right of this process."""
        self.lock.close()
        users, self._users = self._users, -1
        if users >= 0:
            os.close(users)


def _make(directory: Path, identity: str) -> None:
    """Create the directory of a cache with its note, by one rename."""
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
            raise  # otherwise, another process created it first


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
    """The content of the note of a cache directory, or None."""
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
    """Lock a whole file; without `wait`, return False if it is locked."""
    import fcntl  # noqa: PLC0415  absent on Windows

    kinds = {"exclusive": fcntl.LOCK_EX, "shared": fcntl.LOCK_SH, "unlock": fcntl.LOCK_UN}
    try:
        fcntl.flock(descriptor, kinds[kind] | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    return True


def boot_id() -> str:
    """Id of the current boot of the machine; a random one on systems without such ids."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return str(uuid.uuid4())
