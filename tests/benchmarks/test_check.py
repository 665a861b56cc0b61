"""Data that are the same each time, and engines that are caught when they are wrong."""

import dataclasses

import numpy as np
import pytest

from benchmarks import reads
from benchmarks.check import WrongValuesError, check_batch, expected
from benchmarks.data import LEVELS, SETS, blocks, make, shuffled_batches
from benchmarks.engines import chosen
from benchmarks.engines.memory import ENGINES, GatherReader
from benchmarks.keeping import kept
from benchmarks.settings import SIZES, Settings

EVERYTHING = dataclasses.replace(SETS["edges"], bonds=True)


@pytest.fixture(scope="module")
def samples():
    return make(EVERYTHING, 6, seed=3)


def test_equal_arguments_give_equal_samples(samples):
    again, other = make(EVERYTHING, 6, seed=3), make(EVERYTHING, 6, seed=4)
    for name, values in samples.fields.items():
        np.testing.assert_array_equal(values, again.fields[name])
        assert values.shape != other.fields[name].shape or (values != other.fields[name]).any()
    assert list(samples.fields) == list(LEVELS)


def test_samples_are_as_declared(samples):
    counts = np.diff(samples.atoms_ptr)
    assert 20 <= counts.min() <= counts.max() <= 200
    np.testing.assert_array_equal(np.diff(samples.edges_ptr), 30 * counts)
    for record, count in zip(samples.records(), counts, strict=True):
        assert record["positions"].shape == (count, 3)
        assert record["neighbor_list"].min() >= 0
        assert record["neighbor_list"].max() < count
    assert samples.fields["positions"].dtype == np.float32
    assert samples.fields["atomic_numbers"].dtype == np.int64
    assert samples.fields["energy"].dtype == np.float64
    assert samples.nbytes == samples.batch_bytes(np.arange(6))


def test_bonds_are_beside_the_same_molecules():
    plain, bonds = make(SETS["molecules"], 40, seed=3), make(SETS["bonds"], 40, seed=3)
    for name, values in plain.fields.items():
        np.testing.assert_array_equal(values, bonds.fields[name])
    assert set(bonds.fields) - set(plain.fields) == {"bond_atoms", "bond_order", "config_type"}
    assert abs(bonds.ptr["bond"][-1] - bonds.atoms_ptr[-1]) < 40
    for record in bonds.records():
        pairs = record["bond_atoms"]
        assert pairs.min() >= 0
        assert pairs.max() < len(record["positions"])
        assert (pairs[:, 0] != pairs[:, 1]).all()


def test_parts_make_the_whole(samples):
    records = [record for part in samples.parts(4) for record in part.records()]
    assert len(records) == 6
    for found, right in zip(records, samples.records(), strict=True):
        for name, values in right.items():
            np.testing.assert_array_equal(found[name], values)


def test_blocks_reach_the_bytes_that_are_asked_for():
    made = list(blocks(SETS["large"], 3_000_000, seed=0, block=300))
    total = sum(part.nbytes for part in made)
    assert len(made) > 1
    assert 2_800_000 < total < 3_100_000


def test_batches_are_epochs_of_every_sample():
    batches = shuffled_batches(10, 3, 18, seed=1)
    assert [len(batch) for batch in batches] == [3] * 6
    for epoch in (batches[:3], batches[3:]):
        assert len(set(np.concatenate(epoch).tolist())) == 9
    assert [len(batch) for batch in shuffled_batches(10, 64, 20, seed=1)] == [10, 10]


def test_the_floor_is_right(samples):
    index = np.array([4, 0, 4, 2])
    reader = GatherReader(samples)
    found = reader.arrays(reader.read(reader.request(index)))
    check_batch("floor", samples, index, found)


def test_another_dtype_of_equal_values_is_right(samples):
    index = np.array([1, 5])
    found = expected(samples, index)
    found["atomic_numbers"] = found["atomic_numbers"].astype(np.uint8)
    found["positions"] = found["positions"].astype(np.float64)
    check_batch("engine", samples, index, found)


def test_rounded_floats_are_right_only_where_the_engine_says_so(samples):
    index = np.array([1, 5])
    found = expected(samples, index)
    found["energy"] = found["energy"].astype(np.float32)
    check_batch("engine", samples, index, found, single=True)
    with pytest.raises(WrongValuesError, match="engine: 'energy' has"):
        check_batch("engine", samples, index, found)


@pytest.mark.parametrize("name", [*LEVELS, "batch_ptr"])
@pytest.mark.parametrize("damage", ["missing", "value", "shape"])
def test_a_wrong_batch_is_caught(samples, name, damage):
    index = np.array([3, 1])
    found = expected(samples, index)
    if damage == "missing":
        del found[name]
    elif damage == "shape":
        found[name] = found[name][:-1]
    else:
        found[name] = found[name].copy()
        last = found[name].reshape(-1)
        last[-1] = not last[-1] if last.dtype == bool else last[-1] + 1
    with pytest.raises(WrongValuesError, match=rf"engine: .*'{name}'"):
        check_batch("engine", samples, index, found)


class Swapped(GatherReader):
    """Reads the right samples in another order."""

    def read(self, request):
        return super().read(request[::-1])


def test_a_wrong_engine_is_not_timed(monkeypatch, tmp_path):
    wrong = dataclasses.replace(ENGINES[0], open=lambda samples, _: Swapped(samples))
    monkeypatch.setattr(reads, "chosen", lambda _: [wrong])
    monkeypatch.setattr(reads, "timed", lambda *_, **__: pytest.fail("it was timed"))
    settings = Settings(tmp_path, SIZES["small"], data=("molecules",), batch_sizes=(8,))
    with pytest.raises(WrongValuesError, match="gather from RAM: 'positions'"):
        reads.run(settings)


def test_an_unknown_engine():
    assert [engine.name for engine in chosen(("memory copy", "zarrpipe"))] == [
        "zarrpipe",
        "memory copy",
    ]
    with pytest.raises(ValueError, match="no engine 'zarpipe'; there are zarrpipe, "):
        chosen(("zarpipe",))


def test_what_is_kept_is_remade_when_it_should_differ(tmp_path):
    made = []

    def write(place):
        made.append(place)
        (place / "content").write_text(str(len(made)))

    for fingerprint, content in (("a", "1"), ("a", "1"), ("b", "2"), ("b", "2")):
        assert (kept(tmp_path, "store", fingerprint, write) / "content").read_text() == content

    def fail(place):
        raise OSError

    with pytest.raises(OSError):
        kept(tmp_path, "store", "c", fail)
    assert not (tmp_path / "store").exists()
    assert (kept(tmp_path, "store", "c", write) / "content").read_text() == "3"
