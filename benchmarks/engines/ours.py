"""zarrpipe itself, with and without its compiled copy, and zarr-python on a store that it wrote."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

import zarrpipe as zp
from benchmarks.data import ATOM_ROWS, CATEGORIES, LEVELS, AnyArray, Int64Array, Samples
from benchmarks.engines.base import Engine, ListReader, segments
from zarrpipe.data.fields import CORE_FIELDS

BLOCK = 5_000
STORE = "store.zarr"
_POINTERS = {
    "atom": "meta/atoms_ptr",
    "edge": "meta/edges_ptr",
    "bond": "meta/level_ptrs/bond",
}


def as_batch(samples: Samples) -> zp.Batch:
    """The samples as one `Batch`."""
    fields = {name: torch.from_numpy(np.array(values)) for name, values in samples.fields.items()}
    ptr = {level: torch.from_numpy(np.array(samples.ptr[level])) for level in samples.ptr}
    for name in ATOM_ROWS:
        if name in fields:
            counts = ptr[LEVELS[name]].diff()
            fields[name] += torch.repeat_interleave(ptr["atom"][:-1], counts)[:, None]
    own = {name: LEVELS[name] for name in fields if name not in CORE_FIELDS}
    return zp.Batch(
        fields,
        ptr["atom"],
        ptr["edge"],
        levels=own,
        level_ptrs={"bond": ptr["bond"]} if "bond" in ptr else None,
        index_of={"bond_atoms": "atom"} if "bond_atoms" in fields else None,
        categories={name: CATEGORIES[name] for name in CATEGORIES if name in fields},
    )


def write_store(samples: Samples, directory: Path, config: Mapping[str, Any] | None = None) -> None:
    """Keep samples in a store."""
    with zp.ZarrData(directory / STORE, config=config) as sink:
        for part in samples.parts(BLOCK):
            sink.write(as_batch(part))


def write_small_chunks(samples: Samples, directory: Path) -> None:
    """Keep samples in a store that is better for who reads whole chunks."""
    write_store(samples, directory, {"core": {"chunk_size": 16_384}})


class DatasetReader:
    """``ZarrDataset.__getitems__``."""

    def __init__(self, directory: Path) -> None:
        self._dataset = zp.ZarrDataset(directory / STORE)

    def request(self, index: Int64Array) -> Any:
        """See `Reader.request`."""
        return index

    def read(self, request: Any) -> Any:
        """See `Reader.read`."""
        return self._dataset.__getitems__(request)

    def arrays(self, batch: Any) -> Mapping[str, AnyArray]:
        """See `Reader.arrays`."""
        fields = {name: value.numpy() for name, value in batch.fields.items()}
        for name, strings in CATEGORIES.items():
            if name in fields:
                places = [strings.index(string) for string in batch.categories(name)]
                fields[name] = np.array(places)[fields[name]]
        return {**fields, "batch_ptr": batch.batch_ptr.numpy()}

    def close(self) -> None:
        """See `Reader.close`."""


class TensorReader(DatasetReader):
    """The same, with the tensor of every field, which a batch makes when one is asked for."""

    def read(self, request: Any) -> Any:
        """See `Reader.read`."""
        batch = self._dataset.__getitems__(request)
        return batch, [*batch.fields.values(), batch.batch_ptr]

    def arrays(self, batch: Any) -> Mapping[str, AnyArray]:
        """See `Reader.arrays`."""
        return super().arrays(batch[0])


class OindexReader(ListReader):
    """zarr-python's orthogonal indexing, one call per field, on the store that zarrpipe wrote."""

    def __init__(self, directory: Path) -> None:
        import zarr  # noqa: PLC0415  only this engine needs it

        group: Any = zarr.open_group(directory / STORE, mode="r")
        self._fields = {
            name: group[f"{part}/{name}"]
            for name in LEVELS
            for part in ("core", "custom", "levels/bond")
            if f"{part}/{name}" in group
        }
        self._levels = {LEVELS[name] for name in self._fields}
        self._ptr = {
            level: group[_POINTERS[level]][:] for level in self._levels if level != "system"
        }

    def request(self, index: Int64Array) -> Any:
        """See `Reader.request`."""
        return index

    def read(self, request: Any) -> Any:
        """See `Reader.read`."""
        taken, counts, ptr = segments(self._ptr, self._levels, request)
        batch = {name: array.oindex[taken[LEVELS[name]]] for name, array in self._fields.items()}
        shift = ptr[:-1] - self._ptr["atom"][request]
        for name in ATOM_ROWS:
            if name in batch:
                batch[name] += np.repeat(shift, counts[LEVELS[name]])[:, None]
        batch["batch_ptr"] = ptr
        return batch


ENGINES = (
    Engine("zarrpipe", write_store, lambda _, place: DatasetReader(place)),
    Engine(
        "zarrpipe, every tensor made",
        write_store,
        lambda _, place: TensorReader(place),
        shares="zarrpipe",
    ),
    Engine(
        "zarr-python oindex",
        write_small_chunks,
        lambda _, place: OindexReader(place),
        note="chunks of 16,384 rows, not compressed",
    ),
)
