"""Engines as something that is appended to, all with the same arrays and none waiting for the disk.

What was appended can be read by another process after each write.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

import zarrpipe as zp
from benchmarks.data import LEVELS, AnyArray, Samples
from benchmarks.engines.lmdb_records import environment, key, numpy_record
from benchmarks.engines.others import atompack_molecule, nvalchemi_data
from benchmarks.engines.ours import as_batch
from zarrpipe.data.ids import batch_ids, compiled_ids

CHUNK_ROWS = 16_384


class Writer(Protocol):
    """Something that samples are appended to."""

    def request(self, samples: Samples) -> Any:
        """Samples in the form that the engine likes best; this is not timed."""
        ...

    def write(self, request: Any) -> None:
        """Append; this is what is timed."""
        ...

    def close(self) -> None:
        """Let go of files."""
        ...


@dataclass(frozen=True)
class WriterKind:
    """A way to append.

    Parameters
    ----------
    name
        As it is called in tables.
    open
        Opens it in a directory that exists and is empty, for a number of bytes.
    needs
        Modules that have to be installed.
    note
        What is not the same as with the others.
    levels
        Levels of which it can keep fields.
    """

    name: str
    open: Callable[[Path, int], Writer]
    needs: tuple[str, ...] = ()
    note: str = ""
    levels: frozenset[str] = frozenset(LEVELS.values())


def all_arrays(samples: Samples) -> dict[str, AnyArray]:
    """Every array that a store of zarrpipe gets of these samples, by name."""
    return {
        **samples.fields,
        "ids": batch_ids(as_batch(samples)),
        "samples_mask": np.ones(len(samples), dtype=bool),
        **{f"{level}s_ptr": ptr[1:] for level, ptr in samples.ptr.items() if level != "system"},
    }


class SinkWriter:
    """``ZarrData.write`` of a `Batch`."""

    def __init__(self, place: Path, _: int = 0, capacity: int = 1_000_000) -> None:
        compiled_ids()  # half a second at the first use
        self.sink = zp.ZarrData(place / "store.zarr", capacity=capacity)

    def request(self, samples: Samples) -> Any:
        """See `Writer.request`."""
        return as_batch(samples)

    def write(self, request: Any) -> None:
        """See `Writer.write`."""
        self.sink.write(request)

    def close(self) -> None:
        """See `Writer.close`."""
        self.sink.close()


class RawWriter:
    """The same bytes by one ``os.pwrite`` for each array, into allocated files that are open."""

    def __init__(self, place: Path, nbytes: int) -> None:
        self._place, self._nbytes = place, nbytes
        self._files: list[int] = []
        self._offsets: list[int] = []

    def request(self, samples: Samples) -> Any:
        """See `Writer.request`."""
        arrays = all_arrays(samples)
        if not self._files:
            for name in arrays:
                descriptor = os.open(self._place / name, os.O_RDWR | os.O_CREAT)
                os.posix_fallocate(descriptor, 0, self._nbytes)
                self._files.append(descriptor)
                self._offsets.append(0)
        return [np.ascontiguousarray(a).reshape(-1).view("u1").data for a in arrays.values()]

    def write(self, request: Any) -> None:
        """See `Writer.write`."""
        offsets = self._offsets
        for place, content in enumerate(request):
            os.pwrite(self._files[place], content, offsets[place])
            offsets[place] += len(content)

    def close(self) -> None:
        """See `Writer.close`."""
        for descriptor in self._files:
            os.close(descriptor)


class ZarrWriter:
    """``Array.append`` of zarr-python, for every array."""

    def __init__(self, place: Path, _: int = 0) -> None:
        import zarr  # noqa: PLC0415  only this engine needs it

        self._group = zarr.open_group(place / "store.zarr", mode="w")
        self._arrays: dict[str, Any] = {}

    def request(self, samples: Samples) -> Any:
        """See `Writer.request`."""
        arrays = all_arrays(samples)
        for name, values in arrays.items():
            if name not in self._arrays:
                self._arrays[name] = self._group.create_array(
                    name,
                    shape=(0, *values.shape[1:]),
                    chunks=(CHUNK_ROWS, *values.shape[1:]),
                    dtype=values.dtype,
                    compressors=None,
                )
        return arrays

    def write(self, request: Any) -> None:
        """See `Writer.write`."""
        for name, values in request.items():
            self._arrays[name].append(values)

    def close(self) -> None:
        """See `Writer.close`."""


class HdfWriter:
    """A resize and a write for every dataset, then a flush."""

    def __init__(self, place: Path, _: int = 0) -> None:
        import h5py  # noqa: PLC0415  optional

        self._file = h5py.File(place / "samples.h5", "w")
        self._sets: dict[str, Any] = {}

    def request(self, samples: Samples) -> Any:
        """See `Writer.request`."""
        arrays = all_arrays(samples)
        for name, values in arrays.items():
            if name not in self._sets:
                self._sets[name] = self._file.create_dataset(
                    name,
                    shape=(0, *values.shape[1:]),
                    maxshape=(None, *values.shape[1:]),
                    chunks=(CHUNK_ROWS, *values.shape[1:]),
                    dtype=values.dtype,
                )
        return arrays

    def write(self, request: Any) -> None:
        """See `Writer.write`."""
        for name, values in request.items():
            stored = self._sets[name]
            before = len(stored)
            stored.resize(before + len(values), axis=0)
            stored[before:] = values
        self._file.flush()

    def close(self) -> None:
        """See `Writer.close`."""
        self._file.close()


class LmdbWriter:
    """A transaction a write, a pickled record a sample, without waiting for the disk."""

    def __init__(self, place: Path, _: int = 0) -> None:
        self._environment = environment(place, sync=False)
        self._count = 0

    def request(self, samples: Samples) -> Any:
        """See `Writer.request`."""
        return list(samples.records())

    def write(self, request: Any) -> None:
        """See `Writer.write`."""
        with self._environment.begin(write=True) as transaction:
            for record in request:
                transaction.put(key(self._count), numpy_record(record), append=True)
                self._count += 1

    def close(self) -> None:
        """See `Writer.close`."""
        self._environment.close()


class AtompackWriter:
    """``add_molecules`` and ``flush``, which is what makes them readable."""

    def __init__(self, place: Path, _: int = 0) -> None:
        import atompack  # noqa: PLC0415  optional

        self._database = atompack.Database(str(place / "samples.atp"), overwrite=True)

    def request(self, samples: Samples) -> Any:
        """See `Writer.request`."""
        return [atompack_molecule(record) for record in samples.records()]

    def write(self, request: Any) -> None:
        """See `Writer.write`."""
        self._database.add_molecules(request)
        self._database.flush()

    def close(self) -> None:
        """See `Writer.close`."""


class NvalchemiWriter:
    """``AtomicDataZarrWriter.append`` of its ``Batch``."""

    def __init__(self, place: Path, _: int = 0) -> None:
        from nvalchemi.data.datapipes import AtomicDataZarrWriter  # noqa: PLC0415  optional

        self._writer = AtomicDataZarrWriter(place / "store.zarr")
        self._begun = False

    def request(self, samples: Samples) -> Any:
        """See `Writer.request`."""
        from nvalchemi.data import Batch  # noqa: PLC0415  optional

        return Batch.from_data_list([nvalchemi_data(record) for record in samples.records()])

    def write(self, request: Any) -> None:
        """See `Writer.write`."""
        if self._begun:
            self._writer.append(request)
        else:
            self._writer.write(request)
            self._begun = True

    def close(self) -> None:
        """See `Writer.close`."""


RAW = "raw positional writes"
WRITERS = (
    WriterKind("zarrpipe", SinkWriter),
    WriterKind(RAW, RawWriter, note="the floor: bytes that are ready, no format, no ids to find"),
    WriterKind("zarr-python append", ZarrWriter),
    WriterKind("HDF5 CSR", HdfWriter, ("h5py",)),
    WriterKind("LMDB of pickled NumPy", LmdbWriter, ("lmdb",), "sync=False"),
    WriterKind("atompack", AtompackWriter, ("atompack",), levels=frozenset(("atom", "system"))),
    WriterKind(
        "nvalchemi",
        NvalchemiWriter,
        ("nvalchemi",),
        levels=frozenset(("atom", "system", "edge")),
    ),
)
"""Every way to append, zarrpipe first."""
