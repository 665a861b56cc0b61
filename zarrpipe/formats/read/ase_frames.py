"""ASE's `Atoms` as columns."""

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from zarrpipe.formats.read.frames import (
    ATOM,
    SYSTEM,
    Column,
    Entry,
    Failure,
    FrameBlock,
    Kind,
    column,
    joined_kind,
    kind_of,
)

if TYPE_CHECKING:
    from ase import Atoms

_STRUCTURE = ("numbers", "positions")
_PER_ATOM = frozenset({"forces", "energies", "stresses", "charges", "magmoms", "free_energies"})
"""Results that ASE has for each atom; all others are of the whole structure."""


def entries_of(atoms: "Atoms") -> Iterator[tuple[Entry, Any]]:
    """Entries of one structure and their values; those that are None are left out."""
    results: Mapping[str, Any] = getattr(atoms.calc, "results", None) or {}
    for key, value in results.items():
        if value is not None:
            yield Entry(ATOM if key in _PER_ATOM else SYSTEM, key, "results"), value
    for key, value in atoms.info.items():
        if isinstance(key, str) and value is not None:
            yield Entry(SYSTEM, key, "info"), value
    for key, value in atoms.arrays.items():
        if key not in _STRUCTURE:
            yield Entry(ATOM, key, "arrays"), value


def row_kind(entry: Entry, value: Any) -> Kind | None:
    """Type of an entry's value and shape of its rows; None if no field can have it."""
    kind = kind_of(value)
    if kind is None or entry.level == SYSTEM:
        return kind
    return Kind(kind.type, kind.shape[1:])


def block_of(frames: Iterable[tuple[int, "Atoms"]], failures: Iterable[Failure] = ()) -> FrameBlock:
    """Block of structures with their numbers in the source, and of the frames that failed."""
    found = list(frames)
    systems = [atoms for _, atoms in found]
    num_atoms = np.array([len(atoms) for atoms in systems], dtype=np.int64)
    columns, left_out = _columns(systems, num_atoms)
    return FrameBlock(
        frames=np.array([number for number, _ in found], dtype=np.int64),
        num_atoms=num_atoms,
        atomic_numbers=_joined([atoms.numbers for atoms in systems], (), np.int64),
        positions=_joined([atoms.positions for atoms in systems], (3,), np.float64),
        cell=_joined([np.asarray(atoms.cell)[None] for atoms in systems], (3, 3), np.float64),
        pbc=_joined([np.asarray(atoms.pbc)[None] for atoms in systems], (3,), np.bool_),
        columns=columns,
        left_out=left_out,
        failures=tuple(failures),
    )


def _columns(
    systems: "list[Atoms]", num_atoms: np.ndarray[Any, np.dtype[np.int64]]
) -> tuple[dict[Entry, Column], dict[Entry, str]]:
    """Columns of all entries, and why there is none of some."""
    values: dict[Entry, list[Any]] = {}
    for place, atoms in enumerate(systems):
        for entry, value in entries_of(atoms):
            values.setdefault(entry, [None] * len(systems))[place] = value
    columns, left_out, ones = dict[Entry, Column](), dict[Entry, str](), np.ones_like(num_atoms)
    for entry, given in values.items():
        kinds = {row_kind(entry, value) for value in given if value is not None}
        if None in kinds:
            left_out[entry] = "is neither numbers nor a string"
            continue
        kind = joined_kind(kind for kind in kinds if kind is not None)
        if isinstance(kind, str):
            left_out[entry] = kind
        elif kind.type == "str" and entry.level == ATOM:
            left_out[entry] = "has a string for each atom, and fields of strings have one a system"
        else:
            columns[entry] = column(kind, given, num_atoms if entry.level == ATOM else ones)
    return columns, left_out


def _joined(parts: list[Any], row: tuple[int, ...], dtype: Any) -> Any:
    """Rows of all parts, one after the other."""
    return np.concatenate([np.empty((0, *row), dtype), *parts]).astype(dtype, copy=False)
