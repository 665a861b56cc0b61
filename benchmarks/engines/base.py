"""What an engine is: a way to keep samples and to get shuffled batches of them back."""

import importlib.util
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from benchmarks.data import ATOM_ROWS, LEVELS, AnyArray, Int64Array, Samples


class Reader(Protocol):
    """Samples that an engine has opened."""

    def request(self, index: Int64Array) -> Any:
        """Indices in the form that the engine likes best; this is not timed."""
        ...

    def read(self, request: Any) -> Any:
        """Batch in the engine's own form; this is what is timed."""
        ...

    def arrays(self, batch: Any) -> Mapping[str, AnyArray] | None:
        """Fields of a batch and its ``batch_ptr``, to be checked; None where there are no values.

        ``ATOM_ROWS`` count the atoms of the batch; ``CATEGORIES`` are codes.
        """
        ...

    def close(self) -> None:
        """Let go of files."""
        ...


@dataclass(frozen=True)
class Engine:
    """A way to keep samples.

    Parameters
    ----------
    name
        As it is called in tables.
    write
        Keeps samples in a directory that exists and is empty.
    open
        Opens what `write` has kept. The samples are given too, for engines that keep nothing.
    needs
        Modules that have to be installed.
    shares
        Engine whose directory this one reads; it then writes nothing.
    levels
        Levels of which it can keep fields.
    single
        Whether it rounds every float to float32.
    note
        What is not the same as with the others.
    """

    name: str
    write: Callable[[Samples, Path], None]
    open: Callable[[Samples, Path], Reader]
    needs: tuple[str, ...] = ()
    shares: str = ""
    levels: frozenset[str] = frozenset(LEVELS.values())
    single: bool = False
    note: str = ""

    @property
    def installed(self) -> bool:
        """Whether everything that it needs is there."""
        return all(importlib.util.find_spec(module) is not None for module in self.needs)


class ListReader:
    """Reader of an engine that likes a list of integers and hands out a mapping of arrays."""

    def request(self, index: Int64Array) -> Any:
        """See `Reader.request`."""
        return index.tolist()

    def arrays(self, batch: Any) -> Mapping[str, AnyArray] | None:
        """See `Reader.arrays`."""
        return {name: np.asarray(values) for name, values in batch.items()}

    def close(self) -> None:
        """See `Reader.close`."""


def keep_nothing(samples: Samples, directory: Path) -> None:
    """The `write` of an engine that has its samples in memory."""


def collate(records: Iterable[Mapping[str, AnyArray]]) -> dict[str, AnyArray]:
    """Batch of NumPy records, by one concatenation per field."""
    records = list(records)
    counts = [len(record["positions"]) for record in records]
    ptr = np.zeros(len(counts) + 1, dtype=np.int64)
    np.cumsum(counts, out=ptr[1:])
    batch = {name: np.concatenate([record[name] for record in records]) for name in records[0]}
    for name in ATOM_ROWS:
        if name in batch:
            batch[name] += np.repeat(ptr[:-1], [len(record[name]) for record in records])[:, None]
    batch["batch_ptr"] = ptr
    return batch


def segment_rows(starts: Int64Array, counts: Int64Array) -> tuple[Int64Array, Int64Array]:
    """Rows of segments, one after the other, and the pointers of the batch that they make."""
    ptr = np.zeros(len(counts) + 1, dtype=np.int64)
    np.cumsum(counts, out=ptr[1:])
    return np.repeat(starts - ptr[:-1], counts) + np.arange(ptr[-1]), ptr


def segments(
    ptr: Mapping[str, Int64Array], levels: Iterable[str], index: Int64Array
) -> tuple[dict[str, Int64Array], dict[str, Int64Array], Int64Array]:
    """Rows of each level, counts of each segmented level, and the pointers of the atoms."""
    rows, counts, atoms_ptr = {"system": index}, {}, np.zeros(0, dtype=np.int64)
    for level in levels:
        if level == "system":
            continue
        starts = ptr[level][index]
        counts[level] = ptr[level][index + 1] - starts
        rows[level], found = segment_rows(starts, counts[level])
        if level == "atom":
            atoms_ptr = found
    return rows, counts, atoms_ptr
