"""Ids of structures: what they depend on and what not."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from zarrpipe import Batch
from zarrpipe.data.csr import pointers
from zarrpipe.data.ids import batch_ids, structure_ids
from zarrpipe.testing import random_batch


def ids(batch: Batch) -> list[int]:
    return batch_ids(batch).tolist()


@given(st.integers(0, 2**32), st.integers(1, 6))
def test_no_dependence_on_the_other_systems(seed, count):
    """A structure has its id alone, in any batch, in any order, with or without labels."""
    batch = random_batch(np.random.default_rng(seed), count, fields=("energy", "cell", "pbc"),
                         absent=0.3)  # fmt: skip
    whole = ids(batch)
    assert whole == [ids(Batch.from_data_list([data]))[0] for data in batch.to_data_list()]
    order = np.random.default_rng(seed).permutation(count)
    assert ids(batch.index_select(order)) == [whole[place] for place in order]
    assert ids(batch.without("energy")) == whole
    assert len(set(whole)) == count


@given(st.integers(0, 2**32))
def test_float32_and_float64_of_the_same_values(seed):
    batch = random_batch(np.random.default_rng(seed), 4, fields=("cell",))
    assert ids(batch.to(dtype=torch.float64)) == ids(batch)


def mixed(word: int) -> int:
    """splitmix64's finaliser, as it is published."""
    word = (word ^ word >> 30) * 0xBF58476D1CE4E5B9 % 2**64
    word = (word ^ word >> 27) * 0x94D049BB133111EB % 2**64
    return word ^ word >> 31


def words_of(values: np.ndarray) -> list[int]:
    return (np.asarray(values, dtype=np.float64).reshape(-1) + 0.0).view(np.uint64).tolist()


def id_by_the_book(positions, numbers, cell, pbc) -> int:
    """The definition, in whole numbers and one word after the other."""
    golden, system, box = 0x9E3779B97F4A7C15, len(numbers), 0
    for place, number in enumerate(numbers.tolist()):
        words = [*words_of(positions[place]), number % 2**64]
        salted = (
            mixed((word + (4 * place + k + 1) * golden) % 2**64) for k, word in enumerate(words)
        )
        system += mixed(sum(salted) % 2**64)
    for k, word in enumerate([*words_of(cell), *pbc.reshape(-1).tolist()]):
        box += mixed((word + (k + 1) * golden) % 2**64)
    return mixed((mixed(system % 2**64) + box) % 2**64)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_ids_are_what_they_were(dtype):
    """Stored ids decide splits: they are those of the definition, and of any release before."""
    rng = np.random.default_rng(3)
    counts = rng.integers(1, 30, 40)
    ptr = pointers(counts)
    positions = rng.normal(size=(ptr[-1], 3)).astype(dtype)
    positions[::7] *= -0.0
    numbers = rng.integers(-3, 100, ptr[-1])
    cell, pbc = rng.normal(size=(40, 3, 3)).astype(dtype), rng.integers(0, 2, (40, 3)).astype(bool)
    found = structure_ids(positions, numbers, ptr, cell, pbc).tolist()
    pieces = zip(pairwise(ptr), cell, pbc, strict=True)
    assert found == [
        id_by_the_book(positions[a:b], numbers[a:b], box, periodic)
        for (a, b), box, periodic in pieces
    ]
    one = structure_ids(np.array([[0.5, -1.25, 3.0]]), np.array([8]), np.array([0, 1]))
    assert one.tolist() == [3760797777477036965]


def test_ids_of_any_memory():
    """Views, columns in any order, arrays that cannot be written, and what is not given."""
    rng = np.random.default_rng(4)
    ptr = np.array([0, 3, 4, 9])
    positions, numbers = rng.normal(size=(9, 3)), rng.integers(1, 9, 9)
    cell, pbc = rng.normal(size=(3, 3, 3)), rng.integers(0, 2, (3, 3)).astype(bool)
    expected = structure_ids(positions, numbers, ptr, cell, pbc).tolist()
    strange = [np.asfortranarray(positions), np.repeat(numbers, 2)[::2], ptr[::-1].copy()[::-1]]
    strange += [np.moveaxis(np.moveaxis(cell, 2, 0).copy(), 0, 2), np.asfortranarray(pbc)]
    for array in strange:
        array.flags.writeable = False
    assert structure_ids(*strange).tolist() == expected
    bare = structure_ids(positions, numbers, ptr).tolist()
    assert bare == structure_ids(positions, numbers, ptr, 0 * cell, pbc=np.zeros((3, 3))).tolist()
    assert not set(bare) & set(expected)


@pytest.mark.parametrize("value", [np.nan, -np.nan, np.inf, -np.inf])
def test_values_that_are_no_numbers(value):
    """They count, and every NaN is the same."""
    positions, numbers = np.array([[value, 1.0, 2.0]]), np.array([1])
    one = structure_ids(positions, numbers, np.array([0, 1]))
    assert one == structure_ids(positions.astype(np.float32), numbers, np.array([0, 1]))
    book = [id_by_the_book(row, numbers, np.zeros(9), np.zeros(3, dtype=int)) for row in
            (np.array([[abs(value) if np.isnan(value) else value, 1.0, 2.0]]),)]  # fmt: skip
    assert one.tolist() == book


def test_zero_is_zero():
    """-0.0 counts as 0.0, and a cell or pbc of zeros as one that is not given."""
    positions = np.array([[0.0, 1.0, -0.0], [-0.0, 0.0, 2.0]])
    numbers, ptr = np.array([1, 8]), np.array([0, 2])
    plain = structure_ids(positions, numbers, ptr)
    for same in (
        structure_ids(np.abs(positions), numbers, ptr),
        structure_ids(positions, numbers, ptr, cell=np.zeros((1, 3, 3))),
        structure_ids(positions, numbers, ptr, cell=-np.zeros((1, 3, 3)), pbc=np.zeros((1, 3))),
        structure_ids(positions.astype(np.float32), numbers.astype(np.int32), ptr),
    ):
        assert same.tolist() == plain.tolist()
    assert plain.dtype == np.uint64


def test_what_it_depends_on():
    """Order of atoms, every coordinate, number, cell entry and periodicity."""
    rng = np.random.default_rng(0)
    positions, numbers = rng.normal(size=(3, 3)), np.array([1, 1, 8])
    cell, pbc, ptr = rng.normal(size=(1, 3, 3)), np.array([[True, False, True]]), np.array([0, 3])
    found = [structure_ids(positions, numbers, ptr, cell, pbc)[0]]
    found.append(structure_ids(positions[[1, 0, 2]], numbers, ptr, cell, pbc)[0])
    found.append(structure_ids(positions, numbers, ptr, cell, ~pbc)[0])
    found.append(structure_ids(positions, numbers, ptr, cell, pbc[:, [1, 0, 2]])[0])
    found.append(structure_ids(positions, numbers, ptr, cell.transpose(0, 2, 1), pbc)[0])
    found.append(structure_ids(positions, numbers + 1, ptr, cell, pbc)[0])
    for atom in range(3):
        for axis in range(3):
            moved = positions.copy()
            moved[atom, axis] = np.nextafter(moved[atom, axis], 9)
            found.append(structure_ids(moved, numbers, ptr, cell, pbc)[0])
    found.append(structure_ids(positions[:2], numbers[:2], np.array([0, 2]), cell, pbc)[0])
    assert len(set(found)) == len(found)


def test_no_collisions():
    """100,000 structures on a coarse grid, of one atom to four, have as many ids."""
    rng = np.random.default_rng(2)
    counts = rng.integers(1, 5, 100_000)
    ptr = pointers(counts)
    positions = rng.integers(-50, 50, (ptr[-1], 3)) / 8
    numbers = rng.integers(1, 10, ptr[-1])
    structures = {(numbers[a:b].tobytes(), positions[a:b].tobytes()) for a, b in pairwise(ptr)}
    found = structure_ids(positions, numbers, ptr)
    assert len(np.unique(found)) == len(structures)
    for bits in (0, 32, 56):
        share = np.bincount((found >> np.uint64(bits)).astype(np.int64) & 15, minlength=16) / 1e5
        np.testing.assert_allclose(share, 1 / 16, atol=0.005)


def test_nothing():
    empty = structure_ids(np.zeros((0, 3)), np.zeros(0, dtype=int), np.array([0]))
    assert empty.tolist() == []
