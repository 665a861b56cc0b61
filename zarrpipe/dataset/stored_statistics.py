"""Which samples of several stores are in the sums that the stores keep for statistics."""

import numpy as np

from zarrpipe.data.csr import Int64Array
from zarrpipe.dataset.stores import Stores
from zarrpipe.store.statistics.stored_sums import valid_sums
from zarrpipe.store.statistics.sums import LabelSums


def stored_statistics(stores: Stores) -> tuple[list[LabelSums], Int64Array]:
    """Sums that the stores keep, by bucket, and the positions [K] that are in none of them."""
    found: dict[int, LabelSums] = {}
    for store, view in enumerate(stores.views):
        stored = valid_sums(view.snapshot)
        if stored is not None and stored.samples <= stores.arrivals.held(store):
            found[store] = stored.sums
    rest, end = [np.zeros(0, dtype=np.int64)], 0
    for store, count, first in stores.arrivals.placed():
        known = int(found[store].total("samples")) if store in found else 0
        rest.append(np.arange(end + min(count, max(0, known - first)), end + count))
        end += count
    return list(found.values()), np.concatenate(rest)
