"""Files of every format end up in a store, recognised, with values, units and reasons."""

import sqlite3
import subprocess
import sys

import numpy as np
import pytest

import zarrpipe as zp
from zarrpipe.errors import ArgumentError, LabelError
from zarrpipe.formats.read.read_into import read_into
from zarrpipe.formats.read.sources import FORMATS
from zarrpipe.formats.write.write_out import write_out


@pytest.fixture
def water(load):
    """Structures of three or four atoms with energy and forces in a calculator."""
    ase, singlepoint = load("ase"), load("ase.calculators.singlepoint")

    def make(count=6, sizes=(3,)):
        random = np.random.default_rng(1)
        found = []
        for i in range(count):
            n = sizes[i % len(sizes)]
            atoms = ase.Atoms("OH2C"[: n + 1] if n > 3 else "OH2", random.normal(size=(n, 3)))
            labels = {"energy": -10.0 - i, "forces": random.normal(size=(n, 3)) / 9}
            atoms.calc = singlepoint.SinglePointCalculator(atoms, **labels)
            found.append(atoms)
        return found

    return make


def test_a_directory_of_several_formats(load, tmp_path, water):
    io, database = load("ase.io"), load("ase.db")
    dpdata, h5py = load("dpdata"), load("h5py")
    atompack, atoms_list = load("atompack"), water()
    folder = tmp_path / "all"
    folder.mkdir()
    io.write(folder / "1.traj", atoms_list)
    with database.connect(folder / "2.db") as rows:
        for atoms in atoms_list:
            rows.write(atoms)
    load("ase_db_backends.aselmdb")
    with database.connect(folder / "3.aselmdb") as rows:
        for atoms in atoms_list:
            rows.write(atoms)
    with h5py.File(folder / "4.h5", "w") as file:
        for i, atoms in enumerate(atoms_list):
            group = file.create_group(f"config_batch_0/config_{i}")
            group["atomic_numbers"], group["positions"] = atoms.numbers, atoms.positions
            group["cell"], group["pbc"], group["weight"] = np.zeros((3, 3)), [False] * 3, 1.0
            group["config_type"] = "Default"
            group["properties/energy"] = atoms.calc.results["energy"]
            group["properties/forces"] = atoms.calc.results["forces"]
            group["property_weights/energy"] = group["property_weights/forces"] = 1.0
    forces = np.array([atoms.calc.results["forces"] for atoms in atoms_list])
    positions = np.array([atoms.positions for atoms in atoms_list])
    energies = np.array([atoms.calc.results["energy"] for atoms in atoms_list])
    cells = np.zeros((6, 3, 3))
    molecules = atompack.Database(str(folder / "5.atp"))
    molecules.add_arrays_batch(
        positions,
        np.array([atoms.numbers for atoms in atoms_list], dtype=np.uint8),
        energy=energies,
        forces=forces,
    )
    molecules.flush()
    dpdata.LabeledSystem(
        data={
            "atom_names": ["O", "H"],
            "atom_numbs": [1, 2],
            "atom_types": np.array([0, 1, 1]),
            "orig": np.zeros(3),
            "cells": cells,
            "nopbc": True,
            "coords": positions,
            "energies": energies,
            "forces": forces,
        }
    ).to("deepmd/npy", str(folder / "6"))
    io.write(folder / "7.extxyz", atoms_list)
    (folder / "notes.md").write_text("notes")

    with pytest.raises(LabelError, match="may each be the label energy"):
        read_into(tmp_path / "store", folder)
    labels = {
        "energy": ["results:energy", ":energy"],
        "forces": ["results:forces", ":forces", ":force"],
    }
    report = read_into(tmp_path / "store", folder, labels=labels, processes=2)
    names = [source["format"] for source in report.to_dict()["sources"]]
    expected = ["ase", "db", "db", "mace", "atompack", "dpdata", "extxyz"]
    assert names == expected
    assert report.to_dict()["not_recognised"] == [str(folder / "notes.md")]
    assert report.num_samples == 42
    batch = zp.ZarrDataset(tmp_path / "store").read(slice(None))
    np.testing.assert_array_equal(batch["energy"][:, 0], np.tile(energies, 7))
    got = batch["forces"].numpy().reshape(7, 6, 3, 3)
    np.testing.assert_array_equal(got[:6], np.broadcast_to(forces, (6, 6, 3, 3)))
    np.testing.assert_allclose(got[6], forces, atol=1e-8)  # as the text has them
    got = batch["positions"].numpy().reshape(7, 6, 3, 3)
    np.testing.assert_array_equal(got[:6], np.broadcast_to(positions, (6, 6, 3, 3)))


@pytest.mark.parametrize("name", ["traj", "db", "aselmdb", "mace", "metatrain"])
def test_what_is_written_out_is_read_into_the_same_store(name, load, tmp_path, water):
    load("ase_db_backends.aselmdb")
    atoms_list = water(8, sizes=(3, 4))
    for i, atoms in enumerate(atoms_list):
        atoms.cell, atoms.pbc = np.eye(3) * (8 + i), True
        atoms.calc.atoms = atoms.copy()
        atoms.calc.results["stress"] = np.arange(6) / (64 + i)
        if i % 3 == 1:
            del atoms.calc.results["forces"]
        if i % 4 == 2:
            del atoms.calc.results["energy"]
    load("ase.io").write(tmp_path / "source.traj", atoms_list)
    read_into(tmp_path / "first", tmp_path / "source.traj")
    write_out(tmp_path / "first", tmp_path / "out" / name, format=name)
    path = tmp_path / "out" / name
    suffix = {"traj": ".traj", "db": ".db", "aselmdb": ".aselmdb", "mace": ".h5"}.get(name, "")
    path.rename(path.with_suffix(suffix))
    report = read_into(tmp_path / "second", path.with_suffix(suffix))
    assert report.num_samples == 8
    ours, again = (
        zp.ZarrDataset(tmp_path / store).read(slice(None)) for store in ("first", "second")
    )
    exact = {"rtol": 1e-6} if name == "metatrain" else {"rtol": 1e-15}
    for key in ("atomic_numbers", "positions", "cell", "pbc", "energy", "forces", "stress"):
        assert again.present(key).tolist() == ours.present(key).tolist(), key
        there = ours.present(key)
        for i in there.nonzero().ravel().tolist():
            left, right = ours[i].fields[key], again[i].fields[key]
            np.testing.assert_allclose(left, right, **exact, atol=1e-15, err_msg=key)


def test_units_of_a_database_are_used_and_recorded(load, tmp_path, water):
    """Labels of QM9 as SchNetPack keeps them: in data, with their units in the metadata."""
    hartree, bohr = 27.211386024367243, 0.5291772105638411
    path = tmp_path / "qm9.db"
    with load("ase.db").connect(path) as rows:
        for atoms in water(sizes=(3, 4)):
            labels = {"energy": np.array([atoms.calc.results["energy"] / hartree])}
            labels["forces"] = atoms.calc.results["forces"] / hartree * bohr
            labels["gap"] = np.array([0.5])
            atoms.calc = None
            rows.write(atoms, data=labels)
    load("ase.db").connect(path).metadata = {
        "_property_unit_dict": {"energy": "Hartree", "forces": "Hartree/Bohr", "gap": "Hartree"},
        "_distance_unit": "Ang",
    }
    report = read_into(tmp_path / "store", path)
    fields = report.to_dict()["fields"]
    assert (fields["energy"]["unit"], fields["forces"]["unit"]) == ("Hartree", "Hartree/Bohr")
    assert fields["gap"]["unit"] == "Hartree"
    dataset = zp.ZarrDataset(tmp_path / "store")
    batch, theirs = dataset.read(slice(None)), water(sizes=(3, 4))
    energies = [atoms.calc.results["energy"] for atoms in theirs]
    np.testing.assert_allclose(batch["energy"][:, 0], energies, rtol=1e-7)
    forces = np.concatenate([atoms.calc.results["forces"] for atoms in theirs])
    np.testing.assert_allclose(batch["forces"], forces, rtol=1e-7)
    np.testing.assert_array_equal(batch["gap"][:, 0], [0.5] * 6)
    np.testing.assert_array_equal(
        batch["positions"], np.concatenate([atoms.positions for atoms in theirs])
    )

    load("ase.db").connect(path).metadata = {"_distance_unit": "Bohr"}
    read_into(tmp_path / "bohr", path, force=True)
    scaled = zp.ZarrDataset(tmp_path / "bohr").read(slice(None))["positions"]
    np.testing.assert_allclose(scaled, batch["positions"] * bohr, rtol=1e-7)
    load("ase.db").connect(path).metadata = {"_property_unit_dict": {"energy": "furlong"}}
    with pytest.raises(LabelError, match=r"state a unit of energy.*furlong"):
        read_into(tmp_path / "third", path)
    silent = tmp_path / "silent.db"
    with load("ase.db").connect(silent) as rows:
        rows.write(load("ase").Atoms("H"), data={"energy": np.array([1.0])})
    load("ase.db").connect(path).metadata = {"_property_unit_dict": {"energy": "Hartree"}}
    with pytest.raises(LabelError, match=r"several units of energy \(Hartree, none\)"):
        read_into(tmp_path / "fourth", [path, silent])


def test_levels_are_asked_for_told_and_checked(load, tmp_path, water):
    path = tmp_path / "spins.db"
    with load("ase.db").connect(path) as rows:
        for atoms in water():
            rows.write(atoms, data={"mine": np.arange(3.0)})
    report = read_into(tmp_path / "first", path)
    assert "levels={'mine': 'atom'}" in report.to_dict()["left_out"]["info:mine"]
    assert "info['mine'] may have a row for each atom" in str(report.plan)
    read_into(tmp_path / "second", path, levels={"mine": "atom"})
    batch = zp.ZarrDataset(tmp_path / "second").read(slice(None))
    np.testing.assert_array_equal(batch["mine"].ravel(), np.tile(np.arange(3.0), 6))
    assert zp.ZarrDataset(tmp_path / "second").schema["mine"].level == "atom"
    with pytest.raises(ArgumentError, match=r"levels has \['yours'\]"):
        read_into(tmp_path / "third", path, levels={"yours": "atom"})


def test_formats_by_the_names_of_libraries(load, tmp_path, water):
    path = tmp_path / "structure"
    (atoms,) = water(1)
    atoms.cell = np.eye(3) * 6
    load("ase.io").write(path, atoms, format="vasp")
    for name in ("ase:vasp", "dpdata:vasp/poscar"):
        store = tmp_path / name.replace("/", "-")
        assert read_into(store, path, format=name).num_samples == 1
    for wrong in ("extxyz:vasp", "ase:", "vasp"):
        with pytest.raises(ArgumentError, match="such as ase:vasp-out or dpdata:vasp/outcar"):
            read_into(tmp_path / "none", path, format=wrong)
    with pytest.raises(ArgumentError, match="ASE reads no format 'nonsense'"):
        read_into(tmp_path / "none", path, format="ase:nonsense")
    with pytest.raises(ArgumentError, match="dpdata cannot read format 'nonsense'"):
        read_into(tmp_path / "none", path, format="dpdata:nonsense")


def test_graphs_keep_their_neighbours(load, tmp_path):
    data, torch = load("torch_geometric.data"), load("torch")
    graphs = [
        data.Data(
            pos=torch.rand(n, 3),
            z=torch.tensor([8, 1, 1, 1][:n]),
            edge_index=torch.tensor([[0, 1, 2], [1, 2, 0]]),
            energy=torch.tensor([-float(n)]),
            force=torch.rand(n, 3),
        )
        for n in (3, 4, 3)
    ]
    torch.save(graphs, tmp_path / "graphs.pt")
    read_into(tmp_path / "store", tmp_path / "graphs.pt")
    dataset = zp.ZarrDataset(tmp_path / "store")
    for i, graph in enumerate(graphs):
        system = dataset[i]
        np.testing.assert_array_equal(system["neighbor_list"], graph.edge_index.T)
        np.testing.assert_array_equal(system["forces"], graph.force)
        np.testing.assert_array_equal(system["energy"].ravel(), graph.energy)


def test_labels_of_metatrain_have_the_name_of_their_energy(tmp_path):
    random = np.random.default_rng(0)
    folder = tmp_path / "memmap"
    folder.mkdir()
    np.save(folder / "ns.npy", 2)
    np.save(folder / "na.npy", np.array([0, 3, 6]))
    arrays = {"x": random.normal(size=(6, 3)), "energy": np.array([-4.0, np.nan])}
    arrays |= {"c": np.tile(np.eye(3) * 9, (2, 1, 1)), "energy_forces": np.full((6, 3), 0.25)}
    arrays |= {"energy_stress": np.arange(18.0).reshape(2, 3, 3) / 1024}
    for key, array in arrays.items():
        array.astype("f4").tofile(folder / f"{key}.bin")
    np.array([8, 1, 1] * 2, dtype="i4").tofile(folder / "a.bin")
    read_into(tmp_path / "store", tmp_path)
    batch = zp.ZarrDataset(tmp_path / "store").read([0, 1])
    assert batch.present("energy").tolist() == [True, False]
    assert batch["energy"][0] == -4
    np.testing.assert_array_equal(batch["forces"], arrays["energy_forces"])
    np.testing.assert_array_equal(batch["stress"], arrays["energy_stress"])
    np.testing.assert_array_equal(batch["positions"], arrays["x"].astype("f4"))


def test_what_only_some_frames_have_in_another_shape_is_told(load, tmp_path, water):
    """A look at some rows finds one shape, and a row that was not looked at has another."""
    path = tmp_path / "many.db"
    (atoms,) = water(1)
    with load("ase.db").connect(path) as rows:
        for i in range(1200):
            rows.write(atoms, data={"field": np.zeros(2 if i == 1 else 4)})
    report = read_into(tmp_path / "store", path)
    why = report.to_dict()["left_out"]["info:field"]
    assert "different shapes" in why
    assert f"frames 0 to 499 of {path}" in why
    assert "some samples lack info['field'], which has rows of different shapes" in str(report)
    present = zp.ZarrDataset(tmp_path / "store").read(slice(None)).present("field")
    assert present.tolist() == [False] * 500 + [True] * 700


def test_a_bad_row_is_in_the_report(load, tmp_path, water):
    path = tmp_path / "bad.db"
    with load("ase.db").connect(path) as rows:
        for atoms in water():
            rows.write(atoms)
    with sqlite3.connect(path) as file:
        file.execute("UPDATE systems SET positions = x'00' WHERE id = 3")
    report = read_into(tmp_path / "store", path)
    assert (report.num_samples, [failure.frame for failure in report.failures]) == (5, [2])


def test_readers_for_processes_import_no_torch():
    names = [row.reader.partition(":")[0] for row in FORMATS if row.load({}).in_processes]
    assert len(names) == 6
    modules = ", ".join(f"zarrpipe.formats.read.{name}" for name in names)
    code = f"import sys, {modules}; sys.exit('torch' in sys.modules or 'zarr' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
