"""Nodes of torchdata and ours: announcements, threads, exact states, pipelines of one's own."""

import gc
import multiprocessing
import threading
import time

import numpy as np
import pytest
from torch.utils.data import DataLoader
from torchdata.nodes import (
    Loader,
    Mapper,
    MultiNodeWeightedSampler,
    ParallelMapper,
    Prefetcher,
    SamplerWrapper,
    StopCriteria,
)
from torchdata.stateful_dataloader import StatefulDataLoader

from zarrpipe import GraphBatchSampler, ZarrDataset, collate
from zarrpipe.nodes import BatchReader, LookAhead, SamplerNode, WorkerReader
from zarrpipe.training.loader import GraphLoader

OURS = ("_populate_queue", "_apply_udf", "_sort_worker")


def readers():
    """Threads of torchdata's nodes, which are named by what they run."""
    return {one for one in threading.enumerate() if any(name in one.name for name in OURS)}


@pytest.fixture(autouse=True)
def _nobody_is_left():
    yield
    gc.collect()  # a Loader of torchdata and its iterator refer to each other
    deadline = time.monotonic() + 60
    while readers():
        assert time.monotonic() < deadline, readers()
        time.sleep(0.01)
    assert multiprocessing.active_children() == []


def serials(batches):
    return [batch.serial.ravel().tolist() for batch in batches]


def flat(batches):
    return [serial for batch in batches for serial in batch]


def loader(path, prefetch, **settings):
    dataset = ZarrDataset(path)
    return GraphLoader(dataset, GraphBatchSampler(dataset, 4, **settings), prefetch=prefetch)


@pytest.mark.parametrize("prefetch", [1, 3, 100])
def test_a_thread_gives_the_same_batches(store, data, prefetch):
    for batch, expected in zip(loader(store[0], prefetch), loader(store[0], 0), strict=True):
        data.same(batch, expected)


def test_a_position_counts_what_was_handed_out(store):
    one, other = loader(store[0], 5), loader(store[0], 0)
    whole = serials(other)
    for step, _ in enumerate(one):
        if step == 2:
            break
    assert one.state_dict()["step"] == 3
    one.load_state_dict(one.state_dict())
    assert serials(one) == whole[3:]


def test_an_iteration_that_is_left_ends_the_thread(store):
    batches = iter(loader(store[0], 2))
    next(batches)
    (reader,) = readers()
    batches.close()
    assert not reader.is_alive()


@pytest.mark.parametrize("error", [SystemExit, KeyboardInterrupt])
def test_a_thread_that_is_to_exit_ends_the_iteration(store, error):
    def leave(batch):
        raise error(3)

    dataset = ZarrDataset(store[0], None, leave)
    with pytest.raises(RuntimeError, match=rf"in a thread raised {error.__name__}\(3\)"):
        list(GraphLoader(dataset, GraphBatchSampler(dataset, 4), prefetch=2))
    with pytest.raises(error):
        list(GraphLoader(dataset, GraphBatchSampler(dataset, 4)))


def test_a_negative_number_is_refused(store):
    with pytest.raises(ValueError, match="prefetch is -1"):
        loader(store[0], -1)


class Announced:
    """Stands for a dataset: notes what is announced."""

    def __init__(self):
        self.said = []

    def prefetch(self, index):
        self.said.append(index)


@pytest.mark.parametrize("size", [1, 100, 1024, 3000])
def test_samples_are_announced_before_they_are_given_and_once(size):
    dataset, given = Announced(), []
    sampler = GraphBatchSampler(range(10_000), size)
    expected = list(sampler.plan().order)
    for item in Loader(LookAhead(SamplerNode(sampler), dataset)):
        given.extend(item.samples)
        assert sum(map(len, dataset.said)) >= min(len(given) + 1024 - size, 10_000)
    assert given == expected == np.concatenate(dataset.said).tolist()
    assert min(map(len, dataset.said[:-1]), default=1024) >= 1024


def test_nothing_to_announce():
    dataset = Announced()
    assert list(Loader(LookAhead(SamplerNode(GraphBatchSampler(range(0), 3)), dataset))) == []
    assert dataset.said == []


def test_a_loader_announces_what_it_reads(store, monkeypatch):
    said = []
    monkeypatch.setattr(ZarrDataset, "prefetch", lambda _, index: said.extend(index.tolist()))
    assert flat(serials(loader(store[0], 0))) == said


def test_a_source_whose_state_cannot_go_back_is_refused():
    source = SamplerWrapper(GraphBatchSampler(range(3), 1))
    for node in (lambda: LookAhead(source, None), lambda: WorkerReader(source, None, 1)):
        with pytest.raises(TypeError, match="source is a SamplerWrapper, expected an IndexNode"):
            node()


def in_process(indices, dataset):
    return Mapper(LookAhead(indices, dataset, 8), BatchReader(dataset))


def prefetched(indices, dataset):
    return Prefetcher(in_process(indices, dataset), 3)


def in_threads(indices, dataset):
    return ParallelMapper(LookAhead(indices, dataset, 8), BatchReader(dataset), 2)


def in_workers(indices, dataset):
    return WorkerReader(LookAhead(indices, dataset, 8), dataset, 1)


PIPELINES = [in_process, prefetched, in_threads, in_workers]


def pipeline(nodes, path, batch_size=4, **settings):
    dataset = ZarrDataset(path)
    return Loader(nodes(SamplerNode(GraphBatchSampler(dataset, batch_size, **settings)), dataset))


@pytest.mark.parametrize("nodes", PIPELINES)
def test_a_pipeline_goes_on_exactly_where_its_state_was_taken(store, data, nodes):
    truth, again = loader(store[0], 0), pipeline(nodes, store[0])
    whole = [serials(truth), serials(truth)]
    assert serials(again) == whole[0]
    batches = iter(again)
    assert serials([next(batches) for _ in range(3)]) == whole[1][:3]
    state = again.state_dict()
    del batches, again
    data.append(store[0], data.batch(10, tag=1))  # what came later waits for the next epoch
    other = pipeline(nodes, store[0])
    other.load_state_dict(state)
    assert serials(other) == whole[1][3:]
    assert sum(map(len, serials(other))) == 40


@pytest.mark.parametrize("nodes", [in_process, prefetched])
def test_a_state_of_two_ranks_goes_on_on_one(store, nodes):
    ranks = [pipeline(nodes, store[0], rank=rank, world_size=2) for rank in (0, 1)]
    steps = [iter(one) for one in ranks]
    taken = [next(one) for one in steps for _ in range(3)]
    first, second = (one.state_dict() for one in ranks)
    assert first == second
    alone = pipeline(nodes, store[0])
    alone.load_state_dict(first)
    rest = flat(serials(alone))
    assert len(rest) == 16
    assert sorted(flat(serials(taken)) + rest) == list(range(40))
    del steps, ranks


def test_an_epoch_that_is_left_is_followed_by_the_next_one(store):
    truth, left = loader(store[0], 0), pipeline(in_process, store[0])
    whole = [serials(truth) for _ in range(3)]
    assert serials([next(iter(left))]) == whole[0][:1]
    assert serials(left) == whole[1]
    left.root.reset()
    assert serials([next(left.root)]) == whole[2][:1]


def test_samples_that_come_several_times_are_told_apart(store):
    sampler = GraphBatchSampler(ZarrDataset(store[0]), 8, samples_per_epoch=100)
    items = list(Loader(SamplerNode(sampler)))
    pairs = {pair for item in items for pair in zip(item.samples, item.copies, strict=True)}
    assert len(pairs) == 100


def weighted(paths):
    sources = {str(place): pipeline(in_process, path).root for place, path in enumerate(paths)}
    criterion = StopCriteria.ALL_DATASETS_EXHAUSTED
    return Loader(MultiNodeWeightedSampler(sources, {"0": 1.0, "1": 3.0}, criterion, seed=1))


def test_two_stores_are_mixed_by_a_node_of_torchdata(tmp_path, data):
    paths = [tmp_path / "a", tmp_path / "b"]
    for tag, path in enumerate(paths):
        data.append(path, data.batch(20, tag=tag))
    mixed = weighted(paths)
    whole = serials(mixed)
    assert sorted(flat(whole)) == [*range(20), *range(1000, 1020)]
    other = weighted(paths)
    batches = iter(other)
    for _ in range(4):
        next(batches)
    again = weighted(paths)
    again.load_state_dict(other.state_dict())
    assert serials(again) == whole[4:]


@pytest.mark.filterwarnings("ignore:'set_vital' is deprecated")  # torchdata 0.11 with torch 2.13
@pytest.mark.parametrize("workers", [0, 2])
def test_a_stateful_data_loader_of_torchdata_goes_on_exactly(store, workers):
    def stateful():
        dataset = ZarrDataset(store[0])
        return StatefulDataLoader(
            dataset,
            batch_sampler=GraphBatchSampler(dataset, 4, seed=5),
            collate_fn=collate,
            num_workers=workers,
            multiprocessing_context="forkserver" if workers else None,
        )

    truth = loader(store[0], 0, seed=5)
    whole = [serials(truth), serials(truth)]
    first, second = stateful(), stateful()
    assert serials(first) == whole[0]
    batches = iter(first)
    for _ in range(3):
        next(batches)
    second.load_state_dict(first.state_dict())
    assert serials(second) == whole[1][3:]


def test_a_data_loader_of_torch_gives_the_same_batches(store):
    dataset = ZarrDataset(store[0])
    usual = DataLoader(dataset, batch_sampler=GraphBatchSampler(dataset, 4), collate_fn=collate)
    truth = loader(store[0], 0)
    for _ in range(2):
        assert serials(usual) == serials(truth)
