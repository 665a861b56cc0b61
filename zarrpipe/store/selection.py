"""The samples of several stores in the order that they are to have in a new one."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from zarrpipe.data.csr import AnyArray, Int64Array, pointers, segment_rows
from zarrpipe.data.fields import Level
from zarrpipe.data.ids import UInt64Array
from zarrpipe.data.schema import Field, Schema, field_from_array
from zarrpipe.errors import SchemaError, StoreFormatError
from zarrpipe.store.commit import Extent
from zarrpipe.store.sources import Source


@dataclass(frozen=True)
class _Rows:
    """Where the rows of samples begin in their sources [N], and the pointers of the new store."""

    starts: Int64Array
    ptr: Int64Array


class Selection:
    """Every sample of the sources, in their order or shuffled.

    It needs some 40 bytes of memory a sample, beside what is read at a time.

    Parameters
    ----------
    sources
        At least one.
    shuffle
        Seed of the permutation that is to be the order; None for source after source.

    Raises
    ------
    SchemaError
        If two sources have a field at different levels, dtypes or row shapes.
    """

    def __init__(self, sources: Sequence[Source], shuffle: int | None = None) -> None:
        self.sources = list(sources)
        self.schema = _common_schema(self.sources)
        counts = [len(source.samples) for source in self.sources]
        self._order: Int64Array | None = None
        if shuffle is not None:
            self._order = np.random.default_rng(shuffle).permutation(sum(counts))
        self._source = self._ordered(np.repeat(np.arange(len(counts), dtype=np.int32), counts))
        self._rows = {level: self._joined(level) for level in Level}
        self.present = {name: has for name in self.schema if not (has := self._present(name)).all()}
        self.extent = Extent(
            sum(counts), *(int(self.ptr(at)[-1]) for at in (Level.ATOM, Level.EDGE))
        )

    @property
    def others(self) -> dict[str, Any]:
        """Attributes of the roots that zarrpipe did not make and that are the same in all."""
        first, *rest = [source.others for source in self.sources]
        return {
            name: value
            for name, value in first.items()
            if all(name in other and other[name] == value for other in rest)
        }

    def ptr(self, level: Level) -> Int64Array:
        """Pointers [N+1] of the new store."""
        return self._rows[level].ptr

    def ids(self) -> UInt64Array:
        """Id of each sample's structure, [N] uint64."""
        return self._ordered(np.concatenate([source.ids() for source in self.sources]))

    def blocks(self, item: Field, step: int) -> Iterator[AnyArray]:
        """Rows of a field in their new order, `step` at a time; valid until the next are asked for.

        Sources that lack it give its fill.
        """
        rows = self.extent.rows(item.level)
        for start in range(0, rows, step):
            yield self._block(item, start, min(start + step, rows))
        for source in self.sources:
            source.check_unchanged()

    def _block(self, item: Field, start: int, stop: int) -> AnyArray:
        rows = self._rows[item.level]
        first = int(np.searchsorted(rows.ptr, start, "right")) - 1
        last = int(np.searchsorted(rows.ptr, stop, "left"))
        starts = rows.starts[first:last].copy()
        starts[0] += start - rows.ptr[first]
        ptr = np.clip(rows.ptr[first : last + 1], start, stop) - start
        owner = self._source[first:last]
        if item.name == "neighbor_list":
            return self._edges(item, slice(first, last), starts, ptr)
        return self._taken(item, owner, _Rows(starts, ptr))

    def _taken(self, item: Field, owner: AnyArray, rows: _Rows) -> AnyArray:
        """Rows of samples, a view of their source where they follow each other in one."""
        if owner[0] == owner[-1] and bool((owner == owner[0]).all()):
            return _values(self.sources[owner[0]], item, rows)
        values = np.empty((int(rows.ptr[-1]), *item.shape), item.dtype)
        counts = np.diff(rows.ptr)
        for number in np.unique(owner):
            chosen = owner == number
            inner = pointers(counts[chosen])
            places = _run(rows.ptr[:-1][chosen], inner)
            values[places] = _values(self.sources[number], item, _Rows(rows.starts[chosen], inner))
        return values

    def _edges(self, item: Field, samples: slice, starts: Int64Array, ptr: Int64Array) -> AnyArray:
        """Edges of samples, with the atom indices of the new store."""
        owner, atoms = self._source[samples], self._rows[Level.ATOM]
        values = self._taken(item, owner, _Rows(starts, ptr))
        begin, end = atoms.ptr[:-1][samples], atoms.ptr[1:][samples]
        lacks = np.array([item.name not in source.schema for source in self.sources])
        shift = begin - np.where(lacks[owner], 0, atoms.starts[samples])
        counts = np.diff(ptr)
        if bool((shift == shift[0]).all()):
            values = values + shift[0] if shift[0] else values
        else:
            values = values + np.repeat(shift, counts)[:, None]
        for number in np.unique(owner):
            if not self.sources[number].attributes.ours:
                chosen = np.repeat(owner == number, counts)
                limits = (np.repeat(limit, counts)[chosen, None] for limit in (begin, end))
                _check_edges(self.sources[number], values[chosen], *limits)
        return values

    def _joined(self, level: Level) -> _Rows:
        pairs = [source.segments(level) for source in self.sources]
        starts, counts = (np.concatenate(parts) for parts in zip(*pairs, strict=True))
        return _Rows(self._ordered(starts), pointers(self._ordered(counts)))

    def _present(self, name: str) -> AnyArray:
        return self._ordered(np.concatenate([source.present(name) for source in self.sources]))

    def _ordered(self, values: AnyArray) -> AnyArray:
        return values if self._order is None else values[self._order]


def _common_schema(sources: Sequence[Source]) -> Schema:
    """Fields of all sources that have samples."""
    common: dict[str, tuple[Field, Source]] = {}
    for source in sources:
        for given in source.schema.values() if len(source.samples) else ():
            item = field_from_array(given.name, given.level, given.dtype, given.shape)
            if item.name == "neighbor_list" and item.dtype.kind in "iu":
                item = replace(item, dtype=np.dtype("int64"))
            fixed, first = common.setdefault(item.name, (item, source))
            if (item.level, item.dtype, item.shape) != (fixed.level, fixed.dtype, fixed.shape):
                raise SchemaError(
                    f"field {item.name!r} is {_said(fixed)} in {first.root} and {_said(item)} in "
                    f"{source.root}: write one of the two anew, with the field converted or under "
                    "another name"
                )
    return Schema({name: item for name, (item, _) in common.items()})


def _said(item: Field) -> str:
    return f"{item.dtype} of row shape {item.shape} at level {item.level.value!r}"


def _check_edges(source: Source, edges: AnyArray, begin: Int64Array, end: Int64Array) -> None:
    """Refuse edges that leave their system, as those that nvalchemi 0.2 appends do."""
    if bool(((edges < begin) | (edges >= end)).any()):
        raise StoreFormatError(
            f"{source.root}: edges leave their system; nvalchemi 0.2 stores the neighbor_list of "
            "every write but the first relative to that write: remove the field there and find "
            "neighbours anew"
        )


def _values(source: Source, item: Field, rows: _Rows) -> AnyArray:
    """Rows of a field of one source."""
    if item.name not in source.schema:
        return np.full((int(rows.ptr[-1]), *item.shape), item.fill, item.dtype)
    stored = source.field(source.schema[item.name])
    taken = _run(rows.starts, rows.ptr)
    values: AnyArray = stored[taken] if isinstance(taken, slice) else stored.take(taken, axis=0)
    return values.astype(item.dtype, copy=False)


def _run(starts: Int64Array, ptr: Int64Array) -> Int64Array | slice:
    """Rows of segments, as a slice where they follow each other."""
    total, first = int(ptr[-1]), int(starts[0])
    if np.array_equal(starts, ptr[:-1] + first):
        return slice(first, first + total)
    return segment_rows(starts, ptr)
