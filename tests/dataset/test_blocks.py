"""The block-shuffled order: every sample once, near each other for a while, and fitting a cache."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from zarrpipe.dataset.blocks import UnitLayout, block_order, choose_blocks, group_bounds


@given(
    sizes=st.lists(st.integers(0, 9), max_size=30),
    group=st.integers(1, 8),
    seed=st.integers(0, 5),
    epoch=st.integers(0, 5),
)
def test_every_sample_once_and_group_by_group(sizes, group, seed, epoch):
    bounds = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
    order = block_order(seed, epoch, bounds, group)
    assert order.dtype == np.int64
    assert np.array_equal(np.sort(order), np.arange(bounds[-1]))
    assert np.array_equal(order, block_order(seed, epoch, bounds, group))
    block_of = np.repeat(np.arange(len(sizes)), sizes)
    seen = set()
    ends = group_bounds(seed, epoch, bounds, group)
    assert ends[0] == 0
    assert ends[-1] == len(order)
    for first, last in itertools.pairwise(ends):
        blocks = set(block_of[order[first:last]].tolist())
        assert len(blocks) <= group
        assert not blocks & seen
        seen |= blocks


def test_epochs_and_seeds_differ():
    bounds = np.arange(0, 1001, 10)
    orders = [block_order(*key, bounds, 4).tolist() for key in ((0, 0), (0, 1), (1, 0))]
    assert len(set(map(tuple, orders))) == 3
    mixed = block_order(0, 0, bounds, 4)[:40]
    assert (np.abs(np.diff(mixed)) > 10).sum() > 15


def test_a_group_of_everything_is_a_full_shuffle():
    order = block_order(3, 0, np.arange(0, 10_001, 100), 100)
    assert abs(np.corrcoef(order, np.arange(10_000))[0, 1]) < 0.05


def test_no_group():
    with pytest.raises(ValueError, match="a group of 0 blocks: expected at least 1"):
        block_order(0, 0, np.array([0, 1]), 0)


def units_touched(layout, samples):
    rows = layout.row(samples), layout.row(samples + 1)
    touched = [
        np.arange(a // layout.unit_rows, (b - 1) // layout.unit_rows + 1)
        for a, b in zip(*rows, strict=True)
        if b > a
    ]
    return np.unique(np.concatenate(touched)) if touched else np.zeros(0)


@pytest.mark.parametrize("limit", [1, 300_000, 3_000_000, 100_000_000, None])
def test_two_groups_fit_the_limit(limit):
    rng = np.random.default_rng(0)
    ptr = np.concatenate([[0], np.cumsum(rng.integers(1, 40, 3000))])
    edges = np.concatenate([[0], np.cumsum(rng.integers(0, 90, 3000))])
    layouts = [
        UnitLayout(512, 12, ptr),
        UnitLayout(1024, 8, ptr),
        UnitLayout(512, 16, edges),
        UnitLayout(256, 8),
        UnitLayout(4096, 72),
    ]
    bounds, group = choose_blocks(3000, layouts, limit)
    assert bounds[0] == 0
    assert bounds[-1] == 3000
    assert (np.diff(bounds) > 0).all()
    together = -(-int(edges[-1]) // 512) // 16
    assert np.diff(edges[bounds]).max() < 512 * together + 90
    order = block_order(0, 0, bounds, group)
    ends = group_bounds(0, 0, bounds, group)
    needed = [
        sum(
            len(units_touched(layout, order[a:b])) * layout.unit_rows * layout.row_bytes
            for layout in layouts
        )
        for a, b in itertools.pairwise(ends)
    ]
    if limit is None or limit == 100_000_000:
        assert group == len(bounds) - 1
    elif limit > 1:
        assert group > 1 or limit == 300_000
    if group > 1 and limit is not None:
        assert 2 * max(needed) <= limit


def test_no_samples():
    bounds, group = choose_blocks(0, [UnitLayout(16, 4)], 100)
    assert block_order(0, 0, bounds, group).tolist() == []
    assert group_bounds(0, 0, bounds, group).tolist() == [0]
