"""What `MaceHdf5` reads is what MACE's own data set reads."""

import numpy as np
import pytest

from zarrpipe.formats.read.files.hdf5 import MaceHdf5, recognises
from zarrpipe.formats.read.frames import Entry

SYSTEM, ATOM = "system", "atom"


@pytest.fixture
def write(load):
    """Writes structures of ASE to a file as ``mace_prepare_data`` does."""
    utils, h5py = load("mace.data.utils"), load("h5py")

    def to_file(path, atoms_list, **more_arrays):
        keys = utils.KeySpecification.from_defaults()
        keys.update(arrays_keys=more_arrays)
        configs = utils.config_from_atoms_list(
            atoms_list, keys, {"Default": 1.0, "liquid": 2.0}, head_name="Default"
        )
        with h5py.File(path, "w") as file:
            file.attrs["drop_last"] = False
            utils.save_configurations_as_HDF5(configs, 0, file)
        return configs

    return to_file


@pytest.fixture
def structure(load):
    ase = load("ase")

    def make(i, n):
        random = np.random.default_rng(i)
        atoms = ase.Atoms(
            random.integers(1, 9, n),
            random.normal(size=(n, 3)),
            cell=np.eye(3) * 8 + random.normal(size=(3, 3)) / 9 if i % 4 else None,
            pbc=[i % 4 > 0, i % 4 > 1, False],
        )
        atoms.info["REF_energy"] = random.normal()
        if i % 3:
            atoms.arrays["REF_forces"] = random.normal(size=(n, 3))
            atoms.info["REF_stress"] = random.normal(size=(3, 3))
        if i % 5 == 0:
            atoms.info |= {"config_type": "liquid", "config_energy_weight": 0.25, "head": "dft"}
            atoms.info |= {"total_charge": float(i), "dipole": random.normal(size=3)}
        return atoms

    return make


@pytest.mark.parametrize("sizes", [[3], [1, 3, 6]])
def test_configurations_are_what_mace_reads(
    sizes, load, tmp_path, write, structure, read_all, assert_same
):
    path = tmp_path / "train_0.h5"
    configs = write(path, [structure(i, sizes[i % len(sizes)]) for i in range(510)])
    assert recognises(path)
    found = read_all(MaceHdf5(), path)
    assert not found.failures
    assert not found.left_out
    assert [part.num_frames for part in found.scan.parts] == [500, 10]
    for i, (frame, config) in enumerate(zip(found.frames, configs, strict=True)):
        assert frame.number == i
        values = {Entry(SYSTEM, "config_type"): config.config_type}
        if config.config_type == "liquid":
            values[Entry(SYSTEM, "config_weight")] = 2.0
        for key, weight in config.property_weights.items():
            if weight:
                level = ATOM if key in {"forces", "charges"} else SYSTEM
                values[Entry(level, key)] = config.properties[key]
            if weight not in (0, 1):
                values[Entry(SYSTEM, f"config_{key}_weight")] = weight
        structure_of = (config.atomic_numbers, config.positions, config.cell, config.pbc)
        assert_same(frame, *structure_of, values)
    first, second = found.frames[:2]
    assert first.values[Entry(SYSTEM, "config_energy_weight")] == 0.25
    assert first.values[Entry(SYSTEM, "head")] == "dft"
    assert first.values[Entry(SYSTEM, "dipole")].shape == (3,)
    assert Entry(ATOM, "forces") not in first.values
    assert Entry(ATOM, "forces") in second.values


def test_the_data_set_of_mace_has_the_same_values(load, tmp_path, write, structure, read_all):
    torch, data = load("torch"), load("mace.data")
    tools = load("mace.tools")
    path = tmp_path / "train_0.h5"
    write(path, [structure(i, 3 + i % 2) for i in range(12)])
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        table = tools.AtomicNumberTable(list(range(1, 10)))
        theirs = data.HDF5Dataset(str(path), r_max=2.0, z_table=table)
        found = read_all(MaceHdf5(), path)
        assert len(found.frames) == len(theirs)
        for frame, other in zip(found.frames, map(theirs.__getitem__, range(12)), strict=True):
            numbers = other.node_attrs.argmax(1).numpy() + 1
            np.testing.assert_array_equal(frame.numbers, numbers)
            np.testing.assert_array_equal(frame.positions, other.positions)
            for key, level in (("energy", SYSTEM), ("forces", ATOM), ("stress", SYSTEM)):
                entry = Entry(level, key)
                assert (entry in frame.values) is bool(other[f"{key}_weight"] > 0)
                if entry in frame.values:
                    np.testing.assert_array_equal(frame.values[entry], other[key].squeeze(0))
    finally:
        torch.set_default_dtype(before)


def test_a_row_of_three_of_three_atoms_is_no_property_of_atoms(
    tmp_path, write, structure, read_all
):
    def with_spins(i, n):
        atoms = structure(i, n)
        atoms.arrays["my_spins_here"] = np.arange(n, dtype=float)
        return atoms

    def with_descriptor(i, n):
        atoms = structure(i, n)
        atoms.arrays["mine"] = np.arange(n, dtype=float)
        return atoms

    named = tmp_path / "named.h5"
    write(named, [with_spins(i, 3) for i in range(3)], my_spins="my_spins_here")
    frame = read_all(MaceHdf5(), named).frames[0]
    np.testing.assert_array_equal(frame.values[Entry(ATOM, "my_spins")], [0, 1, 2])

    path = tmp_path / "unclear.h5"
    write(path, [with_descriptor(i, 3) for i in range(3)], embedding="mine")
    found = read_all(MaceHdf5(), path)
    assert set(found.left_out) == {Entry(SYSTEM, "embedding")}
    assert "levels={'embedding': 'atom'}" in found.left_out[Entry(SYSTEM, "embedding")]
    found = read_all(MaceHdf5(levels={"embedding": "atom"}), path)
    np.testing.assert_array_equal(found.frames[0].values[Entry(ATOM, "embedding")], [0, 1, 2])


def test_files_of_earlier_releases(load, tmp_path, read_all, assert_same):
    """The layout of MACE 0.3.12, with the labels beside the structure."""
    path = tmp_path / "old.h5"
    with load("h5py").File(path, "w") as file:
        for i in range(12):
            group = file.create_group(f"config_batch_0/config_{i}")
            group["atomic_numbers"] = np.array([8, 1, 1])
            group["positions"] = np.arange(9.0).reshape(3, 3) + i
            group["energy"], group["energy_weight"] = -1.5 * i, 1.0
            group["forces"], group["forces_weight"] = np.ones((3, 3)), float(i > 5)
            group["stress"] = group["virials"] = group["dipole"] = group["charges"] = "None"
            group["stress_weight"] = group["virials_weight"] = 0.0
            group["cell"], group["pbc"] = "None", (False, False, False)
            group["weight"], group["config_type"], group["head"] = 0.0, "Default", "pbe"
    for i, frame in enumerate(read_all(MaceHdf5(), path).frames):
        values = {
            Entry(SYSTEM, "energy"): -1.5 * i,
            Entry(SYSTEM, "config_weight"): 0.0,
            Entry(SYSTEM, "config_type"): "Default",
            Entry(SYSTEM, "head"): "pbe",
        }
        if i > 5:
            values[Entry(ATOM, "forces")] = np.ones((3, 3))
        structure = ([8, 1, 1], np.arange(9.0).reshape(3, 3) + i, np.zeros((3, 3)), [0, 0, 0])
        assert_same(frame, *structure, values)


def test_damage_costs_no_other_frame(load, tmp_path, write, structure, read_all):
    path = tmp_path / "train.h5"
    write(path, [structure(i, 3) for i in range(12)])
    with load("h5py").File(path, "a") as file:
        del file["config_batch_0/config_2/positions"]
        del file["config_batch_0/config_7/properties/forces"]
        file["config_batch_0/config_7/properties/forces"] = np.zeros((2, 3))
    found = read_all(MaceHdf5(), path)
    assert [failure.frame for failure in found.failures] == [2, 7]
    assert "positions" in found.failures[0].reason
    assert "expected a row for each of 3 atoms" in found.failures[1].reason
    assert [frame.number for frame in found.frames] == [0, 1, 3, 4, 5, 6, 8, 9, 10, 11]
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    assert not recognises(path)
    (failure,) = MaceHdf5().scan(str(path)).failures
    assert "truncated" in failure.reason


def test_other_files_are_not_recognised(load, tmp_path):
    with load("h5py").File(tmp_path / "other.h5", "w") as file:
        file["config"] = 1
    (tmp_path / "text.h5").write_text("text")
    assert not any(recognises(path) for path in tmp_path.iterdir())
    assert not recognises(tmp_path)
