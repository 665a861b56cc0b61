"""HDF5: one dataset per field (CSR) with a slice per sample, and one group per sample."""

from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.data import ATOM_ROWS, LEVELS, Samples
from benchmarks.engines.base import Engine, ListReader, collate

FILE = "samples.h5"


def _write_csr(samples: Samples, directory: Path) -> None:
    import h5py  # noqa: PLC0415  optional

    with h5py.File(directory / FILE, "w") as file:
        for name, values in samples.fields.items():
            file.create_dataset(name, data=values)
        for level in samples.levels:
            file.create_dataset(f"{level}_ptr", data=samples.ptr[level])


def _write_groups(samples: Samples, directory: Path) -> None:
    import h5py  # noqa: PLC0415  optional

    with h5py.File(directory / FILE, "w", libver="latest") as file:
        for sample, record in enumerate(samples.records()):
            group = file.create_group(str(sample))
            for name, values in record.items():
                group.create_dataset(name, data=values)


class SliceReader(ListReader):
    """A slice of each dataset per sample."""

    def __init__(self, directory: Path) -> None:
        import h5py  # noqa: PLC0415  optional

        self._file = h5py.File(directory / FILE, "r")
        self._fields = {name: self._file[name] for name in LEVELS if name in self._file}
        levels = {LEVELS[name] for name in self._fields}
        self._ptr = {level: self._file[f"{level}_ptr"][:].tolist() for level in levels}

    def read(self, request: Any) -> Any:
        """See `Reader.read`."""
        batch = {}
        for name, stored in self._fields.items():
            ptr = self._ptr[LEVELS[name]]
            batch[name] = np.concatenate([stored[ptr[i] : ptr[i + 1]] for i in request])
        ptr = self._ptr["atom"]
        counts = np.array([ptr[i + 1] - ptr[i] for i in request])
        batch["batch_ptr"] = np.concatenate([[0], np.cumsum(counts)])
        for name in ATOM_ROWS:
            if name in batch:
                ptr = self._ptr[LEVELS[name]]
                counts = [ptr[i + 1] - ptr[i] for i in request]
                batch[name] += np.repeat(batch["batch_ptr"][:-1], counts)[:, None]
        return batch

    def close(self) -> None:
        """See `Reader.close`."""
        self._file.close()


class GroupReader(ListReader):
    """A group per sample, a dataset per field in it."""

    def __init__(self, samples: Samples, directory: Path) -> None:
        import h5py  # noqa: PLC0415  optional

        self._file = h5py.File(directory / FILE, "r")
        self._names = tuple(samples.fields)

    def read(self, request: Any) -> Any:
        """See `Reader.read`."""
        groups = [self._file[str(i)] for i in request]
        return collate([{name: group[name][()] for name in self._names} for group in groups])

    def close(self) -> None:
        """See `Reader.close`."""
        self._file.close()


ENGINES = (
    Engine("HDF5 CSR", _write_csr, lambda _, place: SliceReader(place), needs=("h5py",)),
    Engine("HDF5 group per sample", _write_groups, GroupReader, needs=("h5py",)),
)
