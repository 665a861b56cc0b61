"""Opening the root of a store for writing: only what is ours or new is written into."""

import zarr

from zarrpipe.data.schema import Schema
from zarrpipe.errors import StoreFormatError, StoreReadOnlyError
from zarrpipe.store.layout import GROUPS, Attributes, is_empty, new_generation
from zarrpipe.store.root import Root


def check_writable(root: Root) -> None:
    """Refuse a place that zarrpipe must not write to.

    Raises
    ------
    StoreReadOnlyError
        If the zarr store was opened for reading alone.
    StoreFormatError
        If a Zarr group that zarrpipe did not write stands there.
    """
    if root.read_only:
        raise StoreReadOnlyError(f"{root} was opened read-only: open it for writing")
    group = root.open_group()
    if group is None or Attributes.read(group).ours or is_empty(group):
        return
    raise StoreFormatError(
        f"{root} holds a Zarr group that zarrpipe did not write, and is left as it "
        "is: read it with ZarrDataset or AtomicDataZarrReader and write to another place"
    )


def open_root(root: Root) -> tuple[zarr.Group, Attributes]:
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
        group.require_group(name)
    return group, attributes
