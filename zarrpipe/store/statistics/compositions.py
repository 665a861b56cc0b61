"""Which elements samples have: samples of one bucket with the same composition are one group."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from zarrpipe.data.csr import AnyArray, Int64Array, pointers, segment_rows
from zarrpipe.data.ids import mix
from zarrpipe.store.statistics.label_rows import NUM_ELEMENTS, LabelRows


@dataclass(frozen=True)
class Contents:
    """Which elements samples have, one entry for each element of a sample, by sample.

    Samples may stand for groups of them.

    Parameters
    ----------
    samples : array [M] int64
        Sample of each entry, ascending.
    places : array [M] int64
        Number of its element, ascending in a sample; in `pairs`, of a pair of them.
    atoms : array [M]
        Atoms of the element; in `pairs`, the product of two.
    """

    samples: Int64Array
    places: Int64Array
    atoms: npt.NDArray[np.float64]

    def of(self, has: npt.NDArray[np.bool_]) -> "Contents":
        """Entries of the samples for which a mask [N] is True."""
        here = has[self.samples]
        return Contents(self.samples[here], self.places[here], self.atoms[here])

    def weighted(self, values: npt.NDArray[np.float64], samples: int) -> npt.NDArray[np.float64]:
        """Sum [N] over the atoms of each sample of a value [E] by element."""
        weights = self.atoms * values[self.places]
        return np.bincount(self.samples, weights, samples).astype(np.float64, copy=False)

    def pairs(self, size: int) -> "Contents":
        """Pairs of the elements of a sample, each with itself too.

        Their places are those in the upper triangle of a matrix [size, size].
        """
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
    """Samples by bucket and composition, which most sets have few of.

    Parameters
    ----------
    of : array [N] int64
        Group of each sample.
    number : array [G] int64
        Samples of each group.
    buckets, atoms : array [G] int64
        Bucket and atoms of each of these.
    elements : array [L] int64
        Atomic numbers that there are, ascending.
    contents
        Of each group; its places are those in `elements`.
    """

    of: Int64Array
    number: Int64Array
    buckets: Int64Array
    atoms: Int64Array
    elements: Int64Array
    contents: Contents

    @classmethod
    def find(cls, rows: LabelRows) -> "Groups":
        """Groups of samples, told apart by 64-bit hashes of their compositions."""
        words = mix(np.arange(1, NUM_ELEMENTS + 1, dtype=np.uint64))
        keys = np.add.reduceat(words[rows.numbers], rows.ptr[:-1])
        keys += mix(rows.buckets.astype(np.uint64) + np.uint64(NUM_ELEMENTS + 1))
        found = np.unique(keys, return_index=True, return_inverse=True, return_counts=True)
        _, first, of, number = found
        ptr = pointers(np.diff(rows.ptr)[first])
        numbers = rows.numbers[segment_rows(rows.ptr[first], ptr)]
        elements, contents = _contents(numbers, ptr)
        return cls(of, number, rows.buckets[first], np.diff(ptr), elements, contents)


def _contents(numbers: AnyArray, ptr: Int64Array) -> tuple[Int64Array, Contents]:
    """Elements that there are, and the atoms of each in each sample."""
    elements = np.flatnonzero(np.bincount(numbers, minlength=NUM_ELEMENTS))
    size, samples = len(elements), len(ptr) - 1
    place = np.zeros(NUM_ELEMENTS, dtype=np.int64)
    place[elements] = np.arange(size)
    cell = np.repeat(np.arange(samples) * size, np.diff(ptr)) + place[numbers]
    counts = np.bincount(cell, minlength=samples * size)
    sample, places = divmod(cells := np.flatnonzero(counts), size)
    return elements, Contents(sample, places, counts[cells].astype(np.float64))
