"""Pointers: how many samples they commit, and which entries cannot be right.

An entry is broken if it was not read, is zero inside what was committed, lies outside the array,
or is not in a longest run of entries that rise: of a high and a low neighbour the one goes that
fewer others speak for.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from zarrpipe.data.csr import Int64Array
from zarrpipe.store.check.rows import BoolArray, Rows

BLOCK, _AHEAD = 1 << 16, 64


@dataclass(frozen=True)
class Committed:
    """What a pointer array commits.

    Parameters
    ----------
    samples
        Number of samples.
    behind
        Entries behind them that are not zero.
    """

    samples: int = 0
    behind: int = 0


def committed(pointers: Rows, closed: int) -> Committed:
    """Samples that `pointers` commit.

    They end before the first entry of zero. A zero among those that the store was `closed` with was
    not always there, and is broken, unless it is the first end: then the store was emptied.
    """
    first_zero, end, last = len(pointers), len(pointers), 0
    for start, there in _filled(pointers, 0, closed):
        zeros = start + np.flatnonzero(~there)
        if len(zeros):
            first_zero = min(first_zero, int(zeros[0]))
            end = min([end, *zeros[zeros > closed][:1].tolist()])
        if there.any():
            last = start + int(np.flatnonzero(there)[-1])
    samples = min(end - 1, max(last, 0)) if 1 < first_zero <= closed else first_zero - 1
    behind = sum(
        int(np.count_nonzero(there)) for _, there in _filled(pointers, samples + 1, closed)
    )
    return Committed(max(samples, 0), behind)


def _filled(pointers: Rows, begin: int, closed: int) -> Iterator[tuple[int, BoolArray]]:
    """Which entries are not zero; those that could not be read are taken to be as when closed."""
    for start in range(begin, len(pointers), BLOCK):
        stop = min(start + BLOCK, len(pointers))
        values, good = pointers.read(start, stop)
        there = (values != 0) | (~good & (np.arange(start, stop) <= closed))
        there[: max(0, 1 - start)] = True
        yield start, there


def broken_entries(pointers: Rows, samples: int, limit: int, *, strict: bool) -> Int64Array:
    """Entries up to that of the last sample that cannot be right, ascending.

    Parameters
    ----------
    pointers
        The array.
    samples
        Number of samples.
    limit
        Greatest possible entry.
    strict
        Whether each entry is greater than the one before it.
    """
    found, low = [], -1 if strict else 0
    for start in range(0, samples + 1, BLOCK):
        size = min(BLOCK, samples + 1 - start)
        values, good = pointers.read(start, min(start + size + _AHEAD, samples + 1))
        if start == 0:
            good[0] &= values[0] == 0
        kept = _longest_rise(values, good, low, limit, strict=strict)[:size]
        found.append(start + np.flatnonzero(~kept))
        if kept.any():
            low = int(values[:size][kept][-1])
    return np.concatenate(found) if found else np.zeros(0, dtype=np.int64)


def _longest_rise(
    values: Int64Array, good: BoolArray, low: int, limit: int, *, strict: bool
) -> BoolArray:
    """Which entries are in a longest rising run of those that are good and within the limits."""
    kept = good & (values > low if strict else values >= low) & (values <= limit)
    steps = np.diff(values)
    if kept.all() and (steps > 0 if strict else steps >= 0).all():
        return kept
    place = bisect_left if strict else bisect_right
    tails: list[int] = []  # least last value of a run of each length, and which entry it is
    ends: list[int] = []
    before = np.full(len(values), -1)
    for index in np.flatnonzero(kept).tolist():
        value = int(values[index])
        length = place(tails, value)
        before[index] = ends[length - 1] if length else -1
        tails[length : length + 1] = [value]
        ends[length : length + 1] = [index]
    rise = np.zeros(len(values), dtype=bool)
    index = ends[-1] if ends else -1
    while index >= 0:
        rise[index] = True
        index = int(before[index])
    return rise


def runs(good: BoolArray) -> Iterator[tuple[int, int]]:
    """Begin and end of each run of True.

    Examples
    --------
    >>> list(runs(np.array([True, True, False, True])))
    [(0, 2), (3, 4)]
    """
    edges = np.flatnonzero(np.diff(np.concatenate([[False], good, [False]]).astype(np.int8)))
    yield from zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True)
