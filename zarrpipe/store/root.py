"""Where a store is: any StoreLike becomes a Zarr path and, where there is one, a directory."""

import sys
from collections.abc import MutableMapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

import zarr
from zarr.abc.store import Store
from zarr.errors import GroupNotFoundError
from zarr.storage import FsspecStore, LocalStore, MemoryStore, StorePath

from zarrpipe.store.regular import RegularFiles
from zarrpipe.store.trust import reading

StoreLike = str | Path | Store | StorePath | dict[str, Any]
"""What names a store: a path or URL, a zarr Store or StorePath, or a dict that holds it."""


@dataclass(frozen=True)
class Root:
    """A store's place.

    Parameters
    ----------
    path
        Zarr store and prefix.
    directory
        The directory of a store on a local file system, where chunks can be written by position
        and mapped; None for every other store (and on Windows).
    """

    path: StorePath
    directory: Path | None

    @classmethod
    def of(cls, store: StoreLike) -> "Root":
        """Place of any StoreLike.

        Raises
        ------
        TypeError, ValueError
            If `store` names no store.
        NotADirectoryError
            If the path is a file.
        """
        path = _regular(_store_path(store))
        if not isinstance(path.store, LocalStore):
            return cls(path, None)
        directory = Path(path.store.root) / path.path
        if directory.exists() and not directory.is_dir():
            raise NotADirectoryError(
                f"{directory} is a file, expected the directory of a Zarr store or nothing"
            )
        return cls(path, None if sys.platform == "win32" else directory)

    @property
    def read_only(self) -> bool:
        """Whether the Zarr store was opened without the right to write."""
        return bool(self.path.store.read_only)

    def open_group(self) -> zarr.Group | None:
        """Root group, without consolidated metadata (which shows the past); None without one."""
        with reading(self, "cannot be opened as a Zarr group"):
            try:
                return zarr.open_group(
                    self.path,
                    mode="r" if self.read_only else "r+",
                    zarr_format=3,
                    use_consolidated=False,
                )
            except (GroupNotFoundError, FileNotFoundError):
                return None

    def __str__(self) -> str:
        return str(self.path if self.directory is None else self.directory)


def _regular(path: StorePath) -> StorePath:
    """The same place, read through `RegularFiles` where it is a local one of Zarr's own."""
    store = path.store
    if type(store) is not LocalStore:
        return path
    return StorePath(RegularFiles(store.root, read_only=store.read_only), path.path)


def _store_path(store: StoreLike) -> StorePath:
    if isinstance(store, StorePath):
        return store
    if isinstance(store, Store):
        return StorePath(store)
    if isinstance(store, MutableMapping):
        return StorePath(MemoryStore(store))
    if isinstance(store, str) and not store.strip():
        raise ValueError("an empty path names no store: expected a directory or a URL")
    if isinstance(store, str) and store.startswith("file://"):
        store = url2pathname(urlsplit(store).path)
    if isinstance(store, str) and "://" in store:
        return StorePath(FsspecStore.from_url(store))
    if isinstance(store, str | Path):
        return StorePath(RegularFiles(Path(store).expanduser().absolute()))
    raise TypeError(
        f"{store!r} is a {type(store).__name__}, expected a path, a URL, a zarr Store or "
        "StorePath, or a dict"
    )
