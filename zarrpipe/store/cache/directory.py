"""Which cache belongs to a store, and the directory that holds it."""

import hashlib
import json
import os
import shutil
import uuid
from contextlib import suppress
from pathlib import Path
from typing import Any

import zarr
from zarr.storage import LocalStore, MemoryStore, StorePath

from zarrpipe.errors import StoreFormatError
from zarrpipe.store.cache.files import FileLock, flock
from zarrpipe.store.format.layout import ATOMS_PTR, EDGES_PTR, SAMPLES_MASK, find_array
from zarrpipe.store.format.metadata import Attributes

FORMAT = 1
_NOTE, _LOCK, _USERS, _GONE = "cache.json", "lock", "users", ".gone"


def cache_identity(place: StorePath, group: zarr.Group, attributes: Attributes) -> str:
    """Name of the cache of a store as it is now, for `RowCache`.

    It changes when the store is emptied or rewritten, and with the place, as a copy may grow in
    another way. A store without a generation is known by its attributes and the shapes of its
    arrays, and one in memory is like no other.

    Parameters
    ----------
    place
        Where the store is.
    group
        Its root.
    attributes
        What the attributes of the root say.
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
    found = [find_array(group, path) for path in (ATOMS_PTR, EDGES_PTR, SAMPLES_MASK, *fields)]
    return [str(array.metadata.to_dict()) for array in found if array is not None]


def _changed(place: StorePath) -> int:
    if not isinstance(place.store, LocalStore):
        return 0
    return (Path(place.store.root) / place.path / "zarr.json").stat().st_mtime_ns


class CacheDirLock:
    """The right to use the directory of a cache, held from construction to `close`.

    Parameters
    ----------
    directory : Path, optional
        Where caches are; None for one that no other process sees.
    identity : str
        Name of the cache.

    Raises
    ------
    StoreFormatError
        If the directory holds files that are not of a cache, or a cache of another version.
    """

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
                users = self.directory / _USERS
                self._users = os.open(users, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
                return

    def enter(self) -> bool | None:
        """Become a user of the cache, `lock` being held.

        Whether this is the only one; None if the cache was removed since it was claimed.
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
        """Give the right up, in this process alone."""
        self.lock.close()
        users, self._users = self._users, -1
        if users >= 0:
            os.close(users)


def _make(directory: Path, identity: str) -> None:
    """Make the directory of a cache and its note at once."""
    if directory.exists() and any(directory.iterdir()):
        return
    directory.parent.mkdir(parents=True, exist_ok=True)
    partial = directory.with_name(f"{identity}.{uuid.uuid4().hex}.partial")
    partial.mkdir()
    note = {"zarrpipe_cache": FORMAT, "identity": identity}
    (partial / _NOTE).write_text(json.dumps(note))
    try:
        partial.rename(directory)
    except OSError:  # another process was faster
        shutil.rmtree(partial)


def _check(directory: Path, identity: str) -> None:
    found = _note(directory)
    if found is None:
        raise StoreFormatError(
            f"{directory} holds files that are not of a cache: give another cache directory"
        )
    if found != {"zarrpipe_cache": FORMAT, "identity": identity}:
        raise StoreFormatError(
            f"{directory} is the cache {found}, expected format {FORMAT} and identity "
            f"{identity!r}: delete it, or give another cache directory"
        )


def _note(directory: Path) -> dict[str, Any] | None:
    """What a directory says about its cache; None if it is not one."""
    try:
        note = json.loads((directory / _NOTE).read_text())
    except (OSError, ValueError):
        return None
    return note if isinstance(note, dict) and "zarrpipe_cache" in note else None


def remove_superseded(directory: Path, identity: str) -> None:
    """Remove the caches of earlier generations of a store, and of none that is in use."""
    place = identity.partition("-")[0]
    for other in directory.glob(f"{place}-*"):
        own = (_note(other) or {}).get("identity")
        if own is not None and other.name.startswith(own) and other.name.endswith(_GONE):
            shutil.rmtree(other, ignore_errors=True)
        elif own == other.name != identity:
            with suppress(OSError):
                _remove_unused(other)


def _remove_unused(directory: Path) -> None:
    lock = FileLock(directory / _LOCK)
    try:
        with lock.held():
            users = os.open(directory / _USERS, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
            try:
                if flock(users, "exclusive"):
                    gone = directory.with_name(f"{directory.name}.{uuid.uuid4().hex}{_GONE}")
                    shutil.rmtree(directory.rename(gone))
            finally:
                os.close(users)
    finally:
        lock.close()
