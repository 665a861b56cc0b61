"""A small store of alloys with chosen faults, and which samples have each of them.

The samples are rattled and strained fcc crystals of copper, gold and palladium, labelled by ASE's
EMT. Energies of free atoms are added to those of EMT, as total energies have them.
"""

import copy
import functools
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from ase import Atoms, units
from ase.build import bulk
from ase.calculators.emt import EMT

import zarrpipe as zp
from zarrpipe.store.backend.location import StoreLike

FREE_ATOMS = {"Cu": -3.72, "Au": -3.27, "Pd": -5.18}
"""Energy of an atom that is added, eV."""

CELLS = (("Cu",) * 8, ("Cu", "Au") * 4, ("Pd",) * 8)
KINDS = ("copper", "alloy", "palladium")

BAR = 1 / (1e-4 * units.GPa)
KCAL = 1 / (units.kcal / units.mol)

FEW: Mapping[str, tuple[int, ...]] = {
    "bar": (7, 31, 52, 70),
    "kcal": (12, 33, 58),
    "exploded": (41,),
    "duplicate": (66,),
    "missing": (5, 23, 24, 80),
    "element": (49,),
}
"""Which samples have each fault, in a store of 90; sample 66 is sample 18 with another energy."""

ORIGINAL = 18


@dataclass(frozen=True)
class Faulty:
    """A store and its samples by fault."""

    store: StoreLike
    faults: Mapping[str, tuple[int, ...]]
    samples: Sequence[zp.AtomicData]


def crystals(count: int = 90, seed: int = 0) -> list[dict[str, Any]]:
    """Labelled crystals as the arguments of `AtomicData`."""
    return copy.deepcopy(_crystals(count, seed))


@functools.cache
def _crystals(count: int, seed: int) -> list[dict[str, Any]]:
    random, made = np.random.default_rng(seed), []
    for serial in range(count):
        symbols = CELLS[serial % len(CELLS)]
        atoms = bulk("Cu", a=3.6 if "Pd" not in symbols else 3.9) * (2, 2, 2)
        atoms.set_chemical_symbols(symbols)
        if "Au" in symbols:
            atoms.set_cell(atoms.cell * 1.05, scale_atoms=True)
        strain = np.eye(3) + 0.02 * random.normal(size=(3, 3))
        atoms.set_cell(atoms.cell @ strain, scale_atoms=True)
        atoms.positions += 0.1 * random.normal(size=(len(atoms), 3))
        made.append(labelled(atoms, KINDS[serial % len(CELLS)], serial // 30))
    return made


def labelled(atoms: Atoms, kind: str, round_: int) -> dict[str, Any]:
    """Labels of a structure, in ASE's units."""
    atoms.calc = EMT()
    free = sum(FREE_ATOMS[symbol] for symbol in atoms.get_chemical_symbols())
    return {
        "positions": atoms.positions.copy(),
        "atomic_numbers": atoms.numbers.copy(),
        "cell": atoms.cell.array.copy(),
        "pbc": [True] * 3,
        "energy": float(atoms.get_potential_energy()) + free,
        "forces": atoms.get_forces(),
        "stress": atoms.get_stress(voigt=False),
        "system": {"round": [round_], "config_type": kind},
    }


def spoil(made: list[dict[str, Any]], faults: Mapping[str, Collection[int]]) -> None:
    """Put faults into some crystals."""
    for place in faults.get("bar", ()):
        made[place]["stress"] = made[place]["stress"] * BAR
    for place in faults.get("kcal", ()):
        made[place]["energy"] *= KCAL
        made[place]["forces"] = made[place]["forces"] * KCAL
    for place in faults.get("exploded", ()):
        made[place] = _exploded(made[place])
    for place in faults.get("duplicate", ()):
        made[place] = dict(made[ORIGINAL], energy=made[ORIGINAL]["energy"] + 0.37)
    for place in faults.get("missing", ()):
        del made[place]["forces"]
    for place in faults.get("element", ()):
        made[place]["atomic_numbers"][3] = 82


def _exploded(sample: dict[str, Any]) -> dict[str, Any]:
    """The crystal after an atom has run into its neighbour, with the labels that it then has."""
    atoms = Atoms(
        numbers=sample["atomic_numbers"],
        positions=sample["positions"],
        cell=sample["cell"],
        pbc=True,
    )
    near = np.argsort(atoms.get_distances(0, range(1, len(atoms)), mic=True))[0] + 1
    way = atoms.get_distance(0, near, mic=True, vector=True)
    atoms.positions[0] += way * (1 - 0.35 / np.linalg.norm(way))
    own = sample["system"]
    return labelled(atoms, own["config_type"], own["round"][0])


def write_crystals(
    store: StoreLike,
    faults: Mapping[str, tuple[int, ...]] = FEW,
    count: int = 90,
    seed: int = 0,
) -> Faulty:
    """Write crystals of which some have faults; no fault makes a clean store."""
    made = crystals(count, seed)
    spoil(made, faults)
    samples = [zp.AtomicData(**one) for one in made]
    with zp.ZarrData(store) as sink:
        sink.write(samples)
    return Faulty(store, dict(faults), samples)
