"""Every change of a local file, one function for each.

Callers name the module (``files.write_at(...)``), so that tests can replace any function to fail,
kill or record. The first functions are single steps, from which the others are composed. None
follows a link at the end of a path. A `durable` change, including that of a name, is synced when
its function returns.
"""

import json
import os
import stat
import sys
import uuid
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from zarrpipe.errors import StoreFormatError
from zarrpipe.store.backend.mapped_memory import libc

PARTIAL = ".partial"
"""Suffix of a file that is still being written."""

_NEW = os.O_RDWR | os.O_CREAT | os.O_TRUNC
_HERE = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0)
_AT_FDCWD, _RENAME_EXCHANGE, _RENAME_SWAP = -100, 2, 2
_FULL_SYNC = 51  # F_FULLFSYNC of macOS, where fsync leaves data in the drive's cache


def write_at(descriptor: int, data: memoryview, offset: int) -> None:
    """Write a whole contiguous buffer, retrying short writes."""
    written = os.pwrite(descriptor, data, offset)
    while written < data.nbytes:
        rest = data.cast("B")[written:]
        written += os.pwrite(descriptor, rest, offset + written)


def resize(descriptor: int, size: int) -> None:
    """Set the size of a file; new bytes are a hole, which reads as zeros."""
    os.ftruncate(descriptor, size)


def create(path: Path) -> int:
    """Open a new or truncated file."""
    return os.open(path, _NEW | _HERE, 0o666)


def reopen(path: Path) -> int:
    """Open an existing file for writing by position, refusing links and files with two names."""
    try:
        descriptor = os.open(path, os.O_RDWR | _HERE)
    except OSError:
        if os.path.lexists(path):
            check_regular(path)
        raise
    found = os.fstat(descriptor)
    if not stat.S_ISREG(found.st_mode) or found.st_nlink > 1:
        os.close(descriptor)
        check_own(path)
    return descriptor


def open_or_create(path: Path) -> int:
    """Open a file for reading and writing, creating it if it does not exist."""
    return os.open(path, os.O_RDWR | os.O_CREAT | _HERE, 0o666)


def open_to_read(path: Path) -> int:
    """Open a file for reading, without following a link or waiting for a FIFO."""
    return os.open(path, os.O_RDONLY | _HERE)


def rename(source: Path, target: Path) -> None:
    """Rename a file or directory atomically, replacing an existing one."""
    source.replace(target)


def atomic_swap(first: Path, second: Path) -> bool:
    """Swap the names of two directories atomically; False if this is not supported."""
    names = os.fsencode(first), os.fsencode(second)
    if sys.platform == "darwin":
        failed = libc().renamex_np(*names, _RENAME_SWAP)
    elif hasattr(libc(), "renameat2"):
        failed = libc().renameat2(_AT_FDCWD, names[0], _AT_FDCWD, names[1], _RENAME_EXCHANGE)
    else:
        return False
    return not failed


def link(source: Path, target: Path) -> None:
    """Give a file a second name, which must be free; a link is not followed."""
    os.link(source, target, follow_symlinks=False)


def unlink(path: Path) -> None:
    """Remove a name of a file, or a link."""
    path.unlink()


def make_folder(path: Path) -> None:
    """Make a directory in an existing one, unless it exists."""
    path.mkdir(exist_ok=True)


def remove_folder(path: Path) -> None:
    """Remove an empty directory."""
    path.rmdir()


def sync_data(descriptor: int) -> None:
    """Sync the content and size of a file."""
    if sys.platform == "darwin":
        import fcntl  # noqa: PLC0415  absent on Windows

        fcntl.fcntl(descriptor, _FULL_SYNC)
    else:
        getattr(os, "fdatasync", os.fsync)(descriptor)


def sync_path(path: Path) -> None:
    """Sync a file, or the names in a directory."""
    if sys.platform == "win32" and path.is_dir():
        return  # directories cannot be opened there
    descriptor = os.open(path, os.O_RDONLY | _HERE)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def check_regular(path: Path) -> None:
    """Raise StoreFormatError for anything but a regular file."""
    found = path.lstat().st_mode
    if stat.S_ISREG(found):
        return
    what = f"a link to {os.readlink(path)}" if stat.S_ISLNK(found) else "not a regular file"  # noqa: PTH115  the text
    raise StoreFormatError(
        f"{path} is {what}, and a writer changes only regular files in the store: put a copy in "
        "its place (git-annex unlock), or write to another place"
    )


def check_own(path: Path) -> None:
    """Raise StoreFormatError for a file that cannot be written in place: not regular, or linked."""
    check_regular(path)
    names = path.lstat().st_nlink
    if names > 1:
        raise StoreFormatError(
            f"{path} has {names} names (hard links, as `cp -al`, rsnapshot and rsync --link-dest "
            "make), and a writer would change the file under all names: write to a copy of the "
            "store (cp -a), or remove the other names"
        )


def check_folders(path: Path, top: Path) -> None:
    """Raise StoreFormatError if a directory between `top` and a path in it is a link."""
    folder = path.parent
    while folder != top:
        if folder.is_symlink():
            check_regular(folder)
        folder = folder.parent


def create_sized(path: Path, size: int, *, durable: bool = False) -> int:
    """Create and open a sparse file, which appears with its full size."""
    make_folders(path.parent, durable=durable)
    partial = path.with_name(f"{path.name}{PARTIAL}")
    descriptor = create(partial)
    try:
        resize(descriptor, size)
        if durable:
            sync_data(descriptor)
        rename(partial, path)
        if durable:
            sync_path(path.parent)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def replace(path: Path, content: bytes, *, durable: bool = False, exclusive: bool = False) -> None:
    """Replace a file atomically; with `exclusive`, raise FileExistsError if it exists."""
    make_folders(path.parent, durable=durable)
    partial = path.with_name(f"{path.name}.{uuid.uuid4().hex}{PARTIAL}")
    descriptor = create(partial)
    try:
        try:
            write_at(descriptor, memoryview(content), 0)
            if durable:
                sync_data(descriptor)
        finally:
            os.close(descriptor)
        if exclusive:
            link(partial, path)
            unlink(partial)
        else:
            rename(partial, path)
    except Exception:
        with suppress(OSError):  # the first error matters
            unlink(partial)
        raise
    if durable:
        sync_path(path.parent)


def write_json(path: Path, content: Mapping[str, Any], *, durable: bool = False) -> None:
    """Replace a metadata document; see `replace`."""
    replace(path, json.dumps(content, indent=2).encode(), durable=durable)


def make_folders(path: Path, *, durable: bool = False) -> None:
    """Make a directory and its missing parents."""
    if path.is_dir():
        return
    make_folders(path.parent, durable=durable)
    make_folder(path)
    if durable:
        sync_path(path.parent)


def remove_tree(path: Path, *, durable: bool = False) -> None:
    """Remove a directory without following links, and its ``zarr.json`` last.

    So the remains after a kill can still be recognized by this file.
    """
    entries = sorted(os.scandir(path), key=lambda entry: entry.name == "zarr.json")
    for entry in entries:
        if entry.is_dir(follow_symlinks=False):
            remove_tree(Path(entry.path), durable=durable)
            continue
        if durable and entry.name == "zarr.json":
            sync_path(path)
        unlink(Path(entry.path))
    remove_folder(path)
    if durable:
        sync_path(path.parent)


def sync_tree(folder: Path) -> None:
    """Sync a directory, its content and its own name; links are not followed."""
    for parent, _, names in os.walk(folder, topdown=False):
        for path in (Path(parent, name) for name in names):
            if stat.S_ISREG(path.lstat().st_mode):
                sync_path(path)
        sync_path(Path(parent))
    sync_names(folder)


def sync_names(path: Path) -> None:
    """Sync the name of a path and those of all directories above it."""
    for parent in path.absolute().parents:
        try:
            sync_path(parent)
        except PermissionError:
            return  # this process created neither this directory nor one above it
