"""Levels of arrays in formats that do not write them down: told, named, proven, or left out."""

import re
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from zarrpipe.errors import ArgumentError
from zarrpipe.formats.read.frames import ATOM, SYSTEM, Entry

_ATOM_WORDS = frozenset(
    {"force", "forces", "charges", "magmom", "magmoms", "momenta", "momentum", "velocities"}
    | {"velocity", "masses", "spins", "energies", "stresses", "dipoles", "tags"}
)
_SYSTEM_WORDS = frozenset(
    {"energy", "stress", "virial", "virials", "dipole", "charge", "spin", "multiplicity"}
    | {"polarizability", "cell", "pbc", "polarization", "quadrupole", "hyperpolarizability"}
)
Shapes = Mapping[str, Iterable[tuple[int, tuple[int, ...]]]]
"""Number of atoms and shape of each array that was seen for a key."""


def named_level(key: str) -> str | None:
    """Level that a key's words tell: ``ref_forces`` are of atoms, a ``dft_dipole`` is of a system.

    Examples
    --------
    >>> named_level("REF_forces"), named_level("total-dipole"), named_level("polarity")
    ('atom', 'system', None)
    """
    words = set(re.split(r"[\W_\d]+", key.lower()))
    of_atoms, of_system = bool(words & _ATOM_WORDS), bool(words & _SYSTEM_WORDS)
    if of_atoms is of_system:
        return None
    return ATOM if of_atoms else SYSTEM


def check_levels(levels: Mapping[str, str]) -> None:
    """Raise ArgumentError if levels that a user gave are none."""
    for key, level in levels.items():
        if level not in (ATOM, SYSTEM):
            raise ArgumentError(f"the level of {key!r} is {level!r}, expected 'atom' or 'system'")


def find_levels(seen: Shapes, given: Mapping[str, str]) -> dict[str, str]:
    """Levels of the keys for which there is one: given, told by the name, or proven by sizes.

    Rows that follow the number of atoms through structures of different sizes are those of atoms. A
    key of one number, or of rows that differ from the atoms in number, is of the system.
    """
    levels: dict[str, str] = {}
    for key, shapes in seen.items():
        found = list(shapes)
        follows = [shape[:1] == (atoms,) for atoms, shape in found]
        name = named_level(key)
        if key in given:
            levels[key] = given[key]
        elif not any(follows):
            levels[key] = SYSTEM
        elif name is not None:
            levels[key] = name
        elif not all(follows):
            levels[key] = SYSTEM
        elif len({atoms for atoms, _ in found}) > 1:
            levels[key] = ATOM
    return levels


def place_values(
    values: Mapping[str, Any], num_atoms: int, levels: Mapping[str, str], place: str = ""
) -> tuple[dict[Entry, Any], dict[Entry, str]]:
    """Values of one structure by entry, and why those whose level is unknown are left out."""
    placed: dict[Entry, Any] = {}
    unclear: dict[Entry, str] = {}
    for key, value in values.items():
        if value is None:
            continue
        level = levels.get(key)
        if level is None and _rows(value) == (num_atoms,):
            unclear[Entry(SYSTEM, key, place)] = unclear_level(key)
        else:
            placed[Entry(level or SYSTEM, key, place)] = value
    return placed, unclear


def shapes_seen(frames: Iterable[tuple[int, Mapping[str, Any]]]) -> Shapes:
    """Shapes of the arrays of structures, each given by its number of atoms and its values."""
    seen: dict[str, set[tuple[int, tuple[int, ...]]]] = {}
    for num_atoms, values in frames:
        for key, value in values.items():
            if value is not None and _rows(value) is not None:
                seen.setdefault(key, set()).add((num_atoms, np.shape(value)))
    return seen


def unclear_level(key: str) -> str:
    """Why an array is left out whose level nothing tells."""
    return (
        "has as many rows as each structure has atoms, and nothing says whether it has a row for "
        f"each atom: say it with levels={{{key!r}: 'atom'}} or levels={{{key!r}: 'system'}}"
    )


def _rows(value: Any) -> tuple[int, ...] | None:
    """Number of rows as the first entry of a shape, () for a single value; None if it has none."""
    if isinstance(value, str | bytes | Mapping):
        return ()
    try:
        return tuple(np.shape(value)[:1])
    except ValueError:  # a list of lists of different lengths
        return None
