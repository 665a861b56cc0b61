"""Write a complete store beside a place, then let it take that place by one rename.

The new store is written into a hidden, locked directory beside its place, named after it. A writer
that is killed leaves that directory, or the old store in it; the next writer of the place takes the
lock, which is nobody's then, and removes it.
"""

import errno
import os
import re
import shutil
import uuid
from collections.abc import Iterator
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
    """Locked empty directory beside a place; on an error it is removed and its lock released.

    Raises
    ------
    StoreRenameError
        If a directory beside the place cannot be renamed to it.
    """
    remove_leftovers(place)
    files.make_folders(place.parent, durable=True)
    if place.exists() and place.stat().st_dev != place.parent.stat().st_dev:
        raise _cannot_rename(place)
    room, lock = _locked_room(place)
    try:
        yield room, lock
    except BaseException:
        lock.release()
        discard(room)
        raise


def _cannot_rename(place: Path) -> StoreRenameError:
    return StoreRenameError(
        f"{place} cannot be replaced by a new store: it is a mount point, or in a layer of a "
        "container's image. It is left as it is: write the new store to another place "
        "(zarrpipe.merge), or copy this one into a directory of a volume (cp -a)"
    )


def _locked_room(place: Path) -> tuple[Path, WriterLock]:
    """New locked directory; another if a writer that removes leftovers takes it first."""
    for _ in range(_TRIALS):
        room = place.with_name(f".{place.name}.rewrite-{uuid.uuid4().hex[:8]}")
        with suppress(*_TAKEN):
            lock = WriterLock(room)
            if lock.guards(room):
                return room, lock
            lock.release()
    raise StoreLockedError(f"{room} was removed by another writer of {place}: try again")


def remove_leftovers(place: Path) -> None:
    """Remove what killed writers left beside a place.

    Where directories cannot be swapped atomically, a kill can leave the store itself aside; it is
    put back. If another store was made at the place by then, both are left.
    """
    for left in reversed(find_leftovers(place)):  # a store that was put aside comes first
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
    """Directories of rewrites beside a place, by writers that were killed or are at work."""
    name = re.compile(rf"\.{re.escape(place.name)}\.rewrite-[0-9a-f]{{8}}(\.old)?")
    if not place.parent.is_dir():
        return []
    return sorted(entry for entry in place.parent.iterdir() if name.fullmatch(entry.name))


def discard(folder: Path) -> None:
    """Remove an unneeded directory as far as possible; the next writer tries again."""
    with suppress(OSError):
        files.remove_tree(folder)


def is_vacant(place: Path) -> bool:
    """Whether nothing, or an empty directory, which a rename replaces, is at a place."""
    return not place.exists() or (place.is_dir() and next(place.iterdir(), None) is None)


def _half_swapped(left: Path) -> bool:
    """Whether a kill came between the two renames by which a new store takes its place."""
    room = left.with_suffix("") if left.suffix == ".old" else left
    return room.exists() and room.with_name(f"{room.name}.old").exists()


def move_into_place(room: Path, place: Path) -> None:
    """Rename a complete store to a vacant place beside it.

    Raises
    ------
    StoreExistsError
        If the place is not vacant any more.
    StoreRenameError
        If the place is a mount point.
    """
    files.sync_tree(room)
    try:
        files.rename(room, place)
    except OSError as error:
        if error.errno in _NOT_RENAMED:
            raise _cannot_rename(place) from error
        if not place.exists():
            raise
        raise StoreExistsError(
            f"{place} was made by another process meanwhile, and is left as it is: write to "
            "another place"
        ) from error
    files.sync_path(place.parent)


def swap_into_place(room: Path, place: Path, ours: frozenset[str]) -> None:
    """Swap a complete store with the one at the place beside it, which the room gets.

    `ours` are the arrays of the old store that zarrpipe made; everything else is linked or copied
    into the new one first.
    """
    _link_others(place, room, ours)
    files.sync_tree(room)
    swap_directories(place, room)


def swap_directories(first: Path, second: Path) -> None:
    """Swap the names of two directories, atomically where the system can, and sync both places.

    Raises
    ------
    StoreRenameError
        If `first` cannot be renamed; then nothing has changed.
    """
    if not files.atomic_swap(first, second):
        aside = second.with_name(f"{second.name}.old")
        try:
            files.rename(first, aside)
        except OSError as error:
            if error.errno in _NOT_RENAMED:
                raise _cannot_rename(first) from error
            raise
        try:
            files.rename(second, first)
        except BaseException:
            files.rename(aside, first)
            raise
        files.rename(aside, second)
    for parent in {first.parent, second.parent}:
        files.sync_path(parent)


def _link_others(source: Path, target: Path, ours: frozenset[str]) -> None:
    """Link or copy everything that zarrpipe did not make into the new store."""
    others = [Path(entry.name) for entry in source.iterdir()]
    others = [path for path in others if path.name not in (*GROUPS, "zarr.json")]
    for group in GROUPS:
        inside = (Path(group, entry.name) for entry in (source / group).iterdir())
        others += [p for p in inside if p.name != "zarr.json" and p.as_posix() not in ours]
    for path in others:
        _link(source / path, target / path)


def _link(source: Path, target: Path) -> None:
    """Hard links to files, or copies where the file system has none; links as links."""
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
