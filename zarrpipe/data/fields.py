"""The registry of fields, which defines them for the whole package.

Names, levels and shapes are those of nvalchemi 0.2; units are those of ASE.
"""

import difflib
import keyword
import reprlib
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from types import MappingProxyType

import torch

from zarrpipe.data.levels import BUILT_IN, Level, level_names
from zarrpipe.errors import FieldError


class Kind(StrEnum):
    """The family of dtypes that a field may have."""

    FLOAT = "float"
    INTEGER = "integer"
    NUMBER = "number"
    BOOL = "bool"


@dataclass(frozen=True)
class FieldSpec:
    """Properties of a field that are fixed before any data are seen.

    Parameters
    ----------
    kind
        The family of dtypes; an integer field is kept as int64, a bool field as bool.
    shape
        Shape of one row; None leaves it to the data.
    unit
        Unit in ASE's system, "" for none.
    rank
        How a row turns with its system: 0 not at all, 1 as vectors along the last axis (those of
        a cell are its rows), 2 as tensors of rank two along the last two; None leaves it to the
        data.
    index_of
        The level whose row numbers are the values; None for values that are no row numbers. They
        count within the system in an `AtomicData`, within the batch in a `Batch`, and within the
        store in a store.
    """

    name: str
    level: Level
    kind: Kind = Kind.FLOAT
    shape: tuple[int, ...] | None = ()
    unit: str = ""
    rank: int | None = 0
    index_of: Level | None = None

    @cached_property
    def role(self) -> "Role":
        """Role of the field in a system or a batch."""
        return Role(self.level, self.index_of)


@dataclass(frozen=True)
class Role:
    """What the rows of a field are, in a system, a batch or a store.

    `index_of` is the level whose row numbers the values are, None for other values. `categories` is
    the vocabulary of a field of strings, whose values are places in it.
    """

    level: Level
    index_of: Level | None = None
    categories: tuple[str, ...] | None = None


def _registry() -> Mapping[str, FieldSpec]:
    atom, edge, system = Level.ATOM, Level.EDGE, Level.SYSTEM
    integer = Kind.INTEGER
    specs = (
        FieldSpec("positions", atom, shape=(3,), unit="Angstrom", rank=1),
        FieldSpec("atomic_numbers", atom, integer),
        FieldSpec("atomic_masses", atom, unit="amu"),
        FieldSpec("atom_categories", atom, integer),
        FieldSpec("forces", atom, shape=(3,), unit="eV/Angstrom", rank=1),
        FieldSpec("velocities", atom, shape=(3,), unit="sqrt(eV/amu)", rank=1),
        FieldSpec("momenta", atom, shape=(3,), unit="sqrt(eV*amu)", rank=1),
        FieldSpec("charges", atom, unit="e"),
        FieldSpec("kinetic_energies", atom, shape=(1,), unit="eV"),
        FieldSpec("node_alpha_spins", atom, shape=(1,)),
        FieldSpec("node_beta_spins", atom, shape=(1,)),
        FieldSpec("node_attrs", atom, shape=None, rank=None),
        FieldSpec("node_embeddings", atom, shape=None, rank=None),
        FieldSpec("neighbor_list", edge, integer, shape=(2,), index_of=atom),
        FieldSpec("neighbor_list_shifts", edge, Kind.NUMBER, shape=(3,)),
        FieldSpec("shifts", edge, shape=(3,), unit="Angstrom", rank=1),
        FieldSpec("edge_embeddings", edge, shape=None, rank=None),
        FieldSpec("cell", system, shape=(3, 3), unit="Angstrom", rank=1),
        FieldSpec("pbc", system, Kind.BOOL, shape=(3,)),
        FieldSpec("energy", system, shape=(1,), unit="eV"),
        FieldSpec("stress", system, shape=(3, 3), unit="eV/Angstrom^3", rank=2),
        FieldSpec("virial", system, shape=(3, 3), unit="eV", rank=2),
        FieldSpec("dipole", system, shape=(3,), unit="e*Angstrom", rank=1),
        FieldSpec("charge", system, shape=(1,), unit="e"),
        FieldSpec("spin", system, shape=(1,)),
        FieldSpec("graph_embeddings", system, shape=None, rank=None),
    )
    return MappingProxyType({spec.name: spec for spec in specs})


CORE_FIELDS: Mapping[str, FieldSpec] = _registry()
"""Every field whose meaning is fixed; all others are a user's own and are stored as custom."""

REQUIRED_FIELDS = ("positions", "atomic_numbers")

COUNTS: Mapping[str, Level] = MappingProxyType(
    {f"num_{level}s": level for level in BUILT_IN.values() if level.has_pointers}
)
"""Names of the numbers of rows of a sample, in conditions and weights."""


def level_of(
    name: str, level: Level | str | None = None, own: Mapping[str, Level] = MappingProxyType({})
) -> Level:
    """Level of a field, from the registry or, for a field of a user's own, from `level`.

    `own` has the levels of a user's own that a name may mean. Raises FieldError if the field is not
    in the registry and `level` is None, if `level` contradicts the registry, or if it is not a
    level.

    Examples
    --------
    >>> level_of("forces"), level_of("temperature", "system")
    ('atom', 'system')
    """
    known = CORE_FIELDS.get(name)
    if level is None:
        if known is None:
            near = difflib.get_close_matches(name, CORE_FIELDS, n=1)
            hint = f" (did you mean {near[0]!r}?)" if near else ""
            raise FieldError(
                f"field {name!r} is not in the registry{hint}, so its level has to be given: "
                f"{level_names()}"
            )
        return known.level
    asked = level if isinstance(level, Level) else own.get(level) or BUILT_IN.get(level)
    if asked is None:
        raise FieldError(
            f"field {name!r} has level {level!r}; expected {level_names()}, or a level of your own "
            f"such as Level.segmented({level!r})"
        )
    if known is not None and known.level != asked:
        raise FieldError(
            f"field {name!r} is given at level {str(asked)!r}, the registry has it at "
            f"{known.level!r}: use another name for a field of your own"
        )
    return asked


def role_of(name: str, level: Level, index_of: Level | None = None) -> Role:
    """Role of a field, for which the registry says what its values are if it has the field."""
    known = CORE_FIELDS.get(name)
    if known is None:
        return Role(level, index_of)
    if index_of is not None and index_of != known.index_of:
        raise FieldError(
            f"field {name!r} is given as row numbers of {index_of!r}, the registry has "
            f"{'others' if known.index_of else 'none'}: use another name for a field of your own"
        )
    return known.role


def check_name(name: str) -> None:
    """Refuse a name that cannot be both an attribute of a batch and the name of a directory."""
    if not isinstance(name, str) or not name.isidentifier() or name.startswith("_"):
        raise FieldError(
            f"field name {name!r} must be a Python identifier without a leading underscore: "
            "it becomes an attribute and the name of a Zarr array"
        )
    nbytes = len(name.encode())
    if nbytes > _LONGEST_NAME:
        raise FieldError(
            f"field name {reprlib.repr(name)} has {nbytes} bytes, expected at most "
            f"{_LONGEST_NAME}: it becomes the name of a directory, so choose a shorter one"
        )


def check_new_names(names: Iterable[str], known: Callable[[], Collection[str]] = frozenset) -> None:
    """Refuse counts such as ``num_atoms`` and Python's keywords, unless the store has them.

    `known` returns the names that the store has; it is called only for such a name.
    """
    for name in names:
        if not (name in COUNTS or keyword.iskeyword(name)) or name in known():
            continue
        if name in COUNTS:
            raise FieldError(
                f"field name {name!r} means the number of a sample's {COUNTS[name]}s in conditions "
                f"such as where='{name} < 100', and is kept by every store: leave the field out, "
                "or store it under another name"
            )
        raise FieldError(
            f"field name {name!r} is a Python keyword, which neither an attribute nor a "
            "condition can name: store it under another name"
        )


_LONGEST_NAME = 255
"""Bytes that a directory's name may have on nearly every file system."""


def shape_hint(given: tuple[int, ...], fixed: tuple[int, ...]) -> str:
    """Hint for a message on how to turn rows of shape () into (1,) or back; else empty."""
    if {given, fixed} != {(), (1,)}:
        return ""
    if fixed == ():
        return ": give [number] for a system, .reshape(-1) of a batch"
    return ": give a plain number for a system, .reshape(-1, 1) of a batch"


def check_unit(name: str, unit: object) -> None:
    """Refuse a unit that is not text, or that contradicts the registry."""
    if not isinstance(unit, str) or not unit.strip():
        raise FieldError(f"the unit of field {name!r} is {unit!r}, expected text such as 'eV'")
    known = CORE_FIELDS.get(name)
    if known is not None and known.unit != unit:
        fixed = f"in {known.unit!r}" if known.unit else "without one"
        raise FieldError(
            f"field {name!r} is given the unit {unit!r}, the registry has it {fixed}: convert its "
            "values, or use another name"
        )


def check_dense(name: str, value: torch.Tensor) -> None:
    """Refuse a tensor that is sparse or nested."""
    if value.is_nested or value.layout is not torch.strided:
        kind = "nested" if value.is_nested else str(value.layout).removeprefix("torch.")
        raise FieldError(
            f"field {name!r} is a {kind} tensor, expected a dense one: convert it with "
            ".to_dense(), or join its rows with torch.cat"
        )


_ALLOWED_DTYPES: Mapping[Kind, tuple[torch.dtype, ...]] = MappingProxyType(
    {
        Kind.FLOAT: (torch.float16, torch.float32, torch.float64),
        Kind.INTEGER: (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64),
        Kind.BOOL: (torch.bool,),
    }
)
_STORABLE = tuple(dtype for family in _ALLOWED_DTYPES.values() for dtype in family)


def as_field_dtype(name: str, value: torch.Tensor) -> torch.Tensor:
    """Bring a tensor to the dtype family that the registry has for its field, or refuse it.

    Integer fields become int64; a bool field takes bool, or integers that are all 0 or 1. A user's
    own field keeps its dtype.
    """
    check_dense(name, value)
    if value.dtype not in _STORABLE:
        raise FieldError(
            f"field {name!r} has dtype {value.dtype}, which cannot be stored: "
            "use a bool, an integer of up to 64 bits or a float of 16, 32 or 64 bits"
        )
    spec = CORE_FIELDS.get(name)
    if spec is None:
        return value
    if spec.kind is Kind.NUMBER:
        allowed = _ALLOWED_DTYPES[Kind.FLOAT] + _ALLOWED_DTYPES[Kind.INTEGER]
    elif spec.kind is Kind.BOOL and value.dtype in _ALLOWED_DTYPES[Kind.INTEGER]:
        if bool(((value == 0) | (value == 1)).all()):
            return value.to(torch.bool)
        allowed = _ALLOWED_DTYPES[Kind.BOOL]
    else:
        allowed = _ALLOWED_DTYPES[spec.kind]
    if value.dtype not in allowed:
        raise FieldError(
            f"field {name!r} has dtype {value.dtype}, the registry has it as {spec.kind.value}: "
            f"convert it first, for example with .to({allowed[-1]})"
        )
    return value.to(torch.int64) if spec.kind is Kind.INTEGER else value


def as_row_numbers(name: str, value: torch.Tensor, index_of: Level) -> torch.Tensor:
    """Row numbers as int64, since those of a batch or a store outgrow smaller integers."""
    if value.numel() and value.dtype not in _ALLOWED_DTYPES[Kind.INTEGER]:
        raise FieldError(
            f"field {name!r} has dtype {value.dtype}, expected integers: index_of says that it "
            f"has row numbers of {index_of}s"
        )
    return value.to(torch.int64)
