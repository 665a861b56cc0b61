"""Random numbers as a function of a key and a counter, independent of the order of calls.

Word c of key k is the output of splitmix64 (Steele et al. 2014) that began at k. All of it runs in
NumPy on the CPU, so that a sample draws the same on every device.
"""

import numpy as np
import numpy.typing as npt
import torch

from zarrpipe.data.batch import Batch
from zarrpipe.data.csr import Int64Array
from zarrpipe.data.ids import UInt64Array, mix
from zarrpipe.data.levels import Level

FloatArray = npt.NDArray[np.float64]

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_UNUSED_BITS = np.uint64(11)
_STEP = 2.0**-53
_PURPOSE = 5
"""Separates these draws from all others of the same seed and epoch."""


def sample_keys(
    seed: int, epoch: int, ids: UInt64Array, copies: Int64Array | None = None
) -> UInt64Array:
    """Key [B] uint64 of each sample in an epoch, from the ids [B] of their structures.

    Parameters
    ----------
    seed, epoch : int
        Non-negative.
    ids : array [B] uint64
        Samples of equal ids have equal keys.
    copies : array [B] of int, optional
        Which copy of its sample each is, from 0 on, where one comes several times in an epoch.

    Examples
    --------
    >>> ids = np.array([3, 4, 3], dtype=np.uint64)
    >>> keys = sample_keys(0, 0, ids)
    >>> keys[0] == keys[2], keys[0] == keys[1], keys[0] == sample_keys(0, 1, ids)[0]
    (np.True_, np.False_, np.False_)
    """
    sequence = np.random.SeedSequence([seed, epoch], spawn_key=(_PURPOSE,))
    stream = sequence.generate_state(1, np.uint64).astype(np.uint64)
    keys = mix(ids ^ stream)
    if copies is None or not copies.any():
        return keys
    numbers = copies.astype(np.uint64)
    return np.where(copies == 0, keys, mix(keys + mix(numbers * _GOLDEN)))


def child_keys(keys: UInt64Array, number: int) -> UInt64Array:
    """Keys [B] uint64 for one of several independent draws for a sample.

    `uniform` and `normal` give the same numbers for the same keys, so a transform that draws twice
    needs child keys with two different numbers.

    Examples
    --------
    >>> keys = np.arange(3, dtype=np.uint64)
    >>> bool((child_keys(keys, 0) == child_keys(keys, 1)).any())
    False
    """
    return mix(mix(keys) + np.array([number + 1], dtype=np.uint64) * _GOLDEN)


def _words(keys: UInt64Array, first: UInt64Array, count: int) -> UInt64Array:
    """Words [n, count] of keys [n], beginning with number `first` [n] of each."""
    counters = np.add.outer(first, np.arange(1, count + 1, dtype=np.uint64))
    counters *= _GOLDEN
    counters += keys[:, None]
    return mix(counters)


def uniform(keys: UInt64Array, count: int) -> FloatArray:
    """Numbers [B, count] float64 in [0, 1), a row for each key.

    Examples
    --------
    >>> numbers = uniform(np.arange(10_000, dtype=np.uint64), 2)
    >>> numbers.mean(0).round(1), numbers.std(0).round(1)
    (array([0.5, 0.5]), array([0.3, 0.3]))
    """
    words = _words(keys, np.zeros_like(keys), count)
    return (words >> _UNUSED_BITS).astype(np.float64) * _STEP


def normal(keys: UInt64Array, batch: Batch, level: Level, shape: tuple[int, ...]) -> torch.Tensor:
    """Standard normal numbers ``[rows, *shape]`` float64 for a batch, on its device.

    They depend on the key of a system and on the place of a row in it, and not on the batch.

    Parameters
    ----------
    keys : array [B] uint64
        One for each system.
    batch : Batch
        Whose rows are counted.
    level : Level
        What a row belongs to.
    shape : tuple of int
        Shape of a row.
    """
    counts = batch.rows_per_graph(level).cpu().numpy()
    width = int(np.prod(shape, dtype=np.int64))
    numbers = _normal(np.repeat(keys, counts), _places(counts), width)
    return torch.from_numpy(numbers.reshape(-1, *shape)).to(batch.device)


def _places(counts: Int64Array) -> UInt64Array:
    """Place of each row in its segment of `counts` [B] rows."""
    ends = np.cumsum(counts)
    total = int(ends[-1]) if len(ends) else 0
    return (np.arange(total) - np.repeat(ends - counts, counts)).astype(np.uint64)


def _normal(keys: UInt64Array, places: UInt64Array, width: int) -> FloatArray:
    """Standard normal numbers [n, width] by the method of Box and Muller."""
    pairs = (width + 1) // 2
    words = _words(keys, places * np.uint64(2 * pairs), 2 * pairs) >> _UNUSED_BITS
    # 1 - u is above 0. Contiguous arrays, since NumPy may round strided ones differently.
    radius = np.sqrt(-2.0 * np.log((2.0**53 - words[:, :pairs]) * _STEP))
    angle = words[:, pairs:] * (2.0 * np.pi * _STEP)
    return np.concatenate([radius * np.cos(angle), radius * np.sin(angle)], axis=1)[:, :width]
