"""Samples as statistics count them: labels, buckets of ids, and groups of equal composition."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from zarrpipe.data.csr import AnyArray, Int64Array, pointers, segment_rows
from zarrpipe.data.fields import CORE_FIELDS, Level
from zarrpipe.data.ids import UInt64Array, mix, unit_places

NUM_ELEMENTS = 119
"""Atomic numbers 0 (a dummy) to 118."""

BUCKETS = 100
"""Buckets of the hash of ids, so that every split in whole per cents is a range of them."""

SUMMED_LABELS = ("energy", "forces")
"""Fields that are summed where a store has them."""


def buckets_of(ids: UInt64Array) -> Int64Array:
    """Bucket [N] of each id, in the order in which a split by id fills its sides."""
    return (unit_places(ids) * BUCKETS).astype(np.int64)


@dataclass(frozen=True)
class Label:
    """Rows of one label, and which samples [N] have it (None: all)."""

    values: AnyArray
    has: AnyArray | None = None

    def among(self, samples: int) -> npt.NDArray[np.bool_]:
        """Which of the samples [N] have the label."""
        return np.ones(samples, dtype=bool) if self.has is None else self.has


@dataclass(frozen=True)
class LabelRows:
    """What statistics need of N samples with V atoms.

    Parameters
    ----------
    numbers : array [V]
        Atomic numbers.
    ptr : array [N+1] int64
        Pointers to the atoms of each sample.
    buckets, edges : array [N] int64
        Bucket and number of stored edges of each sample.
    labels
        By name; rows [N, ...] or [V, ...] by the field's level.
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
    """Atoms of each element of each sample (or group), one entry per sample and element.

    Parameters
    ----------
    samples : array [M] int64
        Sample of each entry, ascending.
    places : array [M] int64
        Index of the element, ascending in a sample; in `pairs`, of a pair of elements.
    atoms : array [M]
        Atoms of the element; in `pairs`, the product of two.
    """

    samples: Int64Array
    places: Int64Array
    atoms: npt.NDArray[np.float64]

    def where(self, mask: npt.NDArray[np.bool_]) -> "Contents":
        """Entries of the samples for which a mask [N] is True."""
        here = mask[self.samples]
        return Contents(self.samples[here], self.places[here], self.atoms[here])

    def weighted(self, values: npt.NDArray[np.float64], samples: int) -> npt.NDArray[np.float64]:
        """Sum [N] over the atoms of each sample of a value [E] by element."""
        weights = self.atoms * values[self.places]
        return np.bincount(self.samples, weights, samples).astype(np.float64, copy=False)

    def pairs(self, size: int) -> "Contents":
        """Pairs of elements of each sample, by place in the upper triangle [size, size]."""
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
    """Samples grouped by bucket and composition, of which most sets have few.

    Parameters
    ----------
    members : array [N] int64
        Group of each sample.
    number : array [G] int64
        Samples of each group.
    buckets, atoms : array [G] int64
        Bucket of each group, and atoms of each of its samples.
    elements : array [L] int64
        Atomic numbers that occur, ascending.
    contents
        Of each group; its places index `elements`.
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
    """Elements that occur, and the atoms of each in each sample."""
    elements = np.flatnonzero(np.bincount(numbers, minlength=NUM_ELEMENTS))
    size, samples = len(elements), len(ptr) - 1
    place = np.zeros(NUM_ELEMENTS, dtype=np.int64)
    place[elements] = np.arange(size)
    cell = np.repeat(np.arange(samples) * size, np.diff(ptr)) + place[numbers]
    counts = np.bincount(cell, minlength=samples * size)
    sample, places = divmod(cells := np.flatnonzero(counts), size)
    return elements, Contents(sample, places, counts[cells].astype(np.float64))
