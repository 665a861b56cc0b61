"""What `AseDatabase` reads is what ``ase.db`` reads, row by row."""

import sqlite3

import numpy as np
import pytest

from zarrpipe.errors import ArgumentError
from zarrpipe.formats.read.files.ase_database import AseDatabase, recognises
from zarrpipe.formats.read.frames import POSITIONS, Entry

SUFFIXES = ["db", "json", "aselmdb"]


@pytest.fixture
def connect(load):
    """Opens a database to write to; skips LMDB where its package is missing."""
    database = load("ase.db")

    def opened(path):
        if str(path).endswith("aselmdb"):
            return load("ase_db_backends.aselmdb").LMDBDatabase(path)
        return database.connect(path)

    return opened


@pytest.fixture
def row(load):
    """Makes the structure and the data of a row."""
    ase, singlepoint = load("ase"), load("ase.calculators.singlepoint")

    def make(i, n):
        random = np.random.default_rng(i)
        pbc = [i % 2 == 0, True, False]
        atoms = ase.Atoms(random.integers(1, 9, n), random.normal(size=(n, 3)), pbc=pbc)
        if i % 3:
            results = {"energy": random.normal(), "forces": random.normal(size=(n, 3))}
            atoms.calc = singlepoint.SinglePointCalculator(atoms, **results)
        pairs = {"count": i, "ratio": i / 7, "good": bool(i % 2), "origin": f"run{i % 4}"}
        if i % 5 == 0:
            del pairs["ratio"]
        data = {"dipole": random.normal(size=3), "ref_forces": random.normal(size=(n, 3))}
        return atoms, pairs, data

    return make


def write(database, rows):
    with database as opened:
        for atoms, pairs, data in rows:
            opened.write(atoms, pairs, data=data)


def values_of(row, levels):
    atoms = row.toatoms()
    results = {} if atoms.calc is None else atoms.calc.results
    per_atom = {"forces"}
    values = {
        Entry("atom" if key in per_atom else "system", key, "results"): value
        for key, value in results.items()
    }
    values |= {Entry("system", key, "info"): value for key, value in row.key_value_pairs.items()}
    return values | {Entry(levels[key], key, "info"): value for key, value in row.data.items()}


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("sizes", [[3], [3, 4]])
def test_rows_are_what_ase_reads(suffix, sizes, tmp_path, connect, row, read_all, assert_same):
    path = tmp_path / f"labels.{suffix}"
    count = 20 if suffix == "json" else 600
    write(connect(path), [row(i, sizes[i % len(sizes)]) for i in range(count)])
    connect(path).delete([4, 9])
    assert recognises(path)
    found = read_all(AseDatabase(), path)
    assert not found.failures
    assert not found.left_out
    assert [frame.number for frame in found.frames] == list(range(count - 2))
    assert len(found.scan.parts) == (1 if suffix == "json" else 2)
    levels = {"dipole": "system", "ref_forces": "atom"}
    rows = list(connect(path).select())
    for frame, one in zip(found.frames, rows, strict=True):
        atoms = one.toatoms()
        values = values_of(one, levels)
        assert_same(frame, atoms.numbers, atoms.positions, np.zeros((3, 3)), atoms.pbc, values)
    assert found.frames[1].values[Entry("system", "origin", "info")] == "run1"


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_units_in_the_metadata_are_handed_on(suffix, tmp_path, connect, row, read_all):
    path = tmp_path / f"qm9.{suffix}"
    write(connect(path), [row(i, 3) for i in range(4)])
    connect(path).metadata = {
        "_property_unit_dict": {"dipole": "Debye", "ref_forces": "Hartree/Bohr", "absent": "eV"},
        "_distance_unit": "Bohr",
        "key_descriptions": {"ratio": ["Ratio", "A ratio", "K"], "count": ["Count", "Count", ""]},
    }
    units = AseDatabase().scan(str(path)).units
    assert units == {
        Entry("system", "dipole", "info"): "Debye",
        Entry("atom", "ref_forces", "info"): "Hartree/Bohr",
        Entry("system", "ratio", "info"): "K",
        POSITIONS: "Bohr",
    }


def test_the_level_of_data_is_proven_by_sizes_or_told_never_guessed(
    tmp_path, connect, row, read_all
):
    def with_more(i, n):
        atoms, pairs, data = row(i, n)
        return atoms, pairs, data | {"hirshfeld": np.arange(n) + 0.5, "axis": np.arange(3.0)}

    path = tmp_path / "sizes.db"
    write(connect(path), [with_more(i, 3 + i % 2) for i in range(6)])
    found = read_all(AseDatabase(), path)
    atom, system = Entry("atom", "hirshfeld", "info"), Entry("system", "axis", "info")
    assert not found.left_out
    for i, frame in enumerate(found.frames):
        np.testing.assert_array_equal(frame.values[atom], np.arange(3 + i % 2) + 0.5)
        np.testing.assert_array_equal(frame.values[system], [0, 1, 2])

    path = tmp_path / "one_size.db"
    write(connect(path), [with_more(i, 3) for i in range(6)])
    found = read_all(AseDatabase(), path)
    unclear = {Entry("system", key, "info") for key in ("hirshfeld", "axis")}
    assert set(found.left_out) == set(found.scan.left_out) == unclear
    assert "levels={'axis': 'atom'}" in found.left_out[system]
    assert not unclear & set(found.frames[0].values)
    assert not unclear & set(found.scan.entries)

    told = AseDatabase(levels={"hirshfeld": "atom", "axis": "system"})
    found = read_all(told, path)
    assert not found.left_out
    np.testing.assert_array_equal(found.frames[0].values[atom], [0.5, 1.5, 2.5])
    np.testing.assert_array_equal(found.frames[0].values[system], [0, 1, 2])
    with pytest.raises(ArgumentError, match="'graph', expected 'atom' or 'system'"):
        AseDatabase(levels={"axis": "graph"})


def test_what_is_in_two_places_and_in_tables_of_the_users_is_kept(tmp_path, connect, row, read_all):
    path = tmp_path / "twice.db"
    atoms, pairs, data = row(1, 3)
    data |= {"ratio": 5.0, "nested": {"a": 1}, "name": "water", "empty": None}
    with connect(path) as database:
        database.write(atoms, {**pairs, "external_tables": {"spectrum": {"peak": 2.5}}}, data=data)
    found = read_all(AseDatabase(), path)
    (frame,) = found.frames
    assert frame.values[Entry("system", "ratio", "info")] == 1 / 7
    assert frame.values[Entry("system", "ratio", "data")] == 5
    assert frame.values[Entry("system", "peak", "spectrum")] == 2.5
    assert frame.values[Entry("system", "name", "info")] == "water"
    assert found.left_out == {Entry("system", "nested", "info"): "is neither numbers nor a string"}


def test_a_bad_row_costs_no_other(tmp_path, connect, row, read_all):
    path = tmp_path / "bad.db"
    write(connect(path), [row(i, 3) for i in range(10)])
    with sqlite3.connect(path) as file:
        file.execute("UPDATE systems SET positions = x'00' WHERE id = 4")
        file.execute("UPDATE systems SET data = x'ff00ff' WHERE id = 7")
        short = np.zeros((2, 3)).tobytes()
        file.execute("UPDATE systems SET forces = ? WHERE id = 9", (short,))
    found = read_all(AseDatabase(), path)
    assert [failure.frame for failure in found.failures] == [3, 6, 8]
    assert [frame.number for frame in found.frames] == [0, 1, 2, 4, 5, 7, 9]
    assert "(2, 3)" in found.failures[2].reason
    assert "3 atoms" in found.failures[2].reason


@pytest.mark.parametrize("kept", [0.9, 0.5])
def test_a_file_that_was_cut_off_is_told(kept, tmp_path, connect, row, read_all, load):
    for suffix in SUFFIXES:
        path = tmp_path / f"cut.{suffix}"
        write(connect(path), [row(i, 3) for i in range(200)])
        content = path.read_bytes()
        whole = read_all(AseDatabase(), path)
        size = len(content)
        if suffix == "aselmdb":  # its file is larger than what is in it
            size = len(content.rstrip(b"\0"))
        path.write_bytes(content[: int(kept * size)])
        found = read_all(AseDatabase(), path)
        assert found.scan.failures or found.failures
        for frame in found.frames:
            same = whole.frames[frame.number].positions
            np.testing.assert_array_equal(frame.positions, same)


def test_what_is_no_database_of_ase_is_not_recognised_nor_changed(tmp_path):
    path = tmp_path / "other.db"
    with sqlite3.connect(path) as file:
        file.execute("CREATE TABLE mine (id INTEGER)")
    before = path.read_bytes()
    (tmp_path / "other.json").write_text('{"a": 1}')
    (tmp_path / "text.db").write_text("no database")
    (tmp_path / "empty.db").touch()
    assert not any(recognises(other) for other in tmp_path.iterdir())
    assert path.read_bytes() == before
    assert sorted(other.name for other in tmp_path.iterdir()) == [
        "empty.db",
        "other.db",
        "other.json",
        "text.db",
    ]


def test_reading_leaves_nothing_beside_the_file(tmp_path, connect, row, read_all):
    for suffix in SUFFIXES:
        path = tmp_path / f"rows.{suffix}"
        write(connect(path), [row(0, 3)])
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    for suffix in SUFFIXES:
        read_all(AseDatabase(), tmp_path / f"rows.{suffix}")
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before
