"""Several stores as one, in which a position means the same sample while they grow."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Self

import numpy as np

from zarrpipe.data.batch import Batch
from zarrpipe.data.csr import Int64Array
from zarrpipe.data.schema import Field
from zarrpipe.dataset.index_map import SampleIndexMap
from zarrpipe.dataset.schemas import common_schema
from zarrpipe.errors import ArgumentError, StoreFormatError
from zarrpipe.store.backend.location import StoreLike
from zarrpipe.store.cache.config import CacheConfig
from zarrpipe.store.read.gather import Gather, Part
from zarrpipe.store.read.view import StoreView


@dataclass(frozen=True, eq=False)
class Stores:
    """The samples that were known of open stores at one moment.

    It stays as it is: `refreshed` and `returned` give another one over the same open stores.

    Parameters
    ----------
    opened
        The stores, which others may bring up to date.
    generations
        Of each store the one that positions are of.
    arrivals
        Which sample each position means.
    schema
        Fields that the stores have between them.
    """

    opened: tuple[StoreView, ...]
    generations: tuple[str, ...]
    arrivals: SampleIndexMap
    schema: Mapping[str, Field]
    _gather: Gather = field(repr=False)

    @classmethod
    def open(cls, stores: StoreLike | Sequence[StoreLike], cache_config: CacheConfig) -> Self:
        """All samples of one store or of several, store after store."""
        opened = tuple(StoreView(store, cache_config) for store in _listed(stores))
        generations = tuple(view.generation for view in opened)
        arrivals = SampleIndexMap((place, view.num_samples) for place, view in enumerate(opened))
        schema = common_schema(view.schema for view in opened)
        return cls(opened, generations, arrivals, schema, _gather_of(opened))

    def __reduce__(self) -> tuple[Any, ...]:
        return _unpickled, (self.opened, self.generations, self.arrivals, self.schema)

    def __len__(self) -> int:
        return len(self.arrivals)

    @property
    def views(self) -> tuple[StoreView, ...]:
        """The stores, in which the samples are still those that positions mean.

        Raises
        ------
        StoreFormatError
            If one is known to have been rewritten.
        """
        for place, view in enumerate(self.opened):
            self._check(place, view)
        return self.opened

    def _check(self, place: int, view: StoreView) -> None:
        if view.generation != self.generations[place]:
            raise StoreFormatError(
                f"store {place} was rewritten: samples were deleted or moved, so indices mean "
                "others than before; open a new dataset"
            )

    def begin_as(self, other: Self, count: int) -> bool:
        """Whether the first `count` samples are those of another moment."""
        same = self.generations == other.generations
        return same and self.arrivals.begin_as(other.arrivals, count)

    def read(self, rows: Int64Array, fields: tuple[str, ...] | None) -> Batch:
        """Batch of the samples at positions [K], which may turn out not to exist.

        Raises
        ------
        IndexError
            If there is no such sample.
        StoreFormatError
            If a store was rewritten, or is damaged.
        """
        if len(self.opened) == 1:
            rows, known = np.ascontiguousarray(rows), len(self.arrivals)
            return self._gather.read(rows, fields, known=known, generations=self.generations)
        if len(rows) and rows.view(np.uint64).max() >= len(self.arrivals):
            raise IndexError(f"samples {rows.min()} to {rows.max()} of {len(self.arrivals)}")
        parts = self.parts(rows) or [Part(0, rows, rows)]
        return self._gather.read(parts, fields, generations=self.generations)

    def prefetch(self, rows: Int64Array, fields: tuple[str, ...] | None) -> None:
        """Bring the samples at positions [K] to memory in the background."""
        self._gather.prefetch(self.parts(rows), fields)

    def parts(self, rows: Int64Array) -> list[Part]:
        """Samples at positions [K] by store, and where they stand among these."""
        if len(self.opened) == 1:
            return [Part(0, np.ascontiguousarray(rows))]
        store, row = self.arrivals.locate(rows)
        places = [np.flatnonzero(store == one) for one in range(len(self.opened))]
        return [Part(one, row[here], here) for one, here in enumerate(places) if len(here)]

    def refreshed(self) -> Self:
        """What is known now; samples that are new come last.

        Raises
        ------
        StoreFormatError
            If a store was rewritten.
        SchemaError
            If a store has a new field that differs from that of another.
        """
        for place, view in enumerate(self.opened):
            view.refresh()
            self._check(place, view)
        known = self.arrivals
        new = [(i, view.num_samples - known.held(i)) for i, view in enumerate(self.opened)]
        return self._of(self.generations, SampleIndexMap([*known.runs, *new]))

    def state_dict(self) -> dict[str, Any]:
        """What positions mean, as plain types."""
        return {
            "arrivals": [list(run) for run in self.arrivals.runs],
            "generations": list(self.generations),
        }

    def returned(self, state: Mapping[str, Any]) -> Self:
        """What was known when a state was saved, here or elsewhere.

        Raises
        ------
        StoreFormatError
            If the stores are not those of the state.
        """
        arrivals = SampleIndexMap((store, count) for store, count in state["arrivals"])
        generations = state["generations"]
        if len(generations) != len(self.opened):
            raise StoreFormatError(
                f"the state is of {len(generations)} stores, here are {len(self.opened)}: give "
                "those that it was saved with, in the same order"
            )
        for place, (view, generation) in enumerate(zip(self.opened, generations, strict=True)):
            count = arrivals.held(place)
            if view.num_samples < count:
                view.refresh()
            if view.num_samples < count or view.generation != generation:
                raise StoreFormatError(
                    f"store {place} has {view.num_samples} samples, the state counts {count} (of "
                    f"{generation!r}, the store is {view.generation!r}): give the stores that it "
                    "was saved with, in the same order and as they were"
                )
        return self._of(tuple(generations), arrivals)

    def _of(self, generations: tuple[str, ...], arrivals: SampleIndexMap) -> Self:
        schema = common_schema(view.schema for view in self.opened)
        return replace(self, generations=generations, arrivals=arrivals, schema=schema)


def _gather_of(opened: Sequence[StoreView]) -> Gather:
    """The gather of the only store, or one over all of them."""
    return opened[0].rows if len(opened) == 1 else Gather([view.snapshot for view in opened])


def _unpickled(
    opened: tuple[StoreView, ...],
    generations: tuple[str, ...],
    arrivals: SampleIndexMap,
    schema: Mapping[str, Field],
) -> Stores:
    return Stores(opened, generations, arrivals, schema, _gather_of(opened))


def _listed(stores: StoreLike | Sequence[StoreLike]) -> Sequence[StoreLike]:
    """One or many stores as a list."""
    if not isinstance(stores, Sequence) or isinstance(stores, str | bytes):
        return [stores]
    if not stores:
        raise ArgumentError("an empty list of stores makes no dataset: expected at least one")
    return stores
