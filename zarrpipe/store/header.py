"""The document of a store's root as its writer knows and replaces it."""

import dataclasses
from typing import Any

import zarr

from zarrpipe.data.schema import Schema
from zarrpipe.store.attributes import Attributes, new_generation
from zarrpipe.store.layout import read_schema
from zarrpipe.store.opening import open_root
from zarrpipe.store.root import Root


class Header:
    """Attributes and schema of a store; made if they are not there.

    What it knows is what was last published, also after a call that failed.

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

    def publish(self, schema: Schema, **changes: Any) -> None:
        """Make a schema and attributes known, at once, beside those that others have set."""
        self._replace(schema, dataclasses.replace(self.attributes, **changes))

    def empty(self) -> None:
        """Say that there are no samples and fields, as of a new generation."""
        self._replace(Schema({}), Attributes(0, generation=new_generation()))

    def _replace(self, schema: Schema, attributes: Attributes) -> None:
        now = self._root.open_group()
        group = self.group if now is None else now
        self.group = group.update_attributes(attributes.to_dict(schema))
        self.attributes, self.schema = attributes, schema
