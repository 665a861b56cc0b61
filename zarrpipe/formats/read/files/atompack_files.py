"""Databases of atompack."""

from pathlib import Path
from typing import Any

from zarrpipe.formats.read.files.assembly import (
    Frame,
    parts_of,
    read_each,
    read_range,
    sampled,
    scan_of,
    scan_or_failure,
)
from zarrpipe.formats.read.frames import ATOM, SYSTEM, Entry, FrameBlock, Part, Scan
from zarrpipe.libraries import require

_MAGIC = b"ATPK"
_EMPTY_BYTES = 8_200
"""Size of a file with no molecule."""

_LEVELS = {
    **dict.fromkeys(("energy", "stress"), SYSTEM),
    **dict.fromkeys(("forces", "charges", "velocities"), ATOM),
}
_SCOPES = {"molecule": SYSTEM, "atom": ATOM}


def recognises(path: Path) -> bool:
    """Whether a file begins as atompack's do."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(len(_MAGIC)) == _MAGIC


class AtompackFiles:
    """Reads atompack's databases, with the properties of molecules and of atoms.

    atompack says for each property which of the two it is, in units of ASE.
    """

    name = "atompack"
    in_processes = True

    def scan(self, path: str) -> Scan:
        """Look at some molecules."""
        return scan_or_failure(path, self._scan)

    def _scan(self, path: str) -> Scan:
        database = _opened(path)
        count, size = len(database), Path(path).stat().st_size
        if count == 0 and size > _EMPTY_BYTES:
            raise ValueError(
                f"has no molecule by its index, and {size} bytes: it was cut off, or never flushed"
            )
        frames, _ = read_each(path, sampled(count), lambda number: _frame(database, number))
        return scan_of(parts_of(path, count), frames)

    def read(self, part: Part) -> FrameBlock:
        """Read the molecules of a part."""
        database = _opened(part.path)
        return read_range(part, lambda number: _frame(database, number))


def _opened(path: str) -> Any:
    """Database of a file that is only read."""
    return require("atompack", "import").Database.open(path)


def _frame(database: Any, number: int) -> Frame:
    """Molecule as a frame."""
    molecule = database[number]
    values = {
        Entry(level, key): value
        for key, level in _LEVELS.items()
        if (value := getattr(molecule, key)) is not None
    }
    for scope, level in _SCOPES.items():
        for key in molecule.property_keys(scope=scope):
            values[Entry(level, key, "properties")] = molecule.get_property(key)
    values[Entry(SYSTEM, "name")] = database.get_molecules_flat([number]).get("name", [None])[0]
    return Frame(
        number, molecule.atomic_numbers, molecule.positions, molecule.cell, molecule.pbc, values
    )
