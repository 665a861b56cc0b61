"""Hash splits: shares, stability, groups."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from zarrpipe.training.splits.assignment import check_fractions, group_keys, hash_split

SHARES = (0.8, 0.15, 0.05)


def test_shares_are_met():
    side = hash_split(np.arange(200_000, dtype=np.uint64), SHARES)
    assert np.bincount(side) / 200_000 == pytest.approx(SHARES, abs=0.003)


@given(st.lists(st.integers(0, 2**64 - 1), max_size=50), st.integers(0, 50))
def test_a_side_depends_on_the_key_alone(keys, cut):
    keys = np.array(keys, dtype=np.uint64)
    side = hash_split(keys, SHARES)
    assert np.array_equal(hash_split(keys[:cut], SHARES), side[:cut])
    assert np.array_equal(hash_split(keys[::-1], SHARES), side[::-1])


def test_salt_gives_another_split_and_a_larger_share_keeps_what_it_had():
    keys = np.arange(1000, dtype=np.uint64)
    assert (hash_split(keys, SHARES, salt=1) != hash_split(keys, SHARES)).any()
    small, large = hash_split(keys, (0.6, 0.4)) == 0, hash_split(keys, (0.9, 0.1)) == 0
    assert large[small].all()


def test_empty_shares_get_nothing():
    keys = np.arange(1000, dtype=np.uint64)
    assert set(hash_split(keys, (0.5, 0.0, 0.5)).tolist()) == {0, 2}
    assert set(hash_split(keys, (1.0, 0.0, 0.0)).tolist()) == {0}


@pytest.mark.parametrize("bad", [(0.5, 0.4), (1.2, -0.2), ()])
def test_shares_that_do_not_sum_to_one_are_refused(bad):
    with pytest.raises(ValueError, match="sum to 1"):
        check_fractions(bad)


@given(st.lists(st.integers(-5, 5), min_size=1, max_size=30))
def test_equal_values_have_equal_keys_whatever_their_width(values):
    keys = group_keys(np.array(values, dtype=np.int64))
    assert np.array_equal(keys, group_keys(np.array(values, dtype=np.int8)[:, None]))
    same = np.equal.outer(values, values)
    assert np.array_equal(np.equal.outer(keys, keys), same)


def test_floats_group_by_value():
    keys = group_keys(np.array([0.0, -0.0, np.nan, -np.nan, 0.5], dtype=np.float32))
    assert keys[0] == keys[1]
    assert keys[2] == keys[3]
    assert len(set(keys.tolist())) == 3
    assert np.array_equal(keys, group_keys(np.array([0.0, 0.0, np.nan, np.nan, 0.5])))


def test_a_share_that_is_no_number_is_refused():
    with pytest.raises(ValueError, match="sum to 1"):
        check_fractions((float("nan"), 0.0, 1.0))
