"""Broken frames, short distances that are meant, and stresses that are."""

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk

import zarrpipe as zp

from .faulty import crystals
from .test_findings import found, only, written


def dimer(length, force=None):
    one = {
        "positions": np.array([[0.0, 0.0, 0.0], [0.0, 0.0, length]]),
        "atomic_numbers": [29, 29],
        "energy": -7.0 + 20 / length,
    }
    if force is not None:
        one["forces"] = np.array(force)
    return one


def pushed(length):
    return dimer(length, [[0, 0, -900 / length], [0, 0, 900 / length]])


def test_a_scan_of_a_distance_is_a_note():
    lengths = np.linspace(0.3, 3.0, 28)
    report = zp.report(written([*crystals(), *map(pushed, lengths)]))
    assert found(report, "blown up") == []
    one = only(report, "dimers with a short distance")
    assert one.severity.value == "note"
    assert one.samples[0] == 90
    assert one.count == int((lengths < 0.6 * 2.64).sum())


@pytest.mark.parametrize("force", [None, [[0.0, 0.0, 5.0], [0.0, 0.0, 0.2]]])
def test_two_atoms_without_opposite_forces_have_blown_up(force):
    report = zp.report(written([*crystals(), dimer(0.2, force)]))
    assert only(report, "blown up").samples == (90,)


def test_close_atoms_are_a_warning_with_their_distance():
    made = crystals()
    made[6]["positions"][1] = made[6]["positions"][0] + [1.45, 0.0, 0.0]  # copper: 0.55 of 2.64
    report = zp.report(written(made))
    assert found(report, "blown up") == []
    one = only(report, "close to each other")
    assert (one.severity.value, one.samples, one.count) == ("warning", (6,), 1)
    assert "Cu-Cu 1.45 Angstrom (0.55 of the covalent radii)" in one.text


def test_the_way_out_leaves_the_frame_out():
    made = crystals()
    made[8]["positions"][1] = made[8]["positions"][0] + [0.05, 0.0, 0.0]
    way_out = only(zp.report(written(made)), "blown up").way_out
    assert "where=" not in way_out
    assert "by their numbers" in way_out
    made[8]["forces"] = made[8]["forces"] * 0 + 300.0
    store = written(made)
    way_out = only(zp.report(store), "blown up").way_out
    condition = way_out.split("where='")[1].split("'")[0]
    assert condition == "max_force < 100"
    assert 8 not in zp.ZarrDataset(store).where(condition)


def test_names_are_those_of_the_table(faulty):
    report = zp.report(faulty.store)
    off = report.structures.properties["energy_off"]
    at = [*report.structures.samples].index(41)
    assert f"energy off {off[at]:+.4g} eV an atom" in only(report, "blown up").text


def test_a_molecule_of_which_no_atom_has_a_neighbour():
    water = Atoms("OH2", [[0, 0, 0], [6, 0, 0], [0, 7, 0]])
    one = {"positions": water.positions, "atomic_numbers": water.numbers}
    alone = {"positions": np.zeros((1, 3)), "atomic_numbers": [29]}
    report = zp.report(written([*crystals(), one, alone]))
    assert only(report, "far from all others").samples == (90,)


def test_large_stresses_that_are_in_no_unit():
    made = crystals()
    for place, size in ((3, 3.0), (4, 3e6)):
        made[place]["stress"] = size * np.eye(3)
    one = only(zp.report(written(made)), "Stress of 2 samples is very large")
    assert one.severity.value == "warning"
    assert one.samples == (4, 3)


def iron(length, pressure):
    atoms = bulk("Fe", a=length) * 2
    return {
        "positions": atoms.positions + 0.01,
        "atomic_numbers": atoms.numbers,
        "cell": atoms.cell.array,
        "pbc": [True] * 3,
        "energy": -8.0 * len(atoms),
        "forces": 0.1 * np.ones((len(atoms), 3)),
        "stress": -pressure / 160.2177 * np.eye(3),
    }


def test_iron_at_the_centre_of_the_earth():
    cold = [iron(2.86 + 0.001 * place, 1.0 - 0.1 * place) for place in range(20)]
    core = [iron(2.40 + 0.001 * place, 330.0 - place) for place in range(12)]
    for made, samples in (([*cold, *core[:3]], 3), (core, 12)):
        (one,) = found(zp.report(written(made)), "tress")
        assert (one.severity.value, one.count) == ("warning", samples)
    for place in (0, 1):
        cold[place]["stress"] = 160.2177 * cold[place]["stress"]
    (one,) = found(zp.report(written(cold)), "tress")
    assert (one.severity.value, one.count) == ("error", 2)
    assert "likely GPa" in one.title
