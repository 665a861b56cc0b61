"""Zarr's store in a local directory: only regular files are read, and `files` makes all changes.

Links to regular files are followed, since DataLad and git-annex create them. In the place of a
chunk, a FIFO or a device could block a reader, and a dangling link would read as an absent chunk.
"""

import asyncio
import errno
import os
import stat
from contextlib import suppress
from pathlib import Path
from typing import Self

from zarr.abc.buffer import Buffer, BufferPrototype
from zarr.abc.store import (
    ByteRequest,
    OffsetByteRequest,
    RangeByteRequest,
    SuffixByteRequest,
)
from zarr.buffer import default_buffer_prototype
from zarr.storage import LocalStore

from zarrpipe.errors import StoreFormatError
from zarrpipe.store.backend import files

_FLAGS = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0)
_BINARY = getattr(os, "O_BINARY", 0)
_NO_FILES = (errno.ELOOP, errno.ENXIO, getattr(errno, "EOPNOTSUPP", errno.ENXIO))
_DOCUMENT, _LARGEST_DOCUMENT = "zarr.json", 1 << 26
_LINKS_ABOVE = 4  # number of folders of an array above its chunk file


def open_regular(path: str | Path) -> int:
    """Open a regular file for reading, following links.

    Raises StoreFormatError for anything else, such as a FIFO or a dangling link.
    """
    try:
        descriptor = os.open(path, _FLAGS | _BINARY)
    except FileNotFoundError:
        _refuse_dangling(Path(path))
        raise
    except NotADirectoryError as error:
        raise _unexpected(path, "below a file, expected below a folder") from error
    except OSError as error:
        if error.errno in _NO_FILES or Path(path).is_dir():
            raise _unexpected(path, f"not a regular file ({error.strerror})") from error
        raise
    mode = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(mode):
        os.close(descriptor)
        raise _unexpected(path, f"not a regular file ({stat.filemode(mode)})")
    return descriptor


def _refuse_dangling(path: Path) -> None:
    for place in (path, *path.parents[:_LINKS_ABOVE]):
        if place.is_symlink() and not place.exists():
            raise StoreFormatError(
                f"{place} is a link to {place.readlink()}, which does not exist: fetch the content "
                "(git-annex get) or remove the link"
            )


def _unexpected(path: str | Path, found: str) -> StoreFormatError:
    return StoreFormatError(f"{path} is {found}: a store consists of regular files")


class LocalFiles(LocalStore):
    """A LocalStore that reads only regular files and removes nothing through a link.

    If it is `durable`, each change is synced before its call returns.
    """

    def __init__(self, root: Path | str, *, read_only: bool = False, durable: bool = False) -> None:
        super().__init__(root, read_only=read_only)
        self.durable = durable

    def with_read_only(self, read_only: bool = False) -> Self:
        """The same store, writable or read-only."""
        return type(self)(self.root, read_only=read_only, durable=self.durable)

    async def get(
        self,
        key: str,
        prototype: BufferPrototype | None = None,
        byte_range: ByteRequest | None = None,
    ) -> Buffer | None:
        """Bytes at a key, or None; see `LocalStore.get`."""
        return await asyncio.to_thread(self._read, key, prototype, byte_range)

    def get_sync(
        self,
        key: str,
        *,
        prototype: BufferPrototype | None = None,
        byte_range: ByteRequest | None = None,
    ) -> Buffer | None:
        """Bytes at a key, or None; see `LocalStore.get_sync`."""
        return self._read(key, prototype, byte_range)

    def _read(
        self, key: str, prototype: BufferPrototype | None, byte_range: ByteRequest | None
    ) -> Buffer | None:
        try:
            descriptor = open_regular(self.root / key)
        except FileNotFoundError:
            return None
        with os.fdopen(descriptor, "rb") as file:
            size = os.fstat(descriptor).st_size
            if key.endswith(_DOCUMENT) and size > _LARGEST_DOCUMENT:
                raise StoreFormatError(
                    f"{self.root / key} has {size} bytes: at most {_LARGEST_DOCUMENT} are read as "
                    "metadata"
                )
            start, stop = _range(byte_range, size)
            if not 0 <= start < stop <= size and not key.endswith(_DOCUMENT):
                raise StoreFormatError(
                    f"{self.root / key} has {size} bytes, and bytes {start} to {stop} were "
                    "requested: the file was truncated; put it back from a copy"
                )
            file.seek(start)
            content = file.read(max(stop - start, 0))
        return (prototype or default_buffer_prototype()).buffer.from_bytes(content)

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

    async def set(self, key: str, value: Buffer) -> None:
        """Replace the value of a key."""
        await asyncio.to_thread(self._put, key, value)

    async def set_if_not_exists(self, key: str, value: Buffer) -> None:
        """Set the value of a key that has none."""
        with suppress(FileExistsError):
            await asyncio.to_thread(self._put, key, value, exclusive=True)

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


def _range(request: ByteRequest | None, size: int) -> tuple[int, int]:
    """First byte and end of a requested range."""
    if isinstance(request, RangeByteRequest):
        return request.start, request.end
    if isinstance(request, OffsetByteRequest):
        return request.offset, size
    if isinstance(request, SuffixByteRequest):
        return size - request.suffix, size
    return 0, size
