"""What lives in memory: the floors that a store is measured against, and a list of records."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.data import ATOM_ROWS, LEVELS, AnyArray, Int64Array, Samples
from benchmarks.engines.base import Engine, ListReader, keep_nothing, segments


class GatherReader(ListReader):
    """Whole arrays in memory, NumPy index arithmetic and one take per field."""

    def __init__(self, samples: Samples) -> None:
        self._samples = samples

    def request(self, index: Int64Array) -> Any:
        """See `Reader.request`."""
        return index

    def read(self, request: Any) -> Any:
        """See `Reader.read`."""
        samples = self._samples
        taken, counts, ptr = segments(samples.ptr, samples.levels, request)
        batch = {
            name: values.take(taken[LEVELS[name]], axis=0)
            for name, values in samples.fields.items()
        }
        for name in ATOM_ROWS:
            if name in batch:
                batch[name] += np.repeat(ptr[:-1], counts[LEVELS[name]])[:, None]
        batch["batch_ptr"] = ptr
        return batch


class CopyReader:
    """One copy of as many bytes as the batch has, from one place into a buffer that is reused.

    The places walk through a block as large as the set, so that the caches hold as little of
    what is copied as they do of the batches of the others.
    """

    def __init__(self, samples: Samples) -> None:
        self._samples = samples
        self._source = np.ones(samples.nbytes, dtype=np.uint8)
        self._buffer = np.ones(samples.nbytes, dtype=np.uint8)
        self._next = 0

    def request(self, index: Int64Array) -> Any:
        """See `Reader.request`."""
        size = self._samples.batch_bytes(index)
        if self._next + size > len(self._source):
            self._next = 0
        source = self._source[self._next : self._next + size]
        self._next += size
        return self._buffer[: len(source)], source

    def read(self, request: Any) -> Any:
        """See `Reader.read`."""
        np.copyto(*request)

    def arrays(self, batch: Any) -> None:
        """There are no values."""

    def close(self) -> None:
        """See `Reader.close`."""


class ListOfDicts:
    """A list of dictionaries of tensors, as many training scripts have it; one cat per field."""

    def __init__(self, samples: Samples) -> None:
        self._records = [
            {name: torch.from_numpy(np.array(values)) for name, values in record.items()}
            for record in samples.records()
        ]

    def request(self, index: Int64Array) -> Any:
        """See `Reader.request`."""
        return index.tolist()

    def read(self, request: Any) -> Any:
        """See `Reader.read`."""
        return collate_tensors([self._records[i] for i in request])

    def arrays(self, batch: Any) -> Mapping[str, AnyArray]:
        """See `Reader.arrays`."""
        return {name: value.numpy() for name, value in batch.items()}

    def close(self) -> None:
        """See `Reader.close`."""


def collate_tensors(records: Sequence[Mapping[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """Batch of records of tensors, by one cat per field."""
    ptr = torch.zeros(len(records) + 1, dtype=torch.int64)
    torch.cumsum(torch.tensor([len(r["positions"]) for r in records]), 0, out=ptr[1:])
    batch = {name: torch.cat([record[name] for record in records]) for name in records[0]}
    for name in ATOM_ROWS:
        if name in batch:
            counts = torch.tensor([len(record[name]) for record in records])
            batch[name] += torch.repeat_interleave(ptr[:-1], counts)[:, None]
    batch["batch_ptr"] = ptr
    return batch


def _gather(samples: Samples, _: Path) -> GatherReader:
    return GatherReader(samples)


ENGINES = (
    Engine("gather from RAM", keep_nothing, _gather, note="in memory, nothing is stored"),
    Engine(
        "memory copy",
        keep_nothing,
        lambda samples, _: CopyReader(samples),
        note="the bytes of the batch from one place to another: no gather, no values",
    ),
    Engine(
        "list of dicts + torch.cat",
        keep_nothing,
        lambda samples, _: ListOfDicts(samples),
        note="in memory, nothing is stored",
    ),
)
