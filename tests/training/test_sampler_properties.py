"""The sampler under all of its settings at once, over ranks, interruptions and growth.

Whatever the budgets, weights, blocks and ranks, and wherever an epoch was interrupted to go on with
another number of ranks: it has each sample exactly once, or exactly as often as it was drawn.
"""

import itertools
from collections import Counter
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import numpy as np
from hypothesis import event, given
from hypothesis import strategies as st

from zarrpipe.dataset.blocks import Blocks
from zarrpipe.training.sampler import GraphBatchSampler

STORES, ROUNDS = 3, 4


class Samples:
    """As much of a growing dataset of several stores as a sampler asks for."""

    num_stores = STORES

    def __init__(self, seed: int, count: int, later: int) -> None:
        random, every = np.random.default_rng(seed), count + later
        self._atoms = random.integers(1, 60, every)
        self._edges = self._atoms * random.integers(0, 40, every)
        self._stores = random.integers(0, STORES, every)
        self.fields = {
            "round": random.integers(0, ROUNDS, (every, 1)),
            "weight": random.integers(0, 4, every) * random.random(every),
        }
        self._lacks = random.random(every) < 0.1
        self.fields["weight"][0] = 1.0
        self.count = count

    def __len__(self) -> int:
        return self.count

    @property
    def num_atoms(self):
        return self._atoms[: self.count]

    @property
    def num_edges(self):
        return self._edges[: self.count]

    def system_field(self, name, index):
        return self.fields[name][: self.count][index]

    def present(self, name, index):
        lacks = self._lacks if name == "round" else np.zeros_like(self._lacks)
        return ~lacks[: self.count][index]

    def store_of(self, index):
        return self._stores[: self.count][index]

    def blocks(self, count):
        size = max(1, count // 9)
        return Blocks(np.unique(np.append(np.arange(0, count, size), count)), 3)


@dataclass(frozen=True)
class Case:
    """Settings of a sampler and what it samples from."""

    seed: int
    count: int
    later: int
    split: bool
    blocks: bool
    settings: dict[str, Any] = field(default_factory=dict)

    def samples(self) -> Samples:
        return Samples(self.seed, self.count, self.later)

    def index(self, data: Samples) -> Any:
        """Indices of a side of a split, in which the first sample is."""
        every = np.arange(len(data))
        return every[(every * 7 + self.seed) % 5 > 0] if self.split else None

    def sampler(self, data: Samples, rank: int = 0, world: int = 1) -> GraphBatchSampler:
        return GraphBatchSampler(
            data,
            **self.settings,
            seed=self.seed,
            index=self.index(data),
            blocks=data.blocks if self.blocks else None,
            rank=rank,
            world_size=world,
        )


shares = st.sampled_from([0.0, 0.2, 0.5, 1.0, 3.0])
by_store = st.tuples(st.just(1.0), *[shares] * (STORES - 1)).map(list)
by_value = st.dictionaries(st.integers(0, ROUNDS + 1), shares, min_size=1, max_size=3).map(
    lambda named: {"round": {**named, "other": 0.7}}
)


@st.composite
def cases(draw):
    budgets = draw(
        st.fixed_dictionaries(
            {"batch_size": st.none() | st.integers(1, 30)},
            optional={"max_atoms": st.integers(60, 300), "max_edges": st.integers(2400, 9000)},
        )
    )
    if set(budgets.values()) == {None}:
        budgets["batch_size"] = 7
    settings = draw(
        st.fixed_dictionaries(
            {
                "balance": st.booleans(),
                "shuffle": st.booleans(),
                "weights": st.none() | st.just("weight") | by_store | by_value,
                "samples_per_epoch": st.none() | st.integers(1, 400),
            }
        )
    )
    return Case(
        seed=draw(st.integers(0, 9999)),
        count=draw(st.integers(8, 250)),
        later=draw(st.integers(0, 60)),
        split=draw(st.booleans()),
        blocks=draw(st.booleans()),
        settings={**budgets, **settings},
    )


def once(sampler: GraphBatchSampler, epoch: int) -> Counter[int]:
    """How often each sample is in an epoch that one rank goes through."""
    sampler.set_epoch(epoch)
    return Counter(np.concatenate([*sampler, np.zeros(0, np.int64)]).tolist())


def exact(case: Case, data: Samples) -> dict[int, Fraction]:
    """How often each sample is expected, without rounding."""
    index = case.index(data)
    samples = range(len(data)) if index is None else index.tolist()
    weights, total = case.settings["weights"], case.settings["samples_per_epoch"]
    if weights is None and total is None:
        return dict.fromkeys(samples, Fraction(1))
    total = total or len(samples)
    if isinstance(weights, str):
        each = {i: Fraction(float(data.fields["weight"][i])) for i in samples}
        return {i: total * each[i] / sum(each.values()) for i in samples}
    if weights is None:
        return dict.fromkeys(samples, Fraction(total, len(samples)))
    if isinstance(weights, dict):
        named = weights["round"]
        values = data.fields["round"].ravel().tolist()
        has = data.present("round", slice(None))
        group = {i: values[i] if values[i] in named and has[i] else "other" for i in samples}
    else:
        named = dict(enumerate(weights))
        group = {i: int(data.store_of(i)) for i in samples}
    members = Counter(group.values())
    whole = sum(Fraction(named[key]) for key in members)
    return {i: total * Fraction(named[group[i]]) / whole / members[group[i]] for i in samples}


def assert_budgets(case: Case, data: Samples, batch: Any, world: int) -> None:
    most, atoms, edges = (
        case.settings.get(name) for name in ("batch_size", "max_atoms", "max_edges")
    )
    packed = case.settings["balance"] or atoms is not None or edges is not None
    if most == 1 and not packed and world > 1:
        most = 2  # so that all ranks have as many batches
    assert 1 <= len(batch) <= (most or len(batch))
    assert atoms is None or data.num_atoms[batch].sum() <= atoms
    assert edges is None or data.num_edges[batch].sum() <= edges


def possible(case: Case, data: Samples, state: Any, world: int) -> bool:
    """Whether what is left of an epoch can be shared without repeats."""
    alone = case.sampler(data)
    alone.load_state_dict(state)
    rest = alone.num_samples - state["position"]
    return rest >= -(-(len(alone) - state["step"]) // world) * world and rest >= world


def copies_handed_out(
    case: Case, data: Samples, state: Any, world: int, steps: int
) -> list[tuple[int, int]]:
    """Samples of the next steps, all ranks together, each with its copy."""
    sampler = case.sampler(data, 0, world)
    sampler.load_state_dict(state)
    plan = sampler.start()
    count = plan.consumed(steps)
    copies = np.zeros(count, dtype=int) if plan.copies is None else plan.copies[:count]
    return list(zip(plan.order[:count].tolist(), copies.tolist(), strict=True))


def drawable(case: Case) -> bool:
    """Whether the weights leave anything to draw, now and later."""
    data = case.samples()
    for count in (case.count, case.count + case.later):
        data.count = count
        try:
            sum(exact(case, data).values())
        except ZeroDivisionError:
            return False
    return True


@given(
    cases().filter(drawable),
    st.integers(0, 3),
    st.lists(st.integers(1, 6), min_size=1, max_size=3),
    st.data(),
)
def test_an_epoch_is_what_was_drawn_over_ranks_and_interruptions(case, epoch, worlds, data):
    samples = case.samples()
    pinned = case.sampler(samples)
    expected = once(pinned, epoch)
    assert expected.total() == pinned.num_samples
    for sample, times in exact(case, samples).items():
        assert times.__floor__() <= expected[sample] <= times.__ceil__()
    pinned.set_epoch(epoch)
    state = pinned.state_dict()

    seen: list[int] = []
    copies: list[tuple[int, int]] = []
    for world in [*worlds, 1]:
        if len(seen) == expected.total():
            break
        if not possible(case, samples, state, world):
            event("cannot be shared")
            continue
        ranks = [case.sampler(samples, rank, world) for rank in range(world)]
        for sampler in ranks:
            sampler.load_state_dict(state)
            sampler.set_epoch(epoch)
        (length,) = {len(sampler) for sampler in ranks}
        left = length - state["step"]
        steps = left if world == 1 else data.draw(st.integers(1, left), label="steps")
        by_rank = [list(itertools.islice(iter(sampler), steps)) for sampler in ranks]
        assert {len(batches) for batches in by_rank} == {steps}
        assert {len(sampler) for sampler in ranks} == {length}
        for batch in itertools.chain(*by_rank):
            assert_budgets(case, samples, batch, world)
            seen += batch.tolist()
        copies += copies_handed_out(case, samples, state, world, steps)
        state = ranks[0].state_dict()
        assert all(sampler.state_dict() == state for sampler in ranks)
        assert (state["position"], state["step"]) == (len(seen), length - left + steps)
        samples.count = case.count + case.later  # arrives while the epoch is interrupted
    assert Counter(seen) == expected
    assert sorted(copies) == sorted((i, copy) for i in expected for copy in range(expected[i]))

    samples.count = case.count + case.later
    following = case.sampler(samples)
    following.load_state_dict(state)
    assert Counter(np.concatenate(list(following)).tolist()) == once(
        case.sampler(samples), epoch + 1
    )
    assert following.epoch == epoch + 1


@given(cases().filter(drawable), st.integers(1, 6), st.data())
def test_an_epoch_that_goes_on_with_as_many_ranks_has_the_same_batches(case, world, data):
    samples = case.samples()
    whole = case.sampler(samples, world - 1, world)
    if not possible(case, samples, whole.state_dict(), world):
        return
    batches = [batch.tolist() for batch in whole]
    again = case.sampler(samples, world - 1, world)
    stop = data.draw(st.integers(max(0, len(batches) - 3), len(batches)), label="steps")
    seen = [batch.tolist() for batch in itertools.islice(iter(again), stop)]
    resumed = case.sampler(samples, world - 1, world)
    resumed.load_state_dict(again.state_dict())
    if stop < len(batches):
        seen += [batch.tolist() for batch in resumed]
    assert seen == batches
