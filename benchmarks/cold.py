"""Cold: the first epoch over data of which nothing is in the page cache."""

import ctypes
import gc
import mmap
import os
from pathlib import Path
from time import perf_counter

import numpy as np

import zarrpipe as zp
from benchmarks.data import SETS, blocks
from benchmarks.engines.ours import STORE, as_batch
from benchmarks.keeping import code, kept
from benchmarks.rows import Row
from benchmarks.settings import Settings
from benchmarks.timing import Timing, speed_ratio

SUITE = "cold"
BATCH_SIZE = 64
READ = 4 << 20
ROUNDS = 3
MOST_LEFT = 0.02
"""Share of the pages that may still be there after they were dropped."""


def run(settings: Settings) -> list[Row]:
    """MB/s of a shuffled epoch through the train loader, and of reading its files in order."""
    size = settings.size
    place = kept(
        settings.work,
        f"large-{size.large_bytes}",
        f"{size.large_bytes} {settings.seed} {code()}",
        lambda at: _write(settings, at),
    )
    files = sorted(path for path in place.rglob("*") if path.is_file() and "c" in path.parts)
    dataset = zp.ZarrDataset(place / STORE)
    nbytes = int(sum(_row_bytes(dataset)))
    del dataset
    taken: dict[str, list[float]] = {"files read in order": [], "first epoch, train loader": []}
    notes = dict.fromkeys(taken, "")
    for _ in range(min(ROUNDS, size.rounds)):
        _drop(files)
        taken["files read in order"].append(_read_in_order(files))
        _drop(files)
        seconds, share = _epoch(settings, place / STORE)
        taken["first epoch, train loader"].append(seconds / share)
        if share < 1:
            notes["first epoch, train loader"] = f"stopped after {share:.0%} of an epoch"
    timings = [Timing(name, np.array(seconds)) for name, seconds in taken.items()]
    rows = []
    for timing in timings:
        value, low, high = timing.quartiles(lambda seconds: nbytes / seconds / 1e6)
        ratios = {timings[0].name: speed_ratio(timing, timings[0])}
        case, note = f"{nbytes / 1e6:,.0f} MB, batches of {BATCH_SIZE}", notes[timing.name]
        name, rounds = timing.name, timing.rounds
        rows.append(Row(SUITE, case, name, value, "MB/s", low, high, rounds, ratios, note))
    return rows


def _write(settings: Settings, place: Path) -> None:
    with zp.ZarrData(place / STORE) as sink:
        for samples in blocks(SETS["large"], settings.size.large_bytes, settings.seed):
            for part in samples.parts(5_000):
                sink.write(as_batch(part))


def _row_bytes(dataset: zp.ZarrDataset) -> list[int]:
    """Bytes of each field of all samples."""
    rows = {"system": len(dataset), "atom": int(dataset.num_atoms.sum())}
    return [
        rows[item.level] * item.dtype.itemsize * int(np.prod(item.shape, dtype=int))
        for item in dataset.schema.values()
    ]


def _epoch(settings: Settings, store: Path) -> tuple[float, float]:
    """Seconds from opening to the last batch, and the share of the epoch that they were."""
    start = perf_counter()
    module = zp.ZarrDataModule(
        store, batch_size=BATCH_SIZE, split=(1.0, 0.0, 0.0), seed=settings.seed
    )
    module.setup("fit")
    loader = module.train_dataloader()
    seen = 0
    for batch in loader:
        seen += len(batch)
        if perf_counter() - start > settings.size.cold_seconds:
            break
    seconds = perf_counter() - start
    share = seen / len(module.dataset)
    module.teardown("fit")
    return seconds, share


def _read_in_order(files: list[Path]) -> float:
    """Seconds of reading files from beginning to end."""
    buffer = bytearray(READ)
    start = perf_counter()
    for path in files:
        with path.open("rb", buffering=0) as file:
            while file.readinto(buffer):
                pass
    return perf_counter() - start


def _drop(files: list[Path]) -> None:
    """Let the system forget the pages of files.

    Raises
    ------
    RuntimeError
        If they are still there, because something has them mapped.
    """
    gc.collect()
    for path in files:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)
    left, pages = np.sum([_resident(path) for path in files], axis=0).tolist()
    if left > MOST_LEFT * pages + 64:
        raise RuntimeError(f"{left} of {pages} pages are still in memory: the set is not cold")


def _resident(path: Path) -> tuple[int, int]:
    """Pages of a file that are in the page cache, and all of them."""
    size = path.stat().st_size
    if size == 0:
        return 0, 0
    pages = -(-size // mmap.PAGESIZE)
    flags = (ctypes.c_ubyte * pages)()
    with path.open("rb") as file, mmap.mmap(file.fileno(), size, mmap.MAP_PRIVATE) as mapped:
        first = ctypes.c_ubyte.from_buffer(mapped)
        address = ctypes.c_void_p(ctypes.addressof(first))
        ctypes.CDLL(None, use_errno=True).mincore(address, ctypes.c_size_t(size), flags)
        del first
    return int((np.frombuffer(bytes(flags), np.uint8) & 1).sum()), pages
