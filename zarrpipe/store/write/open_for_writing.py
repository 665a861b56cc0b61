"""Opening the root of a store for writing: only what is ours or new is written into."""

import dataclasses
from pathlib import Path
from typing import Any

import zarr
from zarr.storage import MemoryStore

from zarrpipe.data.schema import Schema
from zarrpipe.errors import (
    FieldError,
    StoreExistsError,
    StoreFormatError,
    StoreReadOnlyError,
)
from zarrpipe.store.backend.location import Root
from zarrpipe.store.backend.lock import LOCK_FILE
from zarrpipe.store.format.layout import (
    GROUPS,
    SUMS,
    is_empty,
    meta_specs,
    present_path,
    read_schema,
)
from zarrpipe.store.format.metadata import Attributes, new_generation
from zarrpipe.store.format.validate import translate_zarr_errors
from zarrpipe.store.write.foreign_files import unfinished_files


def check_durable(root: Root, *, durable: bool) -> None:
    """Refuse to promise of a store that it outlasts a loss of power where it cannot.

    Raises
    ------
    FieldError
        If it is in memory.
    """
    if durable and isinstance(root.path.store, MemoryStore):
        raise FieldError(
            f"durable=True, but {root} is in memory and does not outlast a loss of power: give a "
            "directory"
        )


def check_writable(root: Root) -> list[Path]:
    """Refuse a place that zarrpipe must not write to.

    Returns
    -------
    list of Path
        Files that writers which were killed have not finished.

    Raises
    ------
    StoreReadOnlyError
        If the zarr store was opened for reading alone.
    StoreExistsError
        If it is a directory of other things.
    StoreFormatError
        If a Zarr group that zarrpipe did not write stands there, or, in a local store, a link or
        something else through which a writer would change what is elsewhere.
    """
    if root.read_only:
        raise StoreReadOnlyError(f"{root} was opened read-only: open it for writing")
    group, arrays = root.open_group(), [*(spec.path for spec in meta_specs()), SUMS]
    if group is not None:
        attributes = Attributes.read(group)
        if not attributes.ours and not is_empty(group):
            raise StoreFormatError(
                f"{root} holds a Zarr group that zarrpipe did not write, and is left as it "
                "is: read it with ZarrDataset or AtomicDataZarrReader and write to another place"
            )
        arrays += [f"{part}/{name}" for part in ("core", "custom") for name in attributes.levels]
        arrays += map(present_path, attributes.nullable)
    if root.directory is None or not root.directory.is_dir():
        return []
    if group is None:
        _check_own_directory(root.directory)
    return unfinished_files(root.directory, arrays)


def _check_own_directory(directory: Path) -> None:
    """Refuse to mix a new store into a directory of other things.

    Hidden files are no obstacle, nor is what a writer leaves that was killed before it made the
    root's metadata: a lock, and metadata that are not finished.
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
    """Attributes and schema of a store as its writer knows and replaces them.

    Parameters
    ----------
    root
        Place of the store, which is made if it is not there.
    """

    def __init__(self, root: Root) -> None:
        self._root = root
        self.group: zarr.Group
        self.group, self.attributes = _open_root(root)
        self.schema = read_schema(self.group, self.attributes)

    def publish(self, schema: Schema, **changes: Any) -> None:
        """Replace schema and attributes in one step, and keep attributes that others have set."""
        self._replace(schema, dataclasses.replace(self.attributes, **changes))

    def empty(self) -> None:
        """Publish that there are no samples and fields, as of a new generation."""
        self._replace(Schema({}), Attributes(0, generation=new_generation()))

    def _replace(self, schema: Schema, attributes: Attributes) -> None:
        now = self._root.open_group()
        group = self.group if now is None else now
        self.group = group.update_attributes(attributes.to_dict(schema))
        self.attributes, self.schema = attributes, schema


def _open_root(root: Root) -> tuple[zarr.Group, Attributes]:
    """Root group with its parts, which are made where they are not there, and its attributes."""
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
