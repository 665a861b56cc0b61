"""Warn of labels that ASE's `Atoms` have, or could have, and that `from_ase` does not take."""

import sys
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import FrameType
from typing import Any

import numpy as np
import torch

from zarrpipe.adapters.assemble import as_rows
from zarrpipe.adapters.dialects import clean_name, is_accepted, label_of, own_name
from zarrpipe.data.fields import CORE_FIELDS, as_field_dtype
from zarrpipe.data.levels import Level
from zarrpipe.errors import FieldError

_NO_LABELS = frozenset(
    {"positions", "numbers", "tags", "masses", "momenta", "initial_magmoms", "initial_charges"}
    | {"spacegroup_kinds", "occupancies", "occupancy", "bfactor", "residuenumbers"}
    | {"id", "type", "mol-id", "travel"}
)
"""Arrays that ASE, its dynamics and its file readers set by themselves."""
_COMPUTED = {"energy": "get_potential_energy", "forces": "get_forces"}
"""Labels that a calculator computes when ASE asks for them, and by which method."""


@dataclass(frozen=True)
class _Value:
    """An entry of one system, with its number of atoms and the names of its results."""

    value: Any
    num_atoms: int
    results: Collection[str]


def warn_of_unused_labels(
    systems: Sequence[Any], results_of: Callable[[Any], Collection[str]]
) -> None:
    """Warn where an entry of ``atoms.info`` or ``atoms.arrays`` looks like a label.

    `results_of` returns the names of an atoms object's results. For atoms without results, every
    numeric entry that ASE does not set by itself counts; for others, an entry with the name and
    shape of a label. Entries whose shape or dtype differs between the atoms cannot become a field,
    and give no warning.
    """
    entries = _entries(systems, results_of)
    labels = [entry for entry, values in entries.items() if _looks_like_label(*entry, values)]
    names = {"info": dict[str, str](), "arrays": dict[str, str]()}
    chosen: dict[tuple[str, str], str] = {}
    for where, key in sorted(labels, key=lambda entry: entry[1] != _label(*entry)):
        name = _name(where, key, entries[where, key], chosen.values())
        if name is not None:
            chosen[where, key] = name
    for where, key in (entry for entry in labels if entry in chosen):
        names[where][key] = chosen[where, key]
    options = ", ".join(f"{where}={fields}" for where, fields in names.items() if fields)
    if options:
        warnings.warn(
            f"Atoms have numbers that are not stored unless they are named: convert the Atoms "
            f"with zarrpipe.adapters.from_ase(atoms, {options}), units being those of ASE, or with "
            "zarrpipe.adapters.from_ase(atoms) to leave them out",
            stacklevel=level_of_caller(),
        )


def warn_of_uncomputed_labels(
    systems: Sequence[Any], results_of: Callable[[Any], Collection[str]]
) -> None:
    """Warn where a calculator that can give energy or forces does not hold them for its atoms.

    A calculator of results that were read from a file says that it can give none: no warning.
    """
    without: dict[str, set[str]] = {}
    count = 0
    for atoms in systems:
        able = _COMPUTED.keys() & {*getattr(atoms.calc, "implemented_properties", ())}
        missing = able - {*results_of(atoms)} if able else able
        if missing:
            count += 1
            without.setdefault(type(atoms.calc).__name__, set()).update(missing)
    if not count:
        return
    names = sorted({name for missing in without.values() for name in missing})
    calls = " and ".join(f"atoms.{_COMPUTED[name]}()" for name in names)
    warnings.warn(
        f"{count} of {len(systems)} Atoms are stored without {' and '.join(names)}: their "
        f"calculator ({', '.join(sorted(without))}) has not computed that for their present "
        f"positions, and nothing is calculated here; call {calls} before, or set atoms.calc to "
        "None where no label is wanted",
        stacklevel=level_of_caller(),
    )


def level_of_caller() -> int:
    """Stack level, for a warning of the calling function, of the first frame of a user's code."""
    package = __name__.partition(".")[0]
    frame: FrameType | None = sys._getframe(1)
    level = 1
    while frame is not None and frame.f_globals.get("__name__", "").partition(".")[0] == package:
        frame, level = frame.f_back, level + 1
    return level


def _entries(
    systems: Sequence[Any], results_of: Callable[[Any], Collection[str]]
) -> dict[tuple[str, str], list[_Value]]:
    """Values by place and key, in the order of systems and keys."""
    entries: dict[tuple[str, str], list[_Value]] = {}
    for atoms in systems:
        found = list(_entries_of(atoms))
        results = results_of(atoms) if found else ()
        for where, key, value in found:
            entries.setdefault((where, key), []).append(_Value(value, len(atoms), results))
    return entries


def _entries_of(atoms: Any) -> Iterator[tuple[str, str, Any]]:
    places: tuple[tuple[str, Mapping[Any, Any]], ...] = (
        ("info", atoms.info),
        ("arrays", atoms.arrays),
    )
    for where, found in places:
        for key in sorted(name for name in found if isinstance(name, str)):
            if found[key] is not None and not (where == "arrays" and key in _NO_LABELS):
                yield where, key, found[key]


def _looks_like_label(where: str, key: str, values: list[_Value]) -> bool:
    """Whether an entry is a label by name and shape, or some of its atoms have no results."""
    if any(not one.results for one in values):
        return True
    label = _label(where, key)
    beside = any(key not in one.results for one in values)
    return label is not None and beside and _fits(where, label, values)


def _label(where: str, key: str) -> str | None:
    """Field of the registry that a key names."""
    return label_of(_level(where), key)


def _level(where: str) -> Level:
    return Level.SYSTEM if where == "info" else Level.ATOM


def _name(where: str, key: str, values: list[_Value], others: Collection[str]) -> str | None:
    """Name of a field for an entry, the registry's if its key says so; None if none is possible."""
    taken = {name for one in values for name in one.results}.union(others)
    name = _label(where, key)
    if name is not None and name not in taken and _fits(where, name, values):
        return name
    name, level = clean_name(key), _level(where)
    registered = name in CORE_FIELDS and name not in taken and is_accepted(name, level)
    if not (registered and _fits(where, name, values)):
        name = own_name(key, level, taken)
    return name if _fits(where, name, values) else None


def _fits(where: str, name: str, values: list[_Value]) -> bool:
    """Whether the values can be rows of one field."""
    kinds = {_row(where, name, one) for one in values}
    return len(kinds) == 1 and None not in kinds


def _row(where: str, name: str, one: _Value) -> tuple[torch.dtype, tuple[int, ...]] | None:
    """Dtype and shape of a value's rows; None if it has none that a store takes."""
    if not isinstance(one.value, bool | int | float | list | tuple | np.ndarray | np.generic):
        return None
    level = _level(where)
    try:
        rows = as_rows(name, one.value, level, one.num_atoms, dtype=torch.float64)
        rows = as_field_dtype(name, rows)
    except (FieldError, TypeError, ValueError):  # not an array, or of a dtype that torch lacks
        return None
    shape, spec = tuple(rows.shape[1:]), CORE_FIELDS.get(name)
    counted = rows.shape[:1] == (one.num_atoms if level is Level.ATOM else 1,)
    registered = spec is None or spec.shape in (None, shape)
    return (rows.dtype, shape) if counted and registered and rows.numel() else None
