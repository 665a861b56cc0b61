"""What stands in the directory of a store that a writer opens: its own files, and nothing else.

A writer changes only what is in the store itself. A link, which a reader follows, would have it
write, cut or remove a file elsewhere; it is refused before anything is changed. So is a place for a
new array at which there is something that zarrpipe did not make.
"""

import os
import stat
from collections.abc import Iterable, Sequence
from pathlib import Path

import zarr

from zarrpipe.errors import SchemaError, StoreFormatError
from zarrpipe.store.backend import files
from zarrpipe.store.format.layout import GROUPS, MARK

_FILES = ("zarr.json", ".lock")
_LAST = 4


def unfinished_files(directory: Path, arrays: Iterable[str], *, whole: bool = False) -> list[Path]:
    """Files that a writer which was killed has not finished, in what a writer may change.

    Of the rows of a field only the last chunks are looked into, where an append goes on; a writer
    that comes to another one looks at it then.

    Parameters
    ----------
    directory
        Of the store; it may itself be reached by a link.
    arrays
        Places of arrays, whether they are there or not.
    whole
        Whether all chunks are looked into.

    Raises
    ------
    StoreFormatError
        If there is a link, a FIFO, a device, a file and a directory in each other's place, or a
        chunk with a second name, which is of another store too.
    """
    found: list[Path] = []
    for folder in (directory, *(directory / name for name in GROUPS)):
        if folder == directory or _is_folder(folder):
            _look_at(folder, found)
    for path in arrays:
        if _is_folder(directory / path):
            _look_through(directory / path, found, whole=whole or path.startswith("meta/"))
    return found


def check_free(group: zarr.Group, directory: Path | None, paths: Sequence[str]) -> None:
    """Refuse to make arrays where something stands that is no leftover of a writer of ours.

    Parameters
    ----------
    group
        Root of the store, whose attributes do not name the arrays.
    directory
        Its directory, if it is local.
    paths
        Places of the arrays.

    Raises
    ------
    SchemaError
        If there is an array or group of somebody else's, or a folder with other things.
    StoreFormatError
        If there is a link or a file.
    """
    for path in paths:
        if directory is not None and not _is_folder(directory / path):
            continue
        found = group.get(path)
        if found is None and directory is not None:
            foreign = [name for name in os.listdir(directory / path) if not _is_partial(name)]  # noqa: PTH208  names
        else:
            foreign = [] if found is None or MARK in found.attrs else [path]
        if foreign:
            raise SchemaError(
                f"{group.store_path} has {path} that zarrpipe did not make ({foreign[0]}), and is "
                "left as it is: give the field another name, or remove what is there"
            )


def _is_folder(path: Path) -> bool:
    """Whether there is a directory; nothing else may be there."""
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return False
    if not stat.S_ISDIR(mode):
        files.check_regular(path)
        raise StoreFormatError(f"{path} is a file, expected a directory of a store")
    return True


def _look_at(folder: Path, found: list[Path]) -> None:
    """Check the document of a group and find half-written ones."""
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name == "zarr.json":
                files.check_regular(Path(entry.path))
            elif entry.name.startswith("zarr.") and _is_left(entry):
                found.append(Path(entry.path))


def _look_through(folder: Path, found: list[Path], *, whole: bool) -> None:
    """Check all that is in a folder, and find what is half-written; of chunks those at the end."""
    with os.scandir(folder) as scan:
        entries = list(scan)
    for entry in entries:
        is_folder = entry.is_dir(follow_symlinks=False) and entry.name not in _FILES
        if not is_folder and not entry.is_file(follow_symlinks=False):
            files.check_regular(Path(entry.path))
        elif _is_left(entry):
            found.append(Path(entry.path))
    chunks = [entry for entry in entries if entry.name not in _FILES and not _is_left(entry)]
    if folder.name == "c" and not whole and len(chunks) > _LAST:
        chunks = sorted(chunks, key=lambda entry: (len(entry.name), entry.name))[-_LAST:]
    for entry in chunks:
        if entry.is_dir(follow_symlinks=False):
            _look_through(Path(entry.path), found, whole=whole)
        elif entry.stat(follow_symlinks=False).st_nlink > 1:
            files.check_own(Path(entry.path))


def _is_left(entry: os.DirEntry[str]) -> bool:
    return _is_partial(entry.name) and entry.is_file(follow_symlinks=False)


def _is_partial(name: str) -> bool:
    return name.endswith(files.PARTIAL)
