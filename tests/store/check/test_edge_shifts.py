"""Batch borders out of neighbour lists, against every division there is."""

import itertools

import numpy as np
import pytest

from zarrpipe.data.csr import pointers
from zarrpipe.store.check.nvalchemi_edges import edge_shifts


def begins_of(borders, count):
    """First sample of the batch of each sample."""
    starts = np.zeros(count, dtype=np.int64)
    starts[list(borders)] = borders
    return np.maximum.accumulate(starts)


def ranges(rng, ptr, begins):
    """Least and greatest index of random edges that count from their batch."""
    atoms = np.diff(ptr)
    ends = np.sort(rng.integers(0, atoms, (2, len(atoms))), axis=0)
    least, greatest = ends + ptr[:-1] - ptr[begins]
    none = rng.random(len(atoms)) < 0.3
    least[none], greatest[none] = 1, 0
    return least, greatest


def possible(ptr, least, greatest):
    """Shifts of each sample in any division into batches that explains all of them."""
    count, found = len(least), [set() for _ in least]
    for size in range(count):
        for borders in itertools.combinations(range(1, count), size):
            shifts = ptr[begins_of([0, *borders], count)]
            inside = (least + shifts >= ptr[:-1]) & (greatest + shifts < ptr[1:])
            if (inside | (least > greatest)).all():
                for sample, shift in enumerate(shifts.tolist()):
                    found[sample].add(shift)
    return found


@pytest.mark.parametrize("seed", range(40))
def test_what_is_known_is_what_all_divisions_agree_on(seed):
    rng = np.random.default_rng(seed)
    count = int(rng.integers(1, 8))
    ptr = pointers(rng.integers(1, 4, count))
    borders = [0, *np.flatnonzero(rng.random(count) < 0.4)]
    begins = begins_of(borders, count)
    least, greatest = ranges(rng, ptr, begins)
    shifts, known = edge_shifts(ptr, least, greatest)
    for sample, candidates in enumerate(possible(ptr, least, greatest)):
        if least[sample] > greatest[sample]:
            assert known[sample]
            assert shifts[sample] == 0
            continue
        assert ptr[begins[sample]] in candidates
        assert known[sample] == (len(candidates) == 1)
        if known[sample]:
            assert shifts[sample] == ptr[begins[sample]]


def test_edges_that_reach_over_their_sample_need_no_batch():
    ptr = np.array([0, 3, 5, 9])
    old = np.array([4, 11, 20])  # where the samples stood before others were removed
    shifts, known = edge_shifts(ptr, old, old + np.array([2, 1, 3]))
    assert known.all()
    assert (shifts + old).tolist() == [0, 3, 5]


def test_damage_is_not_explained():
    _shifts, known = edge_shifts(np.array([0, 2, 4]), np.array([0, 50]), np.array([0, 50]))
    assert not known[1]


def test_many_samples():
    rng = np.random.default_rng(3)
    ptr = pointers(rng.integers(2, 30, 20_000))
    begins = begins_of([0, *np.flatnonzero(rng.random(20_000) < 0.02)], 20_000)
    base = ptr[:-1] - ptr[begins]
    shifts, known = edge_shifts(ptr, base, base + np.diff(ptr) - 1)
    assert known.all()
    assert (shifts == ptr[begins]).all()
