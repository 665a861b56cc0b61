"""The document of a store's root as its writer knows and replaces it."""

import dataclasses
from collections.abc import Iterable
from contextlib import suppress
from typing import Any

import zarr

from zarrpipe.data.schema import Schema
from zarrpipe.errors import StoreFormatError
from zarrpipe.store.backend.location import Root
from zarrpipe.store.format.layout import field_path, present_path, read_schema
from zarrpipe.store.format.metadata import Attributes, new_generation
from zarrpipe.store.write.open_for_writing import open_root


class RootMetadata:
    """Attributes and schema of a store; made if they are not there.

    What it knows is what the store says, also after a call that failed: it may have arrived.

    Parameters
    ----------
    root
        Place of the store.
    """

    def __init__(self, root: Root) -> None:
        self._root = root
        self.group: zarr.Group
        self.group, self.attributes = open_root(root)
        self.schema = read_schema(self.group, self.attributes)
        self.certain = True
        """Whether what it knows is what the store says."""

    def publish(self, schema: Schema, **changes: Any) -> None:
        """Make a schema and attributes known, at once, beside those that others have set."""
        self._replace(schema, dataclasses.replace(self.attributes, **changes))

    def announces(self, paths: Iterable[str]) -> bool:
        """Whether fields or presence arrays stand at any of some places."""
        fields = map(field_path, self.schema.values())
        return not {*fields, *map(present_path, self.attributes.nullable)}.isdisjoint(paths)

    def empty(self) -> None:
        """Say that there are no samples and fields, as of a new generation."""
        self._replace(Schema({}), Attributes(0, generation=new_generation()))

    def _replace(self, schema: Schema, attributes: Attributes) -> None:
        now = self._root.open_group()
        group = self.group if now is None else now
        self.certain = False
        try:
            self.group = group.update_attributes(attributes.to_dict(schema))
        except BaseException:
            self._look_again()
            raise
        self.attributes, self.schema, self.certain = attributes, schema, True

    def _look_again(self) -> None:
        with suppress(OSError, StoreFormatError):  # another error is on its way
            group = self._root.open_group()
            if group is not None:
                attributes = Attributes.read(group)
                self.schema, self.attributes = read_schema(group, attributes), attributes
                self.group, self.certain = group, True
