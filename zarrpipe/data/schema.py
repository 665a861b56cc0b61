"""The fields of a store, and whether a batch fits them."""

from collections.abc import Iterable, Iterator, Mapping, ValuesView
from dataclasses import dataclass, replace
from functools import cached_property
from types import MappingProxyType

import numpy as np
import torch

from zarrpipe.data.batch import Batch
from zarrpipe.data.categories import Vocabulary, united_vocabulary
from zarrpipe.data.fields import CORE_FIELDS, Role, level_of, role_of, shape_hint
from zarrpipe.data.levels import Level, described, pointer_levels, united
from zarrpipe.errors import SchemaError


@dataclass(frozen=True)
class Field:
    """A field of a store: rows of `shape` and `dtype` at a level, in a unit ("" for none).

    `group` is the group of the store that has its array: "core" for the registry's, "custom" for
    a user's own (nvalchemi has these in "core" too), "levels/<level>" at levels of a user's own.
    `index_of` is the level whose row numbers the values are, None for other values. `categories` is
    the vocabulary of a field of strings, in which the values are places.
    """

    name: str
    level: Level
    dtype: np.dtype
    shape: tuple[int, ...]
    unit: str
    group: str
    index_of: Level | None = None
    categories: Vocabulary | None = None

    @cached_property
    def path(self) -> str:
        """Path of the field's array in a store."""
        return f"{self.group}/{self.name}"

    @cached_property
    def role(self) -> Role:
        """Role of the field in a batch."""
        return Role(self.level, self.index_of, self.categories)

    @property
    def fill(self) -> float | int | bool:
        """Value of the rows of samples that lack the field: NaN for floats, 0 otherwise."""
        return float("nan") if self.dtype.kind == "f" else self.dtype.type(0).item()


class Schema(Mapping[str, Field]):
    """The fields of a store by name.

    Examples
    --------
    >>> from zarrpipe import AtomicData, Batch
    >>> batch = Batch.from_data_list([AtomicData([[0.0, 0.0, 0.0]], [2], energy=-1.0)])
    >>> schema = Schema.of(batch)
    >>> schema["energy"].shape, schema["energy"].unit
    ((1,), 'eV')
    """

    def __init__(self, fields: Mapping[str, Field]) -> None:
        self._fields = MappingProxyType(dict(fields))
        self.own_levels = united((), levels_of(fields.values()))
        """Levels of a user's own that fields have or count, parents before products."""
        self.pointer_levels = pointer_levels(self.own_levels)
        """Levels that have pointers: atoms, edges, and those of a user's own."""

    @classmethod
    def of(cls, batch: Batch) -> "Schema":
        """Schema that a batch would give to a new store."""
        return cls({name: _field_of(batch, name) for name in batch.fields})

    def new_fields(
        self, batch: Batch, units: Mapping[str, str] = MappingProxyType({})
    ) -> tuple[Field, ...]:
        """Fields of the batch that the store lacks, with `units` for a user's own."""
        new = (_field_of(batch, name) for name in batch.fields if name not in self)
        return tuple(
            replace(field, unit=units.get(field.name, field.unit), dtype=_stored_dtype(field))
            for field in new
        )

    @property
    def units(self) -> dict[str, str]:
        """Unit of each field that has one."""
        return {field.name: field.unit for field in self.values() if field.unit}

    def with_units(self, units: Mapping[str, str]) -> "Schema":
        """Schema with units for fields that had none; refuses to change the unit of a field."""
        new = []
        for name, unit in units.items():
            fixed = self.get(name)
            if fixed is not None and fixed.unit not in ("", unit):
                raise SchemaError(
                    f"field {name!r} is given the unit {unit!r}, the store has {fixed.unit!r}: "
                    "convert the values and leave the unit out, or use another name"
                )
            if fixed is not None and not fixed.unit:
                new.append(replace(fixed, unit=unit))
        return self.extended(tuple(new)) if new else self

    def with_categories(self, batch: Batch) -> "Schema":
        """Schema whose vocabularies have the strings of a batch too; itself if they have them."""
        strings = (_field_of(batch, name) for name, role in batch.roles.items() if role.categories)
        pairs = [(self[item.name], item) for item in strings if item.name in self]
        grown = [(fixed, with_strings_of(fixed, item)) for fixed, item in pairs]
        changed = tuple(now for before, now in grown if now is not before)
        return self.extended(changed) if changed else self

    def extended(self, fields: tuple[Field, ...]) -> "Schema":
        """Schema with further fields."""
        return Schema({**self._fields, **{field.name: field for field in fields}})

    def check(self, batch: Batch) -> None:
        """Refuse a batch whose fields have another level, row shape or wider dtype."""
        self._check_levels(batch)
        for name in batch.fields:
            fixed = self.get(name)
            if fixed is None:
                continue
            given = _field_of(batch, name)
            if given.level != fixed.level:
                raise SchemaError(
                    f"field {name!r} is given at level {given.level!r}, the store has it "
                    f"at {fixed.level!r}: use another name"
                )
            if given.index_of != fixed.index_of:
                raise SchemaError(
                    f"field {name!r} counts {_counted(given)}, in the store {_counted(fixed)}: "
                    "give the same index_of, or use another name"
                )
            if (given.categories is None) is not (fixed.categories is None):
                kinds = ("numbers", "strings")[:: 1 if fixed.categories is not None else -1]
                raise SchemaError(
                    f"field {name!r} has {kinds[0]}, the store has {kinds[1]}: use another name"
                )
            if given.shape != fixed.shape:
                raise SchemaError(
                    f"field {name!r} has rows of shape {given.shape}, the store has "
                    f"{fixed.shape}: a store keeps the shape of its first write"
                    f"{shape_hint(given.shape, fixed.shape)}"
                )
            if not np.can_cast(given.dtype, fixed.dtype, casting="safe"):
                way = f"convert it with .to(torch.{fixed.dtype}) or begin a new store"
                if given.dtype.kind == "f" and fixed.dtype.kind != "f":
                    way = (
                        "begin with floats, such as [300.0], in a field of another name or in a "
                        "new store"
                    )
                raise SchemaError(
                    f"field {name!r} has dtype {given.dtype}, the store has {fixed.dtype} and the "
                    f"cast may lose information: {way}"
                )

    def _check_levels(self, batch: Batch) -> None:
        """Refuse a level of a user's own that the store defines otherwise."""
        known = {str(level): level for level in self.own_levels}
        for level in (*batch.pointer_levels, *levels_of(batch.roles.values())):
            fixed = known.get(level)
            if fixed is not None and not fixed.same_as(level):
                raise SchemaError(
                    f"level {level!r} is {described(level)}, in the store it is "
                    f"{described(fixed)}: use another name"
                )

    def at(self, level: Level) -> Iterator[Field]:
        """Fields of one level."""
        return (field for field in self.values() if field.level == level)

    def values(self) -> ValuesView[Field]:
        """The fields."""
        return self._fields.values()

    def __getitem__(self, name: str) -> Field:
        return self._fields[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._fields)

    def __len__(self) -> int:
        return len(self._fields)

    def __repr__(self) -> str:
        return f"Schema({', '.join(self)})"


def levels_of(roles: Iterable[Field | Role]) -> Iterator[Level]:
    """Levels of fields, and those whose rows they count."""
    for role in roles:
        yield role.level
        if role.index_of is not None:
            yield role.index_of


def with_strings_of(first: Field, other: Field) -> Field:
    """Field of one store whose vocabulary has the strings of the same field of another too."""
    if first.categories is None or other.categories is None:
        return first
    strings = united_vocabulary(first.name, (first.categories, other.categories))
    return first if strings is first.categories else replace(first, categories=strings)


def batch_signature(
    batch: Batch, arrays: Mapping[str, np.ndarray | torch.Tensor], *, any_strings: bool = False
) -> tuple[object, ...]:
    """Key that is equal for batches that fit the same schemas; `arrays` has their fields.

    With `any_strings`, batches that differ in the strings of their fields have equal keys, too.
    """
    rows = [(values.dtype, values.shape[1:]) for values in arrays.values()]
    levels = batch.pointer_levels
    kinds = [(level.kind, level.parents) for level in levels]  # levels compare by name alone
    roles = [
        replace(role, categories=()) if any_strings and role.categories is not None else role
        for role in batch.roles.values()
    ]
    return (*arrays, *roles, *rows, batch.partly_present, levels, *kinds)


def field_from_array(
    name: str,
    level: Level | str | None,
    dtype: np.dtype,
    shape: tuple[int, ...],
    *,
    group: str | None = None,
    index_of: Level | None = None,
    categories: Vocabulary | None = None,
) -> Field:
    """Field of an array; by default at the level and in the group that the registry says."""
    core, at = CORE_FIELDS.get(name), level_of(name, level)
    unit = "" if core is None else core.unit
    usual = "custom" if core is None else "core"
    if not at.built_in:
        usual = f"levels/{at}"
    counted = role_of(name, at, index_of).index_of
    return Field(name, at, np.dtype(dtype), shape, unit, group or usual, counted, categories)


def _field_of(batch: Batch, name: str) -> Field:
    value, role = batch[name], batch.roles[name]
    dtype = np.dtype(str(value.dtype).removeprefix("torch."))
    shape = tuple(value.shape[1:])
    counted, strings = role.index_of, role.categories
    return field_from_array(name, role.level, dtype, shape, index_of=counted, categories=strings)


def _stored_dtype(item: Field) -> np.dtype:
    """Dtype of a new field in a store, where row numbers outgrow small integers."""
    is_index = item.index_of is not None and item.dtype.kind in "iu"
    return np.dtype(np.int64) if is_index else item.dtype


def _counted(item: Field) -> str:
    return "no rows" if item.index_of is None else f"{item.index_of}s"
