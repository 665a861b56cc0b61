"""The commit rule: the pointers to atoms define which samples of a store exist."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from zarrpipe.data.csr import AnyArray
from zarrpipe.data.levels import Level
from zarrpipe.errors import StoreFormatError

_BLOCK = 1 << 17
"""Pointers that are checked at once: they fit the cache of a core."""


class Indexable(Protocol):
    """Allocated pointers that can be indexed and sliced."""

    def __len__(self) -> int: ...

    def __getitem__(self, key: int | slice) -> Any: ...


@dataclass(frozen=True)
class RowCounts:
    """Committed samples, and committed rows of the levels that have pointers."""

    samples: int = 0
    by_level: Mapping[Level, int] = field(default_factory=dict)

    @classmethod
    def of(cls, samples: int, atoms: int, edges: int) -> "RowCounts":
        """Counts of a store without levels of a user's own."""
        return cls(samples, {Level.ATOM: atoms, Level.EDGE: edges})

    @property
    def totals(self) -> tuple[int, int, int]:
        """Committed samples, atoms and edges."""
        return self.samples, self.atoms, self.edges

    @property
    def atoms(self) -> int:
        """Committed atoms."""
        return self.by_level.get(Level.ATOM, 0)

    @property
    def edges(self) -> int:
        """Committed edges."""
        return self.by_level.get(Level.EDGE, 0)

    def rows(self, level: Level) -> int:
        """Committed rows of a field of `level`."""
        return self.by_level.get(level, 0) if level.has_pointers else self.samples


def committed_samples(pointers: AnyArray | Indexable, known: int = 0) -> int:
    """Number of samples whose end pointer, and all before it, are non-zero.

    The last end pointer is found by doubling steps from the `known` samples on, then by bisection.
    The new ones are searched for a zero, which a power cut may leave between others. If the first
    end is zero, the store was emptied.

    >>> committed_samples(np.array([0, 3, 5, 9, 0, 0, 0]))
    3
    >>> committed_samples(np.array([0, 3, 5, 0, 12, 14, 0]), known=1)
    2
    """
    first, last = new_samples(pointers, known)
    for start in range(first + 1, last + 1, _BLOCK):
        block = pointers[start : min(start + _BLOCK, last + 1)]
        if np.count_nonzero(block) < len(block):
            return start + int(np.argmin(block != 0)) - 1
    return last


def new_samples(pointers: AnyArray | Indexable, known: int) -> tuple[int, int]:
    """`known`, or 0 if the store was emptied, and the last sample with an end pointer."""
    low, high = 0, max(len(pointers) - 1, 0)
    if high == 0 or not pointers[1]:
        return 0, 0
    if known <= high and pointers[known]:
        low = known
    first, step = low, 1
    while low + step < high:
        if not pointers[low + step]:
            high = low + step - 1
            break
        low, step = low + step, 2 * step
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if pointers[middle] else (low, middle - 1)
    return first, low


def rising_samples(place: str, pointers: AnyArray | Indexable, first: int, last: int) -> int:
    """`committed_samples` and `check_pointers` in one pass over the range of `new_samples`.

    Raises StoreFormatError if the pointers do not increase up to the last sample.
    """
    fall = _first_fall(pointers, first, last, least=1)
    if fall is None:
        return last
    if fall.stop:
        raise fall.error(place)
    return fall.sample


def check_pointers(place: str, pointers: AnyArray | Indexable, samples: int, known: int) -> None:
    """Raise StoreFormatError if pointers decrease from sample `known` to sample `samples`."""
    fall = _first_fall(pointers, known, samples, least=0)
    if fall is not None:
        raise fall.error(place)


@dataclass(frozen=True)
class _Fall:
    """A sample whose pointers do not increase."""

    sample: int
    start: int
    stop: int

    def error(self, place: str) -> StoreFormatError:
        return StoreFormatError(
            f"{place} falls, is negative or has a sample without atoms: sample {self.sample} would "
            f"have rows {self.start} to {self.stop}; it is damaged: run `zarrpipe check`"
        )


def _first_fall(pointers: AnyArray | Indexable, first: int, last: int, least: int) -> _Fall | None:
    """The first sample from `first` to `last` with fewer than `least` rows (0 or 1)."""
    falls = np.less_equal if least else np.less
    for start in range(first, last, _BLOCK):
        block = np.asarray(pointers[start : min(start + _BLOCK, last) + 1], dtype=np.int64)
        found = falls(block[1:], block[:-1])
        if found.any():
            at = int(np.argmax(found))
            return _Fall(start + at, int(block[at]), int(block[at + 1]))
    return None
