"""Write a complete store beside a place, then rename it to that place.

The new store is written into a hidden, locked sibling directory. A killed writer leaves this
directory, or the old store in it; the next writer of the place takes its free lock and removes it.
"""

import errno
import os
import re
import shutil
import uuid
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from zarrpipe.errors import StoreExistsError, StoreLockedError, StoreRenameError
from zarrpipe.store.backend import files
from zarrpipe.store.backend.lock import WriterLock
from zarrpipe.store.format.layout import GROUPS

_TRIALS, _BLOCK = 8, 1 << 23
_TAKEN = (FileExistsError, FileNotFoundError, StoreLockedError)  # by another writer
_NOT_RENAMED = (errno.EXDEV, errno.EBUSY)


@contextmanager
def temp_sibling(place: Path) -> Iterator[tuple[Path, WriterLock]]:
    """Create a locked empty sibling of a place; an error removes it and releases its lock.

    Raises StoreRenameError if the sibling could not be renamed to the place.
    """
    remove_leftovers(place)
    files.make_folders(place.parent, durable=True)
    if place.exists() and place.stat().st_dev != place.parent.stat().st_dev:
        raise _cannot_rename(place)
    sibling, lock = _locked_sibling(place)
    try:
        yield sibling, lock
    except BaseException:
        lock.release()
        discard(sibling)
        raise


def _cannot_rename(place: Path) -> StoreRenameError:
    return StoreRenameError(
        f"{place} cannot be replaced by a new store: it is a mount point, or in a layer of a "
        "container image. It is unchanged: write the new store to another place "
        "(zarrpipe.merge), or copy this one into a directory of a volume (cp -a)"
    )


def _locked_sibling(place: Path) -> tuple[Path, WriterLock]:
    """Create and lock a sibling, again if a writer that removes leftovers takes it first."""
    for _ in range(_TRIALS):
        sibling = place.with_name(f".{place.name}.rewrite-{uuid.uuid4().hex[:8]}")
        with suppress(*_TAKEN):
            lock = WriterLock(sibling)
            if lock.guards(sibling):
                return sibling, lock
            lock.release()
    raise StoreLockedError(f"{sibling} was removed by another writer of {place}: try again")


def remove_leftovers(place: Path) -> None:
    """Remove leftovers of killed writers beside a place.

    Where directories cannot be swapped atomically, a kill can leave the old store as a sibling,
    which is renamed back. If another store was created at the place meanwhile, both are left.
    """
    for left in reversed(find_leftovers(place)):  # the old store comes first
        try:
            lock = WriterLock(left)
        except _TAKEN:
            continue
        try:
            if left.suffix == ".old" and is_vacant(place):
                files.rename(left, place)
                files.sync_path(place.parent)
            elif not _half_swapped(left):
                discard(left)
        finally:
            lock.release()


def find_leftovers(place: Path) -> list[Path]:
    """Find siblings of a place that writers have created, whether killed or running."""
    name = re.compile(rf"\.{re.escape(place.name)}\.rewrite-[0-9a-f]{{8}}(\.old)?")
    if not place.parent.is_dir():
        return []
    return sorted(entry for entry in place.parent.iterdir() if name.fullmatch(entry.name))


def discard(folder: Path) -> None:
    """Remove a directory as far as possible; the next writer tries again."""
    with suppress(OSError):
        files.remove_tree(folder)


def is_vacant(place: Path) -> bool:
    """Whether a place does not exist or is an empty directory, which a rename replaces."""
    return not place.exists() or (place.is_dir() and next(place.iterdir(), None) is None)


def _half_swapped(left: Path) -> bool:
    """Whether a kill came between the two renames of a swap."""
    sibling = left.with_suffix("") if left.suffix == ".old" else left
    return sibling.exists() and sibling.with_name(f"{sibling.name}.old").exists()


def move_into_place(sibling: Path, place: Path) -> None:
    """Rename a complete store to a vacant place beside it.

    Raises StoreExistsError if the place is not vacant any more, and StoreRenameError if it is a
    mount point.
    """
    files.sync_tree(sibling)
    try:
        files.rename(sibling, place)
    except OSError as error:
        if error.errno in _NOT_RENAMED:
            raise _cannot_rename(place) from error
        if not place.exists():
            raise
        raise StoreExistsError(
            f"{place} was created by another process meanwhile, and is unchanged: write to another "
            "place"
        ) from error
    files.sync_path(place.parent)


def swap_into_place(sibling: Path, place: Path, ours: frozenset[str]) -> None:
    """Swap a complete store with the one at the place beside it.

    `ours` are the arrays of the old store that zarrpipe wrote; everything else is linked or copied
    into the new one first.
    """
    _link_others(place, sibling, ours)
    files.sync_tree(sibling)
    swap_directories(place, sibling)


def swap_directories(first: Path, second: Path) -> None:
    """Swap the names of two directories, atomically if supported, and sync both places.

    Raises StoreRenameError, without any change, if `first` cannot be renamed.
    """
    if not files.atomic_swap(first, second):
        old = second.with_name(f"{second.name}.old")
        try:
            files.rename(first, old)
        except OSError as error:
            if error.errno in _NOT_RENAMED:
                raise _cannot_rename(first) from error
            raise
        try:
            files.rename(second, first)
        except BaseException:
            files.rename(old, first)
            raise
        files.rename(old, second)
    for parent in {first.parent, second.parent}:
        files.sync_path(parent)


def _link_others(source: Path, target: Path, ours: frozenset[str]) -> None:
    """Link or copy everything that zarrpipe did not write into the new store."""
    groups = {parent for path in ours for parent in Path(path).parents} | {*map(Path, GROUPS)}
    for path in _others(source, Path(), groups, ours):
        (target / path).parent.mkdir(parents=True, exist_ok=True)
        _link(source / path, target / path)


def _others(
    source: Path, folder: Path, groups: Collection[Path], ours: Collection[str]
) -> Iterator[Path]:
    """Paths in a folder of a store that are neither of its groups nor of `ours`."""
    for entry in (source / folder).iterdir():
        path = folder / entry.name
        if path in groups:
            yield from _others(source, path, groups, ours)
        elif entry.name != "zarr.json" and path.as_posix() not in ours:
            yield path


def _link(source: Path, target: Path) -> None:
    """Hard-link a path, or copy it if this is not supported, without following links."""
    if source.is_dir() and not source.is_symlink():
        files.make_folder(target)
        for entry in source.iterdir():
            _link(entry, target / entry.name)
        shutil.copystat(source, target)
        return
    try:
        files.link(source, target)
    except OSError:
        if source.is_file() and not source.is_symlink():
            _copy(source, target)
        else:
            shutil.copy2(source, target, follow_symlinks=False)


def _copy(source: Path, target: Path) -> None:
    """Copy a regular file, some megabytes at a time."""
    descriptor, at = files.create(target), 0
    try:
        with source.open("rb") as content:
            while block := content.read(_BLOCK):
                files.write_at(descriptor, memoryview(block), at)
                at += len(block)
    finally:
        os.close(descriptor)
    shutil.copystat(source, target)
