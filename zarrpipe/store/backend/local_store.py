"""Zarr's store on a local file system with every change through `zarrpipe.store.backend.files`."""

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Self

from zarr.core.buffer import Buffer
from zarr.storage import LocalStore, StorePath

from zarrpipe.store.backend import files
from zarrpipe.store.backend.location import Root
from zarrpipe.store.backend.regular_files import RegularFiles


class LocalFiles(RegularFiles):
    """A LocalStore that can be durable and removes nothing through a link.

    Parameters
    ----------
    root
        Directory.
    read_only
        As zarr's own.
    durable
        Whether each change is on the disk before it returns.
    """

    def __init__(self, root: Path | str, *, read_only: bool = False, durable: bool = False) -> None:
        super().__init__(root, read_only=read_only)
        self.durable = durable

    def with_read_only(self, read_only: bool = False) -> Self:
        """The same place with or without the right to write."""
        return type(self)(self.root, read_only=read_only, durable=self.durable)

    def set_sync(self, key: str, value: Buffer) -> None:
        """Replace the value of a key."""
        self._put(key, value)

    def delete_sync(self, key: str) -> None:
        """Remove a key, or all keys below it."""
        self._remove(key)

    async def delete(self, key: str) -> None:
        """Remove a key, or all keys below it."""
        await asyncio.to_thread(self._remove, key)

    async def delete_dir(self, prefix: str) -> None:
        """Remove all keys below a prefix."""
        await asyncio.to_thread(self._remove, prefix)

    async def _set(self, key: str, value: Buffer, exclusive: bool = False) -> None:
        await asyncio.to_thread(self._put, key, value, exclusive=exclusive)

    def _put(self, key: str, value: Buffer, *, exclusive: bool = False) -> None:
        self._check_writable()
        content = value.to_bytes()
        files.replace(self.root / key, content, durable=self.durable, exclusive=exclusive)

    def _remove(self, key: str) -> None:
        self._check_writable()
        path = self.root / key
        if path.is_symlink() or path.is_file():
            files.unlink(path)
        elif path.is_dir():
            files.remove_tree(path, durable=self.durable)
            return
        else:
            return
        if self.durable:
            files.sync_path(path.parent)


def for_writing(root: Root, *, durable: bool = False) -> Root:
    """The same place, with a local store's changes through `zarrpipe.store.backend.files`.

    A LocalStore of a class of the caller's own is kept, unless what it writes is to be durable.
    """
    store = root.path.store
    if not isinstance(store, LocalStore):
        return root
    if type(store) not in (LocalStore, RegularFiles, LocalFiles) and not durable:
        return root
    wrapped = LocalFiles(store.root, read_only=store.read_only, durable=durable)
    return replace(root, path=StorePath(wrapped, root.path.path))
