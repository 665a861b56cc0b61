"""A complete store that was written beside a place takes that place, by one rename.

What is being written stands in a hidden directory beside its place, named after it and locked. A
writer that is killed leaves that directory, or the old store in it; whoever writes there next
removes it, since the lock is then nobody's.
"""

import os
import re
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from zarrpipe.errors import StoreExistsError, StoreLockedError
from zarrpipe.store.backend import files
from zarrpipe.store.backend.lock import WriterLock
from zarrpipe.store.format.layout import GROUPS

_TRIALS, _BLOCK = 8, 1 << 23
_TAKEN = (FileExistsError, FileNotFoundError, StoreLockedError)  # another removes it, or writes it


@contextmanager
def temp_sibling(place: Path) -> Iterator[tuple[Path, WriterLock]]:
    """Locked empty directory beside a place; on an error it is removed and its lock released."""
    remove_leftovers(place)
    files.make_folders(place.parent, durable=True)
    room, lock = _locked_room(place)
    try:
        yield room, lock
    except BaseException:
        lock.release()
        discard(room)
        raise


def _locked_room(place: Path) -> tuple[Path, WriterLock]:
    """New locked directory; another if a writer that tidies up takes it before it is locked."""
    for _ in range(_TRIALS):
        room = place.with_name(f".{place.name}.rewrite-{uuid.uuid4().hex[:8]}")
        with suppress(*_TAKEN):
            lock = WriterLock(room)
            if lock.guards(room):
                return room, lock
            lock.release()
    raise StoreLockedError(f"{room} was removed by another writer of {place}: try again")


def remove_leftovers(place: Path) -> None:
    """Remove what writers that were killed left beside a place.

    Where directories cannot be swapped at once, a kill can leave the store itself aside; it is
    put back. Where another was made at the place by then, both are left.
    """
    for left in reversed(find_leftovers(place)):  # what was put aside is looked at first
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
    """What writers that were killed, or are writing, have beside a place, by name."""
    name = re.compile(rf"\.{re.escape(place.name)}\.rewrite-[0-9a-f]{{8}}(\.old)?")
    if not place.parent.is_dir():
        return []
    return sorted(entry for entry in place.parent.iterdir() if name.fullmatch(entry.name))


def discard(folder: Path) -> None:
    """Remove a directory that nobody needs, as far as it can be; whoever comes next tries again."""
    with suppress(OSError):
        files.remove_tree(folder)


def is_vacant(place: Path) -> bool:
    """Whether nothing or an empty directory, which a rename replaces, is at a place."""
    return not place.exists() or (place.is_dir() and next(place.iterdir(), None) is None)


def _half_swapped(left: Path) -> bool:
    """Whether a room, or the store that was put aside for it, was left before the room moved in."""
    room = left.with_suffix("") if left.suffix == ".old" else left
    return room.exists() and room.with_name(f"{room.name}.old").exists()


def move_into_place(room: Path, place: Path) -> None:
    """Give a place, where nothing or an empty directory is, to the store in a room beside it.

    Raises
    ------
    StoreExistsError
        If something has come to stand there.
    """
    files.sync_tree(room)
    try:
        files.rename(room, place)
    except OSError as error:
        if not place.exists():
            raise
        raise StoreExistsError(
            f"{place} was made by another process meanwhile, and is left as it is: write to "
            "another place"
        ) from error
    files.sync_path(place.parent)


def swap_into_place(room: Path, place: Path, ours: frozenset[str]) -> None:
    """Exchange the store at a place for the one in a room beside it, which gets the old one.

    Parameters
    ----------
    room, place
        Directories of complete stores.
    ours
        Arrays of the old store that zarrpipe made; what else is there comes along.
    """
    _link_others(place, room, ours)
    files.sync_tree(room)
    swap_directories(place, room)


def swap_directories(first: Path, second: Path) -> None:
    """Let two directories swap their names, at once where the system can, and sync both places."""
    if not files.atomic_swap(first, second):
        aside = second.with_name(f"{second.name}.old")
        files.rename(first, aside)
        try:
            files.rename(second, first)
        except BaseException:
            files.rename(aside, first)
            raise
        files.rename(aside, second)
    for parent in {first.parent, second.parent}:
        files.sync_path(parent)


def _link_others(source: Path, target: Path, ours: frozenset[str]) -> None:
    """Let what zarrpipe did not make stand in the new store too."""
    others = [Path(entry.name) for entry in source.iterdir()]
    others = [path for path in others if path.name not in (*GROUPS, "zarr.json")]
    for group in GROUPS:
        inside = (Path(group, entry.name) for entry in (source / group).iterdir())
        others += [p for p in inside if p.name != "zarr.json" and p.as_posix() not in ours]
    for path in others:
        _link(source / path, target / path)


def _link(source: Path, target: Path) -> None:
    """Other names for files, and copies where a file can have but one; links as links."""
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
    """Copy of a regular file, some megabytes at a time."""
    descriptor, at = files.create(target), 0
    try:
        with source.open("rb") as content:
            while block := content.read(_BLOCK):
                files.write_at(descriptor, memoryview(block), at)
                at += len(block)
    finally:
        os.close(descriptor)
    shutil.copystat(source, target)
