"""A reader opens a store in an object store in three round trips, and sees one state of it."""

import asyncio

import numpy as np
import pytest
from obstore.store import MemoryStore
from zarr.storage import ObjectStore

import zarrpipe as zp
from reliability.truth import everything, numbers_of, samples, serials, wrong_values
from zarrpipe.store.read import snapshot

SLOW = 0.3  # seconds of a request, in which all that are concurrent have begun


@pytest.fixture
def place():
    return ObjectStore(MemoryStore())


def write(place, *starts, count=10, close=True):
    sink = zp.ZarrData(place, stage=False)
    for start in starts:
        sink.write(samples(numbers_of(start, count)))
    if close:
        sink.close()
    return sink


@pytest.fixture
def slow_down(monkeypatch):
    """Make requests slow, and list each: its key, and its place in a chain of requests."""
    found = []

    def slowed(usual):
        async def slow(self, key, *more):
            depth = 1 + max((depth for _, depth, ended in found if ended), default=0)
            entry = [key, depth, False]
            found.append(entry)
            await asyncio.sleep(SLOW)
            answer = await usual(self, key, *more)
            entry[2] = True
            return answer

        return slow

    def begin():
        for name in ("get", "exists"):
            monkeypatch.setattr(ObjectStore, name, slowed(getattr(ObjectStore, name)))
        return found

    return begin


def depth_of(requests):
    return max(depth for _, depth, _ in requests)


def test_a_closed_store_is_opened_in_three_round_trips(place, slow_down):
    write(place, 0, 1000)
    requests = slow_down()
    dataset = zp.ZarrDataset(place)
    assert len(dataset) == 20
    assert depth_of(requests) == 3
    keys = [key for key, *_ in requests]
    assert {key: keys.count(key) for key in keys} == dict.fromkeys(keys, 1) | {"zarr.json": 2}


@pytest.mark.parametrize("edges", [True, False])
def test_many_chunks_of_pointers_are_fetched_at_once(place, slow_down, monkeypatch, edges):
    """As of a million samples, whose pointers are in 62 chunks each."""
    one = zp.AtomicData(np.zeros((3, 3)), [8, 1, 1], neighbor_list=[[0, 1]] if edges else None)
    with zp.ZarrData(place, config={"meta": {"chunk_size": 4}}) as sink:
        sink.write(zp.Batch.from_data_list([one] * 240))
    requests = slow_down()
    monkeypatch.setattr("zarrpipe.store.read.open_ahead._CHUNK_ROWS", 4)
    assert len(zp.ZarrDataset(place)) == 240
    assert depth_of(requests) == 3
    assert sum(key.startswith("meta/atoms_ptr/c/") for key, *_ in requests) == 61


def test_a_store_that_grows_is_opened_and_followed(place):
    sink = write(place, 0, close=False)
    dataset = zp.ZarrDataset(place)
    assert dataset.read(range(10)).serial.tolist() == numbers_of(0, 10).tolist()
    for start, call in ((1000, None), (2000, "flush"), (3000, None), (4000, "close")):
        sink.write(samples(numbers_of(start, 10)))
        if call is not None:
            getattr(sink, call)()
        assert dataset.refresh() == 10
        for found in (dataset.read(range(len(dataset))), everything(place)):
            starts = range(0, start + 1, 1000)
            expected = np.concatenate([numbers_of(first, 10) for first in starts])
            assert serials(found) == expected.tolist()
            assert wrong_values(found) is None


@pytest.mark.parametrize("call", [None, "flush", "close"])
@pytest.mark.parametrize(
    "config",
    [
        {"meta": {"chunk_size": 4}},
        {"meta": {"chunk_size": 16_384}},
        {"field_overrides": {"atoms_ptr": {"chunk_size": 4}}},
    ],
    ids=["many chunks", "one chunk", "many chunks of the commit log"],
)
@pytest.mark.parametrize("before", ["flushed", "never flushed", "flushed and extended"])
def test_samples_that_are_written_while_it_is_opened(place, monkeypatch, call, config, before):
    """After documents and pointers were fetched: what is seen of them is whole."""
    sink = zp.ZarrData(place, config=config, stage=False)
    sink.write(samples(numbers_of(0, 5)))
    if before != "never flushed":
        sink.flush()
    first = 5
    if before == "flushed and extended":
        sink.write(samples(numbers_of(100, 5)))
        first = 10
    fetch_ahead, written = snapshot.fetch_ahead, []

    def write_meanwhile(root, attributes, known):
        fetch_ahead(root, attributes, known)
        if len(written) < 3:
            written.append(1000 * (len(written) + 1))
            sink.write(samples(numbers_of(written[-1], 10)))
            if call == "close" and len(written) == 3:
                sink.close()
            elif call == "flush":
                sink.flush()

    monkeypatch.setattr(snapshot, "fetch_ahead", write_meanwhile)
    found = everything(place)
    numbers = serials(found)
    begin = [numbers_of(0, 5), numbers_of(100, 5)][: first // 5]
    expected = np.concatenate([*begin, *(numbers_of(start, 10) for start in (1000, 2000, 3000))])
    assert numbers == expected[: len(numbers)].tolist()
    assert len(numbers) >= first
    assert wrong_values(found) is None
    assert len(written) >= 1


def test_a_store_that_is_emptied_while_it_is_opened(place, monkeypatch):
    sink = write(place, 0, 1000, close=False)
    sink.flush()
    fetch_ahead, emptied = snapshot.fetch_ahead, []

    def empty_meanwhile(root, attributes, known):
        fetch_ahead(root, attributes, known)
        if not emptied:
            emptied.append(True)
            sink.zero()
            sink.write(samples(numbers_of(5000, 7)))

    monkeypatch.setattr(snapshot, "fetch_ahead", empty_meanwhile)
    found = everything(place)
    assert serials(found) == numbers_of(5000, 7).tolist()
    assert wrong_values(found) is None
