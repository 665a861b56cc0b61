"""Samples as statistics count them: labels, buckets of ids, and groups of equal composition."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import numpy.typing as npt
import zarr

from zarrpipe.data.csr import AnyArray, Int64Array, pointers, segment_rows
from zarrpipe.data.fields import CORE_FIELDS
from zarrpipe.data.ids import UInt64Array, mix, unit_places
from zarrpipe.data.levels import Level
from zarrpipe.data.schema import Schema
from zarrpipe.store.format.commit_log import RowCounts
from zarrpipe.store.format.layout import (
    ATOMS_PTR,
    EDGES_PTR,
    IDS,
    SAMPLES_MASK,
    present_path,
)
from zarrpipe.store.format.metadata import Attributes

NUM_ELEMENTS = 119
"""Atomic numbers 0 (a dummy) to 118."""

BUCKETS = 100
"""Number of buckets of hashed ids; every split in whole per cent is a range of buckets."""

SUMMED_LABELS = ("energy", "forces")
"""Fields that are summed if a store has them."""

_BLOCK_SAMPLES, _BLOCK_ATOMS = 1 << 15, 1 << 20


def buckets_of(ids: UInt64Array) -> Int64Array:
    """Bucket [N] of each id, in the order in which a split by id is filled."""
    return (unit_places(ids) * BUCKETS).astype(np.int64)


@dataclass(frozen=True)
class Label:
    """Rows of one label, and which samples [N] have it; None for all."""

    values: AnyArray
    has: AnyArray | None = None

    def among(self, samples: int) -> npt.NDArray[np.bool_]:
        """Which of the samples [N] have the label."""
        return np.ones(samples, dtype=bool) if self.has is None else self.has


@dataclass(frozen=True)
class LabelRows:
    """The rows of N samples with V atoms from which statistics are computed.

    They are the atomic numbers [V], pointers [N+1] to the atoms, bucket [N] and number of edges [N]
    of each sample, and labels, whose rows are [N, ...] or [V, ...] by the level of the field.
    """

    numbers: AnyArray
    ptr: Int64Array
    buckets: Int64Array
    edges: Int64Array
    labels: Mapping[str, Label] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.ptr) - 1

    def take(self, chosen: Int64Array) -> "LabelRows":
        """Select samples by position."""
        ptr = pointers(np.diff(self.ptr)[chosen])
        atoms = segment_rows(self.ptr[chosen], ptr)
        labels = {}
        for name, label in self.labels.items():
            rows = chosen if CORE_FIELDS[name].level is Level.SYSTEM else atoms
            has = None if label.has is None else label.has[chosen]
            labels[name] = Label(label.values[rows], has)
        return LabelRows(self.numbers[atoms], ptr, self.buckets[chosen], self.edges[chosen], labels)


@dataclass(frozen=True)
class Contents:
    """Number of atoms [M] of each element of each sample (or group), ascending by both.

    `places` [M] are indices of elements; in `pairs`, of pairs of elements, and `atoms` [M] are
    products of two numbers.
    """

    samples: Int64Array
    places: Int64Array
    atoms: npt.NDArray[np.float64]

    def where(self, mask: npt.NDArray[np.bool_]) -> "Contents":
        """Select the entries of samples by a mask [N]."""
        here = mask[self.samples]
        return Contents(self.samples[here], self.places[here], self.atoms[here])

    def weighted(self, values: npt.NDArray[np.float64], samples: int) -> npt.NDArray[np.float64]:
        """Sum [N] of a value [E] per element over the atoms of each sample."""
        weights = self.atoms * values[self.places]
        return np.bincount(self.samples, weights, samples).astype(np.float64, copy=False)

    def pairs(self, size: int) -> "Contents":
        """Pairs of elements of each sample, indexed in the upper triangle of [size, size]."""
        parts, apart = [], 0
        while True:
            first, second = slice(len(self.samples) - apart), slice(apart, None)
            here = self.samples[first] == self.samples[second]
            if not here.any():
                break
            rows, columns = self.places[first][here], self.places[second][here]
            places = rows * size - rows * (rows - 1) // 2 + columns - rows
            product = self.atoms[first][here] * self.atoms[second][here]
            parts.append((self.samples[first][here], places, product))
            apart += 1
        return Contents(*(np.concatenate(values) for values in zip(*parts, strict=True)))


@dataclass(frozen=True)
class Groups:
    """Samples grouped by bucket and composition, since most data sets have few compositions.

    `members` [N] has the group of each sample; `number`, `buckets` and `atoms` [G] have the number
    of samples, the bucket and the atoms per sample of each group. `contents.places` index the
    atomic numbers that occur, `elements` [L].
    """

    members: Int64Array
    number: Int64Array
    buckets: Int64Array
    atoms: Int64Array
    elements: Int64Array
    contents: Contents

    @classmethod
    def find(cls, rows: LabelRows) -> "Groups":
        """Group samples by 64-bit hashes of their compositions."""
        words = mix(np.arange(1, NUM_ELEMENTS + 1, dtype=np.uint64))
        keys = np.add.reduceat(words[rows.numbers], rows.ptr[:-1])
        keys += mix(rows.buckets.astype(np.uint64) + np.uint64(NUM_ELEMENTS + 1))
        found = np.unique(keys, return_index=True, return_inverse=True, return_counts=True)
        _, first, members, number = found
        ptr = pointers(np.diff(rows.ptr)[first])
        numbers = rows.numbers[segment_rows(rows.ptr[first], ptr)]
        elements, contents = _contents(numbers, ptr)
        return cls(members, number, rows.buckets[first], np.diff(ptr), elements, contents)


def _contents(numbers: AnyArray, ptr: Int64Array) -> tuple[Int64Array, Contents]:
    """Elements [L] that occur, and the contents of each sample."""
    elements = np.flatnonzero(np.bincount(numbers, minlength=NUM_ELEMENTS))
    size, samples = len(elements), len(ptr) - 1
    place = np.zeros(NUM_ELEMENTS, dtype=np.int64)
    place[elements] = np.arange(size)
    cell = np.repeat(np.arange(samples) * size, np.diff(ptr)) + place[numbers]
    counts = np.bincount(cell, minlength=samples * size)
    sample, places = divmod(cells := np.flatnonzero(counts), size)
    return elements, Contents(sample, places, counts[cells].astype(np.float64))


class StoredRows(Protocol):
    """Rows of one array."""

    def read(self, start: int, stop: int) -> AnyArray:
        """Rows from `start` to `stop`."""
        ...


class CountedStore(Protocol):
    """A store whose samples are to be counted."""

    @property
    def group(self) -> zarr.Group:
        """Root group."""
        ...

    @property
    def schema(self) -> Schema:
        """Fields."""
        ...

    @property
    def attributes(self) -> Attributes:
        """Attributes of the root."""
        ...

    @property
    def counts(self) -> RowCounts:
        """Committed rows."""
        ...

    def array(self, path: str) -> StoredRows:
        """Rows of an array."""
        ...


def active_rows(store: CountedStore, start: int) -> Iterator[LabelRows]:
    """Samples from `start` on that are not deleted, in blocks of bounded atoms."""
    stop = store.counts.samples
    while start < stop:
        end = min(start + _BLOCK_SAMPLES, stop)
        active = store.array(SAMPLES_MASK).read(start, end)
        for rows in _blocks(store, start, end):
            here = active[: len(rows)]
            active = active[len(rows) :]
            if here.all():
                yield rows
            elif here.any():
                yield rows.take(np.flatnonzero(here))
        start = end


def _blocks(store: CountedStore, first: int, last: int) -> Iterator[LabelRows]:
    """Samples in blocks of bounded atoms, of at least one sample."""
    atoms_ptr, edges_ptr = (
        store.array(path).read(first, last + 1).astype(np.int64) for path in (ATOMS_PTR, EDGES_PTR)
    )
    buckets = buckets_of(store.array(IDS).read(first, last))
    start, count = 0, last - first
    while start < count:
        limit = atoms_ptr[start] + _BLOCK_ATOMS
        stop = max(start + 1, int(np.searchsorted(atoms_ptr, limit, side="right")) - 1)
        ptr = atoms_ptr[start : stop + 1]
        atoms, samples = (int(ptr[0]), int(ptr[-1])), (first + start, first + stop)
        yield LabelRows(
            _rows(store, "atomic_numbers", *atoms).astype(np.int64, copy=False),
            ptr - ptr[0],
            buckets[start:stop],
            np.diff(edges_ptr[start : stop + 1]),
            {
                name: _label(store, name, atoms, samples)
                for name in SUMMED_LABELS
                if name in store.schema
            },
        )
        start = stop


def _label(
    store: CountedStore, name: str, atoms: tuple[int, int], samples: tuple[int, int]
) -> Label:
    per_sample = store.schema[name].level is Level.SYSTEM
    values = _rows(store, name, *(samples if per_sample else atoms))
    if name not in store.attributes.nullable:
        return Label(values)
    return Label(values, store.array(present_path(name)).read(*samples))


def _rows(store: CountedStore, name: str, start: int, stop: int) -> AnyArray:
    return store.array(store.schema[name].path).read(start, stop)
