"""What `MetatrainMemmap` reads is what metatrain's own data set reads."""

import numpy as np
import pytest

from zarrpipe.formats.read.files.memmap import MetatrainMemmap, recognises
from zarrpipe.formats.read.frames import Entry

SYSTEM, ATOM = "system", "atom"


@pytest.fixture
def write(tmp_path):
    """Writes a directory of structures of these sizes, with labels; gives its arrays."""

    def to_directory(sizes, name="data", **labels):
        random = np.random.default_rng(len(sizes))
        folder = tmp_path / name
        folder.mkdir()
        ends = np.concatenate(([0], np.cumsum(sizes))).astype(np.int64)
        count, num_atoms = len(sizes), int(ends[-1])
        cell = random.normal(size=(count, 3, 3))
        cell[::2, 2] = 0
        cell[::3] = 0
        arrays = {
            "x": random.normal(size=(num_atoms, 3)),
            "a": random.integers(1, 90, num_atoms),
            "c": cell,
            "energy": random.normal(size=(count, 1)),
            "energy_forces": random.normal(size=(num_atoms, 3, 1)),
            "energy_stress": random.normal(size=(count, 3, 3, 1)),
            "momenta": random.normal(size=(num_atoms, 3)),
            "masses": random.uniform(1, 9, num_atoms),
            **labels,
        }
        arrays = {key: array.astype("i4" if key == "a" else "f4") for key, array in arrays.items()}
        np.save(folder / "ns.npy", count)
        np.save(folder / "na.npy", ends)
        for key, array in arrays.items():
            array.tofile(folder / f"{key}.bin")
        return folder, ends, arrays

    return to_directory


@pytest.mark.parametrize("sizes", [[3] * 12_000, [5, 1, 3, 9] * 6_000, [3]])
def test_all_rows_in_parts(sizes, write, read_all, assert_same):
    folder, ends, arrays = write(sizes)
    assert recognises(folder)
    found = read_all(MetatrainMemmap(), folder)
    assert not found.failures
    assert not found.left_out
    assert (len(found.scan.parts) > 1) is (len(sizes) > 10_000)
    assert all(len(block) <= 10_000 for block in found.blocks)
    assert found.scan.num_single_atoms == sizes.count(1)
    assert len(found.frames) == len(sizes)
    for frame in found.frames[:: max(1, len(sizes) // 200)]:
        i = frame.number
        atoms = slice(ends[i], ends[i + 1])
        cell = arrays["c"][i]
        values = {
            Entry(SYSTEM, "energy"): arrays["energy"][i, 0],
            Entry(SYSTEM, "energy_stress"): arrays["energy_stress"][i].ravel(),
            Entry(ATOM, "energy_forces"): arrays["energy_forces"][atoms, :, 0],
            Entry(ATOM, "momenta"): arrays["momenta"][atoms],
            Entry(ATOM, "masses"): arrays["masses"][atoms],
        }
        structure = (arrays["a"][atoms], arrays["x"][atoms], cell, cell.any(axis=1))
        assert_same(frame, *structure, values)


def test_nan_throughout_a_structure_is_a_missing_label(write, read_all):
    energy, forces = np.arange(4.0)[:, None], np.ones((12, 3, 1))
    energy[1] = np.nan
    forces[6:9] = np.nan
    forces[0, 0] = np.nan
    folder, _, _ = write([3] * 4, energy=energy, energy_forces=forces)
    frames = read_all(MetatrainMemmap(), folder).frames
    has_energy = [Entry(SYSTEM, "energy") in frame.values for frame in frames]
    has_forces = [Entry(ATOM, "energy_forces") in frame.values for frame in frames]
    assert has_energy == [True, False, True, True]
    assert has_forces == [True, True, False, True]
    assert np.isnan(frames[0].values[Entry(ATOM, "energy_forces")][0, 0])


def test_levels_come_from_names_or_sizes_or_are_asked_for(write, read_all):
    sizes = [3, 3, 3, 3]
    labels = {"mine": np.arange(12.0), "dipole": np.arange(12.0), "gap": np.arange(4.0)}
    folder, _, _ = write(sizes, **labels)
    found = read_all(MetatrainMemmap(), folder)
    (unclear,) = found.left_out
    assert unclear.key == "mine"
    assert "levels={'mine': 'atom'}" in found.left_out[unclear]
    assert found.scan.left_out == found.left_out
    second = found.frames[1].values
    np.testing.assert_array_equal(second[Entry(SYSTEM, "dipole")], [3, 4, 5])
    assert second[Entry(SYSTEM, "gap")] == 1

    second = read_all(MetatrainMemmap(levels={"mine": "atom"}), folder).frames[1].values
    np.testing.assert_array_equal(second[Entry(ATOM, "mine")], [3, 4, 5])
    second = read_all(MetatrainMemmap(levels={"mine": "system"}), folder).frames[1].values
    np.testing.assert_array_equal(second[Entry(SYSTEM, "mine")], [3, 4, 5])

    folder, _, _ = write([3, 4], name="sizes", mine=np.arange(7.0), gap=np.arange(4.0))
    second = read_all(MetatrainMemmap(), folder).frames[1].values
    np.testing.assert_array_equal(second[Entry(ATOM, "mine")], [3, 4, 5, 6])
    np.testing.assert_array_equal(second[Entry(SYSTEM, "gap")], [2, 3])


def test_files_that_were_cut_off(write, read_all):
    folder, _, _ = write([3, 4, 5, 6])
    for name, kept in (("x", 11 * 12), ("energy", 5), ("energy_forces", 5 * 12)):
        path = folder / f"{name}.bin"
        path.write_bytes(path.read_bytes()[:kept])
    found = read_all(MetatrainMemmap(), folder)
    assert [frame.number for frame in found.frames] == [0, 1]
    assert [failure.frame for failure in found.scan.failures] == [2, 3]
    assert {entry.key for entry in found.left_out} == {"energy", "energy_forces"}
    assert "60 bytes" in found.left_out[Entry(SYSTEM, "energy_forces")]
    np.save(folder / "ns.npy", 7)
    (failure,) = MetatrainMemmap().scan(str(folder)).failures
    assert "expected 8 growing numbers" in failure.reason


def test_other_directories_are_not_recognised(tmp_path, write):
    assert not recognises(tmp_path)
    folder, _, _ = write([3])
    assert not recognises(folder / "x.bin")


def test_metatrain_has_the_same_values(load, write, read_all):
    dataset = load("metatrain.utils.data.dataset")
    folder, _, _ = write([3, 4, 1, 3], dipole=np.arange(12.0).reshape(4, 3, 1))
    common = {"sample_kind": "system", "num_subtargets": 1}
    energy = {"key": "energy", "quantity": "energy", "type": "scalar", **common}
    energy |= {"forces": {"key": "energy_forces"}, "stress": {"key": "energy_stress"}}
    dipole = {"key": "dipole", "quantity": "", "type": {"cartesian": {"rank": 1}}, **common}
    options = {"energy": energy | {"virial": False}, "mtt::dipole": dipole}
    theirs = dataset.MemmapDataset(folder, options)
    for frame in read_all(MetatrainMemmap(), folder).frames:
        sample = theirs[frame.number]
        np.testing.assert_array_equal(frame.numbers, sample.system.types)
        np.testing.assert_array_equal(frame.positions, sample.system.positions)
        np.testing.assert_array_equal(frame.cell, sample.system.cell)
        np.testing.assert_array_equal(frame.pbc, sample.system.pbc)
        block = sample["energy"].block() if isinstance(sample, dict) else sample[1].block()
        assert frame.values[Entry(SYSTEM, "energy")] == block.values.item()
        forces = -block.gradient("positions").values.squeeze(-1).numpy()
        np.testing.assert_array_equal(frame.values[Entry(ATOM, "energy_forces")], forces)
        strain = block.gradient("strain").values.numpy().reshape(3, 3)
        stress = frame.values[Entry(SYSTEM, "energy_stress")].reshape(3, 3)
        volume = abs(np.linalg.det(frame.cell))
        np.testing.assert_allclose(stress * volume, strain, rtol=1e-12)
        np.testing.assert_array_equal(
            frame.values[Entry(SYSTEM, "dipole")], sample[2].block().values.numpy().ravel()
        )
