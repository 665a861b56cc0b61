"""The sampler: each sample exactly once, over ranks, interruptions and changes of world size."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from zarrpipe.errors import ArgumentError
from zarrpipe.training.epoch.batch_plan import cut, epoch_order
from zarrpipe.training.sampler import GraphBatchSampler

sizes = st.integers(1, 200)
batch_sizes = st.integers(1, 40)
ranks = st.integers(1, 8)


def run(sampler: GraphBatchSampler, steps: int | None = None) -> list[list[int]]:
    batches = []
    for batch in sampler:
        batches.append(batch.tolist())
        if len(batches) == steps:
            break
    return batches


def flat(batches: list[list[int]]) -> list[int]:
    return [sample for batch in batches for sample in batch]


@given(sizes, batch_sizes, ranks, st.integers(0, 3), st.booleans())
def test_each_sample_once_and_as_many_batches_on_every_rank(count, batch_size, world, epoch, mix):
    if count < world:
        with pytest.raises(ValueError, match=f"{count} samples cannot give each of {world} ranks"):
            cut(count, batch_size, world)
        return
    by_rank = []
    for rank in range(world):
        sampler = GraphBatchSampler(
            range(count), batch_size, shuffle=mix, rank=rank, world_size=world
        )
        sampler.set_epoch(epoch)
        length = len(sampler)
        batches = run(sampler)
        assert len(batches) == length == len(sampler)
        assert all(batches)
        by_rank.append(batches)
    assert len({len(batches) for batches in by_rank}) == 1
    largest = max(len(batch) for batches in by_rank for batch in batches)
    assert largest <= max(batch_size, 2 if count % world else 1)
    every = [sample for batches in by_rank for sample in flat(batches)]
    assert sorted(every) == list(range(count))
    steps = [flat([batches[step] for batches in by_rank]) for step in range(length)]
    order = epoch_order(0, epoch, count).tolist() if mix else list(range(count))
    assert flat(steps) == order


@given(sizes, batch_sizes, ranks)
def test_no_more_steps_than_needed_and_full_batches_but_at_the_end(count, batch_size, world):
    if count < world:
        return
    filled = np.diff(cut(count, batch_size, world)).reshape(-1, world)
    assert (filled[:-2] == batch_size).all()
    assert np.ptp(filled[-1]) <= 1
    if batch_size > 1:
        assert len(filled) == -(-count // (batch_size * world))


@given(sizes, batch_sizes, ranks, ranks, st.data())
def test_resume_partitions_exactly_the_rest(count, batch_size, before, after, data):
    count = max(count, before)
    seed = data.draw(st.integers(0, 5))
    first = [
        GraphBatchSampler(range(count), batch_size, seed=seed, rank=rank, world_size=before)
        for rank in range(before)
    ]
    for sampler in first:
        sampler.set_epoch(3)
    length = len(first[0])
    stop = data.draw(st.integers(1, length))
    seen = [run(sampler, stop) for sampler in first]
    states = [sampler.state_dict() for sampler in first]
    assert all(state == states[0] for state in states)
    assert all(type(value) is int for value in states[0].values())
    rest = count - states[0]["position"]

    second = [
        GraphBatchSampler(range(count + 50), batch_size, rank=rank, world_size=after)
        for rank in range(after)
    ]
    for sampler in second:
        sampler.resample(np.arange(count + 50))
        sampler.load_state_dict(states[0])
        sampler.set_epoch(3)
    if rest == 0:
        assert len(second[0]) == length
        return
    if rest < after:
        with pytest.raises(ValueError, match="without repeats"):
            run(second[0])
        return
    lengths = {len(sampler) for sampler in second}
    later = [run(sampler) for sampler in second]
    assert {stop + len(batches) for batches in later} == lengths
    assert sorted(flat(map(flat, seen)) + flat(map(flat, later))) == list(range(count))
    if after == before:
        whole = GraphBatchSampler(range(count), batch_size, seed=seed, rank=0, world_size=after)
        whole.set_epoch(3)
        assert seen[0] + later[0] == run(whole)


@given(sizes, batch_sizes, st.lists(ranks, min_size=2, max_size=4), st.data())
def test_many_interruptions(count, batch_size, worlds, data):
    count = max(count, 8)
    state, seen, steps = None, [], 0
    for world in worlds:
        samplers = [
            GraphBatchSampler(range(count), batch_size, rank=rank, world_size=world)
            for rank in range(world)
        ]
        for sampler in samplers:
            if state is not None:
                sampler.load_state_dict(state)
        left = count - len(seen)
        if left < world:
            break
        stop = data.draw(st.integers(1, len(samplers[0]) - steps))
        for sampler in samplers:
            seen += flat(run(sampler, stop))
        steps += stop
        state = samplers[0].state_dict()
        assert (state["position"], state["step"]) == (len(seen), steps)
    assert len(set(seen)) == len(seen)
    if len(seen) < count:
        last = GraphBatchSampler(range(count), batch_size, rank=0, world_size=1)
        last.load_state_dict(state)
        seen += flat(run(last))
    assert sorted(seen) == list(range(count))


def test_epochs_and_seeds_give_other_orders_and_the_same_ones_again():
    def order(seed, epoch):
        sampler = GraphBatchSampler(range(100), 100, seed=seed, rank=0, world_size=1)
        sampler.set_epoch(epoch)
        return run(sampler)

    assert order(0, 0) == order(0, 0)
    assert len({str(order(seed, epoch)) for seed in range(3) for epoch in range(3)}) == 9


def test_the_order_of_an_epoch_is_that_of_earlier_checkpoints():
    assert epoch_order(7, 2, 8).tolist() == [6, 0, 2, 3, 7, 5, 1, 4]


def test_iterating_again_goes_on_to_the_next_epoch_and_restarts_an_unfinished_one():
    sampler = GraphBatchSampler(range(10), 3, rank=0, world_size=1)
    first = run(sampler)
    assert sampler.epoch == 0
    assert sampler.state_dict()["position"] == 10
    second = run(sampler)
    assert (sampler.epoch, second != first) == (1, True)
    sampler.set_epoch(0)
    assert run(sampler, 2) == first[:2]
    assert sampler.state_dict()["position"] == 6
    assert run(sampler) == first


def test_a_state_at_the_end_of_an_epoch_leads_to_the_next():
    sampler = GraphBatchSampler(range(10), 3, rank=0, world_size=1)
    first = run(sampler)
    other = GraphBatchSampler(range(10), 3, rank=0, world_size=1)
    other.load_state_dict(sampler.state_dict())
    assert run(other) == run(sampler) != first


def test_set_epoch_drops_a_loaded_position_of_another_epoch():
    sampler = GraphBatchSampler(range(10), 3, rank=0, world_size=1)
    run(sampler, 2)
    state = sampler.state_dict()
    sampler.load_state_dict(state)
    sampler.set_epoch(0)
    assert len(run(sampler)) == 2
    sampler.load_state_dict(state)
    sampler.set_epoch(1)
    assert len(run(sampler)) == 4


def test_an_epoch_keeps_the_samples_that_it_began_with():
    data = list(range(10))
    sampler = GraphBatchSampler(data, 2, rank=0, world_size=1)
    batches = iter(sampler)
    next(batches)
    data += range(10, 30)
    assert len(sampler) == 5
    assert len(list(batches)) == 4
    sampler.set_epoch(1)
    assert (len(sampler), sampler.num_samples) == (15, 30)
    assert sorted(flat(run(sampler))) == list(range(30))


def test_samples_from_an_index_and_from_a_longer_one_in_the_next_epoch():
    index = np.array([5, 3, 11])
    sampler = GraphBatchSampler(range(20), 2, index=index, shuffle=False, rank=0, world_size=1)
    assert run(sampler) == [[5, 3], [11]]
    sampler.resample([5, 3, 11, 7])
    assert len(sampler) == 2
    sampler.set_epoch(1)
    assert run(sampler) == [[5, 3], [11, 7]]


def test_a_batch_size_beyond_the_data_gives_one_batch():
    sampler = GraphBatchSampler(range(3), 64, rank=0, world_size=1)
    assert sorted(flat(run(sampler))) == [0, 1, 2]
    assert len(sampler) == 1


def test_no_samples_no_batches():
    sampler = GraphBatchSampler([], 64)
    assert (len(sampler), run(sampler)) == (0, [])


def test_a_state_of_more_samples_or_another_order_is_refused():
    sampler = GraphBatchSampler(range(10), 3)
    with pytest.raises(ValueError, match="an epoch of 10 samples, here are 4"):
        GraphBatchSampler(range(4), 3).load_state_dict(sampler.state_dict())
    with pytest.raises(ValueError, match="shuffle=True"):
        GraphBatchSampler(range(10), 3, shuffle=False).load_state_dict(sampler.state_dict())


def test_a_state_of_other_indices_is_refused():
    def over(index, count=40):
        return GraphBatchSampler(range(count), 3, index=index, rank=0, world_size=1)

    state = over([5, 3, 11]).state_dict()
    assert 0 < state["index"] < 1 << 63
    grown = over(np.array([5, 3, 11, 7], dtype=np.int16))
    grown.load_state_dict(state)
    assert grown.state_dict() == state
    for index in ([5, 11, 3], [5, 3, 12, 11], None):
        with pytest.raises(ValueError, match="the state is of other samples: give the data, the"):
            over(index).load_state_dict(state)
    del state["index"]  # as states had none once
    over([5, 11, 3]).load_state_dict(state)
    long = np.arange(3 << 19)
    state = over(long, len(long) + 1).state_dict()
    assert state["index"] == 0  # as without an index
    long[-1] += 1
    with pytest.raises(ValueError, match="of other samples"):
        over(long, len(long) + 1).load_state_dict(state)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_size": 0}, "batch_size is 0"),
        ({"batch_size": 2, "seed": -1}, "seed is -1"),
        ({"batch_size": 2, "rank": 1}, "give both or neither"),
        ({"batch_size": 2, "rank": 2, "world_size": 2}, "expected 0 to 1"),
    ],
)
def test_arguments_out_of_range_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        GraphBatchSampler(range(3), **arguments)


def test_advance_needs_a_plan():
    with pytest.raises(RuntimeError, match="start"):
        GraphBatchSampler(range(3), 1).advance()


def test_a_complete_epoch_is_no_obstacle_to_other_settings_and_samples():
    """A run goes on with other weights, budgets or sides where a round of it is done."""
    done = GraphBatchSampler(range(10), batch_size=3, seed=2)
    list(done)
    state = done.state_dict()
    half = GraphBatchSampler(range(10), batch_size=3, seed=2)
    next(iter(half))
    for other in ({"index": np.arange(7)}, {"samples_per_epoch": 5}, {"shuffle": False}):
        following = GraphBatchSampler(range(10), batch_size=3, seed=2, **other)
        following.load_state_dict(state)
        assert (following.epoch, len(following)) == (0, 4)
        assert list(following.plan().batches(0)) == []
        first = [batch.tolist() for batch in following]
        assert following.epoch == 1
        fresh = GraphBatchSampler(range(10), batch_size=3, seed=2, **other)
        fresh.set_epoch(1)
        assert first == [batch.tolist() for batch in fresh]
        with pytest.raises(ArgumentError):
            GraphBatchSampler(range(10), batch_size=3, **other).load_state_dict(half.state_dict())


def test_a_state_of_commit_4be0422_goes_on_where_it_was():
    state = {"seed": 3, "epoch": 2, "num_samples": 23, "index": 0, "group": 0, "blocks": 0}
    state |= {"shuffle": 1, "step": 3, "position": 12}
    state |= dict.fromkeys(("batch_size", "max_atoms", "max_edges", "balance"), 0)
    for set_epoch in (False, True):  # as Lightning does before it goes on
        sampler = GraphBatchSampler(range(23), batch_size=4, rank=0, world_size=1)
        sampler.load_state_dict(state)
        if set_epoch:
            sampler.set_epoch(2)
        rest = [batch.tolist() for batch in sampler]
        assert rest == [[6, 5, 13, 20], [22, 19, 8, 14], [11, 15, 21]]
