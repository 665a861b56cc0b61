"""Which batch each sample was written in, from neighbour lists that count from their batch.

nvalchemi writes edges with indices relative to the batch of their write. A sample s of a batch that
began with sample b has ``raw = local + A[s] - A[b]``, where A are the pointers to atoms, and its
local indices are at least 0 and below its number of atoms. So ``A[b]`` lies in
``[A[s] - min(raw), A[s + 1] - 1 - max(raw)]``. Batches follow each other and b is the first sample
of its batch. What follows from both for all samples together is computed here, in linear time.
"""

from bisect import bisect_left
from collections import deque

import numpy as np
import numpy.typing as npt

from zarrpipe.data.csr import Int64Array

BoolArray = npt.NDArray[np.bool_]


def edge_shifts(
    ptr: Int64Array, least: Int64Array, greatest: Int64Array
) -> tuple[Int64Array, BoolArray]:
    """What to add to the indices of each sample to count from the store, and whether it is known.

    A sample whose edges reach from its first to its last atom needs no batch: its lowest index is
    that of its first atom. That is so for stores that nvalchemi defragmented, too.

    Parameters
    ----------
    ptr : array [N+1] int64
        Pointers to the atoms.
    least, greatest : array [N] int64
        Smallest and greatest index among the edges of each sample; for one without edges, `least`
        is greater than `greatest`.

    Returns
    -------
    shifts : array [N] int64
    known : array [N] bool
        False where several are possible, or none. A sample without edges needs none.

    Examples
    --------
    Samples of 2 atoms, in batches of 2 and 1, each with an edge between its atoms:

    >>> ptr = np.array([0, 2, 4, 6])
    >>> shifts, known = edge_shifts(ptr, np.array([0, 2, 0]), np.array([1, 3, 1]))
    >>> shifts.tolist(), known.tolist()
    ([0, 0, 4], [True, True, True])
    """
    low, high = ptr[:-1] - least, ptr[1:] - 1 - greatest
    has = least <= greatest
    begins = _unique_begins(ptr, low, high, has)
    known = begins >= 0
    shifts = ptr[np.maximum(begins, 0)]
    spanned = has & (low == high) & (least >= 0)
    shifts[spanned] = low[spanned]
    shifts[~has] = 0
    return shifts, known | spanned | ~has


def _unique_begins(
    ptr: Int64Array, low: Int64Array, high: Int64Array, has: BoolArray
) -> Int64Array:
    """First sample of the batch of each sample [N]; -1 where more than one is possible, or none."""
    count = len(low)
    first = np.where(has, np.searchsorted(ptr[:-1], low, "left"), 0)
    last = np.where(has, np.searchsorted(ptr[:-1], high, "right") - 1, count)
    until = _divided(_survival(first, last))
    starts = np.flatnonzero(until > np.arange(count))
    batches, of_which = np.zeros((2, count + 1), dtype=np.int64)
    np.add.at(batches, starts, 1)
    np.add.at(batches, until[starts], -1)
    np.add.at(of_which, starts, starts)
    np.add.at(of_which, until[starts], -starts)
    single = np.cumsum(batches)[:count] == 1
    return np.where(single, np.cumsum(of_which)[:count], -1)


def _survival(first: Int64Array, last: Int64Array) -> Int64Array:
    """For each sample as the first of a batch, the first sample [N] that cannot belong to it.

    That is the sample itself where no batch can begin. Sample s can belong to batches that began
    with a sample from ``first[s]`` to ``last[s]``.
    """
    count = len(first)
    ends = np.arange(count)
    alive: deque[int] = deque()
    for sample, (least, most) in enumerate(zip(first.tolist(), last.tolist(), strict=True)):
        if sample == 0 or alive:
            alive.append(sample)
        while alive and alive[0] < least:
            ends[alive.popleft()] = sample
        while alive and alive[-1] > most:
            ends[alive.pop()] = sample
    ends[list(alive)] = count
    return ends


def _divided(ends: Int64Array) -> Int64Array:
    """The same, where what follows the batch has to be divided into batches as well, to the end."""
    count = len(ends)
    until = np.arange(count)
    borders = [-count]  # where a batch can end, negative so that they ascend
    for begin in range(count - 1, -1, -1):
        place = bisect_left(borders, -int(ends[begin]))
        if place < len(borders) and -borders[place] > begin:
            until[begin] = -borders[place]
            borders.append(-begin)
    return until
