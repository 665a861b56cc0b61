"""Which sample an index means while several stores grow."""

from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from zarrpipe.data.csr import AnyArray, Int64Array, pointers


class SampleIndexMap:
    """Runs of samples, each from one store, in the order in which a dataset saw them.

    Parameters
    ----------
    runs : iterable of (int, int)
        Store and number of samples; the samples of a store follow each other through its runs.

    Examples
    --------
    >>> arrivals = SampleIndexMap([(0, 2), (1, 1), (0, 3)])
    >>> [part.tolist() for part in arrivals.locate(np.array([0, 2, 4]))]
    [[0, 1, 0], [0, 0, 3]]
    >>> arrivals.until(4).runs
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
        """Whether every position of another order means the same here."""
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
        """Whether the first `count` samples are those of another order."""
        return count <= len(self) and self.until(count).runs == other.until(count).runs

    def until(self, count: int) -> "SampleIndexMap":
        """Those of the first `count` samples."""
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
        """One array in the order of arrival from one per store."""
        parts = [
            by_store[store][first : first + count]
            for (store, count), first in zip(self.runs, self._first, strict=True)
        ]
        return parts[0] if len(parts) == 1 else np.concatenate([by_store[0][:0], *parts])
