"""What `AseFiles` reads is what ASE reads, frame by frame."""

from pathlib import Path

import numpy as np
import pytest

from zarrpipe.formats.read.files.ase_files import AseFiles, format_of, recognises
from zarrpipe.formats.read.frames import Entry

PER_ATOM = {"forces", "magmoms", "charges", "energies", "stresses"}


@pytest.fixture
def atoms_list(load):
    """Structures of one and of several sizes, with labels that some of them miss."""
    ase = load("ase")
    singlepoint = load("ase.calculators.singlepoint")
    random = np.random.default_rng(3)
    found = []
    for i in range(1200):
        n = 3 if i < 1190 else 5
        atoms = ase.Atoms(
            random.integers(1, 9, n),
            random.normal(size=(n, 3)),
            cell=np.eye(3) * 9,
            pbc=[True, i % 2 == 0, False],
        )
        results = {"energy": random.normal(), "stress": random.normal(size=6)}
        if i % 3:
            results["forces"] = random.normal(size=(n, 3))
        atoms.calc = singlepoint.SinglePointCalculator(atoms, **results)
        atoms.set_tags(np.arange(n))
        atoms.info = {"name": f"frame {i}", "row": [0.5, 1.5, float(i)]}
        found.append(atoms)
    return found


def values_of(atoms):
    values = {
        Entry("atom" if key in PER_ATOM else "system", key, "results"): value
        for key, value in atoms.calc.results.items()
        if value is not None
    }
    values |= {Entry("system", key, "info"): value for key, value in atoms.info.items()}
    others = atoms.arrays.keys() - {"numbers", "positions"}
    return values | {Entry("atom", key, "arrays"): atoms.arrays[key] for key in others}


def test_a_trajectory_in_parts_is_what_ase_reads(load, tmp_path, atoms_list, read_all, assert_same):
    io = load("ase.io")
    path = tmp_path / "md.traj"
    io.write(path, atoms_list)
    assert recognises(path)
    found = read_all(AseFiles(), path)
    assert [part.num_frames for part in found.scan.parts] == [500, 500, 200]
    assert [frame.number for frame in found.frames] == list(range(1200))
    assert not found.failures
    assert not found.left_out
    for frame, atoms in zip(found.frames, io.read(path, ":"), strict=True):
        assert_same(frame, atoms.numbers, atoms.positions, atoms.cell, atoms.pbc, values_of(atoms))
    row = Entry("system", "row", "info")
    assert {kind.shape for kind in found.scan.entries[row]} == {(3,)}
    assert not found.scan.exhaustive


def test_a_damaged_frame_of_a_trajectory_costs_no_other(load, tmp_path, atoms_list, read_all):
    io, ulm = load("ase.io"), load("ase.io.ulm")
    path = tmp_path / "md.traj"
    io.write(path, atoms_list[:20])
    with ulm.open(path) as file:
        offset = int(file._offsets[7])
    content = bytearray(path.read_bytes())
    content[offset + 8 : offset + 16] = b"\xff" * 8  # in the JSON text of frame 7
    path.write_bytes(content)
    found = read_all(AseFiles(), path)
    assert [frame.number for frame in found.frames] == [n for n in range(20) if n != 7]
    (failure,) = found.failures
    assert (failure.path, failure.frame) == (str(path), 7)
    assert failure.reason


@pytest.mark.parametrize("kept", [0.99, 0.5, 0.01])
def test_a_trajectory_that_was_cut_off_keeps_its_whole_frames(
    kept, load, tmp_path, atoms_list, read_all
):
    io = load("ase.io")
    path = tmp_path / "md.traj"
    io.write(path, atoms_list[:40])
    content = path.read_bytes()
    path.write_bytes(content[: int(kept * len(content))])
    found = read_all(AseFiles(), path)
    failures = [*found.failures, *found.scan.failures]
    assert failures
    assert all(failure.path == str(path) and failure.reason for failure in failures)
    read = [frame.number for frame in found.frames]
    lost = {failure.frame for failure in failures}
    assert not lost & set(read)
    for frame in found.frames:
        np.testing.assert_array_equal(frame.positions, atoms_list[frame.number].positions)


def test_parts_of_a_file_without_an_index_are_read_in_any_order(load, tmp_path, read_all):
    io, ase = load("ase.io"), load("ase")
    path, other = tmp_path / "XDATCAR", tmp_path / "other" / "XDATCAR"
    other.parent.mkdir()
    random = np.random.default_rng(0)
    cell = np.eye(3) * 4
    for file, count in ((path, 1100), (other, 700)):
        frames = [ase.Atoms("CO", random.uniform(0, 4, (2, 3)), cell=cell) for _ in range(count)]
        io.write(file, frames, format="vasp-xdatcar")
    reader = AseFiles()
    found = read_all(reader, path)
    assert [part.num_frames for part in found.scan.parts] == [500, 500, 100]
    expected = io.read(path, ":")
    for frame, atoms in zip(found.frames, expected, strict=True):
        np.testing.assert_array_equal(frame.positions, atoms.positions)
        np.testing.assert_array_equal(frame.pbc, [True] * 3)
    parts = [*reader.scan(str(other)).parts, *found.scan.parts]
    for part in [parts[0], parts[4], parts[3], parts[3], parts[1], parts[4], parts[2]]:
        block = reader.read(part)
        theirs = expected if part.path == str(path) else io.read(other, ":")
        numbers = range(part.first, part.first + part.num_frames)
        np.testing.assert_array_equal(block.frames, numbers)
        positions = np.concatenate([theirs[number].positions for number in numbers])
        np.testing.assert_array_equal(block.positions, positions)


def test_frames_before_a_damaged_one_of_another_file_are_kept(load, tmp_path, atoms_list, read_all):
    io = load("ase.io")
    path = tmp_path / "dump.lammpstrj"
    lines = []
    for step in range(4):
        lines += [f"ITEM: TIMESTEP\n{step}\nITEM: NUMBER OF ATOMS\n2"]
        lines += ["ITEM: BOX BOUNDS pp pp ff\n0 5\n0 6\n0 7\nITEM: ATOMS id type x y z fx fy fz"]
        lines += [f"1 1 0 0 {step} 1 2 3\n2 8 {'x' if step == 2 else 0} 1 1 4 5 6"]
    path.write_text("\n".join(lines) + "\n")
    assert format_of(str(path)) == "lammps-dump-text"
    found = read_all(AseFiles(), path)
    (failure,) = found.scan.failures
    assert failure.frame == len(found.frames)
    assert "reads nothing from here on" in failure.reason
    good = path.read_text().replace("8 x", "8 0")
    path.write_text(good)
    found = read_all(AseFiles(), path)
    assert [frame.number for frame in found.frames] == [0, 1, 2, 3]
    for frame, atoms in zip(found.frames, io.read(path, ":"), strict=True):
        np.testing.assert_array_equal(frame.positions, atoms.positions)
        np.testing.assert_array_equal(frame.pbc, [True, True, False])
        forces = frame.values[Entry("atom", "forces", "results")]
        np.testing.assert_array_equal(forces, [[1, 2, 3], [4, 5, 6]])


def shipped():
    """Outputs of codes that ASE ships with its tests."""
    ase = pytest.importorskip("ase")
    folder = Path(ase.__file__).parent / "test" / "testdata"
    return sorted(path for path in folder.rglob("*") if path.is_file() and path.suffix != ".py")


@pytest.mark.filterwarnings("ignore")
def test_outputs_of_codes_are_what_ase_reads(load, read_all, assert_same):
    io = load("ase.io")
    compared = set()
    for path in shipped():
        if not recognises(path):
            continue
        try:
            expected = io.read(path, ":", format=format_of(str(path)))
        except Exception:  # noqa: BLE001  ASE's own tests read it with options
            continue
        found = read_all(AseFiles(), path)
        assert len(found.frames) == len(expected)
        for frame, atoms in zip(found.frames, expected, strict=True):
            np.testing.assert_array_equal(frame.positions, atoms.positions)
            np.testing.assert_array_equal(frame.pbc, atoms.pbc)
            np.testing.assert_array_equal(frame.cell, np.asarray(atoms.cell))
            for key, value in (getattr(atoms.calc, "results", None) or {}).items():
                level = "atom" if key in PER_ATOM else "system"
                entry = Entry(level, key, "results")
                if value is None or entry in found.left_out:
                    continue
                np.testing.assert_array_equal(frame.values[entry], value, err_msg=f"{path} {key}")
        compared.add(format_of(str(path)))
    if not compared:
        pytest.skip("this release of ASE ships no outputs of codes")
    assert {"vasp-out", "vasp-xml", "aims-output"} <= compared


def test_what_other_readers_take_or_nobody_knows_is_not_recognised(load, tmp_path, atoms_list):
    io = load("ase.io")
    io.write(tmp_path / "a.extxyz", atoms_list[0])
    io.write(tmp_path / "a.db", atoms_list[0])
    io.write(tmp_path / "a.json", atoms_list[0])
    (tmp_path / "a.unknown").write_text("nothing")
    (tmp_path / "folder").mkdir()
    for path in tmp_path.iterdir():
        assert not recognises(path), path


def test_a_file_without_a_structure_is_a_failure(load, tmp_path, read_all):
    path = tmp_path / "run.out"
    path.write_text("     Program PWSCF v.7.2 starts\n")
    found = read_all(AseFiles(), path)
    assert found.frames == []
    (failure,) = found.scan.failures
    assert "read as 'espresso-out': name its format" in failure.reason

    path = tmp_path / "empty.traj"
    load("ase.io").write(path, [load("ase").Atoms("H"), load("ase").Atoms()])
    found = read_all(AseFiles(), path)
    assert [frame.number for frame in found.frames] == [0]
    (failure,) = found.failures
    assert (failure.frame, "has no atoms" in failure.reason) == (1, True)


def test_one_format_may_be_given(load, tmp_path, atoms_list, read_all):
    io = load("ase.io")
    path = tmp_path / "structure"
    io.write(path, atoms_list[0], format="vasp")
    assert not recognises(path)
    (frame,) = read_all(AseFiles(format="vasp"), path).frames
    expected = io.read(path, format="vasp")
    np.testing.assert_array_equal(frame.positions, expected.positions)
