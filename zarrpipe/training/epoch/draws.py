"""How often each sample of an epoch comes that is drawn by weight.

A sample that is expected c times comes floor(c) or ceil(c) times, and an epoch has exactly as many
samples as it is to have. So what is left to chance is at most one occurrence of each sample, which
is drawn systematically: of a row of intervals, as long as the fractions, those are taken in which a
grid of points one apart falls.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from zarrpipe.data.csr import Int64Array
from zarrpipe.training.epoch.plans import IndexArray, index_dtype

Float64Array = npt.NDArray[np.float64]

_PURPOSE = 0xD7A3
_NEIGHBOURS = 4096
_ROUNDING = 1e-12
_BLOCK = 1 << 18


@dataclass(frozen=True)
class Expected:
    """How often samples are expected in an epoch.

    Parameters
    ----------
    counts : array [n] float64
        Of each sample, 0 or more.
    groups : array [n] of int, optional
        Samples with equal numbers come together as often as is expected of them, to one.
    """

    counts: Float64Array
    groups: npt.NDArray[np.signedinteger[Any]] | None = None


def draw(seed: int, epoch: int, expected: Expected, total: int) -> Int64Array:
    """How often each sample comes, [n] int64: its expectation, rounded down or up.

    Parameters
    ----------
    seed, epoch
        Non-negative; with the other arguments they decide the draw.
    expected
        Sums to `total`, apart from rounding.
    total
        Number of samples in the epoch.

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
        fractions = fractions[order]  # lets go of those in the other order
        counts[order] += _systematic(fractions, left, generator.random())
    return counts


def _parts(expected: Float64Array) -> tuple[Int64Array, Float64Array]:
    """Whole and fractional parts, both [n]; what is an integer but for rounding has no fraction."""
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
    """How many equal ones stand before each sample [n], where equal ones are neighbours.

    None if all samples differ.

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
    """Order [n] of the first `count` integers, shuffled among near neighbours.

    Neighbours in it were neighbours before, so it costs a small part of a whole shuffle, and what
    is drawn along it is spread evenly over all integers.
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
    """Which of the samples come once more, [n] of 0 and 1 with the sum `left`."""
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
