"""What a format cannot carry, by name and reason."""

from collections.abc import Collection, Iterable, Mapping

from zarrpipe.data.fields import CORE_FIELDS
from zarrpipe.data.levels import Level
from zarrpipe.data.schema import Field


def without_place(schema: Mapping[str, Field]) -> dict[str, str]:
    """Fields that belong neither to atoms nor to whole systems."""
    return {
        name: f"it has a row for each {item.level}, the format has rows of atoms and of systems"
        for name, item in schema.items()
        if item.level.has_pointers and item.level != Level.ATOM
    }


def empty_rows(schema: Mapping[str, Field]) -> dict[str, str]:
    """Fields whose rows have no values."""
    return {
        name: f"its rows of shape {item.shape} have no values"
        for name, item in schema.items()
        if 0 in item.shape
    }


def reserved(schema: Mapping[str, Field], names: Collection[str]) -> dict[str, str]:
    """Fields of a user's own whose names mean something else in the format."""
    return {
        name: "the format has another meaning for this name: store it under another one"
        for name in schema
        if name in names and name not in CORE_FIELDS
    }


def units_of(schema: Mapping[str, Field], names: Iterable[str] | None = None) -> dict[str, str]:
    """Units of a user's own fields, which the format has no place for."""
    return {
        f"unit of {name}": f"{schema[name].unit!r}: the format has no place for units"
        for name in (schema if names is None else names)
        if name not in CORE_FIELDS and schema[name].unit
    }
