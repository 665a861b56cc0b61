"""A batch that a store has already, as of a cell of a notebook that is run twice."""

import numpy as np

from zarrpipe.data.ids import UInt64Array
from zarrpipe.store.format.layout import IDS
from zarrpipe.store.read.mapped import MappedArray
from zarrpipe.store.read.view import StoreView

_REMEMBERED = 1 << 14
_MAPPED, _FETCHED = 1 << 22, 1 << 16


class Repetitions:
    """Suspects batches of one sink of being stored again, at the cost of one look-up each.

    The first batch is suspected, and every batch that begins with the first structure of one of the
    first 16,384 batches of this sink. Nothing is suspected after a call of `found`.
    """

    def __init__(self) -> None:
        self._firsts: set[int] = set()
        self._is_over = False

    def suspects(self, ids: UInt64Array) -> bool:
        """Whether to look for the ids [B] of a batch among those that were stored before it."""
        if self._is_over or not len(ids):
            return False
        first, firsts = ids.item(0), self._firsts
        suspected = first in firsts or not firsts
        if len(firsts) < _REMEMBERED:
            firsts.add(first)
        return suspected

    def found(self) -> None:
        """Suspect no further batch, since one warning is enough."""
        self._is_over = True


def are_stored(view: StoreView, ids: UInt64Array, count: int) -> bool:
    """Whether the ids [B] are all among those of the first `count` samples of a store.

    Of a large store whose ids are mapped only the first and the last samples are looked at. Ids
    that have to be fetched or decoded are looked at in small stores alone.
    """
    if not view.snapshot.has(IDS):
        return False
    places = np.arange(count)
    if not isinstance(view.snapshot.array(IDS, 0), MappedArray):
        if count > _FETCHED:
            return False
    elif count > _MAPPED:
        places = np.concatenate([places[: _MAPPED // 2], places[-_MAPPED // 2 :]])
    known = view.ids_of(places)
    # NumPy 2.0 overflows in a table of 64-bit ids.
    return bool((known == ids[0]).any()) and bool(np.isin(ids, known, kind="sort").all())
