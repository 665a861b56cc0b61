"""Levels of arrays in formats that do not write them down: told, named, proven, or left out."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from zarrpipe.errors import ArgumentError
from zarrpipe.formats.read.files.assembly import (
    PART_FRAMES,
    Frame,
    parts_of,
    read_each,
    read_range,
    sampled,
    scan_of,
)
from zarrpipe.formats.read.frames import ATOM, SYSTEM, Entry, FrameBlock, Part, Scan

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
    """Level that the last known word of a key tells: ``energy_forces`` are of atoms.

    Examples
    --------
    >>> named_level("REF_forces"), named_level("total-dipole"), named_level("polarity")
    ('atom', 'system', None)
    """
    for word in reversed(re.split(r"[\W_\d]+", key.lower())):
        if word in _ATOM_WORDS or word in _SYSTEM_WORDS:
            return ATOM if word in _ATOM_WORDS else SYSTEM
    return None


class LevelledReader:
    """Base of readers of formats that do not say all levels, which a user may."""

    def __init__(self, levels: Mapping[str, str] | None = None) -> None:
        self.levels = dict(levels or {})
        for key, level in self.levels.items():
            if level not in (ATOM, SYSTEM):
                raise ArgumentError(
                    f"the level of {key!r} is {level!r}, expected 'atom' or 'system'"
                )


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


@dataclass(frozen=True)
class LooseFrame:
    """A frame, and values of it whose levels the format does not write down.

    They are entries of `place`, and of ``"data"`` where that has an entry of the same name. With
    `stacked`, those of a structure have a first axis of length 1, which is dropped.
    """

    frame: Frame
    values: Mapping[str, Any]
    place: str = ""
    stacked: bool = False

    def placed(self, levels: Mapping[str, str]) -> Frame:
        """Frame with the values at their levels, and why others are left out."""
        values, left_out = dict(self.frame.values), dict(self.frame.left_out)
        num_atoms = len(self.frame.atomic_numbers)
        for key, value in self.values.items():
            level = levels.get(key)
            if value is None:
                continue
            if level is None and _rows(value) == (num_atoms,):
                left_out[Entry(SYSTEM, key, self.place)] = unclear_level(key)
                continue
            entry = Entry(level or SYSTEM, key, self.place)
            if self.stacked and entry.level == SYSTEM and _rows(value) == (1,):
                value = value[0]  # noqa: PLW2901
            values[entry._replace(place="data") if entry in values else entry] = value
        return replace(self.frame, values=values, left_out=left_out)


def scan_loose(
    path: str,
    keys: Sequence[Any],
    load: Callable[[int], LooseFrame],
    given: Mapping[str, str],
    size: int = PART_FRAMES,
) -> Scan:
    """Scan of frames that have a key each, and levels that are found or `given`."""
    found, _ = read_each(path, sampled(len(keys)), load)
    seen = shapes_seen((len(one.frame.atomic_numbers), one.values) for one in found)
    levels = find_levels(seen, given)
    frames, _ = read_each(path, range(len(found)), lambda i: found[i].placed(levels))
    parts = [
        part._replace(
            span=(tuple(keys[part.first : part.first + part.num_frames]), tuple(levels.items()))
        )
        for part in parts_of(path, len(keys), size=size)
    ]
    return scan_of(parts, frames)


def read_loose(part: Part, load: Callable[[int, Any], LooseFrame]) -> FrameBlock:
    """Block of a part that `scan_loose` made; `load` has a frame's number and key."""
    keys, levels = part.span

    def placed(number: int) -> Frame:
        return load(number, keys[number - part.first]).placed(dict(levels))

    return read_range(part, placed)


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
        "may have a row for each atom or belong to the whole structure, by its size, and nothing "
        f"says which: say it with levels={{{key!r}: 'atom'}} or levels={{{key!r}: 'system'}} "
        f"(--level {key}=atom)"
    )


def _rows(value: Any) -> tuple[int, ...] | None:
    """Number of rows as the first entry of a shape, () for a single value; None if it has none."""
    if isinstance(value, str | bytes | Mapping):
        return ()
    try:
        return tuple(np.shape(value)[:1])
    except ValueError:  # a list of lists of different lengths
        return None
