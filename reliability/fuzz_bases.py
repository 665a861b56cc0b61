"""The stores that `reliability.fuzz` damages, and what is read of them when they are whole."""

import os
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import zarr

from reliability.truth import STRESSED, UNLABELLED, WEIGHED, everything, numbers_of, samples
from zarrpipe import AtomicDataZarrWriter, Batch, ZarrData
from zarrpipe.data.csr import AnyArray

_PLAIN = {"chunk_size": 4096}
_SMALL = {"chunk_size": 512}  # whole pages: mapped, in many files
_ZSTD = {"compressors": "zstd", "chunk_size": 64}
_SHARDED = {"compressors": "zstd", "chunk_size": 64, "shard_size": 256}
_FEW, _MANY = 60, 700


def make_bases(folder: Path) -> list[str]:
    """Make the stores, each beside what is in it; their names."""
    for name, make in _BASES.items():
        store = folder / name
        make(store)
        whole = everything(store)
        if whole is None:
            raise RuntimeError(f"{store} is empty")
        np.savez(folder / f"{name}.npz", **flattened(whole))  # type: ignore[arg-type]
    return [*_BASES]


def flattened(batch: Batch) -> dict[str, AnyArray]:
    """Everything of a batch, by name; names with a colon are not those of fields."""
    found = {name: value.numpy() for name, value in batch.fields.items()}
    found |= {f"present:{name}": batch.present(name).numpy() for name in batch.fields}
    return found | {f":{level}s": batch.level_ptr(level).numpy() for level in batch.pointer_levels}


def _write(store: Path, array: Mapping[str, object], *batches: Batch) -> None:
    config = {"meta": array, "core": array, "custom": array}
    with ZarrData(store, capacity=1000, config=config) as sink:
        for batch in batches:
            sink.write(batch)


def _of(config: Mapping[str, object], count: int) -> Callable[[Path], None]:
    return lambda store: _write(store, config, samples(numbers_of(0, count)))


def _deleted(store: Path) -> None:
    _write(store, _PLAIN, samples(numbers_of(0, _FEW)))
    with AtomicDataZarrWriter(store) as writer:
        writer.delete([0, 7, 8, 59])


def _partly(store: Path) -> None:
    kinds = (0, STRESSED, UNLABELLED, WEIGHED)
    _write(store, _PLAIN, *(samples(numbers_of(0, 20, kind)) for kind in kinds))


def _killed(store: Path) -> None:
    """Written by a process that ends without closing."""
    child = os.fork()
    if child == 0:
        try:
            array = _PLAIN
            sink = ZarrData(store, config={"meta": array, "core": array, "custom": array})
            sink.write(samples(numbers_of(0, _FEW)))
        finally:
            os._exit(9)
    os.waitpid(child, 0)


def _foreign(store: Path) -> None:
    """As nvalchemi writes: the same layout, Zarr's own chunks, nothing of zarrpipe's."""
    _write(store, _PLAIN, samples(numbers_of(0, _FEW)))
    group = zarr.open_group(store, mode="r+")
    for part in ("meta", "core", "custom"):
        for name in list(group[part].array_keys()):  # type: ignore[union-attr]
            values = np.asarray(group[f"{part}/{name}"][...])  # type: ignore[index]
            del group[f"{part}/{name}"]
            if name != "ids":
                chunks = (50, *values.shape[1:])
                group.create_array(f"{part}/{name}", data=values, chunks=chunks)
    attributes = dict(group.attrs)
    del attributes["zarrpipe"]
    group.attrs.put(attributes)


_BASES: dict[str, Callable[[Path], None]] = {
    "plain": _of(_PLAIN, _FEW),
    "small": _of(_SMALL, _MANY),
    "zstd": _of(_ZSTD, _FEW),
    "sharded": _of(_SHARDED, _MANY),
    "deleted": _deleted,
    "partly": _partly,
    "killed": _killed,
    "foreign": _foreign,
}
