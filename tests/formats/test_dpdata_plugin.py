"""dpdata reads and writes stores by a plugin."""

import importlib.metadata
import tomllib
from pathlib import Path

import numpy as np
import pytest
import torch

import zarrpipe as zp
from zarrpipe.errors import FieldError

dpdata = pytest.importorskip("dpdata")
plugin = pytest.importorskip("zarrpipe.formats.dpdata_plugin")
ROOT = Path(__file__).parents[2]


def water(seed, order=(8, 1, 1), **fields):
    rng = np.random.default_rng(seed)
    return zp.AtomicData(
        torch.from_numpy(rng.normal(size=(3, 3))),
        [*order],
        energy=torch.tensor([[-10.0 - seed]], dtype=torch.float64),
        forces=torch.from_numpy(rng.normal(size=(3, 3))),
        **fields,
    )


def crystal(seed):
    rng = np.random.default_rng(seed)
    stress = rng.normal(size=(3, 3))
    cell = torch.from_numpy(4.0 * np.eye(3) + 0.1 * rng.normal(size=(3, 3)))
    labels = {"stress": torch.from_numpy(stress + stress.T)}
    return water(seed, (8, 1, 8), cell=cell, pbc=torch.tensor([True] * 3), **labels)


def stored(path, systems):
    with zp.ZarrData(path) as sink:
        sink.write(systems)
    return zp.ZarrDataset(path)


def test_the_entry_point_is_the_plugin():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    given = project["entry-points"]["dpdata.plugins"]["zarrpipe"]
    entry = importlib.metadata.EntryPoint("zarrpipe", given, "dpdata.plugins")
    assert entry.load() is plugin.ZarrPipeFormat


def test_a_labeled_system(tmp_path):
    expected = stored(tmp_path / "x.zarr", [water(seed) for seed in range(4)]).read(slice(None))
    system = dpdata.LabeledSystem(str(tmp_path / "x.zarr"), fmt="zarrpipe")
    assert (system["atom_names"], system["atom_numbs"]) == (["O", "H"], [1, 2])
    assert system["atom_types"].tolist() == [0, 1, 1]
    assert system.nopbc
    assert not system.has_virial()
    np.testing.assert_array_equal(system["coords"].reshape(-1, 3), expected.positions)
    np.testing.assert_array_equal(system["energies"], expected.energy[:, 0])
    np.testing.assert_array_equal(system["forces"].reshape(-1, 3), expected.forces)
    some = dpdata.LabeledSystem(str(tmp_path / "x.zarr"), fmt="zarrpipe", where="energy < -11.5")
    assert some["energies"].tolist() == [-12.0, -13.0]


def test_virials_follow_from_stresses_and_agree_with_dpdata(tmp_path):
    ase = pytest.importorskip("ase")
    dataset = stored(tmp_path / "x.zarr", [crystal(seed) for seed in range(3)])
    system = dpdata.LabeledSystem(str(tmp_path / "x.zarr"), fmt="zarrpipe")
    for index, atoms in enumerate(zp.adapters.to_ase(dataset.read(slice(None)))):
        assert isinstance(atoms, ase.Atoms)
        other = dpdata.LabeledSystem(atoms, fmt="ase/structure")
        for name in ("energies", "forces", "virials", "cells", "coords"):
            np.testing.assert_allclose(system[name][index], other[name][0], rtol=1e-12)
        assert system.nopbc is other.nopbc is False


def test_there_and_back(tmp_path):
    before = stored(tmp_path / "x.zarr", [crystal(seed) for seed in range(3)]).read(slice(None))
    system = dpdata.LabeledSystem(str(tmp_path / "x.zarr"), fmt="zarrpipe")
    system.to("zarrpipe", str(tmp_path / "y.zarr"))
    after = zp.ZarrDataset(tmp_path / "y.zarr").read(slice(None))
    for name in ("positions", "atomic_numbers", "cell", "pbc", "energy", "forces"):
        assert torch.equal(after[name], before[name]), name
    volume = torch.linalg.det(before.cell)[:, None, None]
    torch.testing.assert_close(after.virial, -volume * before.stress)
    with pytest.raises(FileExistsError, match="if_exists"):
        system.to("zarrpipe", str(tmp_path / "y.zarr"))
    system.to("zarrpipe", str(tmp_path / "y.zarr"), if_exists="append")
    assert len(zp.ZarrDataset(tmp_path / "y.zarr")) == 6


def test_through_files_of_deepmd(tmp_path):
    stored(tmp_path / "x.zarr", [crystal(seed) for seed in range(3)])
    system = dpdata.LabeledSystem(str(tmp_path / "x.zarr"), fmt="zarrpipe")
    system.to("deepmd/npy", str(tmp_path / "npy"), prec=np.float64)
    again = dpdata.LabeledSystem(str(tmp_path / "npy"), fmt="deepmd/npy")
    again.to("zarrpipe", str(tmp_path / "y.zarr"))
    back = zp.ZarrDataset(tmp_path / "y.zarr").system_field("virial")
    np.testing.assert_array_equal(back, system["virials"])


def test_systems_of_several_compositions(tmp_path):
    systems = [water(0), crystal(1), water(2), water(3, (1, 8, 1)), crystal(4)]
    stored(tmp_path / "x.zarr", systems)
    found = dpdata.MultiSystems().from_fmt_obj(plugin.ZarrPipeFormat(), str(tmp_path / "x.zarr"))
    frames = {name: own.get_nframes() for name, own in found.systems.items()}
    assert sorted(frames.values()) == [2, 3]
    found.to("zarrpipe", str(tmp_path / "y.zarr"))
    after = zp.ZarrDataset(tmp_path / "y.zarr")
    assert sorted(after.system_field("energy").flatten()) == [-14.0, -13.0, -12.0, -11.0, -10.0]
    assert after.where("formula == 'H2O'").size == 3
    row = int(after.where("energy == -13")[0])
    numbers = after[row].atomic_numbers
    for number in (1, 8):  # dpdata has sorted the atoms
        here = numbers == number
        wanted = systems[3].atomic_numbers == number
        assert torch.equal(after[row].forces[here], systems[3].forces[wanted])


def test_structures_without_labels(tmp_path):
    bare = zp.AtomicData(torch.rand(2, 3), [6, 8])
    stored(tmp_path / "x.zarr", [bare])
    system = dpdata.System(str(tmp_path / "x.zarr"), fmt="zarrpipe")
    assert system.get_nframes() == 1
    system.to("zarrpipe", str(tmp_path / "y.zarr"))
    assert "energy" not in zp.ZarrDataset(tmp_path / "y.zarr").schema
    with pytest.raises(FieldError, match=r"1 of 1 samples have no energies.*has\(energy\)"):
        dpdata.LabeledSystem(str(tmp_path / "x.zarr"), fmt="zarrpipe")


def test_what_one_system_cannot_hold(tmp_path):
    stored(tmp_path / "x.zarr", [water(0), crystal(1)])
    with pytest.raises(FieldError, match="MultiSystems"):
        dpdata.LabeledSystem(str(tmp_path / "x.zarr"), fmt="zarrpipe")
    cell = {"cell": 9 * torch.eye(3, dtype=torch.float64), "pbc": torch.tensor([True] * 3)}
    stored(tmp_path / "y.zarr", [water(0), water(1, (1, 8, 1), **cell)])
    with pytest.raises(FieldError, match="one composition"):
        dpdata.MultiSystems().from_fmt_obj(plugin.ZarrPipeFormat(), str(tmp_path / "y.zarr"))
    lacking = zp.AtomicData(torch.rand(3, 3).double(), [8, 1, 1], energy=-1.0)
    stored(tmp_path / "z.zarr", [water(0), lacking])
    with pytest.raises(FieldError, match=r"1 of 2 samples have no forces.*where='has\(forces\)'"):
        dpdata.LabeledSystem(str(tmp_path / "z.zarr"), fmt="zarrpipe")
