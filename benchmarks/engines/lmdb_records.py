"""LMDB with one pickled record per sample, as the data sets of many potentials come."""

import pickle
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.data import AnyArray, Samples
from benchmarks.engines.base import Engine, ListReader, collate
from benchmarks.engines.memory import collate_tensors

SPACE = 1 << 36


def environment(directory: Path, **options: Any) -> Any:
    """LMDB environment at a place."""
    import lmdb  # noqa: PLC0415  optional

    return lmdb.open(str(directory), map_size=SPACE, **options)


def key(sample: int) -> bytes:
    """Key of a sample."""
    return sample.to_bytes(8, "big")


def numpy_record(record: Mapping[str, AnyArray]) -> bytes:
    """A sample as a pickled dictionary of NumPy arrays."""
    return pickle.dumps({name: np.array(values) for name, values in record.items()}, protocol=5)


def torch_record(record: Mapping[str, AnyArray]) -> bytes:
    """A sample as a pickled dictionary of tensors."""
    tensors = {name: torch.from_numpy(np.array(values)) for name, values in record.items()}
    return pickle.dumps(tensors, protocol=5)


class RecordReader(ListReader):
    """One transaction a batch, one get and one unpickling a sample."""

    def __init__(self, directory: Path, join: Callable[[list[Any]], Any]) -> None:
        self._environment = environment(directory, readonly=True, lock=False, readahead=False)
        self._join = join

    def read(self, request: Any) -> Any:
        """See `Reader.read`."""
        with self._environment.begin(buffers=True) as transaction:
            return self._join([pickle.loads(transaction.get(key(i))) for i in request])

    def close(self) -> None:
        """See `Reader.close`."""
        self._environment.close()


def _engine(name: str, pack: Callable[..., bytes], join: Callable[[list[Any]], Any]) -> Engine:
    def write(samples: Samples, directory: Path) -> None:
        with environment(directory) as opened, opened.begin(write=True) as transaction:
            for sample, record in enumerate(samples.records()):
                transaction.put(key(sample), pack(record), append=True)

    def open_reader(_: Samples, directory: Path) -> RecordReader:
        return RecordReader(directory, join)

    return Engine(name, write, open_reader, needs=("lmdb",))


ENGINES = (
    _engine("LMDB of pickled NumPy", numpy_record, collate),
    _engine("LMDB of pickled torch", torch_record, collate_tensors),
)
