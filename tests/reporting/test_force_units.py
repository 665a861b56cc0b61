"""Forces of a few samples in another unit are found with the unit, and real ones are not."""

import numpy as np
import pytest
from ase import units
from ase.build import bulk

import zarrpipe as zp

from .faulty import KCAL, crystals, labelled
from .test_findings import found, only, written

HARTREE_BOHR = 1 / (units.Hartree / units.Bohr)
MIXED = (12, 33, 58)


def spoiled(factor, places, energies=1.0):
    made = crystals()
    for place in places:
        made[place]["forces"] = made[place]["forces"] * factor
        made[place]["energy"] *= energies
    return written(made)


@pytest.mark.parametrize(
    ("factor", "unit"),
    [
        (KCAL, "kcal/mol/Angstrom"),
        (1 / (units.kJ / units.mol), "kJ/mol/Angstrom"),
        (HARTREE_BOHR, "Hartree/Bohr"),
        (1 / units.Hartree, "Hartree/Angstrom"),
    ],
)
def test_forces_alone(factor, unit):
    report = zp.report(spoiled(factor, MIXED))
    one = only(report, f"Forces of 3 samples are in another unit, likely {unit}")
    assert {*one.samples} == {*MIXED}
    assert one.severity.value == "error"
    assert len(report.findings) == 1


def test_energies_and_forces_are_one_finding():
    report = zp.report(spoiled(KCAL, MIXED, KCAL))
    one = only(report, "Energy and forces of 3 samples are in another unit, likely kcal/mol")
    assert {*one.samples} == {*MIXED}
    assert len(report.findings) == 1


def test_forces_without_energies():
    made = crystals()
    for one in made:
        del one["energy"]
    made[9]["forces"] = made[9]["forces"] * KCAL
    assert only(zp.report(written(made)), "likely kcal/mol").samples == (9,)


def test_compositions_that_are_few_are_compared_by_elements():
    """Of each composition there are fewer than ten."""
    made = []
    for serial, one in enumerate(crystals(30)):
        atoms = one["atomic_numbers"].copy()
        atoms[: 1 + serial % 7] = 79
        atoms[7] = 29
        made.append({**one, "atomic_numbers": atoms, "energy": 0.01 * serial})
    made[4]["forces"] = made[4]["forces"] * KCAL
    assert only(zp.report(written(made)), "likely kcal/mol").samples == (4,)


def hot(serial, rattle):
    """Four atoms of copper in a crystal, by the size of their displacements."""
    atoms = bulk("Cu", cubic=True) * (2, 1, 1)
    atoms.rattle(rattle, seed=serial)
    return labelled(atoms, "md", 0)


@pytest.mark.parametrize(
    "rattles",
    [
        [0.08] * 30 + [0.2] * 6,  # 300 K and 2,000 K
        np.geomspace(0.3, 1e-3, 36),  # a relaxation
        [0.1] * 30 + [0.002] * 3,  # relaxed crystals beside those that move
    ],
)
def test_real_forces(rattles):
    made = [hot(serial, rattle) for serial, rattle in enumerate(rattles)]
    assert found(zp.report(written(made)), "unit") == []


def test_large_forces_with_the_energy_that_belongs_to_them():
    """Forces that are larger by the factor of a unit, of atoms that are pushed together."""
    made = [hot(serial, 0.01) for serial in range(30)]
    pushed = [hot(serial, 0.25) for serial in range(3)]
    size = np.median([np.sqrt((one["forces"] ** 2).mean()) for one in made])
    for one in pushed:
        one["forces"] *= KCAL * size / np.sqrt((one["forces"] ** 2).mean())
    report = zp.report(written([*made, *pushed]))
    assert found(report, "unit") == []
