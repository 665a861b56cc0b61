"""GaussianNoise: its spread, what it leaves alone, and that it belongs to a sample."""

import math

import numpy as np
import pytest
import torch

from zarrpipe import AtomicData, Batch
from zarrpipe.errors import ArgumentError, FieldError, UnknownFieldError
from zarrpipe.testing import assert_batches_equal
from zarrpipe.transforms import GaussianNoise, sample_keys


def keys_of(count):
    return sample_keys(3, 1, np.arange(count, dtype=np.uint64))


def batch_of(sizes, dtype=torch.float64, **fields):
    systems = [
        AtomicData(torch.arange(3.0 * size, dtype=dtype).reshape(size, 3), [1] * size, **fields)
        for size in sizes
    ]
    return Batch.from_data_list(systems)


def test_noise_is_normal_and_independent():
    batch = batch_of([7] * 3000)
    added = GaussianNoise(0.25)(batch, keys_of(3000)).positions - batch.positions
    values = np.sort(added.ravel().numpy() / 0.25)
    cdf = np.array([math.erf(x / math.sqrt(2)) / 2 + 0.5 for x in values])
    distance = np.abs(cdf - (np.arange(len(values)) + 0.5) / len(values)).max()
    assert distance * math.sqrt(len(values)) < 1.95  # Kolmogorov and Smirnov, at 0.1 %
    assert float(added.std()) == pytest.approx(0.25, rel=0.01)
    by_place = added.reshape(3000, 21).numpy().T
    for parts in (by_place, by_place**2):
        assert np.abs(np.corrcoef(parts) - np.eye(21)).max() < 5 / math.sqrt(3000)


def test_a_system_gets_the_same_noise_in_any_batch():
    batch, keys = batch_of([5, 1, 4, 9, 3, 30, 2]), keys_of(7)
    noise = GaussianNoise(0.1, target="noise")
    whole = noise(batch, keys)
    for order in ([3], [6, 5, 4, 3, 2, 1, 0], [5, 5, 1]):
        some = noise(batch.index_select(order), keys[order])
        assert_batches_equal(some, whole.index_select(order))
    assert len(set(whole.noise.ravel().tolist())) == whole.noise.numel()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_target_is_what_was_added(dtype):
    batch = batch_of([4, 2], dtype)
    before = batch.clone()
    noisy = GaussianNoise(0.5, target="noise")(batch, keys_of(2))
    assert noisy.noise.dtype == noisy.positions.dtype == dtype
    assert torch.equal(noisy.positions, batch.positions + noisy.noise)
    assert_batches_equal(batch, before)
    assert torch.equal(GaussianNoise(0.0)(batch, keys_of(2)).positions, batch.positions)


def test_presence_is_kept():
    labelled = batch_of([3, 2])
    labelled.charges = torch.ones(5, dtype=torch.float64)
    batch = Batch.concatenate([batch_of([4]), labelled])
    noisy = GaussianNoise(0.1, "charges", "noise")(batch, keys_of(3))
    for name in ("charges", "noise"):
        assert noisy.present(name).tolist() == [False, True, True]
        assert torch.isnan(noisy[name][:4]).all()
    assert torch.equal(noisy.charges[4:], 1 + noisy.noise[4:])
    assert torch.equal(noisy.positions, batch.positions)


def test_fields_of_systems_get_noise_too():
    batch = batch_of([1, 2], energy=torch.tensor(-3.0, dtype=torch.float64))
    energies = GaussianNoise(1.0, "energy")(batch, keys_of(2)).energy
    assert energies.shape == (2, 1)
    assert float(energies[0]) != float(energies[1])


def test_what_noise_would_make_wrong_is_refused():
    batch = batch_of([2, 2], neighbor_list=[[0, 1], [1, 0]])
    with pytest.raises(FieldError, match="put GaussianNoise before NeighborList"):
        GaussianNoise(0.1)(batch, keys_of(2))
    with pytest.raises(FieldError, match="'atomic_numbers' has dtype"):
        GaussianNoise(0.1, "atomic_numbers")(batch, keys_of(2))
    with pytest.raises(UnknownFieldError, match="no field 'forces'"):
        GaussianNoise(0.1, "forces")(batch, keys_of(2))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"scale": -0.1}, "scale is -0.1"),
        ({"scale": float("nan")}, "scale is nan"),
        ({"scale": 0.1, "target": "forces"}, "target is 'forces'"),
        ({"scale": 0.1, "target": "no name"}, "field name 'no name'"),
    ],
)
def test_arguments_are_checked_at_once(arguments, message):
    with pytest.raises(ArgumentError, match=message):
        GaussianNoise(**arguments)
