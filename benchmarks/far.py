"""Far: an epoch over a store behind a server that takes its time for every request.

Run as a module it is that server: ``python -m benchmarks.far <directory> <seconds>``.
"""

import asyncio
import inspect
import itertools
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any

import numpy as np
import zarr

import zarrpipe as zp
from benchmarks.data import LEVELS, Int64Array, Samples
from benchmarks.engines.ours import BLOCK, STORE, as_batch
from benchmarks.keeping import code, kept, samples_of
from benchmarks.machine import every_core, on_cores
from benchmarks.rows import Row
from benchmarks.settings import Settings
from benchmarks.timing import Timing, speed_ratio
from zarrpipe.dataset.blocks import UnitLayout, block_order, choose_blocks, group_bounds
from zarrpipe.testing import assert_batches_equal

SUITE = "far"
DELAY = 0.02
BATCH_SIZE = 64
AHEAD = 16
"""Groups of blocks that are asked for ahead where the cache holds everything."""

LEAST_GROUPS = 4
"""A set of fewer groups is not read through a cache that does not hold it."""

ROUNDS = 5
NOTE = "on every core; the order is shuffled by groups of blocks"
CODECS: Mapping[str, Mapping[str, Any]] = {
    "plain": {},
    "zstd": {group: {"compressors": ("zstd",)} for group in ("meta", "core")},
}


@dataclass(frozen=True)
class Epoch:
    """The order of an epoch, and where its groups of blocks begin and end."""

    order: Int64Array
    ends: Int64Array

    @classmethod
    def of(cls, samples: Samples, store: Path, limit: int, seed: int) -> "Epoch":
        """Epoch of a store whose groups fit a cache of so many bytes."""
        group = zarr.open_group(store, mode="r", use_consolidated=False)
        layouts = [
            UnitLayout(
                group[f"core/{name}"].chunks[0],
                values[:1].nbytes,
                samples.atoms_ptr if LEVELS[name] == "atom" else None,
            )
            for name, values in samples.fields.items()
        ]
        bounds, group = choose_blocks(len(samples), layouts, limit)
        return cls(
            block_order(seed, 0, bounds, group),
            group_bounds(seed, 0, bounds, group),
        )

    def read(self, dataset: zp.ZarrDataset, ahead: int) -> float:
        """Seconds of reading every sample once, some groups being asked for ahead."""
        start = perf_counter()
        groups = list(itertools.pairwise(self.ends.tolist()))
        asked = 0
        for place, (first, last) in enumerate(groups):
            for some in groups[asked : place + ahead + 1]:
                dataset.prefetch(self.order[slice(*some)])
                asked += 1
            for begin in range(first, last, BATCH_SIZE):
                dataset.__getitems__(self.order[begin : min(begin + BATCH_SIZE, last)])
        return perf_counter() - start


def run(settings: Settings) -> list[Row]:
    """Samples/s of the first and the second epoch over a far store, and of a local one."""
    rows, samples = [], samples_of(settings, "molecules")
    half = samples.nbytes // 2
    local = zp.ZarrDataset(_stored(settings, samples, "plain") / STORE)
    for codec in CODECS:
        taken: dict[str, list[float]] = {}
        place = _stored(settings, samples, codec)
        epoch = Epoch.of(samples, place / STORE, half, settings.seed)
        with _served(place) as url, on_cores(every_core()):
            for _ in range(min(ROUNDS, settings.size.rounds)):
                _round(settings, f"{url}/{STORE}", local, epoch, half, taken)
        rows += _rows(codec, len(samples), taken)
    return rows


def _round(
    settings: Settings,
    url: str,
    local: zp.ZarrDataset,
    epoch: Epoch,
    half: int,
    taken: dict[str, list[float]],
) -> None:
    """Time each epoch once, each over a cache that was empty."""
    taken.setdefault("local store", []).append(epoch.read(local, 1))
    with TemporaryDirectory(dir=settings.work) as folder:
        start = perf_counter()
        far = zp.ZarrDataset(url, cache_dir=folder)
        opened = perf_counter() - start
        first = epoch.read(far, AHEAD)
        taken.setdefault("first epoch", []).append(first)
        taken.setdefault("opening and first epoch", []).append(opened + first)
        taken.setdefault("second epoch", []).append(epoch.read(far, AHEAD))
        some = epoch.order[:: max(1, len(epoch.order) // 1000)]
        assert_batches_equal(far.__getitems__(some), local.__getitems__(some))
    if len(epoch.ends) > LEAST_GROUPS:
        with TemporaryDirectory(dir=settings.work) as folder:
            far = zp.ZarrDataset(url, cache_dir=folder, cache_bytes=half)
            epoch.read(far, 1)
            taken.setdefault("epochs with a cache of half", []).append(epoch.read(far, 1))


def _rows(codec: str, count: int, taken: Mapping[str, Sequence[float]]) -> list[Row]:
    timings = [Timing(name, np.array(seconds)) for name, seconds in taken.items()]
    case = f"molecules, {codec}, {DELAY * 1000:.0f} ms a request, batches of {BATCH_SIZE}"
    rows = []
    for timing in timings:
        value, low, high = timing.quartiles(lambda seconds: count / seconds)
        ratios = {timings[0].name: speed_ratio(timing, timings[0])}
        name, rounds = timing.name, timing.rounds
        rows.append(Row(SUITE, case, name, value, "samples/s", low, high, rounds, ratios, NOTE))
    return rows


def _stored(settings: Settings, samples: Samples, codec: str) -> Path:
    """Directory with the samples in a store."""

    def write(place: Path) -> None:
        with zp.ZarrData(place / STORE, config=CODECS[codec] or None) as sink:
            for part in samples.parts(BLOCK):
                sink.write(as_batch(part))

    fingerprint = f"{len(samples)} {settings.seed} {code()} {inspect.getsource(_stored)}"
    return kept(settings.work, f"far-{codec}-{len(samples)}", fingerprint, write)


@contextmanager
def _served(directory: Path) -> Iterator[str]:
    """Address of a server of a directory, which has every core."""
    command = [sys.executable, "-m", "benchmarks.far", str(directory), str(DELAY)]
    root = Path(__file__).parents[1]
    with subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            yield f"http://127.0.0.1:{int(server.stdout.readline())}"
        finally:
            server.terminate()


async def _serve(directory: Path, seconds: float) -> None:
    from aiohttp import web  # noqa: PLC0415  optional

    async def answer(request: web.Request) -> web.StreamResponse:
        await asyncio.sleep(seconds)
        path = directory / request.path.lstrip("/")
        return web.FileResponse(path) if path.is_file() else web.Response(status=404)

    application = web.Application()
    application.router.add_get("/{path:.*}", answer)
    runner = web.AppRunner(application, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    print(runner.addresses[0][1], flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, every_core())
    asyncio.run(_serve(Path(sys.argv[1]), float(sys.argv[2])))
