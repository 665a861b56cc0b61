"""The committed samples in pieces: some megabytes of every field at a time, in order."""

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from zarrpipe.data.csr import AnyArray, Int64Array
from zarrpipe.data.fields import Level
from zarrpipe.store.check.checked_store import CheckedStore
from zarrpipe.store.check.pointers import BLOCK, runs
from zarrpipe.store.check.rows import BoolArray
from zarrpipe.store.format.layout import ATOMS_PTR, EDGES_PTR, SAMPLES_MASK, present_path

_BYTES = 1 << 23


@dataclass
class SampleBlock:
    """Samples that follow each other and whose pointers are sound.

    Parameters
    ----------
    subject
        Their store.
    first
        Number of the first of them.
    atoms, edges : array [n+1] int64
        Their pointers, as stored.
    """

    subject: CheckedStore
    first: int
    atoms: Int64Array
    edges: Int64Array
    _read: dict[str, tuple[AnyArray, BoolArray]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.atoms) - 1

    def ptr(self, level: Level) -> Int64Array:
        """Rows [n+1] at which each sample begins and the last ends."""
        if level is Level.SYSTEM:
            return np.arange(self.first, self.first + len(self) + 1)
        return self.atoms if level is Level.ATOM else self.edges

    def rows(self, path: str) -> tuple[AnyArray, BoolArray]:
        """Rows of an array, and of which samples [n] all could be read."""
        if path not in self._read:
            ptr = self.ptr(self.subject.levels[path])
            values, good = self.subject.arrays[path].read(int(ptr[0]), int(ptr[-1]))
            self._read[path] = values, ~any_of(~good, ptr)
        return self._read[path]

    def missing(self, path: str) -> BoolArray:
        """Which samples [n] have rows in a chunk file that is not there."""
        ptr = self.ptr(self.subject.levels[path])
        return any_of(self.subject.arrays[path].missing(int(ptr[0]), int(ptr[-1])), ptr)

    @property
    def active(self) -> BoolArray:
        """Which samples [n] were not deleted."""
        if SAMPLES_MASK not in self.subject.arrays:
            return np.ones(len(self), dtype=bool)
        values, good = self.rows(SAMPLES_MASK)
        return values.astype(bool) | ~good

    def present(self, name: str) -> BoolArray:
        """Which samples [n] have a field."""
        path = present_path(name)
        if path not in self.subject.arrays:
            return np.ones(len(self), dtype=bool)
        values, good = self.rows(path)
        return values.astype(bool) | ~good


def pieces(
    subject: CheckedStore, samples: int, broken: dict[str, Int64Array], limits: dict[str, int]
) -> Iterator[SampleBlock]:
    """All samples but those that touch a broken pointer.

    Parameters
    ----------
    subject
        The store, with both arrays of pointers.
    samples
        How many are committed.
    broken
        Broken entries of each array of pointers, ascending.
    limits
        Greatest entry that each may have.
    """
    atom_rows, edge_rows, system_rows = (_most_rows(subject, level) for level in Level)
    for start in range(0, samples, BLOCK):
        stop = min(start + BLOCK, samples)
        ptr = {path: subject.arrays[path].read(start, stop + 1)[0] for path in broken}
        sound = np.ones(stop - start + 1, dtype=bool)
        for path, entries in broken.items():
            here = entries[(entries >= start) & (entries <= stop)] - start
            sound[here] = False
            sound &= ptr[path] <= limits[path]
        for begin, end in runs(sound[:-1] & sound[1:]):
            atoms, edges = ptr[ATOMS_PTR][begin : end + 1], ptr[EDGES_PTR][begin : end + 1]
            at = 0
            while at < len(atoms) - 1:
                fit = (
                    at + system_rows,
                    np.searchsorted(atoms, atoms[at] + atom_rows, "right") - 1,
                    np.searchsorted(edges, edges[at] + edge_rows, "right") - 1,
                )
                to = min(max(at + 1, int(min(fit))), len(atoms) - 1)
                piece = slice(at, to + 1)
                yield SampleBlock(subject, start + begin + at, atoms[piece], edges[piece])
                at = to


def any_of(flags: BoolArray, ptr: Int64Array) -> BoolArray:
    """Whether any row of each segment is flagged.

    Examples
    --------
    >>> any_of(np.array([False, True, False]), np.array([4, 4, 6, 7])).tolist()
    [False, True, False]
    """
    if not flags.any():
        return np.zeros(len(ptr) - 1, dtype=bool)
    sums = np.concatenate([[0], np.cumsum(flags)])
    inside: BoolArray = sums[ptr[1:] - ptr[0]] > sums[ptr[:-1] - ptr[0]]
    return inside


def _most_rows(subject: CheckedStore, level: Level) -> int:
    """Rows of a level of which those of the widest field fit."""
    widest = [
        rows.row_bytes for path, rows in subject.arrays.items() if subject.levels[path] is level
    ]
    return max(1, _BYTES // max([8, *widest]))
