"""Labelled structures that any library can train on: small, seeded, by ASE's EMT."""

import numpy as np
from ase import Atoms
from ase.build import bulk, molecule
from ase.calculators.emt import EMT
from ase.calculators.singlepoint import SinglePointCalculator


def crystals(count: int, seed: int = 0) -> list[Atoms]:
    """Strained and rattled fcc metals and alloys of 4 to 32 atoms, with energy, forces, stress."""
    rng = np.random.default_rng(seed)
    shapes = ((1, 1, 1), (2, 1, 1), (2, 2, 1), (2, 2, 2))
    found = []
    for _ in range(count):
        atoms = bulk(rng.choice(["Cu", "Ag", "Au"]), cubic=True).repeat(
            shapes[rng.integers(len(shapes))]
        )
        atoms.numbers[rng.random(len(atoms)) < 0.3] = 29  # copper
        strain = np.eye(3) + rng.normal(scale=0.02, size=(3, 3))
        atoms.set_cell(atoms.cell @ strain, scale_atoms=True)
        atoms.positions += rng.normal(scale=0.08, size=atoms.positions.shape)
        found.append(labelled(atoms, stress=True))
    return found


def molecules(count: int, seed: int = 0) -> list[Atoms]:
    """Rattled molecules of H, C, N and O, with energy and forces."""
    rng = np.random.default_rng(seed)
    names = ("CH3CH2OH", "H2O", "CH4", "C6H6", "H3CNH2", "HCOOH")
    found = []
    for _ in range(count):
        atoms = molecule(names[rng.integers(len(names))])
        atoms.positions += rng.normal(scale=0.08, size=atoms.positions.shape)
        found.append(labelled(atoms, stress=False))
    return found


def labelled(atoms: Atoms, *, stress: bool) -> Atoms:
    """The structure with its labels by EMT."""
    given = atoms.copy()
    given.calc = EMT()
    results = {"energy": given.get_potential_energy(), "forces": given.get_forces()}
    if stress:
        results["stress"] = given.get_stress()
    atoms.calc = SinglePointCalculator(atoms, **results)
    return atoms
