"""Reading ahead in a thread, and word of what is read next."""

import threading

import numpy as np
import pytest

from zarrpipe.dataset.zarr_dataset import ZarrDataset
from zarrpipe.training.loader import GraphLoader
from zarrpipe.training.sampler import GraphBatchSampler
from zarrpipe.training.workers.prefetch import advised, read_ahead


def readers():
    return {one for one in threading.enumerate() if one.name == "zarrpipe-read-ahead"}


@pytest.fixture(autouse=True)
def _no_thread_is_left():
    before = readers()
    yield
    assert readers() <= before


def loader(path, prefetch, **settings):
    dataset = ZarrDataset(path)
    return GraphLoader(dataset, GraphBatchSampler(dataset, 4, **settings), prefetch=prefetch)


@pytest.mark.parametrize("prefetch", [1, 3, 100])
def test_a_thread_gives_the_same_batches(store, data, prefetch):
    for batch, expected in zip(loader(store[0], prefetch), loader(store[0], 0), strict=True):
        data.same(batch, expected)


def test_a_position_counts_what_was_handed_out(store):
    one, other = loader(store[0], 5), loader(store[0], 0)
    whole = [batch.serial.tolist() for batch in other]
    for step, _ in enumerate(one):
        if step == 2:
            break
    assert one.state_dict()["step"] == 3
    one.load_state_dict(one.state_dict())
    assert [batch.serial.tolist() for batch in one] == whole[3:]


def test_no_more_than_asked_for_is_made_ahead():
    made = []
    items = read_ahead((made.append(i) or i for i in range(50)), 3)
    for expected in range(10):
        assert next(items) == expected
        assert len(made) <= expected + 5
    items.close()
    assert len(made) < 20


def test_what_is_raised_arrives_after_what_came_before():
    items = read_ahead((1 // (3 - i) for i in range(5)), 10)
    assert [next(items) for _ in range(3)] == [0, 0, 1]
    with pytest.raises(ZeroDivisionError):
        next(items)


def test_an_iteration_that_is_left_ends_the_thread(store):
    before = readers()
    batches = iter(loader(store[0], 2))
    next(batches)
    (reader,) = readers() - before
    batches.close()
    assert not reader.is_alive()


def test_nothing_to_read():
    assert list(read_ahead(iter(()), 2)) == []
    assert list(advised(iter(()), pytest.fail)) == []


@pytest.mark.parametrize("size", [1, 100, 1024, 3000])
def test_word_comes_before_the_batch_and_once_for_each_sample(size):
    order = np.random.default_rng(0).permutation(10_000)
    batches = [order[start : start + size] for start in range(0, len(order), size)]
    said = []
    given = 0
    for batch, expected in zip(advised(iter(batches), said.append), batches, strict=True):
        assert np.array_equal(batch, expected)
        given += len(batch)
        assert sum(map(len, said)) >= min(given + 1024 - size, len(order))
    assert np.array_equal(np.concatenate(said), order)
    assert min(map(len, said[:-1]), default=1024) >= 1024


def test_a_dataset_is_told_what_will_be_read(store, monkeypatch):
    said = []
    monkeypatch.setattr(ZarrDataset, "prefetch", lambda _, index: said.extend(index.tolist()))
    batches = loader(store[0], 0)
    assert [serial for batch in batches for serial in batch.serial.ravel().tolist()] == said


def test_a_negative_number_is_refused(store):
    with pytest.raises(ValueError, match="prefetch is -1"):
        loader(store[0], -1)
