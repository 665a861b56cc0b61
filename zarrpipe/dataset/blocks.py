"""A shuffled order in which neighbouring samples come from a few blocks of a store.

Where a store does not fit its cache, random samples would fetch each unit many times. So samples
are cut into contiguous blocks; each epoch shuffles the blocks, takes a group of them at a time, and
shuffles the samples of the group. While one group is read, the next one is fetched.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from zarrpipe.data.csr import Int64Array, pointers, segment_rows
from zarrpipe.dataset.stores import Stores
from zarrpipe.store.read.view import StoreView

_PURPOSE = 0xB10C
_BLOCK_BYTES = 1 << 20
_LEAST_BLOCKS = 16


class Blocks(NamedTuple):
    """Bounds [blocks + 1] of blocks, and how many make a group: arguments of `block_order`."""

    bounds: Int64Array
    group: int

    @property
    def samples(self) -> int:
        """Most samples that a group may have."""
        largest = np.sort(np.diff(self.bounds))[-self.group :]
        return int(largest.sum())


@dataclass(frozen=True)
class UnitLayout:
    """How one array of a store is cut into the units that are fetched.

    `ptr` int64 [N+1] points to the rows of N samples; None stands for one row per sample.
    """

    unit_rows: int
    row_bytes: int
    ptr: Int64Array | None = None

    @property
    def unit_bytes(self) -> int:
        """Bytes of a unit."""
        return max(1, self.unit_rows * self.row_bytes)

    def row(self, sample: Int64Array) -> Int64Array:
        """First row of samples."""
        return sample if self.ptr is None else self.ptr[sample]

    def bytes_of(self, count: int) -> int:
        """Bytes of the rows of the first `count` samples."""
        return int(self.row(np.array([count]))[0]) * self.row_bytes


def block_order(seed: int, epoch: int, bounds: Int64Array, group: int) -> Int64Array:
    """Order [n] int64 of all samples, shuffled within groups of `group` shuffled blocks.

    Block b has the samples from ``bounds[b]`` to ``bounds[b + 1] - 1``. The order depends on the
    arguments alone; `seed` and `epoch` are not negative, and `group` is at least 1.

    Examples
    --------
    >>> order = block_order(0, 0, np.array([0, 2, 4, 6]), group=1)
    >>> sorted(sorted(pair) for pair in order.reshape(3, 2).tolist())
    [[0, 1], [2, 3], [4, 5]]
    """
    if group < 1:
        raise ValueError(f"a group of {group} blocks: expected at least 1")
    if len(bounds) < 2:
        return np.zeros(0, dtype=np.int64)
    generator, blocks, ends = _shuffled(seed, epoch, bounds)
    order = segment_rows(np.asarray(bounds, dtype=np.int64)[blocks], ends)
    for first in range(0, len(blocks), group):
        generator.shuffle(order[ends[first] : ends[min(first + group, len(blocks))]])
    return order


def group_bounds(seed: int, epoch: int, bounds: Int64Array, group: int) -> Int64Array:
    """Positions [groups + 1] int64 in `block_order` at which its groups begin and end.

    Examples
    --------
    >>> group_bounds(0, 0, np.array([0, 2, 4, 6]), group=2)
    array([0, 4, 6])
    """
    if len(bounds) < 2:
        return np.zeros(1, dtype=np.int64)
    _, _, ends = _shuffled(seed, epoch, bounds)
    return np.append(ends[:-1:group], ends[-1])


def _shuffled(
    seed: int, epoch: int, bounds: Int64Array
) -> tuple[np.random.Generator, Int64Array, Int64Array]:
    """Generator that has shuffled the blocks, their order, and where each ends in that order."""
    seeds = np.random.SeedSequence([seed, epoch, _PURPOSE])
    generator = np.random.Generator(np.random.PCG64(seeds))
    blocks = generator.permutation(len(bounds) - 1)
    return generator, blocks, pointers(np.diff(bounds)[blocks])


def choose_blocks(
    count: int, layouts: Sequence[UnitLayout], limit: int | None
) -> tuple[Int64Array, int]:
    """Bounds int64 [blocks + 1] of the blocks of `count` samples, and the blocks in a group.

    The rows of a block fill about one unit of the array with the most bytes, or as many small units
    as make a megabyte, as neighbours are fetched together. Two groups fit into `limit` bytes, as
    one is read while the next is fetched; where even two blocks do not fit, a group is one block.
    Without a limit, all blocks are one group.

    Examples
    --------
    >>> atoms = np.arange(0, 1010, 10)
    >>> positions, energy = UnitLayout(200, 12, atoms), UnitLayout(1000, 8)
    >>> bounds, group = choose_blocks(100, [positions, energy], limit=30_000)
    >>> bounds.tolist(), group
    ([0, 20, 40, 60, 80, 100], 2)
    """
    if count == 0 or not layouts:
        return np.arange(min(count, 1) + 1) * count, 1
    largest = max(layouts, key=lambda layout: layout.bytes_of(count))
    rows = largest.row(np.arange(count + 1))
    units = -(-int(rows[-1]) // largest.unit_rows)
    together = max(1, min(_BLOCK_BYTES // largest.unit_bytes, units // _LEAST_BLOCKS))
    cuts = np.searchsorted(rows, np.arange(0, int(rows[-1]), together * largest.unit_rows))
    bounds = np.unique(np.concatenate([[0], cuts, [count]])).astype(np.int64)
    blocks = len(bounds) - 1
    if limit is None:
        return bounds, blocks
    fitting = np.searchsorted(2 * _group_bytes(bounds, layouts), limit, side="right")
    return bounds, max(int(fitting), 1)


def _group_bytes(bounds: Int64Array, layouts: Sequence[UnitLayout]) -> Int64Array:
    """Bytes [blocks] of the units that groups of 1, 2, ... blocks touch at most."""
    total = np.zeros(len(bounds) - 1, dtype=np.int64)
    for layout in layouts:
        rows = layout.row(bounds)
        touched = (rows[1:] - 1) // layout.unit_rows - rows[:-1] // layout.unit_rows + 1
        touched[rows[1:] == rows[:-1]] = 0
        units = -(-int(rows[-1]) // layout.unit_rows)
        most = np.minimum(np.cumsum(np.sort(touched)[::-1]), units)
        total += most * layout.unit_bytes
    return total


def shuffled_blocks(stores: Stores, fields: Sequence[str] | None, count: int) -> Blocks:
    """Blocks of the first `count` samples, in groups that fit the caches of their stores."""
    index_map = stores.index_map.until(count)
    chosen = {
        store: _blocks_of(view, fields, index_map.held(store))
        for store, view in enumerate(stores.views)
        if index_map.held(store)
    }
    bounds, end = [np.zeros(1, dtype=np.int64)], 0
    for store, length, first in index_map.placed():
        here = np.clip(chosen[store].bounds, first, first + length) - first + end
        bounds.append(here)
        end += length
    groups = [blocks.group for blocks in chosen.values()]
    return Blocks(np.unique(np.concatenate(bounds)), min(groups, default=1))


def exceed_caches(stores: Stores, fields: Sequence[str] | None) -> bool:
    """Whether the fields that are read of a store's samples exceed its cache."""
    for store, view in enumerate(stores.views):
        count, limit = stores.index_map.held(store), view.snapshot.limit
        if limit is None:
            continue
        cached = [layout for through, layout in _layouts(view, fields) if through]
        if sum(layout.bytes_of(count) for layout in cached) > limit:
            return True
    return False


def _blocks_of(view: StoreView, fields: Sequence[str] | None, count: int) -> Blocks:
    layouts = [layout for _, layout in _layouts(view, fields)]
    return Blocks(*choose_blocks(count, layouts, view.snapshot.limit))


def _layouts(view: StoreView, fields: Sequence[str] | None) -> list[tuple[bool, UnitLayout]]:
    """Whether each array that is read goes through a cache, and the layout of its units."""
    return [
        (unit.cached, UnitLayout(unit.rows, unit.row_bytes, view.row_starts(unit.level)))
        for unit in view.units(fields)
    ]
