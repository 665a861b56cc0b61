"""What `DpdataSystems` reads is what dpdata reads."""

import numpy as np
import pytest

from zarrpipe.errors import SourceError
from zarrpipe.formats.read.files.dpdata_systems import DpdataSystems, recognises
from zarrpipe.formats.read.frames import Entry

SYSTEM, ATOM = "system", "atom"
FRAMES = 620


@pytest.fixture
def dpdata(load):
    load("dpdata.plugins.deepmd").register_spin()
    return load("dpdata")


@pytest.fixture
def data():
    """Data of a system of three atoms, as dpdata has them."""

    def make(num_frames=FRAMES, seed=0, **more):
        random = np.random.default_rng(seed)
        return {
            "atom_names": ["O", "H"],
            "atom_numbs": [1, 2],
            "atom_types": np.array([0, 1, 1]),
            "orig": np.zeros(3),
            "cells": np.eye(3) * 7 + np.tril(random.uniform(size=(num_frames, 3, 3))),
            "coords": random.normal(size=(num_frames, 3, 3)),
            "energies": random.normal(size=num_frames),
            "forces": random.normal(size=(num_frames, 3, 3)),
            "virials": random.normal(size=(num_frames, 3, 3)),
            **more,
        }

    return make


def check_all(found, system, assert_same, *, spins=False):
    assert not found.failures
    assert not found.scan.failures
    assert [frame.number for frame in found.frames] == list(range(len(system)))
    for i, frame in enumerate(found.frames):
        values = {}
        if "energies" in system.data:
            values[Entry(SYSTEM, "energy")] = system["energies"][i]
            values[Entry(ATOM, "force")] = system["forces"][i]
            values[Entry(SYSTEM, "virial")] = system["virials"][i]
        if spins:
            values[Entry(ATOM, "spin")] = system["spins"][i]
        pbc = [not system.data.get("nopbc", False)] * 3
        assert_same(frame, [8, 1, 1], system["coords"][i], system["cells"][i], pbc, values)


@pytest.mark.parametrize("name", ["deepmd/npy", "deepmd/raw"])
@pytest.mark.parametrize("more", [{}, {"nopbc": True}, {"spins": np.ones((FRAMES, 3, 3))}])
def test_folders_of_deepmd_are_what_dpdata_reads(
    name, more, tmp_path, dpdata, data, read_all, assert_same
):
    folder = tmp_path / "water"
    content = data(**more)
    if "nopbc" in more:
        content["cells"] = np.zeros((FRAMES, 3, 3))
    options = {"set_size": 100} if name == "deepmd/npy" else {}
    dpdata.LabeledSystem(data=content).to(name, str(folder), **options)
    assert recognises(folder)
    found = read_all(DpdataSystems(), folder)
    assert not found.left_out
    assert [part.num_frames for part in found.scan.parts] == [500, 120]
    theirs = dpdata.LabeledSystem(str(folder), fmt=name)
    check_all(found, theirs, assert_same, spins="spins" in more)
    np.testing.assert_array_equal(found.frames[7].positions, theirs["coords"][7])
    named = read_all(DpdataSystems(name), folder)
    check_all(named, theirs, assert_same, spins="spins" in more)


def test_the_virial_has_the_sign_of_zarrpipe(tmp_path, dpdata, data, read_all):
    """Minus the volume times the stress of ASE, in which tension is positive."""
    folder = tmp_path / "water"
    dpdata.LabeledSystem(data=data(3)).to("deepmd/npy", str(folder))
    frames = read_all(DpdataSystems(), folder).frames
    for frame, atoms in zip(
        frames, dpdata.LabeledSystem(str(folder), fmt="deepmd/npy").to("ase/structure"), strict=True
    ):
        stress = frame.values[Entry(SYSTEM, "virial")] / -atoms.get_volume()
        voigt = stress.ravel()[[0, 4, 8, 5, 2, 1]]
        np.testing.assert_allclose(voigt, atoms.get_stress(), rtol=1e-14)


def test_mixed_folders_and_structures_without_labels(tmp_path, dpdata, data, read_all, assert_same):
    one, other = data(4), data(3, seed=1)
    other |= {"atom_types": np.array([1, 1, 1]), "atom_numbs": [0, 3]}
    systems = dpdata.MultiSystems(
        dpdata.LabeledSystem(data=one), dpdata.LabeledSystem(data=other), type_map=["O", "H"]
    )
    systems.to("deepmd/npy/mixed", str(tmp_path / "mixed"))
    (folder,) = (path for path in (tmp_path / "mixed").iterdir() if recognises(path))
    found = read_all(DpdataSystems(), folder)
    theirs = dpdata.MultiSystems().load_systems_from_file(str(folder), fmt="deepmd/npy/mixed")
    expected = [(system, i) for system in theirs for i in range(len(system))]
    assert len(found.frames) == len(expected) == 7
    for frame, (system, i) in zip(found.frames, expected, strict=True):
        names = [system["atom_names"][kind] for kind in system["atom_types"]]
        np.testing.assert_array_equal(frame.numbers, [{"H": 1, "O": 8}[name] for name in names])
        np.testing.assert_array_equal(frame.positions, system["coords"][i])
        assert frame.values[Entry(SYSTEM, "energy")] == system["energies"][i]

    plain = data(5)
    for key in ("energies", "forces", "virials"):
        del plain[key]
    folder = tmp_path / "plain"
    dpdata.System(data=plain).to("deepmd/npy", str(folder))
    found = read_all(DpdataSystems(), folder)
    check_all(found, dpdata.System(str(folder), fmt="deepmd/npy"), assert_same)
    assert not found.left_out


def test_arrays_that_dpdata_does_not_read_are_told(tmp_path, dpdata, data, read_all):
    folder = tmp_path / "water"
    dpdata.LabeledSystem(data=data(5)).to("deepmd/npy", str(folder))
    np.save(folder / "set.000" / "fparam.npy", np.ones((5, 1)))
    found = read_all(DpdataSystems(), folder)
    assert set(found.left_out) == set(found.scan.left_out) == {Entry(SYSTEM, "fparam")}
    (folder / "set.000" / "energy.npy").unlink()
    found = read_all(DpdataSystems(), folder)
    assert {entry.key for entry in found.left_out} == {"fparam", "force", "virial"}
    assert len(found.frames) == 5


def test_other_formats_by_name(tmp_path, dpdata, data, read_all, load):
    path = tmp_path / "POSCAR"
    system = dpdata.System(data={k: v for k, v in data(1).items() if k[0] in "aoc"})
    system.to("vasp/poscar", str(path))
    assert not recognises(tmp_path)
    (frame,) = read_all(DpdataSystems("vasp/poscar"), path).frames
    theirs = dpdata.System(str(path), fmt="vasp/poscar")
    np.testing.assert_array_equal(frame.positions, theirs["coords"][0])
    np.testing.assert_array_equal(frame.cell, theirs["cells"][0])
    with pytest.raises(SourceError, match="dpdata:vasp/outcar"):
        DpdataSystems().scan(str(path))


@pytest.mark.parametrize("several", [False, True])
def test_files_of_one_and_of_several_systems(several, tmp_path, dpdata, data, read_all):
    """The class for one system reads none of several, or the first frame, and says nothing."""
    one, other = data(4), data(3, seed=1)
    other |= {"atom_types": np.array([1, 1, 1]), "atom_numbs": [0, 3]}
    systems = [
        dpdata.LabeledSystem(data=content) for content in ([one, other] if several else [one])
    ]
    path = tmp_path / "systems.hdf5"
    kind = dpdata.MultiSystems(*systems) if several else systems[0]
    kind.to("deepmd/hdf5", str(path))
    found = read_all(DpdataSystems("deepmd/hdf5"), path)
    energies = [frame.values[Entry(SYSTEM, "energy")] for frame in found.frames]
    assert sorted(energies) == sorted(
        np.concatenate([one["energies"], other["energies"]][: 1 + several])
    )

    path = tmp_path / "frames.xyz"
    systems[0].to("mace/xyz", str(path))
    found = read_all(DpdataSystems("mace/xyz"), path)
    energies = [frame.values[Entry(SYSTEM, "energy")] for frame in found.frames]
    np.testing.assert_allclose(energies, one["energies"], atol=1e-8)


def test_a_file_without_a_frame_is_a_failure(tmp_path, dpdata):
    path = tmp_path / "OUTCAR"
    path.write_text("nothing of VASP\n")
    (failure,) = DpdataSystems("vasp/outcar").scan(str(path)).failures
    assert failure.reason


def test_types_without_elements_and_damage(tmp_path, dpdata, data, read_all):
    folder = tmp_path / "water"
    dpdata.LabeledSystem(data=data(5)).to("deepmd/npy", str(folder))
    (folder / "type_map.raw").unlink()
    with pytest.raises(SourceError, match=r"Type_0, Type_1 are no elements.*type_map"):
        DpdataSystems().scan(str(folder))
    frame = read_all(DpdataSystems(type_map=["O", "H"]), folder).frames[0]
    np.testing.assert_array_equal(frame.numbers, [8, 1, 1])
    forces = folder / "set.000" / "force.npy"
    np.save(forces, np.ones((4, 9)))
    (failure,) = DpdataSystems(type_map=["O", "H"]).scan(str(folder)).failures
    assert "forces" in failure.reason
    forces.write_bytes(forces.read_bytes()[:200])
    (failure,) = DpdataSystems(type_map=["O", "H"]).scan(str(folder)).failures
    assert failure.path == str(folder)
