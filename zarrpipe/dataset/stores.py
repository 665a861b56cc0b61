"""Several stores as one: positions keep their samples while the stores grow."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Self

import numpy as np

from zarrpipe.data.batch import Batch
from zarrpipe.data.csr import AnyArray, Int64Array, pointers
from zarrpipe.data.levels import Level, united
from zarrpipe.data.schema import Field, levels_of, with_strings_of
from zarrpipe.errors import ArgumentError, FieldError, SchemaError, StoreFormatError
from zarrpipe.store.backend.location import StoreLike
from zarrpipe.store.cache.directory import CacheConfig
from zarrpipe.store.read.gather import Gather, Part
from zarrpipe.store.read.view import StoreView
from zarrpipe.store.statistics.stored_sums import valid_sums
from zarrpipe.store.statistics.sums import LabelSums


class SampleIndexMap:
    """Runs of samples, each from one store, in the order in which a dataset saw them.

    A run is a store and a number of samples; those of a store follow each other through its runs.

    Examples
    --------
    >>> index_map = SampleIndexMap([(0, 2), (1, 1), (0, 3)])
    >>> [part.tolist() for part in index_map.locate(np.array([0, 2, 4]))]
    [[0, 1, 0], [0, 0, 3]]
    >>> index_map.until(4).runs
    ((0, 2), (1, 1), (0, 1))
    """

    def __init__(self, runs: Iterable[tuple[int, int]]) -> None:
        merged: list[tuple[int, int]] = []
        for store, count in runs:
            if merged and merged[-1][0] == store:
                merged[-1] = (store, merged[-1][1] + int(count))
            elif count > 0:
                merged.append((int(store), int(count)))
        self.runs = tuple(merged)
        self._store = np.array([store for store, _ in merged], dtype=np.int64)
        self._ptr = pointers(np.array([count for _, count in merged], dtype=np.int64))
        held: dict[int, int] = {}
        first = []
        for store, count in merged:
            first.append(held.get(store, 0))
            held[store] = first[-1] + count
        self._first, self._held = np.array(first, dtype=np.int64), held

    def __len__(self) -> int:
        return int(self._ptr[-1])

    def continues(self, other: "SampleIndexMap") -> bool:
        """Whether this extends `other` without renumbering."""
        if not other.runs:
            return True
        before, (store, count) = other.runs[:-1], other.runs[-1]
        here = self.runs[len(before) : len(before) + 1]
        return (
            self.runs[: len(before)] == before
            and bool(here)
            and (here[0][0] == store and here[0][1] >= count)
        )

    def begin_as(self, other: "SampleIndexMap", count: int) -> bool:
        """Whether the first `count` samples are those of `other`."""
        return count <= len(self) and self.until(count).runs == other.until(count).runs

    def until(self, count: int) -> "SampleIndexMap":
        """Map of the first `count` samples."""
        left = np.clip(count - self._ptr[:-1], 0, None).tolist()
        return SampleIndexMap(
            (store, min(length, most))
            for (store, length), most in zip(self.runs, left, strict=True)
        )

    def placed(self) -> Iterator[tuple[int, int, int]]:
        """Store, number of samples, and row of the first of each run."""
        firsts = self._first.tolist()
        return (
            (store, count, first) for (store, count), first in zip(self.runs, firsts, strict=True)
        )

    def held(self, store: int) -> int:
        """Number of samples of a store."""
        return self._held.get(store, 0)

    def locate(self, rows: Int64Array) -> tuple[Int64Array, Int64Array]:
        """Store and row in it of each position."""
        run = np.searchsorted(self._ptr, rows, side="right") - 1
        return self._store[run], rows - self._ptr[run] + self._first[run]

    def collect(self, by_store: Sequence[AnyArray]) -> AnyArray:
        """One array in the order of positions from one array per store."""
        parts = [
            by_store[store][first : first + count]
            for (store, count), first in zip(self.runs, self._first, strict=True)
        ]
        return parts[0] if len(parts) == 1 else np.concatenate([by_store[0][:0], *parts])


@dataclass(frozen=True, eq=False)
class Stores:
    """The known samples of open stores; `refreshed` and `restored` return another state of them.

    Others may refresh the `opened` stores. Positions belong to `generations`, one for each store.
    """

    opened: tuple[StoreView, ...]
    generations: tuple[str, ...]
    index_map: SampleIndexMap
    schema: Mapping[str, Field]
    at: tuple[str, ...]
    _gather: Gather = field(repr=False)

    @classmethod
    def open(
        cls,
        stores: StoreLike | Sequence[StoreLike],
        cache_config: CacheConfig,
        at: str | Sequence[str] | None = None,
    ) -> Self:
        """All samples of one store or of several, store after store, or those of marks `at`."""
        opened = tuple(StoreView(store, cache_config) for store in _listed(stores))
        marks = _marks(at, len(opened))
        counts = (
            view.marked(mark) if marks else view.num_samples
            for view, mark in zip(opened, marks or [""] * len(opened), strict=True)
        )
        generations = tuple(view.generation for view in opened)
        index_map = SampleIndexMap(enumerate(counts))
        schema = common_schema(view.schema for view in opened)
        return cls(opened, generations, index_map, schema, marks, _gather_of(opened))

    def __reduce__(self) -> tuple[Any, ...]:
        return _unpickled, (self.opened, self.generations, self.index_map, self.schema, self.at)

    def __len__(self) -> int:
        return len(self.index_map)

    @property
    def views(self) -> tuple[StoreView, ...]:
        """The stores; raises `StoreFormatError` if one is known to have been rewritten."""
        self.check_current()
        return self.opened

    def check_current(self) -> None:
        """Refuse stores that are known to have been rewritten."""
        for place, view in enumerate(self.opened):
            self._check(place, view)

    def _check(self, place: int, view: StoreView) -> None:
        if view.generation != self.generations[place]:
            raise StoreFormatError(
                f"store {place} was rewritten: samples were deleted or moved, so indices mean "
                "others than before; open a new dataset"
            )

    def begin_as(self, other: Self, count: int) -> bool:
        """Whether the first `count` samples are those of `other`."""
        same = self.generations == other.generations
        return same and self.index_map.begin_as(other.index_map, count)

    def read(self, rows: Int64Array, fields: tuple[str, ...] | None) -> Batch:
        """Batch of the samples at positions [K]; a caller need not check that they exist.

        Raises IndexError for a position that does not exist, and `StoreFormatError` if a store was
        rewritten or is damaged.
        """
        if len(self.opened) == 1:
            rows, known = np.ascontiguousarray(rows), len(self.index_map)
            return self._gather.read(rows, fields, known=known, generations=self.generations)
        if len(rows) and rows.view(np.uint64).max() >= len(self.index_map):
            raise IndexError(f"samples {rows.min()} to {rows.max()} of {len(self.index_map)}")
        parts = self.parts(rows) or [Part(0, rows, rows)]
        return self._gather.read(parts, fields, generations=self.generations)

    def prefetch(self, rows: Int64Array, fields: tuple[str, ...] | None) -> None:
        """Bring the samples at positions [K] to memory in the background."""
        self._gather.prefetch(self.parts(rows), fields)

    def parts(self, rows: Int64Array) -> list[Part]:
        """Samples at positions [K], by store, and their places among the positions."""
        if len(self.opened) == 1:
            return [Part(0, np.ascontiguousarray(rows))]
        store, row = self.index_map.locate(rows)
        places = [np.flatnonzero(store == one) for one in range(len(self.opened))]
        return [Part(one, row[here], here) for one, here in enumerate(places) if len(here)]

    def refreshed(self) -> Self:
        """State after a refresh of each store; new samples come last, and none at marks.

        Raises `StoreFormatError` if a store was rewritten, and `SchemaError` if a new field differs
        between stores.
        """
        for place, view in enumerate(self.opened):
            view.refresh()
            self._check(place, view)
        known = self.index_map
        if self.at:
            return self
        new = [(i, view.num_samples - known.held(i)) for i, view in enumerate(self.opened)]
        return self._of(self.generations, SampleIndexMap([*known.runs, *new]))

    def stored_statistics(self) -> tuple[list[LabelSums], Int64Array]:
        """Sums that the stores keep, by bucket, and the positions [K] that they do not cover.

        At marks there are none: later the stores keep sums of more samples, and a pass over the
        samples rounds otherwise.
        """
        if self.at:
            return [], np.arange(len(self))
        found: dict[int, LabelSums] = {}
        for store, view in enumerate(self.views):
            stored = valid_sums(view.snapshot)
            if stored is not None and stored.samples <= self.index_map.held(store):
                found[store] = stored.sums
        rest, end = [np.zeros(0, dtype=np.int64)], 0
        for store, count, first in self.index_map.placed():
            known = int(found[store].total("samples")) if store in found else 0
            rest.append(np.arange(end + min(count, max(0, known - first)), end + count))
            end += count
        return list(found.values()), np.concatenate(rest)

    def state_dict(self) -> dict[str, Any]:
        """Index map and generations as plain types."""
        return {
            "arrivals": [list(run) for run in self.index_map.runs],
            "generations": list(self.generations),
        }

    def restored(self, state: Mapping[str, Any]) -> Self:
        """State that `state_dict` saved; raises `StoreFormatError` for other stores."""
        index_map = SampleIndexMap((store, count) for store, count in state["arrivals"])
        generations = state["generations"]
        if len(generations) != len(self.opened):
            raise StoreFormatError(
                f"the state is of {len(generations)} stores, here are {len(self.opened)}: give "
                "those that it was saved with, in the same order"
            )
        for place, (view, generation) in enumerate(zip(self.opened, generations, strict=True)):
            count = index_map.held(place)
            if view.num_samples < count:
                view.refresh()
            if view.num_samples < count or view.generation != generation:
                raise StoreFormatError(
                    f"store {place} has {view.num_samples} samples, the state counts {count} (of "
                    f"{generation!r}, the store is {view.generation!r}): give the stores that it "
                    "was saved with, in the same order and as they were"
                )
        return self._of(tuple(generations), index_map)

    def _of(self, generations: tuple[str, ...], index_map: SampleIndexMap) -> Self:
        schema = common_schema(view.schema for view in self.opened)
        return replace(self, generations=generations, index_map=index_map, schema=schema)


def common_schema(schemas: Iterable[Mapping[str, Field]]) -> Mapping[str, Field]:
    """Fields of all stores; raises `SchemaError` if one differs between two stores."""
    common: dict[str, Field] = {}
    levels: tuple[Level, ...] = ()
    for place, schema in enumerate(schemas):
        try:
            levels = united(levels, levels_of(schema.values()))
        except FieldError as error:
            raise SchemaError(f"store {place}: {error}") from error
        for name, item in schema.items():
            first = common[name] = with_strings_of(common.get(name, item), item)
            given = (item.level, item.index_of, item.dtype, item.shape, item.unit)
            fixed = (first.level, first.index_of, first.dtype, first.shape, first.unit)
            strings = (item.categories is None) is not (first.categories is None)
            if given != fixed or strings:
                raise SchemaError(
                    f"store {place} has field {name!r} at level {item.level!r} with dtype "
                    f"{item.dtype}, rows of shape {item.shape} and unit {item.unit or None!r}, "
                    f"a store before it at {first.level!r} with {first.dtype}, "
                    f"{first.shape} and {first.unit or None!r}: convert one"
                )
    return common


def _gather_of(opened: Sequence[StoreView]) -> Gather:
    """The gather of the only store, or one over all of them."""
    return opened[0].rows if len(opened) == 1 else Gather([view.snapshot for view in opened])


def _unpickled(
    opened: tuple[StoreView, ...],
    generations: tuple[str, ...],
    index_map: SampleIndexMap,
    schema: Mapping[str, Field],
    at: tuple[str, ...],
) -> Stores:
    return Stores(opened, generations, index_map, schema, at, _gather_of(opened))


def _marks(at: str | Sequence[str] | None, count: int) -> tuple[str, ...]:
    """Name of a mark for each of the stores; none without `at`."""
    if at is None:
        return ()
    marks = (at,) * count if isinstance(at, str) else tuple(at)
    if len(marks) != count or not all(isinstance(mark, str) for mark in marks):
        raise ArgumentError(
            f"at={at!r}, expected the name of a mark, or one for each of {count} stores"
        )
    return marks


def _listed(stores: StoreLike | Sequence[StoreLike]) -> Sequence[StoreLike]:
    """One or many stores as a list."""
    if not isinstance(stores, Sequence) or isinstance(stores, str | bytes):
        return [stores]
    if not stores:
        raise ArgumentError("an empty list of stores makes no dataset: expected at least one")
    return stores
