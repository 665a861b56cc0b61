"""What ASE makes up when it reads a LAMMPS dump, which holds neither elements nor energies."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from zarrpipe.errors import FieldError

if TYPE_CHECKING:
    from ase import Atoms


def check_elements(atoms: "Atoms", position: int) -> None:
    """Refuse atoms whose atomic numbers are the types of a LAMMPS dump.

    ASE reads type 1 as hydrogen and type 2 as helium, unless the dump has a column of elements or
    of masses, or ``specorder`` says which element each type is. It keeps the types from 3.27 on.
    """
    types = atoms.arrays.get("type")
    if types is None or not np.array_equal(types, atoms.numbers):
        return
    symbols = dict.fromkeys(zip(types.tolist(), atoms.get_chemical_symbols(), strict=True))
    read = ", ".join(f"{number} as {symbol}" for number, symbol in sorted(symbols))
    raise FieldError(
        f"the elements of Atoms {position} are the types of a LAMMPS dump, read by ASE as atomic "
        f"numbers (type {read}): give the element of each type to ase.io.read or iread, as "
        "specorder=['Cu', 'Zn'], or, if they are right, delete atoms.arrays['type']"
    )


def has_no_energy(atoms: "Atoms", results: Mapping[str, Any]) -> bool:
    """Whether the energy is the 0 that ASE gives to each frame of a dump with forces."""
    return (
        "timestep" in atoms.info
        and results.keys() == {"energy", "forces"}
        and (results["energy"] == 0.0)
    )
