"""zarrpipe itself, with and without its compiled copy, and zarr-python on a store that it wrote."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

import zarrpipe as zp
from benchmarks.data import LEVELS, AnyArray, Int64Array, Samples
from benchmarks.engines.base import Engine, ListReader, segment_rows

BLOCK = 5_000
STORE = "store.zarr"


def as_batch(samples: Samples) -> zp.Batch:
    """The samples as one `Batch`."""
    fields = {name: torch.from_numpy(np.array(values)) for name, values in samples.fields.items()}
    if "neighbor_list" in fields:
        shift = np.repeat(samples.atoms_ptr[:-1], np.diff(samples.edges_ptr))
        fields["neighbor_list"] += torch.from_numpy(shift)[:, None]
    return zp.Batch(
        fields,
        torch.from_numpy(np.array(samples.atoms_ptr)),
        torch.from_numpy(np.array(samples.edges_ptr)),
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
        present = {name for part in ("core", "custom") for name in group[part]}
        self._fields = {name: group[f"core/{name}"] for name in LEVELS if name in present}
        self._ptr = {
            "atom": group["meta/atoms_ptr"][:],
            "edge": group["meta/edges_ptr"][:],
        }

    def request(self, index: Int64Array) -> Any:
        """See `Reader.request`."""
        return index

    def read(self, request: Any) -> Any:
        """See `Reader.read`."""
        starts = self._ptr["atom"][request]
        rows, ptr = segment_rows(starts, self._ptr["atom"][request + 1] - starts)
        taken = {"atom": rows, "system": request}
        if "neighbor_list" in self._fields:
            first = self._ptr["edge"][request]
            edges = self._ptr["edge"][request + 1] - first
            taken["edge"] = segment_rows(first, edges)[0]
        batch = {name: array.oindex[taken[LEVELS[name]]] for name, array in self._fields.items()}
        if "neighbor_list" in batch:
            batch["neighbor_list"] += np.repeat(ptr[:-1] - starts, edges)[:, None]
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
