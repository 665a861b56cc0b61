"""Base class of a system and of a batch: named tensors with a level, and their transfer."""

from __future__ import annotations

import difflib
import reprlib
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any, ClassVar, Self, cast

import numpy as np
import torch

from zarrpipe.data.categories import SYMBOLS, are_strings, check_codes, decoded, encoded
from zarrpipe.data.fields import (
    CORE_FIELDS,
    Kind,
    Role,
    as_field_dtype,
    as_row_numbers,
    check_dense,
    check_name,
    level_of,
    role_of,
)
from zarrpipe.data.levels import BUILT_IN, Level, described
from zarrpipe.data.tables import elements_text, html_table
from zarrpipe.data.validate import plain_array
from zarrpipe.errors import FieldError, UnknownFieldError


class FieldTensors:
    """Named tensors, each at the level of atoms, edges or systems.

    Fields are read as attributes (``data.forces``) or items (``data["forces"]``) and set as
    attributes where their level is known; `add_field` sets any.
    """

    __slots__ = ("_fields", "_roles")

    _fields: dict[str, torch.Tensor]
    _roles: dict[str, Role]
    _also: ClassVar[tuple[str, ...]] = ()
    """Attributes beside the fields that are listed with them."""

    @property
    def fields(self) -> MappingProxyType[str, torch.Tensor]:
        """Read-only view of the tensors by field name."""
        return MappingProxyType(self._fields)

    @property
    def levels(self) -> MappingProxyType[str, Level]:
        """Read-only view of the level of each field."""
        return MappingProxyType({name: role.level for name, role in self._roles.items()})

    @property
    def roles(self) -> MappingProxyType[str, Role]:
        """Read-only view of what the rows of each field are."""
        return MappingProxyType(self._roles)

    @property
    def keys(self) -> dict[str, set[str]]:
        """Field names by level: ``{"atom": {...}, "edge": {...}, "system": {...}}``.

        Levels of a user's own follow.
        """
        found: dict[str, set[str]] = {level: set() for level in ("atom", "edge", "system")}
        for name, role in self._roles.items():
            found.setdefault(str(role.level), set()).add(name)
        return found

    @property
    def num_nodes(self) -> int:
        """Number of atoms."""
        return self._fields["positions"].shape[0]

    @property
    def device(self) -> torch.device:
        """Device of the tensors."""
        return self._fields["positions"].device

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the positions."""
        return self._fields["positions"].dtype

    @property
    def num_graphs(self) -> int:
        """Number of systems."""
        raise NotImplementedError

    @property
    def num_edges(self) -> int:
        """Number of edges."""
        raise NotImplementedError

    def num_rows(self, level: str) -> int:
        """Number of rows that a field of `level` has here."""
        raise NotImplementedError

    def rows_per_graph(self, level: str) -> torch.Tensor:
        """Number of rows that a field of `level` has in each system, [B] int64."""
        raise NotImplementedError

    @property
    def pointer_levels(self) -> tuple[Level, ...]:
        """Levels whose systems may have any number of rows: atoms, edges and a user's own."""
        raise NotImplementedError

    def has(self, name: str) -> torch.Tensor:
        """Which systems have the field, [B] bool; none where it is not here."""
        raise NotImplementedError

    def add_field(
        self,
        name: str,
        value: Any,
        level: Level | str | None = None,
        *,
        index_of: Level | str | None = None,
    ) -> Self:
        """Set a field, replacing one of the same name; returns the object itself.

        Parameters
        ----------
        name
            A field of the registry, one that is already here, or a new one of the user's own.
        value
            Tensor of shape ``[rows, ...]`` (or what `torch.as_tensor` takes), with one row per
            row of its level; for a field of strings, one string per system.
        level
            Needed only for a new field that is not in the registry: ``"atom"``, ``"edge"``,
            ``"system"``, or a `Level` of the user's own.
        index_of
            For row numbers: the level whose rows they count. They are integers.

        Raises
        ------
        FieldError
            If the name, level, dtype, number of rows, trailing shape or device does not fit.
        """
        role = self._role_for(name, level, index_of)
        if name not in CORE_FIELDS and are_strings(value):
            value, categories = encoded(name, value)
            role = replace(role, categories=categories)
            check_has_strings(name, role)
        tensor = as_field_dtype(name, self._as_tensor(name, value))
        if role.index_of is not None:
            tensor = as_row_numbers(name, tensor, role.index_of)
        self._check_shape(name, role.level, tensor)
        self._check_categories(name, role, tensor)
        self._fields[name] = tensor
        self._roles[name] = role
        return self

    def _field(self, name: str) -> torch.Tensor:
        """Tensor of a field; an unknown name raises an error that lists the fields."""
        try:
            return self._fields[name]
        except (KeyError, TypeError):
            raise UnknownFieldError(self._lacks(name, self._fields)) from None

    def _lacks(self, name: str, have: Iterable[str]) -> str:
        """Message that there is no field `name`, which suggests our name in place of PyG's."""
        meant = _PYG_NAMES.get(name) if isinstance(name, str) else None
        here = meant is not None and (meant in self._fields or meant in self._also)
        hint = f" (did you mean {meant!r}?)" if here else ""
        return f"{type(self).__name__} has no field {name!r}{hint}; it has {', '.join(have)}"

    def _role_for(
        self, name: str, level: Level | str | None, index_of: Level | str | None = None
    ) -> Role:
        """Role of a field to be set; refuses a name, level or target that does not fit."""
        check_name(name)
        check_not_taken(name)
        here, own = self._roles.get(name), {str(one): one for one in self._own_levels()}
        resolved = here.level if here is not None and level is None else level_of(name, level, own)
        known = own.get(resolved)
        if known is not None and not known.same_as(resolved):
            raise FieldError(
                f"level {resolved!r} of field {name!r} is {described(resolved)}, and is "
                f"{described(known)} here: use another name for one of them"
            )
        if here is not None and here.level != resolved:
            raise FieldError(
                f"field {name!r} is here at level {here.level!r} and cannot be set at level "
                f"{resolved!r}"
            )
        counted = None if index_of is None else self._counted(name, index_of, own)
        if here is not None and counted is None:
            return here
        return role_of(name, resolved, counted)

    def _check_categories(self, name: str, role: Role, codes: torch.Tensor) -> None:
        """Refuse strings of a field that has none, and codes that are no places in a vocabulary."""
        if role.categories is None:
            return
        check_has_strings(name, role)
        check_codes(name, codes, role.categories)

    def categories(self, name: str) -> tuple[str, ...]:
        """Vocabulary of a field of strings, whose values are places in it.

        Raises
        ------
        UnknownFieldError
            If there is no such field.
        FieldError
            If its values are numbers.
        """
        self._field(name)
        found = self._roles[name].categories
        if found is None:
            strings = [one for one, role in self._roles.items() if role.categories is not None]
            raise FieldError(f"field {name!r} has numbers; the fields of strings are {strings}")
        return found

    def strings(self, name: str) -> list[str | None]:
        """String of each system for a field of strings; None where it lacks the field.

        Raises
        ------
        UnknownFieldError, FieldError
            As `categories`.
        """
        vocabulary, codes = self.categories(name), self._fields[name].tolist()
        return decoded(name, codes, self.has(name).tolist(), vocabulary)

    def _own_levels(self) -> Iterable[Level]:
        """Levels of a user's own that are here."""
        found = {role.level for role in self._roles.values()} | {*self.pointer_levels}
        return (level for level in found if not level.built_in)

    def _check_level(self, level: str) -> None:
        """Refuse the name of a level that is not here; a `Level` may be one that has no rows."""
        if isinstance(level, Level) or level == Level.SYSTEM or level in self.pointer_levels:
            return
        own = [str(one) for one in self._own_levels() if not one.has_pointers]
        if level not in own:
            have = [*map(str, (Level.SYSTEM, *self.pointer_levels)), *own]
            what = type(self).__name__
            raise FieldError(f"the {what} has no level {level!r}; it has {have}")

    @staticmethod
    def _counted(name: str, index_of: Level | str, own: Mapping[str, Level]) -> Level:
        """Level whose rows a field counts."""
        found = own.get(index_of) or BUILT_IN.get(index_of)
        if found is None or not found.has_pointers:
            have = [str(level) for level in (*BUILT_IN.values(), *own.values())]
            raise FieldError(
                f"field {name!r} is given as row numbers of {index_of!r}, expected a level "
                f"with several rows in a system; the levels here are {have}"
            )
        return found

    def _as_tensor(self, name: str, value: Any) -> torch.Tensor:
        """Value as a tensor on this device; Python numbers take a fitting dtype."""
        positions = self._fields.get("positions")
        if not isinstance(value, torch.Tensor):
            like = None if positions is None else positions.dtype
            made = _tensor_of(name, value, like)
            return made if positions is None else made.to(positions.device)
        check_dense(name, value)
        if positions is not None and value.device != positions.device:
            raise FieldError(
                f"field {name!r} is on {value.device}, the positions are on {positions.device}: "
                "move one of them with .to(device)"
            )
        return value

    def _check_shape(self, name: str, level: Level, value: torch.Tensor) -> None:
        spec = CORE_FIELDS.get(name)
        rows = self.num_rows(level)
        if value.ndim == 0 or value.shape[0] != rows:
            raise FieldError(
                f"field {name!r} has shape {tuple(value.shape)}, expected one row for each of "
                f"{rows} {level}s, as the {level.counted_by} say"
            )
        if spec is not None and spec.shape is not None and tuple(value.shape[1:]) != spec.shape:
            raise FieldError(
                f"field {name!r} has shape {tuple(value.shape)}, expected {(rows, *spec.shape)}: "
                f"each {level} has a row of shape {spec.shape}"
            )

    def _map(self, function: Callable[[torch.Tensor], torch.Tensor]) -> Self:
        """Copy of the object with `function` applied to each of its tensors."""
        raise NotImplementedError

    def _transfer(self, copy: Callable[[torch.Tensor], torch.Tensor]) -> Self:
        """As `_map`, for functions that keep the bytes, so that one copy of the whole is enough."""
        return self._map(copy)

    def to(
        self,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
        *,
        non_blocking: bool = False,
    ) -> Self:
        """Copy on `device`; `dtype`, if given, is that of every floating-point field."""

        def move(value: torch.Tensor) -> torch.Tensor:
            wanted = dtype if value.is_floating_point() else None
            return value.to(device=device, dtype=wanted, non_blocking=non_blocking)

        return self._map(move) if dtype is not None else self._transfer(move)

    def cpu(self) -> Self:
        """Copy on the CPU."""
        return self.to("cpu")

    def detach(self) -> Self:
        """Copy that shares memory and has no gradient history."""
        return self._map(torch.Tensor.detach)

    def clone(self) -> Self:
        """Copy that shares no memory."""
        return self._transfer(torch.Tensor.clone)

    def pin_memory(self) -> Self:
        """Copy in page-locked memory, from where a transfer to a GPU can be asynchronous."""
        return self._transfer(torch.Tensor.pin_memory)

    def __contains__(self, name: object) -> bool:
        return name in self._fields

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *self._fields})

    def _repr_html_(self) -> str:
        """Table of the fields, which notebooks show."""
        sizes = f"num_graphs={self.num_graphs}, num_nodes={self.num_nodes}"
        title = f"{type(self).__name__}({sizes}, num_edges={self.num_edges}) on {self.device}"
        rows = []
        for name, value in self._fields.items():
            spec, having = CORE_FIELDS.get(name), int(self.has(name).sum())
            strings = self._roles[name].categories is not None
            dtype = "string" if strings else str(value.dtype).removeprefix("torch.")
            unit = "" if spec is None else spec.unit
            rows.append((name, self.levels[name], dtype, tuple(value.shape), unit, having))
        columns = ("field", "level", "dtype", "shape", "unit", "systems with it")
        counts = np.bincount(self._fields["atomic_numbers"].cpu().numpy())
        elements = {_symbol(z): int(counts[z]) for z in np.flatnonzero(counts).tolist()}
        return html_table(title, columns, rows, facts=elements_text(elements), numbers={5})

    def __getattr__(self, name: str) -> torch.Tensor:
        if not name.startswith("_"):
            try:
                return self._fields[name]
            except KeyError:
                have = (*sorted(self._fields), *self._also)
                raise AttributeError(self._lacks(name, have)) from None
        return cast(torch.Tensor, self._unset(name))

    def _unset(self, name: str) -> Any:
        """Return a slot that was not set yet."""
        raise AttributeError(name)

    def __setattr__(self, name: str, value: Any) -> None:
        if name.startswith("_"):
            object.__setattr__(self, name, value)
        else:
            self.add_field(name, value)


def _symbol(number: int) -> str:
    """Symbol of an atomic number; the number itself where there is no such element."""
    return SYMBOLS[number] if number < len(SYMBOLS) else str(number)


def _tensor_of(name: str, value: Any, like: torch.dtype | None) -> torch.Tensor:
    """Tensor of an array, or of one or several Python numbers.

    Arrays keep their dtype. Python numbers of a float field take `like`, the dtype of the
    positions, but a single number stays float64: a total energy loses meV in float32. An empty list
    takes the dtype of its field.
    """
    plain = _plain(name, value)
    try:
        tensor = torch.as_tensor(plain)
    except (TypeError, ValueError, RuntimeError) as error:
        kinds = "a tensor, an array or numbers"
        if name not in CORE_FIELDS:
            kinds = "a tensor, an array, numbers, or strings and nothing else"
        raise FieldError(f"field {name!r} is {reprlib.repr(value)}, expected {kinds}") from error
    if not isinstance(value, int | float | np.integer | list | tuple):
        return tensor
    spec = CORE_FIELDS.get(name)
    kind = None if spec is None else spec.kind
    if tensor.numel() == 0 and kind is Kind.INTEGER and spec is not None and spec.shape is not None:
        return tensor.new_zeros((0, *spec.shape), dtype=torch.int64)
    whole = isinstance(value, np.integer) or tensor.dtype is torch.int64
    if tensor.is_floating_point() or (kind is Kind.FLOAT and whole):
        wanted = torch.float64 if tensor.ndim == 0 else like or torch.get_default_dtype()
        return torch.as_tensor(plain, dtype=wanted)
    return tensor


def _plain(name: str, value: Any) -> Any:
    """Convert arrays, alone or in a list, by `plain_array`."""
    if isinstance(value, np.ndarray):
        way = ", or leave the field out of the systems that lack it: presence records that"
        return plain_array(f"field {name!r}", value, way)
    if isinstance(value, list | tuple):
        return [_plain(name, item) if isinstance(item, np.ndarray) else item for item in value]
    return value


def check_index_of(index_of: Collection[str], given: Collection[str]) -> None:
    """Refuse a name in `index_of` that is no given field and close to one that is not in it.

    Other names are those of fields that these samples lack.
    """
    missing = [name for name in index_of if name not in given]
    for name in missing:
        others = [one for one in given if one not in index_of and one not in CORE_FIELDS]
        near = difflib.get_close_matches(str(name), others, n=1, cutoff=0.8)
        if near:
            raise FieldError(
                f"index_of has {name!r}, and no such field is given (did you mean {near[0]!r}?)"
            )


def check_has_strings(name: str, role: Role) -> None:
    """Refuse strings of a field that cannot have them."""
    if role.level.has_pointers or name in CORE_FIELDS:
        raise FieldError(
            f"field {name!r} is given as strings at level {role.level!r}: only a field of the "
            "user's own at level 'system' can be strings"
        )


def check_not_taken(name: str) -> None:
    """Refuse a field name that is an attribute of a system or of a batch."""
    for kind in FieldTensors.__subclasses__():
        if hasattr(kind, name):
            raise FieldError(f"field name {name!r} is taken by {kind.__name__}.{name}")


_PYG_NAMES = {
    "batch": "batch_idx",
    "ptr": "batch_ptr",
    "pos": "positions",
    "z": "atomic_numbers",
}
