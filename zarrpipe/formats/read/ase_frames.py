"""ASE's `Atoms` as columns."""

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from zarrpipe.formats.read.files.assembly import Frame, block_from
from zarrpipe.formats.read.frames import ATOM, SYSTEM, Entry, Failure, FrameBlock

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


def frame_of(number: int, atoms: "Atoms") -> Frame:
    """Structure with its number in the source as a frame."""
    cell, values = np.asarray(atoms.cell), dict(entries_of(atoms))
    return Frame(number, atoms.numbers, atoms.positions, cell, atoms.pbc, values)


def block_of(frames: Iterable[tuple[int, "Atoms"]], failures: Iterable[Failure] = ()) -> FrameBlock:
    """Block of structures with their numbers in the source, and of the frames that failed."""
    return block_from((frame_of(number, atoms) for number, atoms in frames), failures)
