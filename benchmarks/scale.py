"""Scale: a store with the pointers of 100 million samples, of which only the pointers are there."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import zarr

import zarrpipe as zp
from benchmarks.data import AnyArray, DataSet, make
from benchmarks.engines.ours import STORE, as_batch
from benchmarks.keeping import code, kept
from benchmarks.probe import ask
from benchmarks.rows import Row
from benchmarks.settings import Settings
from zarrpipe.store.format.layout import MARK

_WRITTEN = ("atoms_ptr", "edges_ptr", "ids", "samples_mask")
"""Arrays in `meta` of which every chunk is there."""

SUITE = "scale"
RANKS, BATCH_SIZE = 8, 64
LEAST_ATOMS, MOST_ATOMS = 14, 26


def run(settings: Settings) -> list[Row]:
    """Seconds and MB of opening, planning and refreshing, each in a fresh process."""
    count = settings.size.pointers
    place = kept(
        settings.work, f"pointers-{count}", f"{count} {code()}", lambda at: write(at / STORE, count)
    )
    store = str(place / STORE)
    planned = ask("plan", store=store, batch_size=BATCH_SIZE, ranks=RANKS)
    module = ask("module", store=store, batch_size=BATCH_SIZE)
    fresh = ask("refresh", store=store, capacity=2 * count)
    case = f"{count:,} samples"
    seconds = {
        "open": planned["open"],
        f"plan one epoch, one of {RANKS} ranks": planned["plan"],
        "data module: open, split by id, plan, one rank": module["seconds"],
        "refresh after an append": fresh["refresh"],
        "open a sink, append 32 samples": fresh["write"],
    }
    memory = {
        "peak of a rank that opens and plans": planned["peak"],
        "of which private at the end": planned["private"],
        "peak with the data module": module["peak"],
        "peak of opening, appending and refreshing": fresh["peak"],
    }
    return [
        *(Row.single(SUITE, case, name, value, "s") for name, value in seconds.items()),
        *(Row.single(SUITE, case, name, value, "MB") for name, value in memory.items()),
    ]


def write(store: Path, count: int) -> None:
    """Valid store of `count` samples, with pointers, ids and masks, but with rows of one sample.

    Chunks of the fields that are not there read as fill, so a store of 2 billion atoms takes the
    place of its pointers.
    """
    one = make(DataSet("atom", LEAST_ATOMS, LEAST_ATOMS), 1, 0)
    with zp.ZarrData(store, capacity=count) as sink:
        sink.write(as_batch(one))
    rng = np.random.default_rng(count)
    atoms = rng.integers(LEAST_ATOMS, MOST_ATOMS + 1, count)
    atoms[0] = LEAST_ATOMS
    ptr = np.zeros(count + 1, dtype=np.int64)
    np.cumsum(atoms, out=ptr[1:])
    group: Any = zarr.open_group(store, mode="r+")
    for part in ("core", "custom", "meta"):
        for name, array in group[part].arrays():
            per_atom = name in ("positions", "atomic_numbers", "forces", "atoms_mask")
            rows = int(ptr[-1]) if per_atom else 0 if name == "edges_mask" else count
            array.resize((rows + name.endswith("_ptr"), *array.shape[1:]))
            array.update_attributes({MARK: {**array.attrs[MARK], "dense": name in _WRITTEN}})
    ids = rng.integers(0, 1 << 63, count).astype(np.uint64)
    contents = {"atoms_ptr": ptr, "ids": ids, "samples_mask": np.ones(count, dtype=bool)}
    for name, values in contents.items():
        _write_chunks(store / "meta" / name, values, group[f"meta/{name}"].chunks[0])
    edges = group["meta/edges_ptr"]
    for chunk in range(-(-edges.shape[0] // edges.chunks[0])):
        path = store / "meta" / "edges_ptr" / "c" / str(chunk)
        path.touch()
        os.truncate(path, edges.chunks[0] * 8)
    group.attrs["num_samples"] = count


def _write_chunks(array: Path, values: AnyArray, rows: int) -> None:
    """Chunk files of a plain array of one dimension, each at its full size."""
    (array / "c").mkdir(parents=True, exist_ok=True)
    for chunk, start in enumerate(range(0, len(values), rows)):
        with (array / "c" / str(chunk)).open("wb") as file:
            file.write(np.ascontiguousarray(values[start : start + rows]).view("u1").data)
            file.truncate(rows * values.itemsize)
