"""Which samples are read near each other, so that what is fetched for one serves the others."""

from collections.abc import Sequence

import numpy as np

from zarrpipe.dataset.blocks import Blocks, UnitLayout, choose_blocks
from zarrpipe.dataset.stores import Stores
from zarrpipe.store.read.view import StoreView


def shuffled_blocks(stores: Stores, fields: Sequence[str] | None, count: int) -> Blocks:
    """How the first `count` samples are shuffled so that groups fit the caches of their stores."""
    arrivals = stores.arrivals.until(count)
    chosen = {
        store: _blocks_of(view, fields, arrivals.held(store))
        for store, view in enumerate(stores.views)
        if arrivals.held(store)
    }
    bounds, end = [np.zeros(1, dtype=np.int64)], 0
    for store, length, first in arrivals.placed():
        here = np.clip(chosen[store].bounds, first, first + length) - first + end
        bounds.append(here)
        end += length
    groups = [blocks.group for blocks in chosen.values()]
    return Blocks(np.unique(np.concatenate(bounds)), min(groups, default=1))


def exceed_caches(stores: Stores, fields: Sequence[str] | None) -> bool:
    """Whether a cache cannot hold all that is read of the samples in its store."""
    for store, view in enumerate(stores.views):
        count, limit = stores.arrivals.held(store), view.snapshot.limit
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
    """How the arrays of a store that are read are cut, and whether through a cache."""
    return [
        (unit.cached, UnitLayout(unit.rows, unit.row_bytes, view.row_starts(unit.level)))
        for unit in view.units(fields)
    ]
