"""Several stores as one: positions keep their samples while the stores grow."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Self

import numpy as np

from zarrpipe.data.batch import Batch
from zarrpipe.data.csr import AnyArray, Int64Array, pointers
from zarrpipe.data.levels import Level, united
from zarrpipe.data.schema import Field, levels_of, with_strings_of
from zarrpipe.errors import (
    ArgumentError,
    FieldError,
    SchemaError,
    StoreFormatError,
    StoreNotFoundError,
)
from zarrpipe.store.backend.location import StoreLike
from zarrpipe.store.cache.directory import CacheConfig
from zarrpipe.store.parts.parent_marks import ParentMark
from zarrpipe.store.read.gather import Gather, Part
from zarrpipe.store.read.part_views import PartViews
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
        if not by_store:
            return np.zeros(0, dtype=np.int64)
        parts = [
            by_store[store][first : first + count]
            for (store, count), first in zip(self.runs, self._first, strict=True)
        ]
        return parts[0] if len(parts) == 1 else np.concatenate([by_store[0][:0], *parts])


_FEW = 16  # stores that are looked for one by one, which is quicker than sorting

Place = tuple[int, str | None]
"""Which of the given stores, and the name of its part; None for a store without parts."""


@dataclass(frozen=True, eq=False)
class Stores:
    """The known samples of open stores; `refreshed` and `restored` return another state of them.

    A store that was given is itself opened, or each of its parts is. `places` says which each of
    the `opened` is. Others may refresh these. Positions belong to `generations`, one for each.
    """

    given: tuple[PartViews, ...]
    places: tuple[Place, ...]
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
        """All samples of one store or of several, store after store, part after part.

        With marks `at` those that they name: of a parent what its mark of that name says, or else
        those of the parts that have the mark.
        """
        given = tuple(PartViews(store, cache_config) for store in _listed(stores))
        found, marks = _found(given), _marks(at, len(given))
        counts = {place: view.num_samples for place, view in found.items()}
        if marks:
            counts = _marked_counts(given, found, marks)
            found = {place: found[place] for place in counts}
        opened = tuple(found.values())
        generations = tuple(view.generation for view in opened)
        index_map = SampleIndexMap(enumerate(counts.values()))
        schema = common_schema(view.schema for view in opened)
        gather = _gather_of(opened)
        return cls(given, (*found,), opened, generations, index_map, schema, marks, gather)

    def __reduce__(self) -> tuple[Any, ...]:
        known = {name: value for name, value in self.__dict__.items() if name != "_gather"}
        return _unpickled, (known,)

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
                f"{self._named(place)} was rewritten: samples were deleted or moved, so indices "
                "mean others than before; open a new dataset"
            )

    def begin_as(self, other: Self, count: int) -> bool:
        """Whether the first `count` samples are those of `other`."""
        if not self.index_map.begin_as(other.index_map, count):
            return False
        used = {store for store, _ in other.index_map.until(count).runs}
        return all(self._identity(store) == other._identity(store) for store in used)

    def _identity(self, store: int) -> tuple[Place, str]:
        return self.places[store], self.generations[store]

    def _named(self, store: int) -> str:
        """Name of an opened store in messages."""
        return _name_of(*self.places[store])

    def given_of(self, rows: Int64Array) -> Int64Array:
        """Which of the given stores has each position [K]."""
        of_opened = np.array([given for given, _ in self.places], dtype=np.int64)
        return of_opened[self.index_map.locate(rows)[0]]

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
        few = len(self.opened) <= _FEW
        numbers = range(len(self.opened)) if few else np.unique(store).tolist()
        places = [(one, np.flatnonzero(store == one)) for one in numbers]
        return [Part(one, row[here], here) for one, here in places if len(here)]

    def refreshed(self) -> Self:
        """State after a refresh of each store; new samples come last, new parts after them.

        At marks nothing is new.


        Raises `StoreFormatError` if a store was rewritten, and `SchemaError` if a new field differs
        between stores.
        """
        for place, view in enumerate(self.opened):
            view.refresh()
            self._check(place, view)
        if self.at:
            return self
        found = _found(self.given) if self._may_get_parts else {}
        new = {place: view for place, view in found.items() if place not in self.places}
        for view in new.values():
            view.refresh()  # another dataset may have opened it
        views = (*self.opened, *new.values())
        came = [(i, view.num_samples - self.index_map.held(i)) for i, view in enumerate(views)]
        return self._of(
            (*self.places, *new),
            views,
            (*self.generations, *(view.generation for view in new.values())),
            SampleIndexMap([*self.index_map.runs, *came]),
        )

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

    @property
    def _may_get_parts(self) -> bool:
        return any(one.is_parent for one in self.given)

    def state_dict(self) -> dict[str, Any]:
        """Index map and generations as plain types, and the places of parts if there are any."""
        state: dict[str, Any] = {
            "arrivals": [list(run) for run in self.index_map.runs],
            "generations": list(self.generations),
        }
        if self._may_get_parts:
            state["parts"] = [list(place) for place in self.places]
        return state

    def restored(self, state: Mapping[str, Any]) -> Self:
        """State that `state_dict` saved; raises `StoreFormatError` for other stores.

        Parts are found by their names. Those that the state does not name come with the next
        refresh.
        """
        index_map = SampleIndexMap((store, count) for store, count in state["arrivals"])
        generations = tuple(state["generations"])
        if "parts" in state:
            places: tuple[Place, ...] = tuple((given, part) for given, part in state["parts"])
            opened = tuple(self._view_of(given, part) for given, part in places)
        else:
            places, opened = self.places, self.opened
        if len(generations) != len(opened) or ("parts" in state) is not self._may_get_parts:
            raise StoreFormatError(
                f"the state is of {len(generations)} stores, here are {len(opened)} "
                f"({'parts of a parent' if self._may_get_parts else 'without parts'}): give those "
                "that it was saved with, in the same order"
            )
        for place, (view, generation) in enumerate(zip(opened, generations, strict=True)):
            count = index_map.held(place)
            if view.num_samples < count:
                view.refresh()
            if view.num_samples < count or view.generation != generation:
                raise StoreFormatError(
                    f"{_name_of(*places[place])} has {view.num_samples} samples, the state counts "
                    f"{count} (of {generation!r}, the store is {view.generation!r}): give the "
                    "stores that it was saved with, in the same order and as they were"
                )
        return self._of(places, opened, generations, index_map)

    def _view_of(self, given: int, part: str | None) -> StoreView:
        """View of a place that a state names."""
        try:
            return self.given[given].view(part)
        except (IndexError, StoreNotFoundError) as error:
            raise StoreFormatError(
                f"the state has samples of {_name_of(given, part)}, which is not there ({error}): "
                "give the stores that it was saved with, in the same order, with all of their parts"
            ) from error

    def _of(
        self,
        places: tuple[Place, ...],
        opened: tuple[StoreView, ...],
        generations: tuple[str, ...],
        index_map: SampleIndexMap,
    ) -> Self:
        schema = common_schema(view.schema for view in opened)
        gather = self._gather if opened == self.opened else _gather_of(opened)
        return replace(
            self,
            places=places,
            opened=opened,
            generations=generations,
            index_map=index_map,
            schema=schema,
            _gather=gather,
        )


def _name_of(given: int, part: str | None) -> str:
    """Name of a place in messages."""
    return f"store {given}" if part is None else f"part {part!r} of store {given}"


def _found(given: Sequence[PartViews]) -> dict[Place, StoreView]:
    """What each of the given stores has now, in order."""
    found: dict[Place, StoreView] = {}
    for number, one in enumerate(given):
        found.update(((number, name), view) for name, view in one.found().items())
    return found


def common_state(states: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """First of the states of `Stores` without the parts that another of them does not have.

    Examples
    --------
    >>> first = {"arrivals": [[0, 2], [1, 1], [0, 3]], "generations": ["a", "b"]}
    >>> common_state([{**first, "parts": [[0, "x"], [0, "y"]]}, {"parts": [[0, "x"]]}])
    {'arrivals': [[0, 5]], 'generations': ['a'], 'parts': [[0, 'x']]}
    """
    first = dict(states[0])
    if "parts" not in first:
        return first
    seen = [{tuple(place) for place in state.get("parts", ())} for state in states]
    kept = [
        number
        for number, place in enumerate(first["parts"])
        if all(tuple(place) in places for places in seen)
    ]
    number_of = {old: new for new, old in enumerate(kept)}
    runs = [(number_of[old], count) for old, count in first["arrivals"] if old in number_of]
    first["arrivals"] = [list(run) for run in SampleIndexMap(runs).runs]
    for name in ("generations", "parts"):
        first[name] = [first[name][old] for old in kept]
    return first


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


def _unpickled(known: Mapping[str, Any]) -> Stores:
    return Stores(**known, _gather=_gather_of(known["opened"]))


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


def _marked_counts(
    given: Sequence[PartViews], found: Mapping[Place, StoreView], marks: Sequence[str]
) -> dict[Place, int]:
    """Marked samples of each store or part that has some; raises ArgumentError for none.

    Raises StoreFormatError if samples that the mark of a parent names are gone.
    """
    counts: dict[Place, int] = {}
    for number, (one, mark) in enumerate(zip(given, marks, strict=True)):
        own = {place: view for place, view in found.items() if place[0] == number}
        of_parent = ParentMark.read(one.store, mark) if one.is_parent else None
        if of_parent is not None:
            for part, there in of_parent.parts.items():
                name = _name_of(number, part)
                if (number, part) not in own:
                    raise StoreFormatError(
                        f"{name} is gone, of which the mark {mark!r} names samples: put it back, "
                        "or take another mark"
                    )
                counts[number, part] = there.count_in(own[number, part], name)
            continue
        some = {
            place: view.marked(mark)
            for place, view in own.items()
            if place[1] is None or mark in view.marks
        }
        if not some:
            raise ArgumentError(
                f"no part of store {number} has a mark {mark!r}: make one with zarrpipe.mark, or "
                "with ZarrData.mark in each part"
            )
        counts |= some
    return counts


def _listed(stores: StoreLike | Sequence[StoreLike]) -> Sequence[StoreLike]:
    """One or many stores as a list."""
    if not isinstance(stores, Sequence) or isinstance(stores, str | bytes):
        return [stores]
    if not stores:
        raise ArgumentError("an empty list of stores makes no dataset: expected at least one")
    return stores
