"""What an engine is: a way to keep samples and to get shuffled batches of them back."""

import importlib.util
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from benchmarks.data import AnyArray, Int64Array, Samples


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

        ``neighbor_list`` counts the atoms of the batch.
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
    edges
        Whether it can keep fields at edge level.
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
    edges: bool = True
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
    if "neighbor_list" in batch:
        edges = [len(record["neighbor_list"]) for record in records]
        batch["neighbor_list"] += np.repeat(ptr[:-1], edges)[:, None]
    batch["batch_ptr"] = ptr
    return batch


def segment_rows(starts: Int64Array, counts: Int64Array) -> tuple[Int64Array, Int64Array]:
    """Rows of segments, one after the other, and the pointers of the batch that they make."""
    ptr = np.zeros(len(counts) + 1, dtype=np.int64)
    np.cumsum(counts, out=ptr[1:])
    return np.repeat(starts - ptr[:-1], counts) + np.arange(ptr[-1]), ptr
