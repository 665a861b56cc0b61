"""The place of a store: any StoreLike becomes a Zarr path and, if it is local, a directory."""

import ctypes
import reprlib
import sys
from collections.abc import MutableMapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit
from urllib.request import url2pathname

import zarr
from zarr.abc.store import Store
from zarr.errors import ContainsArrayError, GroupNotFoundError
from zarr.storage import FsspecStore, LocalStore, MemoryStore, ObjectStore, StorePath

from zarrpipe.errors import (
    ArgumentError,
    ArgumentTypeError,
    MissingLibraryError,
    StoreFormatError,
    StoreNotADirectoryError,
)
from zarrpipe.store.backend.lease import Lease
from zarrpipe.store.backend.local_store import LocalFiles
from zarrpipe.store.backend.lock import WriterLock
from zarrpipe.store.backend.mapped_memory import libc
from zarrpipe.store.backend.object_urls import is_object_url, open_url
from zarrpipe.store.backend.swap import is_vacant, remove_leftovers
from zarrpipe.store.backend.writer_objects import WriterObjects
from zarrpipe.store.format.validate import translate_zarr_errors

StoreLike = str | Path | Store | StorePath | dict[str, Any]
"""A path or URL, a zarr Store or StorePath, or a dict with the content of a store."""


_FAR = frozenset(
    {
        0x6969,  # NFS
        0x517B,  # SMB
        0xFE534D42,  # SMB 2 and 3
        0xFF534D42,  # CIFS
        0x65735546,  # FUSE: sshfs, s3fs, virtiofs
        0x01021997,  # 9P
        0x5346414F,  # AFS
        0x6B414653,  # AFS of the kernel
        0x73757245,  # Coda
    }
)
_ROOM_FOR_ANSWER = 512


class StoreLock(Protocol):
    """The right to write a store, from its acquisition to `release`."""

    @property
    def held(self) -> bool:
        """Whether this process has the lock."""
        ...

    @property
    def enforced(self) -> bool:
        """Whether the place refuses other writers."""
        ...

    @property
    def fence(self) -> int | None:
        """Number of a lock whose last holder may still be writing; None if it cannot."""
        ...

    @property
    def lapsed(self) -> bool:
        """Whether the right has ended without a release."""
        ...

    def guards(self, directory: Path) -> bool:
        """Whether this is the lock of the present store at a directory."""
        ...

    def check(self, place: object) -> None:
        """Raise StoreLockedError if another writer has taken the lock."""
        ...

    def release(self, *, failed: bool = False) -> None:
        """Release the lock; a second call does nothing.

        After a failed change, requests may still be on their way.
        """
        ...


@dataclass(frozen=True)
class Root:
    """The place of a store: its Zarr store and prefix, and its directory if it is local.

    Chunks in a directory can be written by position and mapped. It is None on Windows.
    """

    path: StorePath
    directory: Path | None

    @classmethod
    def of(cls, store: StoreLike) -> "Root":
        """Validate a StoreLike and find its place."""
        path = _regular(_store_path(store))
        if not isinstance(path.store, LocalStore):
            return cls(path, None)
        directory = Path(path.store.root) / path.path
        _check_directory(directory)
        return cls(path, None if sys.platform == "win32" else directory)

    @property
    def read_only(self) -> bool:
        """Whether the Zarr store was opened read-only."""
        return bool(self.path.store.read_only)

    def acquire_lock(self) -> StoreLock | None:
        """Lock the store; None where it is in memory, or on a service that has no locks."""
        if self.directory is None:
            store = self.path.store
            if not isinstance(store, WriterObjects):
                return None
            lease = Lease.acquire(store.store, self.path.path)
            store.begin(None if lease is None else partial(lease.check, str(self)))
            return lease
        if is_vacant(self.directory):
            remove_leftovers(self.directory.resolve())  # restores a store after a kill
        return WriterLock.of_place(self.directory)

    def for_writing(self, *, durable: bool = False) -> "Root":
        """The same place, as one writer changes it.

        `backend.files` makes all changes of a local store, and objects of an object store are put
        on conditions. A user's own subclass of LocalStore is replaced only if changes have to be
        durable.
        """
        store = self.path.store
        if type(store) is ObjectStore:
            objects = WriterObjects(store.store, read_only=store.read_only)
            return replace(self, path=StorePath(objects, self.path.path))
        if isinstance(store, LocalStore) and (durable or type(store) is LocalFiles):
            wrapped = LocalFiles(store.root, read_only=store.read_only, durable=durable)
            return replace(self, path=StorePath(wrapped, self.path.path))
        return self

    def open_group(self) -> zarr.Group | None:
        """Open the root group without consolidated (outdated) metadata; None without one."""
        if self.directory is not None and not self.directory.exists():
            return None  # Zarr would create the directory
        with translate_zarr_errors(self, "cannot be opened as a Zarr group"):
            try:
                return zarr.open_group(
                    self.path,
                    mode="r" if self.read_only else "r+",
                    zarr_format=3,
                    use_consolidated=False,
                )
            except ContainsArrayError as error:
                raise StoreFormatError(
                    f"{self} is a single Zarr array, expected the group of a store or nothing: "
                    "give another place"
                ) from error
            except (GroupNotFoundError, FileNotFoundError):
                self._refuse_old_zarr()
                return None

    def _refuse_old_zarr(self) -> None:
        """Refuse a place with Zarr v2 data."""
        try:
            found = zarr.open(self.path, mode="r", zarr_format=2, use_consolidated=False)
        except (GroupNotFoundError, FileNotFoundError):
            return
        raise StoreFormatError(
            f"{self} holds a Zarr v2 {type(found).__name__.lower()}, expected a Zarr v3 group or "
            "nothing: zarr's command `zarr migrate` writes v3 metadata for it"
        )

    def __str__(self) -> str:
        return str(self.path if self.directory is None else self.directory)


def _regular(path: StorePath) -> StorePath:
    """The same place, read through `LocalFiles` if it is a plain LocalStore."""
    store = path.store
    if type(store) is not LocalStore:
        return path
    return StorePath(LocalFiles(store.root, read_only=store.read_only), path.path)


def _store_path(store: StoreLike) -> StorePath:
    if isinstance(store, StorePath):
        return store
    if isinstance(store, Store):
        return StorePath(store)
    if isinstance(store, MutableMapping):
        return StorePath(MemoryStore(store))
    if isinstance(store, str) and not store.strip():
        raise ArgumentError("the path of the store is empty: expected a directory or a URL")
    if isinstance(store, str) and store.startswith("file://"):
        store = url2pathname(urlsplit(store).path)
    if isinstance(store, str) and "://" in store:
        return StorePath(open_url(store) if is_object_url(store) else _from_url(store))
    if isinstance(store, str | Path):
        if "\0" in str(store):
            raise ArgumentError(f"{str(store)!r} has a NUL character, which no path may have")
        return StorePath(LocalFiles(Path(store).expanduser().absolute()))
    raise ArgumentTypeError(
        f"{reprlib.repr(store)} is of type {type(store).__name__}, expected a path, a URL, a zarr "
        "Store or StorePath, or a dict"
    )


def _from_url(url: str) -> FsspecStore:
    """Open a store at a URL with fsspec."""
    protocol = url.partition("://")[0]
    try:
        return FsspecStore.from_url(url)
    except ImportError as error:
        raise MissingLibraryError(
            f"{url} needs a library that is not installed: pip install {_library_of(protocol)}"
        ) from error
    except ValueError as error:
        raise ArgumentError(
            f"{url} is not a URL that can be opened ({error}): expected a path, or a URL whose "
            "protocol fsspec knows, such as s3://bucket/store"
        ) from error


def _library_of(protocol: str) -> str:
    """Name of the package that pip installs for a protocol."""
    try:
        from fsspec.registry import known_implementations  # type: ignore[import-untyped]  # noqa: PLC0415  an extra
    except ImportError:
        return "'zarrpipe[fsspec]'"
    known = known_implementations.get(protocol, {}).get("class", protocol)
    return str(known).partition(".")[0]


def _check_directory(directory: Path) -> None:
    """Refuse a path that is a file or inside one."""
    for place in (directory, *directory.parents):
        if place.is_dir():
            return
        if place.exists():
            hint = ": open a zip file with zarr.storage.ZipStore" if place.suffix == ".zip" else ""
            through = "" if place == directory else f", and {directory} would be in it"
            raise StoreNotADirectoryError(
                f"{place} is a file, expected the directory of a Zarr store or nothing"
                f"{through}{hint}"
            )


def is_far(directory: Path) -> bool:
    """Whether another machine may change files of a directory without updating the page cache.

    On such file systems a mapped page can stay stale after another host wrote it, and vanishes with
    a file that another host removes. Lustre and GPFS keep maps coherent and do not count. The
    result is False on other systems than Linux, and for a missing directory.
    """
    if sys.platform != "linux" or not hasattr(libc(), "statfs"):
        return False
    answer = ctypes.create_string_buffer(_ROOM_FOR_ANSWER)
    if libc().statfs(bytes(directory), answer) != 0:
        return False
    kind = ctypes.cast(answer, ctypes.POINTER(ctypes.c_long))[0]
    return kind & 0xFFFFFFFF in _FAR
