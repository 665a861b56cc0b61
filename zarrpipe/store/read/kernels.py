"""The steps of a gather that touch every sample: compiled where numba is installed, else in NumPy.

The compiled ones work on one table [5, K+1] int64 for the K samples of a batch:

==== ======================================================================
row  what it holds for sample k
==== ======================================================================
0    its row in its store
1, 2 its first atom in the store, and the batch's pointers to atoms [K+1]
3, 4 its first edge in the store, and the batch's pointers to edges [K+1]
==== ======================================================================

Levels are numbers here: 0 for systems, 1 for atoms, 2 for edges, so that a level's rows of the
table are twice its number and the one before.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from zarrpipe.data.csr import Int64Array, pointers, segment_rows
from zarrpipe.data.fields import Level

LEVELS = {Level.SYSTEM: 0, Level.ATOM: 1, Level.EDGE: 2}
OUTSIDE, DAMAGED = 1, 2

Rows = Int64Array | slice


@dataclass(frozen=True)
class Kernels:
    """The steps, in machine code.

    Parameters
    ----------
    locate
        ``locate(samples [J], places, active, limits, atoms_ptr, edges_ptr, table) -> status``: look
        samples up in the pointers of a store. `places` says which columns of the table they fill
        (empty: the first J), `active` which rows are not deleted (empty: all), `limits` [3] how
        many samples, atoms and edges there are, and `edges_ptr` is empty where edges are not
        wanted. Rows 2 and 4 get counts, at k + 1. The status is `OUTSIDE` where there is no such
        sample, `DAMAGED` where pointers fall, are negative or go beyond the limits.
    lay_out
        ``lay_out(table, levels [F], row_bytes [F], alignment, offsets [F + 3])``: turn counts into
        pointers, and decide where in one buffer the F columns, the two pointer arrays and the end
        are, in bytes.
    copy
        ``copy(table, places, addresses [F], levels, row_bytes, offsets, edges, last, words)``:
        copy the rows of the samples at `places` from the addresses where a store's arrays begin
        (0 where it lacks one) into the buffer, which is given as int64 words. To column `edges`
        (-1 for none), of int64, each sample's shift from store to batch is added. With `last` the
        pointers are written too.
    """

    locate: Callable[..., int]
    lay_out: Callable[..., None]
    copy: Callable[..., None]


@functools.cache
def compiled_kernels() -> Kernels | None:
    """The compiled steps; None where numba is not installed."""
    try:
        from zarrpipe.store.read import _compiled  # noqa: PLC0415  half a second, at the first gather
    except ImportError:
        return None
    return Kernels(_compiled.locate, _compiled.lay_out, _compiled.copy)


def segments(
    samples: Int64Array, ptr: Int64Array, least: int, limit: int
) -> tuple[Rows, Int64Array] | None:
    """Rows in a store of some samples, and the pointers of the batch that they make.

    None for pointers that are damaged: where a sample has fewer than `least` rows, or some that
    are not between 0 and `limit`.
    """
    starts, stops = ptr[samples], ptr[samples + 1]
    counts = stops - starts
    inner = np.zeros(len(samples) + 1, dtype=np.int64)
    counts.cumsum(out=inner[1:])
    if len(samples) == 0:
        return slice(0, 0), inner
    if ((counts - least) | starts | (limit - stops)).min() < 0:  # one of them has the sign bit
        return None
    first, total = int(starts[0]), int(inner[-1])
    if int(stops[-1]) - first == total and np.array_equal(starts, inner[:-1] + first):
        return slice(first, first + total), inner
    rows = np.repeat(starts - inner[:-1], counts)
    rows += np.arange(total)
    return rows, inner


def source_segments(
    table: Int64Array, places: Int64Array, level: int
) -> tuple[Int64Array, Int64Array]:
    """Where in their store the rows of the samples at `places` (empty: all) start and stop."""
    chosen = places if len(places) else slice(0, table.shape[1] - 1)
    if level == 0:
        return table[0, chosen], table[0, chosen] + 1
    starts = table[2 * level - 1, chosen]
    return starts, starts + np.diff(table[2 * level])[chosen]


def target_rows(table: Int64Array, places: Int64Array, level: int) -> Rows:
    """Rows in the batch of the samples at `places` (empty: all)."""
    count = table.shape[1] - 1
    if len(places) == 0:
        return slice(0, count if level == 0 else int(table[2 * level, count]))
    if level == 0:
        return places
    return segment_rows(table[2 * level, places], pointers(np.diff(table[2 * level])[places]))
