"""The file or directory to write, which takes its name when it is complete."""

from collections.abc import Iterator
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path

from zarrpipe.errors import ArgumentError, ArgumentTypeError, StoreExistsError
from zarrpipe.store.backend import files
from zarrpipe.store.backend.swap import discard, swap_directories, temp_sibling


def place_of(out: str | Path) -> Path:
    """Absolute path of a target; refuses what is no local path."""
    if not isinstance(out, str | Path) or not str(out).strip():
        raise ArgumentTypeError(f"out is {out!r}, expected the path of a file or directory")
    if "://" in str(out):
        raise ArgumentError(
            f"out is {str(out)!r}, expected a local path: write there, then copy the file"
        )
    return Path(out).expanduser().absolute()


def check_vacant(place: Path, folder_of: tuple[str, ...], *, overwrite: bool) -> None:
    """Refuse a target that exists, or with `overwrite` one that is not of the format.

    `folder_of` has the names of the files in a directory of the format, as patterns; it is empty
    for a format of one file. No directory with anything else in it is ever replaced.
    """
    if not place.exists():
        return
    if not overwrite:
        raise StoreExistsError(
            f"{place} exists: give another place, or overwrite=True (--overwrite) to replace it"
        )
    if place.is_dir() is not bool(folder_of):
        kinds = ("a directory", "a file")[:: 1 if place.is_dir() else -1]
        raise StoreExistsError(
            f"{place} is {kinds[0]}, and {kinds[1]} is to be written: give another place"
        )
    for entry in place.iterdir() if folder_of else ():
        if not any(fnmatch(entry.name, pattern) for pattern in folder_of):
            raise StoreExistsError(
                f"{place} has {entry.name!r} in it, which no export of this format wrote, and is "
                "not replaced: give another place"
            )


@contextmanager
def new_target(place: Path, folder_of: tuple[str, ...], *, overwrite: bool) -> Iterator[Path]:
    """Path to write to, which becomes `place` if the block ends without an error.

    It is in a hidden directory beside the place. A kill leaves this directory, which the next call
    for the same place removes.
    """
    with temp_sibling(place) as (sibling, lock):
        new = sibling / place.name
        yield new
        check_vacant(place, folder_of, overwrite=overwrite)
        files.sync_tree(new) if folder_of else files.sync_path(new)
        if folder_of and place.exists():
            swap_directories(place, new)
        else:
            files.rename(new, place)
        files.sync_path(place.parent)
    lock.release()
    discard(sibling)
