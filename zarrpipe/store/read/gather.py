"""From sample indices to a batch: look samples up, lay the batch out, and copy their rows.

All fields of a batch, its pointers, and the arrays that say which samples have a field are in one
buffer. Samples of one store whose arrays are mapped need a single compiled call.
"""

import contextlib
from collections.abc import Mapping, Sequence
from functools import partial
from typing import NamedTuple, cast

import numpy as np

from zarrpipe.data.batch import Batch
from zarrpipe.data.batch_layout import (
    FIELD,
    POINTERS,
    PRESENT,
    ArraySpec,
    BatchBytes,
    BatchLayout,
)
from zarrpipe.data.buffers import BufferPool, page_locked
from zarrpipe.data.categories import Int32Array, looked_up
from zarrpipe.data.csr import AnyArray, Int64Array, pointers, segment_rows
from zarrpipe.data.fields import CORE_FIELDS, REQUIRED_FIELDS
from zarrpipe.data.levels import Level, pointer_levels
from zarrpipe.data.schema import Field, with_strings_of
from zarrpipe.errors import FieldError, StoreFormatError
from zarrpipe.store.read.snapshot import Snapshot, detect_changes
from zarrpipe.store.read.source import BatchArray, Source, Unit

_ALL = np.zeros(0, dtype=np.int64)
_INT64 = np.dtype("int64")


class Part(NamedTuple):
    """Samples [J] int64 of one store, numbered without deleted ones.

    `store` is the number of the store in the gather. `places` [J] int64 are the places of the
    samples in the batch; None if they are the whole batch.
    """

    store: int
    samples: Int64Array
    places: Int64Array | None = None


class Gather:
    """Reads batches from stores."""

    def __init__(self, snapshots: Sequence[Snapshot]) -> None:
        self._snapshots = snapshots
        self._pool = BufferPool()
        self._plans: dict[tuple[str, ...] | None, _Plan] = {}

    def read(
        self,
        index: Int64Array | Sequence[Part],
        fields: tuple[str, ...] | None,
        *,
        known: int | None = None,
        generations: tuple[str, ...] | None = None,
    ) -> Batch:
        """Read a batch.

        `index` has samples [K] int64 of the only store, in C order, or at least one part. `fields`
        are read besides those that every batch has; None for all. Only the first `known` samples of
        the only store may be read, by default all. `generations` are those of the stores for which
        the samples are numbered, by default any.

        Raises IndexError if a sample does not exist, FieldError if no store has a field, and
        StoreFormatError if a store was rewritten, or its pointers or edges are damaged.
        """
        plan = self._plan(fields)
        if generations is not None and plan.generations != generations:
            self._refuse_rewritten(plan.generations, generations)
        if isinstance(index, np.ndarray):
            known = plan.sources[0].samples if known is None else known
            if plan.fused and not page_locked():
                return plan.read(index, known)
            if len(index) and index.view(np.uint64).max() >= known:
                raise plan.sources[0].outside(index)
            index = (Part(0, index),)
        with detect_changes(*self._snapshots):
            return plan.read_parts(index)

    def prefetch(self, parts: Sequence[Part], fields: tuple[str, ...] | None) -> None:
        """Load samples in the background."""
        plan = self._plan(fields)
        for part in parts:
            plan.sources[part.store].prefetch(part.samples)

    def units(self, snapshot: Snapshot, fields: tuple[str, ...] | None) -> list[Unit]:
        """Units of the arrays of one of the stores."""
        found = [array.unit(snapshot) for array in self._plan(fields).arrays]
        return [unit for unit in found if unit is not None]

    def clear(self) -> None:
        """Drop all references to arrays."""
        self._plans.clear()

    def _plan(self, fields: tuple[str, ...] | None) -> "_Plan":
        """Plan for a choice of fields, renewed when a store has changed."""
        plan = self._plans.get(fields)
        if plan is not None and plan.current:
            return plan
        with contextlib.ExitStack() as locks:  # so that no refresh comes in between
            for snapshot in self._snapshots:
                locks.enter_context(snapshot.lock)
            with detect_changes(*self._snapshots):
                plan = _Plan(self._snapshots, self._chosen(fields), self._pool)
        self._plans[fields] = plan
        return plan

    def _chosen(self, names: tuple[str, ...] | None) -> dict[str, Field]:
        have: dict[str, Field] = {}
        for snapshot in self._snapshots:
            for name, item in snapshot.schema.items():
                have[name] = with_strings_of(have.get(name, item), item)
        if names is None:
            return have
        for name in names:
            if name not in have:
                stores = ", ".join(str(one.root) for one in self._snapshots)
                raise FieldError(f"{stores} has no field {name!r}; it has {list(have)}")
        return {name: have[name] for name in dict.fromkeys((*REQUIRED_FIELDS, *names))}

    def _refuse_rewritten(self, have: tuple[str, ...], wanted: tuple[str, ...]) -> None:
        for snapshot, now, then in zip(self._snapshots, have, wanted, strict=True):
            if now != then:
                raise StoreFormatError(
                    f"{snapshot.root} was rewritten: samples were deleted or moved, so indices "
                    "mean others than before; open a new dataset"
                )


class _Plan:
    """Reads batches of some fields until a store changes.

    A store that lacks a field yields its fill value, and its samples count as without the field.
    """

    def __init__(
        self, snapshots: Sequence[Snapshot], fields: Mapping[str, Field], pool: BufferPool
    ) -> None:
        from zarrpipe.store.read import kernels  # noqa: PLC0415  numba takes half a second

        self._kernels, self._pool, self._roots = kernels, pool, [one.root for one in snapshots]
        self._versions = [(one, one.version) for one in snapshots]
        self.generations = tuple(one.generation for one in snapshots)
        nullable = [name for name in fields if any(_may_lack(one, name) for one in snapshots)]
        self.arrays = [BatchArray.of(item) for item in fields.values()]
        self.arrays += [BatchArray.of_presence(name) for name in nullable]
        used = [array.level for array in self.arrays]
        used += [array.index_of for array in self.arrays if array.index_of is not None]
        self._levels = pointer_levels(used)
        self._number = {level: number for number, level in enumerate(self._levels, 1)}
        self._specs = _specs(self.arrays, self._levels)
        rows = [
            (self._number.get(array.level, 0), array.row_bytes, self._shifted_level(array))
            for array in self.arrays
        ]
        self._table = np.ascontiguousarray(np.array(rows, dtype=np.int64).reshape(-1, 3).T)
        needed = {Level.ATOM, *used, *(one for level in used for one in level.parents)}
        self.sources = [Source(one, self.arrays, self._levels, needed) for one in snapshots]
        self._foreign = any(one.has_foreign_rows for one in snapshots)
        self._unfinished = [
            place
            for place, array in enumerate(self.arrays)
            if array.index_of is not None
            and (self._foreign or array.name in nullable or array.dtype != _INT64)
        ]
        only = self.sources[0]
        simple = len(snapshots) == 1 and not only.missing and not self._unfinished
        self.fused = simple and only.row_cache is None
        """Whether one compiled call reads a batch."""
        self._numbers = len(self._levels) + 2 + len(self._specs) + 1
        self._sample_bytes = _mean_bytes(snapshots[0], self.arrays)

    @property
    def current(self) -> bool:
        """Whether no store has changed since the plan was made."""
        for snapshot, version in self._versions:  # noqa: SIM110  a generator takes twice as long
            if snapshot.version != version:
                return False
        return True

    def read(self, samples: Int64Array, known: int) -> Batch:
        """Read a batch from the only store, by one compiled call."""
        read, source, numbers = self._kernels.read, self.sources[0], np.empty(self._numbers, _INT64)
        buffer = self._pool.lend(len(samples) * self._sample_bytes)
        while True:
            nbytes = read(samples, known, source.vector, self._table, numbers, buffer)
            if nbytes <= len(buffer):
                break
            buffer = self._pool.lend(nbytes)
        if nbytes < 0:
            with detect_changes(*(one for one, _ in self._versions)):
                self._refuse(nbytes, source, samples)
        return Batch._of_bytes(BatchBytes(self._specs, numbers, buffer[:nbytes]))

    def read_parts(self, parts: Sequence[Part]) -> Batch:
        """Read a batch of the samples of at least one part."""
        count, kernels = sum(len(part.samples) for part in parts), self._kernels
        table = np.empty((2 * len(self._levels) + 1, count + 1), dtype=np.int64)
        for store, samples, places in parts:
            source, where = self.sources[store], _ALL if places is None else places
            status = kernels.locate(samples, source.samples, where, source.vector, table)
            self._refuse(status, source, samples)
        numbers = np.empty(self._numbers, dtype=np.int64)
        kernels.lay_out(table, self._table, numbers)
        buffer, pinned = self._pool.take(int(numbers[-1]))
        views = BatchLayout(self._specs, numbers.tolist()).views(buffer)
        for store, _, places in parts:
            source, where = self.sources[store], _ALL if places is None else places
            copy = partial(kernels.copy, table, where, source.vector, self._table, numbers, buffer)
            source.read(partial(self._source_segments, table, where), copy)
            for place, fill in source.missing:
                rows = _target_rows(table, where, self._number.get(self.arrays[place].level, 0))
                views[place][rows] = fill
            for place, codes in source.translations:
                chosen = where if len(where) else slice(None)
                views[place][chosen] = self._translated(place, views[place][chosen], codes)
        kernels.put_pointers(table, numbers, buffer)
        for place in self._unfinished:
            self._finish(place, views, table)
        return Batch._of_bytes(
            BatchBytes(self._specs, numbers, buffer if pinned is None else pinned)
        )

    def _shifted_level(self, array: BatchArray) -> int:
        """Number of the level whose row numbers a kernel shifts in an array; 0 for none."""
        whole = array.index_of is not None and array.dtype == _INT64
        return self._number[array.index_of] if whole and array.index_of is not None else 0

    def _source_segments(
        self, table: Int64Array, places: Int64Array, level: Level
    ) -> tuple[Int64Array, Int64Array]:
        """Starts and stops, in their store, of the rows of the samples at `places` (empty: all)."""
        chosen = places if len(places) else slice(0, table.shape[1] - 1)
        number = self._number.get(level, 0)
        starts = table[max(0, 2 * number - 1), chosen]
        return starts, starts + np.diff(_pointers(table, number))[chosen]

    def _refuse(self, status: int, source: Source, samples: Int64Array) -> None:
        """Raise the error that a status of a kernel means, if any."""
        if status == self._kernels.OUTSIDE:
            raise source.outside(samples)
        if status == self._kernels.DAMAGED:
            raise source.damaged()

    def _translated(self, place: int, codes: AnyArray, table: Int32Array) -> Int32Array:
        """Codes [J] of a store in the vocabulary of the batch."""
        try:
            return looked_up(self.arrays[place].name, codes, table)
        except FieldError as error:
            names = ", ".join(map(str, self._roots))
            raise StoreFormatError(f"{names}: {error}; `zarrpipe check` lists them") from error

    def _finish(self, place: int, views: list[AnyArray], table: Int64Array) -> None:
        """Shift row numbers that are not int64, check those of foreign stores, zero absent ones."""
        array, values = self.arrays[place], views[place]
        counts = np.diff(_pointers(table, self._number.get(array.level, 0)))
        counted = self._number[cast("Level", array.index_of)]
        if not self._table[2, place]:
            shift = np.repeat(table[2 * counted, :-1] - table[2 * counted - 1, :-1], counts)
            values += shift.reshape(-1, *(1,) * (values.ndim - 1)).astype(values.dtype)
        if self._foreign and array.name in CORE_FIELDS:
            self._check_index(array, values, table[2 * counted], counts)
        for other, spec in enumerate(self._specs):
            if (spec.purpose, spec.name) == (PRESENT, array.name) and not views[other].all():
                values[~np.repeat(views[other], counts)] = 0

    def _check_index(
        self, array: BatchArray, values: AnyArray, ptr: Int64Array, counts: Int64Array
    ) -> None:
        """Refuse edges that leave their system, as those that nvalchemi appends do."""
        owner = np.repeat(np.arange(len(counts)), counts)[:, None]
        if ((values < ptr[owner]) | (values >= ptr[owner + 1])).any():
            names = ", ".join(map(str, self._roots))
            raise StoreFormatError(
                f"{names}: {array.level}s leave their system; nvalchemi stores the "
                f"{array.name} of every write but the first relative to that write: `zarrpipe "
                "check --repair` on a copy of the store makes them count from its first atom, "
                "where that can be told"
            )


def copy_segments(
    stored: AnyArray, starts: Int64Array, ptr: Int64Array, places: Int64Array, out: AnyArray
) -> None:
    """Copy segments of rows, as a gather does.

    Segment b is copied from row ``starts[b]`` of `stored` to rows ``ptr[b]`` to ``ptr[b + 1]`` of
    `out`. `places` [J] are the segments to copy; empty for all. `starts` [B], `ptr` [B + 1] and
    `places` are int64; `stored` and `out` have C order, the same dtype and the same row shape.
    """
    from zarrpipe.store.read import kernels  # noqa: PLC0415  numba takes half a second

    table = np.zeros((3, len(ptr)), dtype=np.int64)  # of one level
    table[1, :-1], table[2] = starts, ptr
    source = np.zeros(6, dtype=np.int64)
    source[-1] = stored.ctypes.data
    arrays = np.array([[1], [stored[:1].nbytes], [0]], dtype=np.int64)
    layout = np.zeros(6, dtype=np.int64)
    kernels.copy(table, places, source, arrays, layout, out.reshape(-1).view(np.uint8))


def _specs(arrays: Sequence[BatchArray], levels: Sequence[Level]) -> tuple[ArraySpec, ...]:
    """Arrays of a batch, and its pointers."""
    numbered = {level: number for number, level in enumerate(levels, 1)}
    copied = [
        ArraySpec(
            PRESENT if array.field is None else FIELD,
            array.name,
            numbered.get(array.level, 0),
            array.dtype,
            array.shape,
            None if array.field is None else array.field.role,
        )
        for array in arrays
    ]
    entries = len(levels) + 1
    return (*copied, *(ArraySpec(POINTERS, "", entries, _INT64, (), level) for level in levels))


def _mean_bytes(snapshot: Snapshot, arrays: Sequence[BatchArray]) -> int:
    """Approximate mean bytes of a sample in a batch."""
    extent = snapshot.extent
    total = sum(array.row_bytes * extent.rows(array.level) for array in arrays)
    return total // max(extent.samples, 1) + 64 * len(arrays)


def _may_lack(snapshot: Snapshot, name: str) -> bool:
    """Whether some sample of a store may lack the field."""
    return name not in snapshot.schema or name in snapshot.attributes.nullable


def _pointers(table: Int64Array, number: int) -> Int64Array:
    """Pointers of the batch at a level, after `lay_out`."""
    if number == 0:
        return np.arange(table.shape[1])
    pointers: Int64Array = table[2 * number]
    return pointers


def _target_rows(table: Int64Array, places: Int64Array, number: int) -> Int64Array | slice:
    """Rows in the batch of the samples at `places` (empty: all) at a level."""
    if len(places) == 0:
        return slice(None)
    ptr = _pointers(table, number)
    return segment_rows(ptr[places], pointers(np.diff(ptr)[places]))
