"""Whether a store is still the one that was looked at."""

import os
from contextlib import suppress

from zarrpipe.errors import StoreNotFoundError
from zarrpipe.store.backend.array_reader import ArrayReader
from zarrpipe.store.backend.local_store import open_regular
from zarrpipe.store.backend.location import Root
from zarrpipe.store.format.layout import ATOMS_PTR
from zarrpipe.store.read.mapped import MappedArray


def root_fingerprint(root: Root) -> object:
    """Something that changes whenever the root's attributes do.

    Raises
    ------
    StoreNotFoundError
        If there is no store.
    """
    if root.directory is not None:
        with suppress(FileNotFoundError):
            return _document(f"{root.directory}{os.sep}zarr.json")
    group = root.open_group()  # which knows better what stands there
    if group is None:
        raise StoreNotFoundError(f"there is no Zarr store at {root}")
    return group.attrs.asdict()


def was_replaced(root: Root, pointers: ArrayReader | None) -> bool:
    """Whether another store stands in the place of the one whose pointers are mapped.

    zarrpipe never replaces a chunk of pointers that it writes in place, and the inode of a mapped
    file is not given to another.
    """
    if root.directory is None or not isinstance(pointers, MappedArray):
        return False
    if pointers.first_file is None:
        return False
    try:
        found = os.stat(f"{root.directory}{os.sep}{ATOMS_PTR}{os.sep}c{os.sep}0")  # noqa: PTH116  in less time
    except OSError:
        return False  # it was emptied, or is being: what is known is at hand
    return found.st_ino != pointers.first_file


def _document(path: str) -> object:
    """State of a metadata document; inodes and times come again, its content does not."""
    descriptor = open_regular(path)
    try:
        found = os.fstat(descriptor)
        content = os.read(descriptor, found.st_size + 1)
        while len(content) < found.st_size:
            rest = os.read(descriptor, found.st_size)
            if not rest:
                break
            content += rest
    finally:
        os.close(descriptor)
    return found.st_ino, found.st_mtime_ns, content
