"""Files that ASE reads back: numbers, signs, strings, periodicity, and labels that are missing."""

import io

import ase.db
import ase.io
import numpy as np
import pytest
import torch
from ase.io import extxyz
from hypothesis import given
from hypothesis import strategies as st

import zarrpipe as zp
from zarrpipe.formats.write.ase_files import _written

ROUNDED = 5.1e-9
"""Extended XYZ has 8 decimals in its columns."""

VOIGT = ([0, 1, 2, 1, 0, 0], [0, 1, 2, 2, 2, 1])
RESULTS = {"energy", "forces", "stress", "dipole", "charges", "magmoms"}


def same(found, expected, tolerance=0.0):
    np.testing.assert_allclose(np.asarray(found), np.asarray(expected), rtol=0, atol=tolerance)


def check_structure(atoms, sample, tolerance):
    assert atoms.numbers.tolist() == sample.atomic_numbers.tolist()
    same(atoms.positions, sample.positions, tolerance)
    same(atoms.cell, sample.cell[0] if "cell" in sample else np.zeros((3, 3)))
    assert atoms.pbc.tolist() == (sample.pbc[0].tolist() if "pbc" in sample else [False] * 3)
    assert atoms.has("masses") is ("atomic_masses" in sample)
    if "atomic_masses" in sample:
        same(atoms.get_masses(), sample.atomic_masses, tolerance)
        same(atoms.get_momenta(), sample.momenta, tolerance)


def check_labels(results, sample, tolerance):
    """The results are those of the sample, and no others."""
    assert {*results} == RESULTS & {*sample.fields}
    for name, found in results.items():
        value = sample[name].numpy()
        if name == "stress":
            same(found, value[0][VOIGT])
        elif name in ("energy", "dipole"):
            same(found, value[0, 0] if name == "energy" else value[0])
        else:
            same(found, value, tolerance)


def check_own(found, sample, names, tolerance=0.0):
    for name in names:
        if name not in sample:
            assert name not in found
        elif sample.roles[name].categories is not None:
            assert found[name] == sample.strings(name)[0]
            assert isinstance(found[name], str)
        else:
            value = sample[name].numpy()
            value = value if sample.levels[name] == "atom" else value[0]
            same(np.asarray(found[name]).reshape(value.shape), value, tolerance)


SYSTEM = ("config_type", "mp_id", "temperature", "round", "is_relaxed", "k_points", "polar")
SYSTEM = (*SYSTEM, "charge", "virial", "run_id")
EDGES = {"neighbor_list", "bond_atoms", "hessian"}


def test_extended_xyz(place, samples, tmp_path):
    written = zp.write_out(place, tmp_path / "out.xyz")
    assert (written.format, written.num_samples) == ("extxyz", len(samples))
    assert {*written.left_out} == EDGES | {"shape of hirshfeld", "unit of temperature"}
    for atoms, sample in zip(ase.io.read(written.path, ":"), samples, strict=True):
        check_structure(atoms, sample, ROUNDED)
        check_labels(atoms.calc.results if atoms.calc else {}, sample, ROUNDED)
        check_own(atoms.info, sample, SYSTEM)
        check_own(atoms.arrays, sample, ("group", "hirshfeld"), ROUNDED)
        assert {*atoms.info} == {*SYSTEM} & {*sample.fields}


def test_trajectory(place, samples, tmp_path):
    written = zp.write_out(place, tmp_path / "out.traj")
    assert {*written.left_out} == EDGES | {"hirshfeld", "group", "unit of temperature"}
    for atoms, sample in zip(ase.io.read(written.path, ":"), samples, strict=True):
        check_structure(atoms, sample, 0.0)
        check_labels(atoms.calc.results if atoms.calc else {}, sample, 0.0)
        check_own(atoms.info, sample, SYSTEM)


@pytest.mark.parametrize("suffix", ["db", "aselmdb"])
def test_databases(place, samples, tmp_path, suffix):
    if suffix == "aselmdb":
        pytest.importorskip("ase_db_backends.aselmdb")
    written = zp.write_out(place, tmp_path / f"out.{suffix}")
    without_nan = {"energies that are NaN"} if suffix == "db" else set()
    assert {*written.left_out} == EDGES | without_nan
    metadata = ase.db.connect(written.path).metadata
    assert metadata["units"]["temperature"] == "K"
    assert metadata["levels"]["group"] == "atom"
    rows = [*ase.db.connect(written.path).select()]
    assert [row.id for row in rows] == [*range(1, len(samples) + 1)]
    for row, sample in zip(rows, samples, strict=True):
        atoms = row.toatoms()
        check_structure(atoms, sample, 0.0)
        results = atoms.calc.results if atoms.calc else {}
        if suffix == "aselmdb" or "energy" not in sample or not sample.energy.isnan():
            check_labels(results, sample, 0.0)
        else:
            assert "energy" not in results
        check_own(row.key_value_pairs | row.data, sample, (*SYSTEM, "group", "hirshfeld"))
    pairs = {
        "config_type",
        "temperature",
        "round",
        "is_relaxed",
        "run_id",
    }  # 0012 is no string to ASE
    assert {*rows[0].key_value_pairs} == (pairs if suffix == "db" else set())
    assert {path.name for path in tmp_path.iterdir()} <= {f"out.{suffix}", f"out.{suffix}-lock"}


def test_rows_of_a_database_can_be_selected(place, tmp_path):
    zp.write_out(place, tmp_path / "out.db")
    found = ase.db.connect(tmp_path / "out.db").select("round>0,config_type=bulk phase")
    assert [row.id for row in found] == [1]


def test_a_field_that_ase_would_take_for_another_is_left_out(tmp_path):
    atom = {"numbers": torch.tensor([7, 7]), "pos": torch.zeros(2, 3), "tags": torch.tensor([1, 2])}
    sample = zp.AtomicData(torch.rand(2, 3), [1, 1], atom=atom)
    with zp.ZarrData(tmp_path / "store") as sink:
        sink.write(sample)
    written = zp.write_out(tmp_path / "store", tmp_path / "out.xyz")
    assert {*written.left_out} == {"numbers", "pos"}
    atoms = ase.io.read(written.path)
    assert atoms.numbers.tolist() == [1, 1]
    assert atoms.get_tags().tolist() == [1, 2]


def test_velocities_become_momenta(tmp_path):
    velocities = torch.tensor([[0.5, 0.0, -1.0]], dtype=torch.float64)
    with zp.ZarrData(tmp_path / "store") as sink:
        sink.write(zp.AtomicData(torch.rand(1, 3), [2], velocities=velocities))
    for name in ("out.xyz", "out.traj", "out.db"):
        written = zp.write_out(tmp_path / "store", tmp_path / name)
        assert written.left_out == {"velocities": "written as momenta, masses times velocities"}
        same(ase.io.read(written.path).get_velocities(), velocities, 1e-8)


def test_an_asymmetric_stress_is_told(tmp_path):
    stress = torch.tensor([[1.0, 0.2, 0.0], [0.0, 2.0, 0.0], [0.0, 0.0, 3.0]])
    with zp.ZarrData(tmp_path / "store") as sink:
        sink.write(zp.AtomicData(torch.rand(1, 3), [2], stress=stress))
    written = zp.write_out(tmp_path / "store", tmp_path / "out.xyz")
    assert "antisymmetric part of stress" in written.left_out
    same(ase.io.read(written.path).get_stress(), [1, 2, 3, 0, 0, 0.1], 1e-8)


text = st.text(alphabet=st.characters(blacklist_categories=["Cs"]))


@given(text | st.text(alphabet="\\\"'{}[]= ,nu0TF1.\n_JSON"))
def test_any_string_survives_extended_xyz(string):
    atoms, file = ase.Atoms("H"), io.StringIO()
    atoms.info = {"before": 1, "key": _written(string, extxyz), "after": 2}
    extxyz.write_xyz(file, [atoms])
    (found,) = extxyz.read_xyz(io.StringIO(file.getvalue()))
    assert found.info == {"before": 1, "key": string, "after": 2}
