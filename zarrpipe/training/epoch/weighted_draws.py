"""Systematic sampling of an epoch by weight.

A sample that is expected c times is drawn floor(c) or ceil(c) times, and the total is exact. Chance
decides about at most one copy of each sample: intervals as long as the fractional parts lie side
by side, and a grid of unit spacing with a random offset picks those that it hits.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from zarrpipe.data.csr import Int64Array
from zarrpipe.training.epoch.batch_plan import IndexArray, index_dtype

Float64Array = npt.NDArray[np.float64]

_PURPOSE = 0xD7A3
_NEIGHBOURS = 4096
_ROUNDING = 1e-12
_BLOCK = 1 << 18


@dataclass(frozen=True)
class Expected:
    """Expected number of copies of each sample in an epoch, float64 [n] of 0 or more.

    With `groups` int [n], the total of a group deviates from its expectation by less than one.
    """

    counts: Float64Array
    groups: npt.NDArray[np.signedinteger[Any]] | None = None


def draw(seed: int, epoch: int, expected: Expected, total: int) -> Int64Array:
    """Number of copies [n] int64 of each sample: its expectation, rounded down or up.

    Expectations sum to `total` within rounding errors.

    Examples
    --------
    >>> counts = draw(0, 0, Expected(np.array([0.5, 2.0, 0.0, 1.25, 0.25])), 4)
    >>> int(counts.sum()), counts[1:3].tolist()
    (4, [2, 0])
    """
    seeds = np.random.SeedSequence([seed, epoch, _PURPOSE])
    generator = np.random.Generator(np.random.PCG64(seeds))
    counts, fractions = _parts(expected.counts)
    left = total - int(counts.sum())
    if left:
        order = scattered(len(counts), generator)
        if expected.groups is not None:
            order = order[np.argsort(expected.groups[order], kind="stable")]
        fractions = fractions[order]  # frees the unordered ones
        counts[order] += _systematic(fractions, left, generator.random())
    return counts


def _parts(expected: Float64Array) -> tuple[Int64Array, Float64Array]:
    """Whole and fractional parts [n]; a rounding error is no fraction."""
    whole = np.empty(len(expected), dtype=np.int64)
    fractions = np.empty(len(expected))
    for start in range(0, len(expected), _BLOCK):
        here = slice(start, start + _BLOCK)
        nearest = np.rint(expected[here])
        close = np.abs(expected[here] - nearest) <= _ROUNDING * np.maximum(nearest, 1.0)
        some = np.where(close, nearest, expected[here])
        whole[here] = floor = np.floor(some)
        fractions[here] = some - floor
    return whole, fractions


def copies_in(samples: IndexArray) -> IndexArray | None:
    """Number [n] of equal neighbours before each sample; None if all samples differ.

    Examples
    --------
    >>> copies_in(np.array([4, 4, 4, 7, 9, 9])).tolist()
    [0, 1, 2, 0, 0, 1]
    """
    again = samples[1:] == samples[:-1]
    if not again.any():
        return None
    copies = np.arange(len(samples), dtype=index_dtype(len(samples)))
    first = copies.copy()
    first[1:][again] = 0
    copies -= np.maximum.accumulate(first, out=first)
    return copies


def scattered(count: int, generator: np.random.Generator) -> IndexArray:
    """Order [n] of the first `count` integers, shuffled within blocks, as that is faster.

    A systematic sample along this order is spread evenly over all integers.
    """
    blocks = -(-count // _NEIGHBOURS)
    width = min(count, _NEIGHBOURS)
    inner = np.tile(generator.permutation(width), 2).astype(index_dtype(count))
    turns = generator.integers(0, max(width, 1), blocks)
    order = inner[turns[:, None] + np.arange(width)]
    order += (np.arange(blocks) * width).astype(order.dtype)[:, None]
    flat: IndexArray = order.ravel()
    return flat[flat < count] if blocks * width > count else flat


def _systematic(fractions: Float64Array, left: int, offset: float) -> npt.NDArray[np.int8]:
    """Extra copies [n], 0 or 1, with the sum `left`."""
    ends = np.cumsum(fractions, out=fractions)
    last = int(np.searchsorted(ends, ends[-1]))
    ends *= left / ends[-1]  # the expectations sum to the total but for rounding
    ends += offset
    np.minimum(np.floor(ends, out=ends), left, out=ends)
    ends[last:] = left
    more = np.empty(len(ends), dtype=np.int8)
    more[0] = ends[0]
    np.subtract(ends[1:], ends[:-1], out=more[1:], casting="unsafe")
    return more
