"""What `AtompackFiles` reads is what atompack reads."""

import numpy as np
import pytest

from zarrpipe.formats.read.files.atompack_files import AtompackFiles, recognises
from zarrpipe.formats.read.frames import Entry

SYSTEM, ATOM = "system", "atom"


@pytest.fixture
def write(load):
    atompack = load("atompack")

    def to_file(path, sizes):
        random = np.random.default_rng(5)
        molecules = []
        for i, n in enumerate(sizes):
            labels = {"energy": random.normal(), "forces": random.normal(size=(n, 3))}
            if i % 3 == 0:
                labels |= {"stress": random.normal(size=(3, 3)), "name": f"molecule {i}"}
                del labels["energy"]
            if i % 2:
                labels |= {"pbc": (True, False, i % 4 == 1), "cell": random.normal(size=(3, 3))}
                labels |= {"charges": random.normal(size=n), "velocities": np.ones((n, 3)) * i}
            numbers = random.integers(1, 90, n).astype(np.uint8)
            one = atompack.Molecule(random.normal(size=(n, 3)), numbers, **labels)
            one.set_property("hirshfeld", random.normal(size=n), scope="atom")
            one.set_property("dipole", random.normal(size=3))
            one.set_property("origin", f"run {i % 3}")
            if i % 5 == 0:
                one.set_property("count", i)
            molecules.append(one)
        database = atompack.Database(str(path), compression="zstd", overwrite=True)
        database.add_molecules(molecules)
        database.flush()
        return molecules

    return to_file


@pytest.mark.parametrize("sizes", [[3] * 520, [1, 3, 8] * 10])
def test_molecules_are_what_atompack_reads(sizes, load, tmp_path, write, read_all, assert_same):
    path = tmp_path / "molecules.atp"
    write(path, sizes)
    assert recognises(path)
    found = read_all(AtompackFiles(), path)
    assert not found.failures
    assert not found.left_out
    assert [frame.number for frame in found.frames] == list(range(len(sizes)))
    database = load("atompack").Database.open(str(path))
    for i, frame in enumerate(found.frames):
        theirs, flat = database[i], database.get_molecules_flat([i])
        structure = theirs.to_ase()
        values = {Entry(ATOM, "hirshfeld", "properties"): flat["atom_properties"]["hirshfeld"]}
        for key in theirs.property_keys(scope="molecule"):
            values[Entry(SYSTEM, key, "properties")] = theirs.get_property(key)
        for key, level in (
            ("energy", SYSTEM),
            ("stress", SYSTEM),
            ("forces", ATOM),
            ("charges", ATOM),
            ("velocities", ATOM),
        ):
            if getattr(theirs, key) is not None:
                values[Entry(level, key)] = getattr(theirs, key)
        if flat["name"][0] is not None:
            values[Entry(SYSTEM, "name")] = f"molecule {i}"
        cell = np.asarray(structure.cell)
        assert_same(frame, structure.numbers, structure.positions, cell, structure.pbc, values)
    first, second = found.frames[:2]
    assert Entry(SYSTEM, "energy") not in first.values
    assert Entry(SYSTEM, "name") not in second.values
    assert Entry(SYSTEM, "count", "properties") not in second.values
    assert first.values[Entry(SYSTEM, "dipole", "properties")].shape == (3,)
    assert first.values[Entry(ATOM, "hirshfeld", "properties")].shape == (sizes[0],)


def test_a_file_that_was_cut_off_is_told(load, tmp_path, write, read_all):
    path = tmp_path / "molecules.atp"
    write(path, [3] * 100)
    content = path.read_bytes()
    for kept in (len(content) - 100, 9000, 100):
        path.write_bytes(content[:kept])
        found = read_all(AtompackFiles(), path)
        assert found.frames == []
        assert [failure.path for failure in found.scan.failures] == [str(path)]
    empty = tmp_path / "empty.atp"
    load("atompack").Database(str(empty)).flush()
    found = read_all(AtompackFiles(), empty)
    assert (found.frames, found.scan.failures) == ([], ())


def test_a_damaged_molecule_costs_no_other(tmp_path, write, read_all):
    path = tmp_path / "molecules.atp"
    write(path, [3] * 50)
    whole = read_all(AtompackFiles(), path)
    content = bytearray(path.read_bytes())
    middle = 8200 + (len(content) - 8200) // 3
    content[middle : middle + 8] = b"\xff" * 8
    path.write_bytes(content)
    found = read_all(AtompackFiles(), path)
    assert 0 < len(found.failures) < 3
    lost = {failure.frame for failure in found.failures}
    assert {frame.number for frame in found.frames} == set(range(50)) - lost
    for frame in found.frames:
        np.testing.assert_array_equal(frame.positions, whole.frames[frame.number].positions)


def test_other_files_are_not_recognised(tmp_path):
    (tmp_path / "other.atp").write_text("text")
    assert not recognises(tmp_path / "other.atp")
    assert not recognises(tmp_path)
