"""HDF5 files as MACE's own dataset reads them."""

import numpy as np
import pytest
import torch

import zarrpipe as zp

from .conftest import library

pytest.importorskip("h5py")
R_MAX = 3.0


@pytest.fixture(scope="module")
def read():
    """Reads a file with MACE, in float64."""
    library("mace.tools.torch_geometric.dataloader")
    data, tools = library("mace.data"), library("mace.tools")
    table = tools.AtomicNumberTable([1, 6, 8, 29])

    def read(path):
        before = torch.get_default_dtype()
        torch.set_default_dtype(torch.float64)
        try:
            dataset = data.HDF5Dataset(str(path), r_max=R_MAX, z_table=table)
            return [dataset[index] for index in range(len(dataset))]
        finally:
            torch.set_default_dtype(before)

    return read


LABELS = {"energy": "energy", "forces": "forces", "stress": "stress", "virials": "virial"}
LABELS |= {"dipole": "dipole", "charges": "charges"}


def test_labels_and_their_weights(place, samples, tmp_path, read):
    written = zp.write_out(place, tmp_path / "out.h5")
    assert written.format == "mace"
    numbers = torch.tensor([1, 6, 8, 29])
    for found, sample in zip(read(written.path), samples, strict=True):
        assert torch.equal(numbers[found.node_attrs.argmax(1)], sample.atomic_numbers)
        assert torch.equal(found.positions, sample.positions)
        pbc = sample.pbc[0].tolist() if "pbc" in sample else [False] * 3
        assert found.pbc[0].tolist() == pbc
        if all(pbc):
            assert torch.equal(found.cell, sample.cell[0])
        for label, name in LABELS.items():
            weights = getattr(found, f"{label}_weight")
            assert (weights == (1.0 if name in sample else 0.0)).all(), label
            if name in sample:
                value = getattr(found, label).reshape(sample[name].shape)
                np.testing.assert_array_equal(value, sample[name], err_msg=label)
    assert read(written.path)[0].total_charge == 2.0


def test_a_label_that_no_sample_has_gets_no_weight(tmp_path, read):
    """MACE gives a label of which the file says nothing the value 0 and the weight 1."""
    with zp.ZarrData(tmp_path / "store") as sink:
        sink.write(zp.AtomicData(torch.rand(2, 3), [1, 1], energy=-1.0))
    (found,) = read(zp.write_out(tmp_path / "store", tmp_path / "out.h5").path)
    assert (found.energy_weight, found.forces_weight, found.stress_weight) == (1, 0, 0)


def test_config_types_and_weights(place, tmp_path, read):
    h5py = pytest.importorskip("h5py")
    weights = {"config_weight": torch.tensor([0.5]), "config_energy_weight": torch.tensor([2.0])}
    sample = zp.AtomicData(torch.rand(1, 3), [1], energy=-1.0, system=weights)
    with zp.ZarrData(tmp_path / "store") as sink:
        sink.write(sample)
    (found,) = read(zp.write_out(tmp_path / "store", tmp_path / "out.h5").path)
    assert (found.weight, found.energy_weight, found.forces_weight) == (0.5, 2.0, 0.0)
    with h5py.File(zp.write_out(place, tmp_path / "all.h5").path) as file:
        configs = file["config_batch_0"]
        types = [configs[f"config_{n}"]["config_type"][()].decode() for n in range(5)]
    assert types == ["bulk phase", 'a "b" = {c}\\d\n', "IsolatedAtom", "Default", "Default"]


def test_own_fields_that_every_sample_has(place, tmp_path, read):
    left_out = zp.write_out(place, tmp_path / "all.h5").left_out
    assert "some samples lack it" in left_out["round"]
    assert "config_type" not in left_out
    assert {"neighbor_list", "hessian", "bond_atoms", "mp_id"} <= {*left_out}
    some = zp.write_out(place, tmp_path / "some.h5", where="has(round)", fields=["round"])
    assert some.left_out == {}
    assert [one["round"].item() for one in read(some.path)] == [3, -1]


def test_mace_batches_them(place, tmp_path, read):
    data = read(zp.write_out(place, tmp_path / "out.h5").path)
    loader = library("mace.tools.torch_geometric.dataloader").DataLoader(data, batch_size=5)
    (batch,) = loader
    assert batch.energy_weight.tolist() == [1, 0, 1, 1, 0]
    assert batch.forces.shape == (12, 3)


def test_conditions_and_polarizabilities(tmp_path, read):
    own = {"elec_temp": torch.tensor([300.0]), "polarizability": torch.eye(3)[None]}
    first = zp.AtomicData(torch.rand(1, 3), [1], charge=-1.0, spin=2.0, system=own)
    with zp.ZarrData(tmp_path / "store") as sink:
        sink.write([first, zp.AtomicData(torch.rand(1, 3), [1])])
    written = zp.write_out(tmp_path / "store", tmp_path / "out.h5")
    assert written.left_out == {}
    found, bare = read(written.path)
    assert (found.total_charge, found.total_spin, found.elec_temp) == (-1, 2, 300)
    assert torch.equal(found.polarizability[0], torch.eye(3, dtype=torch.float64))
    assert found.polarizability_weight.min() == 1
    assert (bare.total_charge, bare.total_spin, bare.elec_temp) == (0, 1, 0)
    assert bare.polarizability_weight.max() == 0
