"""A dataset at a mark has the samples of that moment, and nothing of what came later."""

import pickle

import numpy as np
import pytest

import zarrpipe as zp
from reliability.truth import numbers_of, samples, serials


def batch(start, count=20):
    return samples(numbers_of(start, count))


@pytest.fixture
def store(tmp_path):
    """Store with a mark at 20 of 60 samples."""
    place = tmp_path / "store.zarr"
    with zp.ZarrData(place) as sink:
        sink.write(batch(0))
        sink.mark("early")
        sink.write(batch(100))
        sink.write(batch(200))
    return place


def test_a_refresh_finds_nothing(store):
    dataset = zp.ZarrDataset(store, at="early")
    with zp.ZarrData(store) as sink:
        sink.write(batch(300))
    assert dataset.refresh() == 0
    assert len(dataset) == 20
    assert dataset.num_atoms.shape == (20,)
    assert serials(dataset.read(slice(None))) == numbers_of(0, 20).tolist()
    with pytest.raises(IndexError):
        dataset[20]


def test_pickles_and_states_stay_at_the_mark(store):
    dataset = zp.ZarrDataset(store, at="early")
    again = pickle.loads(pickle.dumps(dataset))
    assert again.refresh() == 0
    assert len(again) == 20
    other = zp.ZarrDataset(store, at="early")
    other.load_state_dict(dataset.state_dict())
    assert len(other) == 20


def test_a_condition_looks_at_the_marked_samples(store):
    here = zp.ZarrDataset(store, at="early", where="num_atoms > 3")
    every = zp.ZarrDataset(store, at="early")
    assert len(here) == int(np.count_nonzero(every.num_atoms > 3))


def test_a_resident_dataset(store):
    dataset = zp.ZarrDataset(store, at="early", resident="cpu")
    assert serials(dataset.read(slice(None))) == numbers_of(0, 20).tolist()


def test_sums_of_later_samples_are_not_used(store):
    data = zp.ZarrDataModule(store, at="early", split=(1.0, 0.0, 0.0), batch_size=8)
    alone = {}
    with zp.ZarrData(alone) as sink:
        sink.write(batch(0))
    expected = zp.ZarrDataModule(alone, split=(1.0, 0.0, 0.0), batch_size=8)
    assert data.statistics.num_samples == 20
    energies = expected.statistics.reference_energies
    assert dict(data.statistics.reference_energies) == pytest.approx(dict(energies))


def test_marks_of_parts(tmp_path):
    """A mark of a parent is the one that its parts have; parts without it came later."""
    parent = tmp_path / "run.zarr"
    for number, name in enumerate(("a", "b", "c")):
        with zp.ZarrData(parent, part=name) as sink:
            sink.write(batch(1000 * number))
            if name != "c":
                sink.mark("round-0")
            sink.write(batch(1000 * number + 100))
    dataset = zp.ZarrDataset(parent, at="round-0")
    expected = [*numbers_of(0, 20).tolist(), *numbers_of(1000, 20).tolist()]
    assert serials(dataset.read(slice(None))) == expected
    with zp.ZarrData(parent, part="d") as sink:
        sink.write(batch(5000))
    assert dataset.refresh() == 0
    assert len(pickle.loads(pickle.dumps(dataset))) == 40
    with pytest.raises(ValueError, match="no part of store 0 has a mark 'round-1'"):
        zp.ZarrDataset(parent, at="round-1")
