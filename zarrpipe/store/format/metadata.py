"""The attributes of a store's root, which are validated when they are read."""

import re
import reprlib
import uuid
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import zarr

from zarrpipe.data.categories import Vocabulary, checked_vocabulary
from zarrpipe.data.fields import CORE_FIELDS, level_of
from zarrpipe.data.levels import Level, defined
from zarrpipe.data.schema import Schema
from zarrpipe.errors import ArgumentError, FieldError, StoreFormatError, StorePartsError

FORMAT = 1
"""Version of the format that this package writes, and newest version that it reads."""

PARTS_FORMAT = 2
"""Format that the parent of parts states, so that releases without parts refuse it."""

PARTS_VERSION = 1
"""Version of the layout of parts that this package writes, and newest version that it reads."""

_MOST_FIELDS, _LONGEST_NAME, _LEVELS_VERSION = 1024, 255, 1

NO_LEVELS: Mapping[str, Any] = {"version": _LEVELS_VERSION, "definitions": {}}
"""Definitions of levels in the attributes of a store that has had some and has none."""


@dataclass(frozen=True)
class Mark:
    """The samples that a store had at some moment, by a name; see `ZarrData.mark`.

    Parameters
    ----------
    samples : int
        Number of samples that had been written, deleted ones included.
    deleted : int
        How many of them had been deleted.
    time : float
        When it was made, in seconds since 1970.
    note : str, optional
        Text of the one who made it.
    """

    samples: int
    deleted: int
    time: float
    note: str | None = None

    @property
    def count(self) -> int:
        """Number of samples, without deleted ones."""
        return self.samples - self.deleted


@dataclass(frozen=True)
class Attributes:
    """The attributes of a root group.

    `num_samples` is the number of samples when the store was last closed, `deleted` that of deleted
    samples. `levels` and `units` are by field name. `nullable` fields have an array in `present/`.
    `generation` changes whenever the store is emptied or its samples move, and is "" in a foreign
    store. `ours` is True if zarrpipe wrote the store. `own_levels` are the levels
    that users have defined, by name, and `index_of` the levels whose rows own fields count, by
    field name. `categories` are the vocabularies of fields of strings. `imports` says for each
    import of files what was read as what. `marks` are by name.
    """

    num_samples: int
    levels: Mapping[str, str] = field(default_factory=dict)
    nullable: frozenset[str] = frozenset()
    deleted: int = 0
    generation: str = ""
    ours: bool = True
    units: Mapping[str, str] = field(default_factory=dict)
    own_levels: Mapping[str, Level] = field(default_factory=dict)
    index_of: Mapping[str, str] = field(default_factory=dict)
    categories: Mapping[str, Vocabulary] = field(default_factory=dict)
    imports: tuple[Mapping[str, Any], ...] = ()
    marks: Mapping[str, Mark] = field(default_factory=dict)

    @classmethod
    def read(cls, group: zarr.Group) -> "Attributes":
        """Read and validate the attributes.

        Raises StoreFormatError if they are damaged or too new, and StorePartsError for a parent of
        parts.
        """
        attributes: dict[str, Any] = dict(group.attrs.asdict())
        own, fields = attributes.get("zarrpipe", {}), attributes.get("fields", {})
        count = attributes.get("num_samples", 0)
        if not isinstance(own, dict) or not isinstance(fields, dict) or not _is_count(count):
            raise StoreFormatError(
                f"{group.store_path}: 'zarrpipe' and 'fields' must be objects and 'num_samples' a "
                f"number, found {_shown(own)}, {_shown(fields)} and {_shown(count)}"
            )
        if "parts" in own:
            raise _parent_of_parts(group, own["parts"])
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
        own_levels, index_of = _definitions(group, attributes), own.get("index_of", {})
        if not isinstance(index_of, dict) or not all(
            isinstance(level, str) for level in index_of.values()
        ):
            raise _wrong(group, "index_of", "an object that maps names to levels", index_of)
        imports = own.get("imports", [])
        if not isinstance(imports, list) or not all(isinstance(one, dict) for one in imports):
            raise _wrong(group, "imports", "a list of objects", imports)
        ours = "zarrpipe" in attributes
        known = (count, levels, frozenset(nullable), deleted, generation, ours, units)
        others = _vocabularies(group, own), tuple(imports), _marks(group, own)
        return cls(*known, own_levels, index_of, *others)

    def level_of(self, name: str) -> Level:
        """Level of a field; raises FieldError if it is not one of the store."""
        return level_of(name, self.levels[name], self.own_levels)

    def counted_by(self, name: str) -> Level | None:
        """Level whose rows the values of an own field count, if they are row numbers."""
        counted = self.index_of.get(name)
        return None if counted is None else level_of(name, counted, self.own_levels)

    def paths_of(self, name: str) -> tuple[str, ...]:
        """Paths at which the array of a field may be, the usual one first."""
        level = self.levels[name]
        if level in self.own_levels:
            return (f"levels/{level}/{name}",)
        groups = ("core", "custom") if name in CORE_FIELDS else ("custom", "core")
        return tuple(f"{group}/{name}" for group in groups)

    def to_dict(self, schema: Schema) -> dict[str, Any]:
        """Convert the attributes to JSON, with the levels and units of a schema."""
        levels: dict[str, dict[str, str]] = {"core": {}, "custom": {}}
        for item in schema.values():
            part = item.group if item.level.built_in else "levels"
            levels.setdefault(part, {})[item.name] = str(item.level)
        units = {item.name: item.unit for item in schema.values() if item.unit}
        own = {
            "format": FORMAT,
            "generation": self.generation,
            "units": units,
            "partly_present": sorted(self.nullable),
            "deleted": self.deleted,
        }
        counting = {
            item.name: str(item.index_of)
            for item in schema.values()
            if item.index_of is not None and item.name not in CORE_FIELDS
        }
        if counting:
            own["index_of"] = counting
        categories = {
            item.name: list(item.categories)
            for item in schema.values()
            if item.categories is not None
        }
        if categories:
            own["categories"] = categories
        if self.imports:
            own["imports"] = list(self.imports)
        if self.marks:
            own["marks"] = {name: asdict(mark) for name, mark in self.marks.items()}
        content = {"num_samples": self.num_samples, "fields": levels, "zarrpipe": own}
        if schema.own_levels:
            definitions = {str(level): level.definition for level in schema.own_levels}
            content["levels"] = {"version": _LEVELS_VERSION, "definitions": definitions}
        return content


def check_mark_name(name: str) -> None:
    """Refuse what cannot be the name of a mark."""
    if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", name):
        raise ArgumentError(
            f"{reprlib.repr(name)} cannot be the name of a mark: expected up to 100 letters, "
            "digits and ._-, such as 'round-3'"
        )


def new_generation() -> str:
    """Create a unique name of a generation."""
    return uuid.uuid4().hex


def parent_attributes() -> dict[str, Any]:
    """Attributes of the parent of parts."""
    return {"zarrpipe": {"format": PARTS_FORMAT, "parts": PARTS_VERSION}}


def _parent_of_parts(group: zarr.Group, version: object) -> StoreFormatError:
    """Error about the parent of parts, or about parts of a newer version."""
    if version != PARTS_VERSION:
        return StoreFormatError(
            f"{group.store_path} has parts of version {_shown(version)}, this zarrpipe reads "
            f"version {PARTS_VERSION}: upgrade zarrpipe"
        )
    return StorePartsError(
        f"{group.store_path} is a parent of parts, each of which is a store: read all of them with "
        "ZarrDataset, write with ZarrData(..., part='name'), fold them into one store with "
        "zarrpipe.merge, or give one of the parts, such as those that zarrpipe.parts lists"
    )


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


def _definitions(group: zarr.Group, attributes: Mapping[str, Any]) -> dict[str, Level]:
    """Levels that users have defined, by name."""
    found = attributes.get("levels")
    if found is None:
        return {}
    definitions = found.get("definitions") if isinstance(found, dict) else None
    if not isinstance(definitions, dict) or not all(
        isinstance(definition, dict) for definition in definitions.values()
    ):
        raise _wrong(group, "levels", "an object with definitions of levels", found)
    if found.get("version") != _LEVELS_VERSION:
        raise StoreFormatError(
            f"{group.store_path} defines levels of version {_shown(found.get('version'))}, this "
            f"zarrpipe reads version {_LEVELS_VERSION}: upgrade zarrpipe"
        )
    try:
        return defined(definitions)
    except FieldError as error:
        raise StoreFormatError(f"{group.store_path}: {error}") from error


def _vocabularies(group: zarr.Group, own: Mapping[str, Any]) -> dict[str, Vocabulary]:
    """Vocabulary of each field of strings, by field name."""
    given = own.get("categories", {})
    if not isinstance(given, dict) or not all(isinstance(one, list) for one in given.values()):
        raise _wrong(group, "categories", "an object that maps names to lists of strings", given)
    try:
        return {name: checked_vocabulary(name, strings) for name, strings in given.items()}
    except (FieldError, TypeError) as error:
        raise StoreFormatError(f"{group.store_path}: {error}") from error


def _marks(group: zarr.Group, own: Mapping[str, Any]) -> dict[str, Mark]:
    """Marks by name."""
    given = own.get("marks", {})
    expected = "an object that maps names to objects with samples, deleted and time"
    if not isinstance(given, dict) or not all(isinstance(one, dict) for one in given.values()):
        raise _wrong(group, "marks", expected, given)
    marks = {}
    for name, one in given.items():
        samples, deleted, when = one.get("samples"), one.get("deleted", 0), one.get("time", 0.0)
        counted = _is_count(samples) and _is_count(deleted) and deleted <= samples
        if not counted or not isinstance(when, int | float):
            raise _wrong(group, "marks", expected, given)
        marks[name] = Mark(samples, deleted, float(when), _text(one.get("note")))
    return marks


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
