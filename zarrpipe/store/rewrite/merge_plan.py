"""The samples of several stores, in their order in a new store."""

import itertools
import mmap
import os
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from zarrpipe.data.csr import AnyArray, Int64Array, pointers
from zarrpipe.data.ids import UInt64Array
from zarrpipe.data.levels import Level, united
from zarrpipe.data.schema import Field, Schema, field_from_array, levels_of, with_strings_of
from zarrpipe.errors import FieldError, SchemaError, StoreFormatError
from zarrpipe.store.format.commit_log import RowCounts
from zarrpipe.store.format.layout import field_spec
from zarrpipe.store.format.metadata import Mark
from zarrpipe.store.read.gather import copy_segments
from zarrpipe.store.rewrite.merge_source import MergeSource

_BLOCK = 1 << 23
_ALL = np.zeros(0, dtype=np.int64)


@dataclass(frozen=True)
class _Rows:
    """First row [N] of each sample in its source, and pointers [N+1] in the new store."""

    starts: Int64Array
    ptr: Int64Array

    @property
    def contiguous(self) -> bool:
        """Whether the samples are consecutive in their source."""
        return bool(np.array_equal(self.starts, self.ptr[:-1] + self.starts[0]))


class MergePlan:
    """Every sample of the sources, in order or shuffled by a seed.

    The plan takes about 100 bytes of memory a sample, and one block of a field: 8 MiB, or one
    encoded chunk or shard. Shuffled samples are read at random from memory; a field larger than a
    quarter of the memory is read once for every eighth of the memory. With `verify` the structures
    are read back and compared with their ids. Raises SchemaError if two sources have a field at
    different levels, dtypes or row shapes.
    """

    def __init__(
        self, sources: Sequence[MergeSource], shuffle: int | None = None, *, verify: bool = False
    ) -> None:
        self.sources, self.verify = list(sources), verify
        self.schema = _common_schema(self.sources)
        counts = [len(source.samples) for source in self.sources]
        self._order: Int64Array | None = None
        if shuffle is not None:
            self._order = np.random.default_rng(shuffle).permutation(sum(counts))
        self._owner = self._ordered(np.repeat(np.arange(len(counts), dtype=np.int32), counts))
        self._samples = self._ordered(_joined([source.samples for source in self.sources]))
        self._rows = {level: self._rows_at(level) for level in self.schema.pointer_levels}
        self.present = {name: has for name in self.schema if not (has := self._present(name)).all()}
        ends = {level: int(rows.ptr[-1]) for level, rows in self._rows.items()}
        self.counts = RowCounts(sum(counts), ends)

    @property
    def others(self) -> dict[str, Any]:
        """Attributes of users that are equal in all roots."""
        first, *rest = [source.others for source in self.sources]
        return {
            name: value
            for name, value in first.items()
            if all(name in other and other[name] == value for other in rest)
        }

    @property
    def marks(self) -> dict[str, Mark]:
        """Marks of the first source, whose samples come first and in order.

        A mark of that name in another source, as in each part of a parent, names samples of both.
        """
        first, *rest = self.sources
        if self._order is not None or first.is_selected:
            return {}
        return {
            name: replace(
                mark, samples=int(np.searchsorted(first.samples, mark.samples)), deleted=0
            )
            for name, mark in first.attributes.marks.items()
            if mark.deleted == first.attributes.deleted
            and not any(name in source.attributes.marks for source in rest)
        }

    def warn_of_lost_marks(self, stacklevel: int) -> None:
        """Warn of marks that name other samples than the first of the new store."""
        lost = {name for source in self.sources for name in source.attributes.marks} - {*self.marks}
        if lost:
            warnings.warn(
                f"the marks {', '.join(sorted(lost))} are not kept: they are not of the first "
                "samples of the new store in their order, or samples were deleted since",
                stacklevel=stacklevel,
            )

    def ptr(self, level: Level) -> Int64Array:
        """Pointers [N+1] to atoms or edges of the new store."""
        return self._rows[level].ptr

    def ids(self) -> UInt64Array:
        """Ids [N] uint64 of the samples' structures."""
        return self._ordered(_joined([source.ids() for source in self.sources]))

    def blocks(self, item: Field, unit: int = 1) -> Iterator[AnyArray]:
        """Rows of a field in their new order, a multiple of `unit` at a time."""
        rows, row_bytes = self.counts.rows(item.level), max(1, field_spec(item).row_bytes)
        block_bytes = _BLOCK
        if self._order is not None and rows * row_bytes > _memory() // 4:
            block_bytes = _memory() // 8
        elif self._order is not None:
            self._warm(item)
        step = unit * max(1, block_bytes // (unit * row_bytes))
        starts = {*range(0, rows, step)}
        if unit == 1 and self._order is None:  # a block of one source is a view of it
            starts |= set(self._borders(item.level))
        for start, stop in itertools.pairwise([*sorted(starts), rows]):
            yield self._block(item, start, stop)

    def _borders(self, level: Level) -> list[int]:
        """First row of each source that has rows, in a plan that is not shuffled."""
        first = pointers(np.array([len(source.samples) for source in self.sources]))
        rows = self.ptr(level)[first] if level.has_pointers else first
        return [start for start in rows.tolist() if start < rows[-1]]

    def _warm(self, item: Field) -> None:
        """Load a field that fits in memory in order, since random reads of a disk are slow."""
        for source in self.sources:
            if item.name in source.schema and len(source.samples):
                source.field(item).reshape(-1).view(np.uint8)[:: mmap.PAGESIZE].max(initial=0)

    def _block(self, item: Field, start: int, stop: int) -> AnyArray:
        if not item.level.has_pointers:
            per_sample = _Rows(self._samples[start:stop], np.arange(stop - start + 1))
            if item.index_of is not None:
                return self._row_numbers(item, item.index_of, slice(start, stop), per_sample)
            return self._gathered(item, self._owner[start:stop], per_sample)
        rows = self._rows[item.level]
        first = int(np.searchsorted(rows.ptr, start, "right")) - 1
        last = int(np.searchsorted(rows.ptr, stop, "left"))
        starts = rows.starts[first:last].copy()
        starts[0] += start - rows.ptr[first]
        ptr = np.clip(rows.ptr[first : last + 1], start, stop) - start
        if item.index_of is not None:
            return self._row_numbers(item, item.index_of, slice(first, last), _Rows(starts, ptr))
        return self._gathered(item, self._owner[first:last], _Rows(starts, ptr))

    def _gathered(self, item: Field, owner: AnyArray, rows: _Rows) -> AnyArray:
        """Rows of samples, as a view if they are consecutive in one source."""
        owners = np.unique(owner).tolist()
        missing = [number for number in owners if item.name not in self.sources[number].schema]
        if len(owners) == 1 and not missing and rows.contiguous:
            first = int(rows.starts[0])
            run: AnyArray = self.sources[owners[0]].field(item)[first : first + int(rows.ptr[-1])]
            return run
        values = np.empty((int(rows.ptr[-1]), *item.shape), item.dtype)
        if missing:
            values.fill(item.fill)
        for number in sorted({*owners} - {*missing}):
            places = np.flatnonzero(owner == number) if len(owners) > 1 else _ALL
            if values.nbytes > 2 * _BLOCK:  # the source is not in memory: read it in its order
                starts = rows.starts[places] if len(places) else rows.starts
                order = np.argsort(starts, kind="stable")
                places = places[order] if len(places) else order
            stored = self.sources[number].field(item)
            copy_segments(stored, rows.starts, rows.ptr, places, values)
        return values

    def _row_numbers(self, item: Field, level: Level, samples: slice, rows: _Rows) -> AnyArray:
        """Rows whose values are row numbers of a level, shifted to those of the new store."""
        owner, counted = self._owner[samples], self._rows[level]
        values = self._gathered(item, owner, rows)
        begin, end = counted.ptr[:-1][samples], counted.ptr[1:][samples]
        missing = np.array([item.name not in source.schema for source in self.sources])
        shift = begin - np.where(missing[owner], 0, counted.starts[samples])
        counts, shape = np.diff(rows.ptr), (-1, *(1,) * len(item.shape))
        if bool((shift == shift[0]).all()):
            values = values + shift[0] if shift[0] else values
        else:
            values = values + np.repeat(shift, counts).reshape(shape)
        for number in np.unique(owner):
            if self.sources[number].has_foreign_rows:
                chosen = np.repeat(owner == number, counts)
                limits = [np.repeat(one, counts)[chosen].reshape(shape) for one in (begin, end)]
                _check_row_numbers(self.sources[number], item, values[chosen], *limits)
        return values

    def _rows_at(self, level: Level) -> _Rows:
        pairs = [source.segments(level) for source in self.sources]
        starts, counts = (_joined(parts) for parts in zip(*pairs, strict=True))
        if not counts.any():
            return _Rows(np.zeros_like(starts), np.zeros(len(starts) + 1, dtype=np.int64))
        return _Rows(self._ordered(starts), pointers(self._ordered(counts)))

    def _present(self, name: str) -> AnyArray:
        return self._ordered(_joined([source.present(name) for source in self.sources]))

    def _ordered(self, values: AnyArray) -> AnyArray:
        return values if self._order is None else values[self._order]


def _joined(parts: Sequence[AnyArray]) -> AnyArray:
    """Concatenate parts, without copying a single one."""
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def _common_schema(sources: Sequence[MergeSource]) -> Schema:
    """Schema with the fields of all sources that have samples."""
    common: dict[str, tuple[Field, MergeSource]] = {}
    levels: tuple[Level, ...] = ()
    for source in sources:
        fields = source.schema.values() if len(source.samples) else ()
        try:
            levels = united(levels, levels_of(fields))
        except FieldError as error:
            raise SchemaError(f"{source.root}: {error}") from error
        for given in fields:
            kind = (given.name, given.level, given.dtype, given.shape)
            item = replace(field_from_array(*kind, index_of=given.index_of), unit=given.unit)
            if item.index_of is not None and item.dtype.kind in "iu":
                item = replace(item, dtype=np.dtype("int64"))
            item = replace(item, categories=given.categories)
            fixed, first = common.setdefault(item.name, (item, source))
            joined = with_strings_of(fixed, item)
            if replace(item, categories=joined.categories) != joined or (
                (item.categories is None) is not (fixed.categories is None)
            ):
                raise SchemaError(
                    f"field {item.name!r} is {_described(fixed)} in {first.root} and "
                    f"{_described(item)} in {source.root}: rewrite one of the two, with "
                    "the field converted or under another name; to add a missing unit, call "
                    "zarrpipe.compact(store, config={'units': {...}})"
                )
            common[item.name] = joined, first
    return Schema({name: item for name, (item, _) in common.items()})


def _described(item: Field) -> str:
    unit = f"in {item.unit!r}" if item.unit else "without a unit"
    counts = "" if item.index_of is None else f", counting {item.index_of}s,"
    if item.categories is not None:
        return f"strings at level {item.level!r}"
    return f"{item.dtype} of row shape {item.shape} at level {item.level!r}{counts} {unit}"


def _check_row_numbers(
    source: MergeSource, item: Field, values: AnyArray, begin: Int64Array, end: Int64Array
) -> None:
    """Refuse edges to atoms outside their system, as nvalchemi appends."""
    if bool(((values < begin) | (values >= end)).any()):
        raise StoreFormatError(
            f"{source.root}: {item.level}s refer to rows outside their system; nvalchemi "
            f"stores the {item.name} of every write but the first relative to that write: repair "
            "the store with `zarrpipe check --repair`, or remove the field and compute it again"
        )


def _memory() -> int:
    """Bytes of memory of the machine."""
    return os.sysconf("SC_PHYS_PAGES") * mmap.PAGESIZE if hasattr(os, "sysconf") else 1 << 33
