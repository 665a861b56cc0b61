"""Open the root of a store for writing, and refuse to change foreign files.

A writer changes only files in the store itself. Readers follow links, but a writer that did so
would write, truncate or remove files elsewhere. So links are refused before any change, and so are
foreign files in the place of a new array.
"""

import dataclasses
import os
import stat
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import zarr
from zarr.storage import MemoryStore

from zarrpipe.data.schema import Schema
from zarrpipe.errors import (
    FieldError,
    SchemaError,
    StoreExistsError,
    StoreFormatError,
    StoreReadOnlyError,
)
from zarrpipe.store.backend import files
from zarrpipe.store.backend.location import Root
from zarrpipe.store.backend.lock import LOCK_FILE
from zarrpipe.store.format.layout import (
    ATOMS_PTR,
    GROUPS,
    MARK,
    SUMS,
    is_empty,
    meta_specs,
    present_path,
    read_schema,
)
from zarrpipe.store.format.metadata import NO_LEVELS, Attributes, new_generation
from zarrpipe.store.format.validate import translate_zarr_errors

_FILES = ("zarr.json", ".lock")
_LAST = 4


def check_durable(root: Root, *, durable: bool) -> None:
    """Raise FieldError if a store in memory should be durable."""
    if durable and isinstance(root.path.store, MemoryStore):
        raise FieldError(
            f"durable=True, but {root} is in memory and does not outlast a loss of power: give a "
            "directory"
        )


def check_writable(root: Root) -> list[Path]:
    """Refuse a place that zarrpipe must not write to, and find unfinished files of killed writers.

    Raises StoreReadOnlyError if the Zarr store was opened read-only, StoreExistsError for a
    directory with other content, and StoreFormatError for a foreign Zarr group. A local store with
    a link or the like, through which a writer would change files elsewhere, raises
    StoreFormatError, too.
    """
    if root.read_only:
        raise StoreReadOnlyError(f"{root} was opened read-only: open it for writing")
    group, arrays = root.open_group(), [*(spec.path for spec in meta_specs()), SUMS]
    if group is not None:
        attributes = Attributes.read(group)
        if not attributes.ours and not is_empty(group):
            way_out = "write to another place"
            if ATOMS_PTR in group:
                copied = "copy it to another place with zarrpipe.merge"
                here = f"`zarrpipe adopt {root.directory}` makes it one that a sink continues"
                way_out = copied if root.directory is None else here
            raise StoreFormatError(
                f"{root} holds a Zarr group that zarrpipe did not write, and is left as it "
                f"is: {way_out}"
            )
        arrays += [path for name in attributes.levels for path in attributes.paths_of(name)]
        arrays += [level.pointers for level in attributes.own_levels.values()]
        arrays += map(present_path, attributes.nullable)
    if root.directory is None or not root.directory.is_dir():
        return []
    if group is None:
        _check_own_directory(root.directory)
    return unfinished_files(root.directory, arrays)


def _check_own_directory(directory: Path) -> None:
    """Refuse to create a store in a directory with other content.

    Hidden files are accepted, and so are the leftovers of a writer that was killed before it
    created the root: a lock, and unfinished metadata.
    """
    leftovers = {directory / "meta", directory / LOCK_FILE, (directory / LOCK_FILE).parent}
    inside = [*directory.iterdir(), *(directory / "meta").glob("*"), *directory.glob("meta/*/*")]
    others = sorted(
        str(entry.relative_to(directory))
        for entry in inside
        if entry not in leftovers and entry.name[0] != "." and entry.suffix != ".partial"
    )
    if others:
        more = f" and {len(others) - 3} more" if len(others) > 3 else ""
        raise StoreExistsError(
            f"{directory} is a directory with other things in it ({', '.join(others[:3])}{more}) "
            "and no store: give the new store a directory of its own, such as "
            f"{directory / 'data.zarr'}"
        )


class RootMetadata:
    """Attributes and schema of a store, as its writer knows and replaces them.

    The root is created if it does not exist.
    """

    def __init__(self, root: Root) -> None:
        self._root = root
        self.group: zarr.Group
        self.group, self.attributes = _open_root(root)
        self.schema = read_schema(self.group, self.attributes)

    def publish(self, schema: Schema, **changes: Any) -> None:
        """Replace schema and attributes in one step, and keep attributes of users."""
        self._replace(schema, dataclasses.replace(self.attributes, **changes))

    def empty(self) -> None:
        """Publish a new generation without samples and fields."""
        self._replace(Schema({}), Attributes(0, generation=new_generation()))

    def _replace(self, schema: Schema, attributes: Attributes) -> None:
        now = self._root.open_group()
        group = self.group if now is None else now
        content = attributes.to_dict(schema)
        if "levels" in group.attrs:  # an update would keep those of a store that was emptied
            content.setdefault("levels", NO_LEVELS)
        self.group = group.update_attributes(content)
        self.attributes, self.schema = attributes, schema


def _open_root(root: Root) -> tuple[zarr.Group, Attributes]:
    """Open the root group, create its missing parts, and read its attributes."""
    group = root.open_group()
    attributes = None if group is None else Attributes.read(group)
    if group is None or attributes is None or not attributes.ours:
        attributes = Attributes(0, generation=new_generation())
        content = attributes.to_dict(Schema({}))
        if group is None:
            group = zarr.create_group(root.path, attributes=content)
        else:
            group = group.update_attributes(content)
    for name in GROUPS:
        with translate_zarr_errors(f"{root}/{name}"):
            group.require_group(name)
    return group, attributes


def unfinished_files(directory: Path, arrays: Iterable[str], *, whole: bool = False) -> list[Path]:
    """Find unfinished files of killed writers among the files that a writer may change.

    Only the last chunks of a field are checked, which an append continues, or all if `whole`; a
    writer checks any other chunk when it opens it. `directory` may be a link, and `arrays` need not
    exist. Raises StoreFormatError for a link, a FIFO, a device, a file in place of a directory or
    the reverse, and a chunk with a second hard link, which belongs to another store, too.
    """
    found: list[Path] = []
    parents = {parent for path in arrays for parent in Path(path).parents}
    for name in sorted({*map(Path, GROUPS), *parents, Path()}):
        if name == Path() or _is_folder(directory / name):
            _look_at(directory / name, found)
    for path in arrays:
        if _is_folder(directory / path):
            _look_through(directory / path, found, whole=whole or path.startswith("meta/"))
    return found


def check_free(group: zarr.Group, directory: Path | None, paths: Sequence[str]) -> None:
    """Refuse to create arrays in the place of anything but leftovers of zarrpipe.

    The attributes of `group` do not name the arrays. Raises SchemaError for a foreign array, group
    or non-empty folder, and StoreFormatError for a link or a file.
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
    """Whether a directory exists; raises StoreFormatError for anything else."""
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return False
    if not stat.S_ISDIR(mode):
        files.check_regular(path)
        raise StoreFormatError(f"{path} is a file, expected a directory of a store")
    return True


def _look_at(folder: Path, found: list[Path]) -> None:
    """Check the metadata document of a group, and find unfinished ones."""
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name == "zarr.json":
                files.check_regular(Path(entry.path))
            elif entry.name.startswith("zarr.") and _is_left(entry):
                found.append(Path(entry.path))


def _look_through(folder: Path, found: list[Path], *, whole: bool) -> None:
    """Check the files in a folder, but only the last chunks, and find unfinished ones."""
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
