"""The commit rule: which samples a pointer array says there are."""

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from zarrpipe.data.batch import Batch
from zarrpipe.data.csr import AnyArray
from zarrpipe.data.fields import LEVELS, SEGMENTED, Level
from zarrpipe.errors import StoreFormatError

_BLOCK = 1 << 17
"""Entries that are looked at together: they stay in the cache of a core."""


class Entries(Protocol):
    """Pointers of which single ones, or slices, can be looked at."""

    def __len__(self) -> int:
        """Entries that are allocated."""
        ...

    def __getitem__(self, key: int | slice) -> Any:
        """An entry, or several."""
        ...


@dataclass(frozen=True)
class RowCounts:
    """Committed rows of each level.

    Parameters
    ----------
    counts
        By the number of the level.
    """

    counts: tuple[int, ...] = (0,) * len(LEVELS)

    @property
    def samples(self) -> int:
        """Committed samples."""
        return self.rows(Level.SYSTEM)

    @property
    def atoms(self) -> int:
        """Committed atoms."""
        return self.rows(Level.ATOM)

    @property
    def edges(self) -> int:
        """Committed edges."""
        return self.rows(Level.EDGE)

    def rows(self, level: Level) -> int:
        """Rows of a field of `level`."""
        return self.counts[LEVELS[level].number]

    def after(self, batch: Batch) -> "RowCounts":
        """Counts once `batch`, which is on the CPU, is committed."""
        added = [batch.num_graphs, *(int(batch.row_pointers(one).numpy()[-1]) for one in SEGMENTED)]
        return RowCounts(tuple(old + new for old, new in zip(self.counts, added, strict=True)))


def committed_samples(pointers: AnyArray | Entries, known: int = 0) -> int:
    """Number of samples that a pointer array says there are.

    A sample exists if and only if its end pointer and all before it are non-zero. The last is found
    by steps from `known` on that double, and bisection, and what is new up to there is searched for
    a zero: after a cut of power an entry may be missing between others. A first end of zero means
    none, whatever follows.

    Parameters
    ----------
    pointers : array [M] integer
        Entries that are allocated, from the first on.
    known
        Samples of which it is known that they were committed; they are not searched again, unless
        the store was emptied.

    Examples
    --------
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


def new_samples(pointers: AnyArray | Entries, known: int) -> tuple[int, int]:
    """Samples that were looked at, none if the store was emptied, and the last with a pointer.

    See `committed_samples`.
    """
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


def rising_samples(place: str, pointers: AnyArray | Entries, first: int, last: int) -> int:
    """Number of samples that pointers to atoms say there are, in one look at those that are new.

    It is what `committed_samples` gives, and `check_pointers` of these.

    Parameters
    ----------
    place, pointers
        As for these.
    first, last
        As `new_samples` gives them; `last` may be less.

    Raises
    ------
    StoreFormatError
        If the pointers do not rise up to the last sample.
    """
    fall = _first_fall(pointers, first, last, least=1)
    if fall is None:
        return last
    if fall.stop:
        raise fall.error(place)
    return fall.sample


def check_pointers(place: str, pointers: AnyArray | Entries, samples: int, known: int) -> None:
    """Refuse pointers that fall.

    Parameters
    ----------
    place
        Their name, for the message.
    pointers : array [M] integer
        Those of the samples and what is allocated behind.
    samples
        How many are committed.
    known
        Samples whose pointers were looked at before.

    Raises
    ------
    StoreFormatError
        If they do not.
    """
    fall = _first_fall(pointers, known, samples, least=0)
    if fall is not None:
        raise fall.error(place)


@dataclass(frozen=True)
class _Fall:
    """Pointers of a sample that do not rise, as they were when they were looked at."""

    sample: int
    start: int
    stop: int

    def error(self, place: str) -> StoreFormatError:
        return StoreFormatError(
            f"{place} falls, is negative or has a sample without atoms: sample {self.sample} would "
            f"have rows {self.start} to {self.stop}; it is damaged, `zarrpipe check` says more"
        )


def _first_fall(pointers: AnyArray | Entries, first: int, last: int, least: int) -> _Fall | None:
    """The first sample that has not as many rows, among those from `first` up to `last`."""
    falls = np.less_equal if least else np.less
    for start in range(first, last, _BLOCK):
        block = np.asarray(pointers[start : min(start + _BLOCK, last) + 1], dtype=np.int64)
        found = falls(block[1:], block[:-1])
        if found.any():
            at = int(np.argmax(found))
            return _Fall(start + at, int(block[at]), int(block[at + 1]))
    return None
