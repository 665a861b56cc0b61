"""Batches by budgets: each sample once, budgets kept and filled, ranks in step, resumable."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from zarrpipe.dataset.blocks import Blocks
from zarrpipe.training.epoch.packing import Costs, deal_steps, pack, pack_in_order, shared
from zarrpipe.training.sampler import GraphBatchSampler


class Sizes:
    """As much of a dataset as a sampler asks for."""

    def __init__(self, atoms, edges=None):
        self.num_atoms = np.asarray(atoms, dtype=np.int64)
        self.num_edges = self.num_atoms * 3 if edges is None else np.asarray(edges, dtype=np.int64)

    def __len__(self):
        return len(self.num_atoms)


def held(values, order, bounds):
    return np.array([values[order[a:b]].sum() for a, b in itertools.pairwise(bounds)])


@given(
    atoms=st.lists(st.integers(1, 60), min_size=1, max_size=300),
    ratio=st.lists(st.integers(0, 40), min_size=1, max_size=9),
    budgets=st.tuples(
        st.none() | st.integers(1, 20), st.integers(60, 400), st.none() | st.integers(2400, 9000)
    ),
    worlds=st.lists(st.integers(1, 8), min_size=1, max_size=3),
    shuffle=st.booleans(),
    epoch=st.integers(0, 3),
    data=st.data(),
)
def test_each_sample_once_within_budgets_over_ranks_and_interruptions(
    atoms, ratio, budgets, worlds, shuffle, epoch, data
):
    most, max_atoms, max_edges = budgets
    edges = np.array(atoms) * np.resize(ratio, len(atoms))
    sizes, state, seen = Sizes(atoms, edges), None, []
    for world in worlds:
        ranks = []
        for rank in range(world):
            sampler = GraphBatchSampler(
                sizes,
                most,
                max_atoms=max_atoms,
                max_edges=max_edges,
                shuffle=shuffle,
                rank=rank,
                world_size=world,
            )
            sampler.set_epoch(epoch)
            if state is not None:
                sampler.load_state_dict(state)
            ranks.append(sampler)
        rest = len(atoms) - len(seen)
        if rest < world:
            break
        try:
            length = len(ranks[0])
        except ValueError as error:
            assert "use fewer ranks" in str(error)  # noqa: PT017  some draws cannot be shared
            break
        done = 0 if state is None else state["step"]
        stop = data.draw(st.integers(1, length - done))
        by_rank = [list(itertools.islice(iter(sampler), stop)) for sampler in ranks]
        assert {len(batches) for batches in by_rank} == {stop}
        for batch in itertools.chain(*by_rank):
            assert 1 <= len(batch) <= (most or len(batch))
            assert sizes.num_atoms[batch].sum() <= max_atoms
            assert max_edges is None or edges[batch].sum() <= max_edges
            seen += batch.tolist()
        states = [sampler.state_dict() for sampler in ranks]
        assert all(one == states[0] for one in states)
        state = states[0]
        assert state["position"] == len(seen)
        if stop == length - done:
            break
    else:
        last = GraphBatchSampler(
            sizes, most, max_atoms=max_atoms, max_edges=max_edges, shuffle=shuffle
        )
        last.load_state_dict(state)
        seen += np.concatenate(list(last)).tolist()
    assert len(set(seen)) == len(seen)
    if state is not None and len(seen) == len(atoms):
        assert sorted(seen) == list(range(len(atoms)))


def test_budgets_of_atoms_are_filled_and_ranks_are_in_step():
    atoms = np.random.default_rng(0).integers(20, 201, 10_000)
    costs = Costs(atoms[None], np.array([1024]))
    order, bounds = pack(costs)
    assert np.array_equal(np.sort(order), np.arange(10_000))
    filled = held(atoms, order, bounds)
    assert filled.max() <= 1024
    assert filled.mean() / 1024 > 0.97
    steps = filled[: len(filled) // 8 * 8].reshape(-1, 8)
    assert (steps.max(1) / steps.mean(1) - 1).max() < 0.05


def test_sizes_of_all_kinds_fill_a_budget_that_the_largest_only_just_fits():
    atoms = np.clip(np.random.default_rng(0).lognormal(4, 0.8, 20_000), 1, 2000).astype(int)
    order, bounds = pack(Costs(atoms[None], np.array([2048])))
    filled = held(atoms, order, bounds)
    assert filled.max() <= 2048
    assert filled.mean() / 2048 > 0.97


def test_two_budgets_are_kept_and_the_tighter_one_is_filled():
    rng = np.random.default_rng(0)
    atoms = rng.integers(20, 201, 10_000)
    edges = (atoms * (12 + atoms / 20) * rng.normal(1, 0.08, 10_000)).astype(int)
    order, bounds = pack(Costs(np.stack([atoms, edges]), np.array([1024, 15 * 1024])))
    assert held(atoms, order, bounds).max() <= 1024
    assert held(edges, order, bounds).max() <= 15 * 1024
    assert held(edges, order, bounds).mean() / (15 * 1024) > 0.95


def test_balance_gives_batches_of_one_size_as_many_atoms():
    atoms = np.random.default_rng(0).lognormal(4, 0.6, 6400).astype(int) + 1
    plain = GraphBatchSampler(Sizes(atoms), 32, rank=0, world_size=1)
    level = GraphBatchSampler(Sizes(atoms), 32, balance=True, rank=0, world_size=1)
    spread = []
    for sampler in (plain, level):
        batches = list(sampler)
        assert {len(batch) for batch in batches} == {32}
        assert sorted(np.concatenate(batches)) == list(range(6400))
        held = np.array([atoms[batch].sum() for batch in batches])
        steps = held.reshape(-1, 8)
        spread.append((steps.max(1) / steps.mean(1) - 1).mean())
    assert spread[1] < 0.01 < spread[0]


def test_epochs_and_seeds_are_packed_anew_and_the_same_way_again():
    sizes = Sizes(np.random.default_rng(0).integers(5, 50, 300))

    def batches(seed, epoch):
        sampler = GraphBatchSampler(sizes, max_atoms=200, seed=seed, rank=0, world_size=1)
        sampler.set_epoch(epoch)
        return [batch.tolist() for batch in sampler]

    assert batches(0, 0) == batches(0, 0)
    assert len({str(batches(seed, epoch)) for seed in range(2) for epoch in range(3)}) == 6


def test_without_shuffle_the_order_stays():
    sampler = GraphBatchSampler(
        Sizes([4, 5, 6, 1, 1, 9]), max_atoms=10, shuffle=False, rank=0, world_size=1
    )
    assert [batch.tolist() for batch in sampler] == [[0, 1], [2, 3, 4], [5]]


@given(
    st.lists(st.integers(1, 9), min_size=1, max_size=40).map(np.array),
    st.integers(1, 8),
)
def test_batches_are_cut_until_every_rank_has_as_many(sizes, world):
    bounds = np.concatenate([[0], np.cumsum(sizes)])
    possible = int(sizes.sum()) >= -(-len(sizes) // world) * world
    if not possible:
        with pytest.raises(ValueError, match="use fewer ranks"):
            shared(bounds, world)
        return
    cut = shared(bounds, world)
    assert set(bounds) <= set(cut)
    assert (np.diff(cut) > 0).all()
    assert len(cut) - 1 == -(-len(sizes) // world) * world
    whole = len(sizes) // world * world
    if int((sizes[whole:] - 1).sum()) >= -len(sizes) % world:
        assert np.array_equal(cut[: whole + 1], bounds[: whole + 1])


def test_the_last_steps_are_as_even_as_others():
    atoms = np.random.default_rng(0).integers(20, 201, 3000)
    for world in (2, 3, 5, 8):
        for count in (3000, 2950, 2900):
            sampler = GraphBatchSampler(
                Sizes(atoms[:count]), max_atoms=1024, rank=0, world_size=world
            )
            plan = sampler.plan()
            assert np.array_equal(np.sort(plan.order), np.arange(count))
            filled = held(atoms, plan.order, plan.bounds)
            assert filled.max() <= 1024
            steps = filled.reshape(-1, world)
            assert (steps.max(1) / steps.mean(1) - 1).max() < 0.06


def test_steps_that_would_not_keep_a_budget_are_not_dealt():
    each = np.array([[9, 9, 1, 1, 9, 1], [1, 1, 9, 9, 1, 9]])
    assert deal_steps(Costs(each, np.array([10, 10])), 1, 4) is None
    assert deal_steps(Costs(each, np.array([18, 10])), 1, 4) is not None
    assert deal_steps(Costs(each, np.array([18, 18])), 1, 7) is None  # a rank would get nothing


def test_two_steps_share_what_they_have():
    atoms = np.array([5, 5, 5, 5, 1, 1, 1, 1])
    costs = Costs(atoms[None], np.array([10]))
    order, bounds = deal_steps(costs, 2, 2)
    assert held(atoms, order, bounds).tolist() == [10, 5, 5, 4]
    assert set(order[:3]) == {0, 1, 2}
    order, bounds = deal_steps(costs, 2, 2, least_before_last=4)
    assert held(atoms, order, bounds).tolist() == [10, 10, 2, 2]
    assert deal_steps(costs, 2, 2, least_before_last=7) is None


def test_a_sample_larger_than_a_budget_is_named_before_training():
    sizes = Sizes([4, 12, 5], [10, 10, 40])
    with pytest.raises(ValueError, match="sample 1 has 12 atoms, more than max_atoms=10: raise"):
        GraphBatchSampler(sizes, max_atoms=10)
    with pytest.raises(ValueError, match="sample 2 has 40 edges, more than max_edges=39"):
        GraphBatchSampler(sizes, max_edges=39)
    kept = GraphBatchSampler(sizes, max_atoms=10, index=[0, 2], rank=0, world_size=1)
    assert sorted(np.concatenate(list(kept))) == [0, 2]


@pytest.mark.parametrize(
    ("arguments", "kind", "message"),
    [
        ({}, ValueError, "expected batch_size, max_atoms or max_edges"),
        ({"max_atoms": 0}, ValueError, "max_atoms is 0, expected an integer of at least 1"),
        ({"max_edges": 2.0}, TypeError, "max_edges is 2.0, expected an integer"),
        ({"batch_size": True}, TypeError, "batch_size is True, expected an integer"),
    ],
)
def test_budgets_out_of_range_are_named(arguments, kind, message):
    with pytest.raises(kind, match=message):
        GraphBatchSampler(Sizes([1, 2]), **arguments)


def test_a_state_of_other_budgets_is_refused():
    sizes = Sizes([4, 5, 6])
    state = GraphBatchSampler(sizes, max_atoms=10).state_dict()
    assert all(type(value) is int for value in state.values())
    with pytest.raises(ValueError, match="with max_atoms=10 and here it is 12"):
        GraphBatchSampler(sizes, max_atoms=12).load_state_dict(state)
    with pytest.raises(ValueError, match="with max_atoms=10 and here it is 0"):
        GraphBatchSampler(sizes, 3).load_state_dict(state)


def test_a_state_from_before_there_were_budgets_is_taken():
    sampler = GraphBatchSampler(range(10), 3, rank=0, world_size=1)
    next(iter(sampler))
    state = sampler.state_dict()
    for name in ("batch_size", "max_atoms", "max_edges", "balance"):
        del state[name]
    other = GraphBatchSampler(range(10), 3, rank=0, world_size=1)
    other.load_state_dict(state)
    assert len(np.concatenate(list(other))) == 7


def test_growth_is_packed_in_the_next_epoch():
    sizes = Sizes([5] * 20)
    sampler = GraphBatchSampler(sizes, max_atoms=20, rank=0, world_size=1)
    batches = iter(sampler)
    next(batches)
    sizes.num_atoms = np.array([5] * 50)
    assert (len(sampler), len(list(batches))) == (5, 4)
    sampler.set_epoch(1)
    assert sorted(np.concatenate(list(sampler))) == list(range(50))


def test_no_samples_no_batches():
    sampler = GraphBatchSampler(Sizes([]), max_atoms=5)
    assert (len(sampler), list(sampler)) == (0, [])
    assert pack_in_order(Costs(np.zeros((1, 0), np.int64), np.array([3]))).tolist() == [0]


def test_blocks_and_budgets():
    """Batches of data that exceed a cache are put together of samples that are near each other."""
    atoms = np.random.default_rng(0).integers(5, 50, 8192)
    blocks = Blocks(np.arange(0, 8193, 64), 32)
    sampler = GraphBatchSampler(
        Sizes(atoms), max_atoms=500, blocks=lambda count: blocks, rank=0, world_size=1
    )
    plan = sampler.plan()
    assert plan.ahead == 2048
    assert sorted(plan.order) == list(range(8192))
    touched = [len(set(plan.order[i : i + 1024] // 64)) for i in range(0, 8192, 1024)]
    assert max(touched) <= 3 * 32
    assert plan.bounds[-1] == 8192
