"""Memory-mapped arrays as metatrain's own dataset reads them, and as plain bytes without it."""

import numpy as np
import pytest
import torch

import zarrpipe as zp

from .conftest import library


def bytes_of(path, name, *row):
    return np.fromfile(path / f"{name}.bin", np.float32).reshape(-1, *row)


def test_arrays(place, samples, tmp_path):
    written = zp.write_out(place, tmp_path / "out", format="metatrain")
    path, counts = written.path, [sample.num_nodes for sample in samples]
    ends = np.load(path / "na.npy")
    assert int(np.load(path / "ns.npy")) == len(samples)
    assert ends.dtype == np.int64
    assert ends.tolist() == [0, *np.cumsum(counts)]
    numbers = np.fromfile(path / "a.bin", np.int32)
    assert numbers.tolist() == torch.cat([one.atomic_numbers for one in samples]).tolist()
    positions = torch.cat([one.positions for one in samples]).numpy().astype(np.float32)
    np.testing.assert_array_equal(bytes_of(path, "x", 3), positions)
    energy = bytes_of(path, "energy", 1)[:, 0]
    np.testing.assert_array_equal(energy, np.float32([-34.567890123, np.nan, -13.6, *[np.nan] * 2]))
    forces = bytes_of(path, "forces", 3)
    assert np.isnan(forces).all(1).tolist() == [
        n not in (0, 1) for n in np.repeat(range(5), counts)
    ]
    np.testing.assert_array_equal(forces[:3], samples[0].forces.numpy().astype(np.float32))


def test_only_periodic_directions_have_vectors_and_only_volumes_stresses(place, samples, tmp_path):
    written = zp.write_out(place, tmp_path / "out.memmap")
    cells, stress = bytes_of(written.path, "c", 3, 3), bytes_of(written.path, "stress", 3, 3)
    np.testing.assert_array_equal(cells[0], samples[0].cell[0].numpy().astype(np.float32))
    np.testing.assert_array_equal(cells[1], np.diag([4.0, 5.0, 0.0]))
    assert not cells[2:].any()
    np.testing.assert_array_equal(stress[0], samples[0].stress[0].numpy().astype(np.float32))
    assert np.isnan(stress[1:]).all()
    assert {"cell vectors of open directions", "stress without a volume"} <= {*written.left_out}
    assert {"virial", "config_type", "momenta", "neighbor_list"} <= {*written.left_out}
    assert "digits beyond the seventh" in written.left_out
    assert not (written.path / "virial.bin").exists()


def test_virials_become_stresses_where_there_are_none(place, samples, tmp_path):
    some = ["virial", "cell", "pbc"]
    written = zp.write_out(place, tmp_path / "out.memmap", fields=some)
    assert written.left_out["virial"].startswith("written as stress")
    stress = bytes_of(written.path, "stress", 3, 3)
    np.testing.assert_allclose(stress[0], samples[0].stress[0], rtol=1e-6)
    assert np.isnan(stress[1:]).all()


def test_only_what_is_lost_is_told(tmp_path):
    cell = {"cell": torch.eye(3), "pbc": torch.tensor([True] * 3)}
    solid = zp.AtomicData(torch.rand(1, 3), [2], stress=torch.eye(3), **cell)
    with zp.ZarrData(tmp_path / "store") as sink:
        sink.write([solid, zp.AtomicData(torch.rand(1, 3), [2])])
    written = zp.write_out(tmp_path / "store", tmp_path / "out.memmap")
    assert written.left_out == {}
    assert not bytes_of(written.path, "c", 3, 3)[1].any()
    assert np.isnan(bytes_of(written.path, "stress", 3, 3)[1]).all()


def test_a_directory_with_other_files_is_not_replaced(place, tmp_path):
    zp.write_out(place, tmp_path / "out.memmap")
    zp.write_out(place, tmp_path / "out.memmap", overwrite=True, limit=2)
    assert int(np.load(tmp_path / "out.memmap" / "ns.npy")) == 2
    (tmp_path / "out.memmap" / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match=r"notes\.txt"):
        zp.write_out(place, tmp_path / "out.memmap", overwrite=True)
    assert int(np.load(tmp_path / "out.memmap" / "ns.npy")) == 2


def test_metatrain_reads_it(place, samples, tmp_path):
    dataset = library("metatrain.utils.data.dataset").MemmapDataset
    path = zp.write_out(place, tmp_path / "out.memmap").path
    plain = {"unit": "eV", "sample_kind": "system", "num_subtargets": 1, "description": ""}
    target = {"key": "energy", "quantity": "energy", "type": "scalar", **plain}
    target |= {"forces": {"key": "forces"}, "stress": {"key": "stress"}, "virial": False}
    charge = {"key": "charge", "type": "scalar", "sample_kind": "system", "num_subtargets": 1}
    read = dataset(path, {"energy": target}, {"charge": charge})
    assert len(read) == len(samples)
    for index, sample in enumerate(samples):
        found = read[index]
        assert found.system.types.tolist() == sample.atomic_numbers.tolist()
        torch.testing.assert_close(found.system.positions.float(), sample.positions.float())
        pbc = sample.pbc[0].tolist() if "pbc" in sample else [False] * 3
        assert found.system.pbc.tolist() == pbc
        block = found.energy.block()
        energy = float(sample.energy) if "energy" in sample else float("nan")
        np.testing.assert_allclose(block.values.item(), energy, rtol=1e-6, equal_nan=True)
        forces = -block.gradient("positions").values[..., 0].numpy()
        expected = sample.forces.numpy() if "forces" in sample else np.full(forces.shape, np.nan)
        np.testing.assert_allclose(forces, expected, rtol=1e-6)
        assert found.charge.block().values.isnan().item() is ("charge" not in sample)
    strain = read[0].energy.block().gradient("strain").values[0, ..., 0]
    expected = -samples[0].virial[0]  # the volume times the stress
    np.testing.assert_allclose(strain, expected, rtol=2e-6, atol=1e-4)
    assert read[1].energy.block().gradient("strain").values.isnan().all()
