"""The attributes of a store's root, which are validated when they are read."""

import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import zarr

from zarrpipe.data.schema import Schema
from zarrpipe.errors import StoreFormatError

FORMAT = 1
"""Version of the format that this package writes, and newest version that it reads."""

_MOST_FIELDS, _LONGEST_NAME = 1024, 255


@dataclass(frozen=True)
class Attributes:
    """The attributes of a root group.

    `num_samples` is the number of samples when the store was last closed, `deleted` that of deleted
    samples. `levels` and `units` are by field name. `nullable` fields have an array in `present/`.
    `generation` changes whenever the store is emptied or its samples move, and is "" in a foreign
    store. `ours` is True if zarrpipe wrote the store.
    """

    num_samples: int
    levels: Mapping[str, str] = field(default_factory=dict)
    nullable: frozenset[str] = frozenset()
    deleted: int = 0
    generation: str = ""
    ours: bool = True
    units: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def read(cls, group: zarr.Group) -> "Attributes":
        """Read and validate the attributes; raises StoreFormatError if damaged or too new."""
        attributes: dict[str, Any] = dict(group.attrs.asdict())
        own, fields = attributes.get("zarrpipe", {}), attributes.get("fields", {})
        count = attributes.get("num_samples", 0)
        if not isinstance(own, dict) or not isinstance(fields, dict) or not _is_count(count):
            raise StoreFormatError(
                f"{group.store_path}: 'zarrpipe' and 'fields' must be objects and 'num_samples' a "
                f"number, found {_shown(own)}, {_shown(fields)} and {_shown(count)}"
            )
        version = own.get("format", FORMAT)
        if type(version) is not int or not 1 <= version <= FORMAT:
            raise StoreFormatError(
                f"{group.store_path} has format {version!r}, this zarrpipe reads up to {FORMAT}: "
                "upgrade zarrpipe"
            )
        levels = _levels(group, fields)
        nullable, deleted = own.get("partly_present", []), own.get("deleted", 0)
        generation, units = own.get("generation", ""), own.get("units", {})
        if not isinstance(nullable, list) or not all(
            name in levels for name in map(_text, nullable)
        ):
            raise _wrong(group, "partly_present", "a list of fields of the store", nullable)
        if not _is_count(deleted):
            raise _wrong(group, "deleted", "a number of samples", deleted)
        if not isinstance(generation, str):
            raise _wrong(group, "generation", "a text", generation)
        if not isinstance(units, dict) or not all(isinstance(unit, str) for unit in units.values()):
            raise _wrong(group, "units", "an object that maps names to texts", units)
        ours = "zarrpipe" in attributes
        return cls(count, levels, frozenset(nullable), deleted, generation, ours, units)

    def to_dict(self, schema: Schema) -> dict[str, Any]:
        """Convert the attributes to JSON, with the levels and units of a schema."""
        levels: dict[str, dict[str, str]] = {"core": {}, "custom": {}}
        for item in schema.values():
            levels[item.group][item.name] = item.level.value
        units = {item.name: item.unit for item in schema.values() if item.unit}
        own = {
            "format": FORMAT,
            "generation": self.generation,
            "units": units,
            "partly_present": sorted(self.nullable),
            "deleted": self.deleted,
        }
        return {"num_samples": self.num_samples, "fields": levels, "zarrpipe": own}


def new_generation() -> str:
    """Create a unique name of a generation."""
    return uuid.uuid4().hex


def _levels(group: zarr.Group, fields: Mapping[str, Any]) -> dict[str, str]:
    """Level of each field by name; every name must be valid as that of an array."""
    levels: dict[str, str] = {}
    for listed in fields.values():
        if not isinstance(listed, dict):
            raise StoreFormatError(
                f"{group.store_path}: fields {_shown(listed)} should map names to levels"
            )
        levels.update(listed)
    if len(levels) > _MOST_FIELDS:
        raise StoreFormatError(
            f"{group.store_path}: the attributes name {len(levels)} fields, at most {_MOST_FIELDS} "
            "are accepted"
        )
    for name, level in levels.items():
        if not 0 < len(name) <= _LONGEST_NAME or name in (".", "..") or set(name) & {*"/\\\0"}:
            raise StoreFormatError(
                f"{group.store_path}: {_shown(name)} cannot be the name of a field and of an array"
            )
        if not isinstance(level, str):
            raise StoreFormatError(
                f"{group.store_path}: field {name!r} has level {_shown(level)}; expected 'atom', "
                "'edge' or 'system'"
            )
    return levels


def _is_count(value: object) -> bool:
    return type(value) is int and 0 <= value < 1 << 62


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None


def _wrong(group: zarr.Group, name: str, expected: str, found: object) -> StoreFormatError:
    return StoreFormatError(
        f"{group.store_path}: {name!r} of the attributes should be {expected}, "
        f"found {_shown(found)}"
    )


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:200]}..."
