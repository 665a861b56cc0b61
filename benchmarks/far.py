"""Far: an epoch over a store behind a server that takes its time for every request.

Run as a module it is that server: ``python -m benchmarks.far <directory> <seconds>``.
"""

import asyncio
import inspect
import itertools
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any

import numpy as np
import zarr

import zarrpipe as zp
from benchmarks.data import LEVELS, AnyArray, Int64Array
from benchmarks.engines.ours import BLOCK, STORE, as_batch
from benchmarks.keeping import code, kept, samples_of
from benchmarks.machine import every_core, on_cores
from benchmarks.rows import Row
from benchmarks.settings import Settings
from benchmarks.timing import Timing, speed_ratio
from zarrpipe._blocks import UnitLayout, block_order, choose_blocks, group_bounds
from zarrpipe.data.csr import pointers, segment_rows
from zarrpipe.store.flat import MappedArray
from zarrpipe.store.layout import ATOMS_PTR, Attributes
from zarrpipe.store.root import Root
from zarrpipe.store.stage import Stage
from zarrpipe.store.stage_place import stage_identity

SUITE = "far"
DELAY = 0.02
BATCH_SIZE = 64
AHEAD = 4
"""Groups of blocks that are asked for ahead where the cache holds everything."""

LEAST_GROUPS = 4
"""A set of fewer groups is not read through a cache that does not hold it."""

ROUNDS = 5
CODECS: Mapping[str, Mapping[str, Any]] = {
    "plain": {},
    "zstd": {group: {"compressors": ("zstd",)} for group in ("meta", "core")},
}


def run(settings: Settings) -> list[Row]:
    """Samples/s of the first and the second epoch over a far store, and of a local one."""
    rows = []
    for codec, config in CODECS.items():
        place = _stored(settings, codec, config)
        with _served(place) as url, on_cores(every_core()):
            rows += _measured(settings, codec, place / STORE, f"{url}/{STORE}")
    return rows


class Reader:
    """Batches of a store by block-shuffled epochs, gathered by NumPy.

    Parameters
    ----------
    group
        Root of the store.
    atoms_ptr
        Pointers to atoms [N + 1].
    open_field
        Array of a field by name, with the rows that it has, and rows and bytes of a unit.
    """

    def __init__(
        self,
        group: zarr.Group,
        atoms_ptr: Int64Array,
        open_field: Callable[[str, int], Any],
    ) -> None:
        fields = [name for name in LEVELS if not name.startswith("neighbor")]
        self.count, self._ptr = len(atoms_ptr) - 1, atoms_ptr
        self.arrays = {
            name: open_field(name, int(atoms_ptr[-1]) if LEVELS[name] == "atom" else self.count)
            for name in fields
        }

    def wanted(self, starts: Int64Array, stops: Int64Array) -> list[Any]:
        """Rows of runs of samples, of every array."""
        atoms = self._ptr[starts], self._ptr[stops]
        return [
            (array, *(atoms if LEVELS[name] == "atom" else (starts, stops)))
            for name, array in self.arrays.items()
        ]

    def gather(self, index: Int64Array) -> dict[str, AnyArray]:
        """Batch of samples."""
        starts = self._ptr[index]
        ptr = pointers(self._ptr[index + 1] - starts)
        rows = {"atom": segment_rows(starts, ptr), "system": index}
        return {name: a.data.take(rows[LEVELS[name]], axis=0) for name, a in self.arrays.items()}


class LocalReader(Reader):
    """The local store, its files mapped."""

    def __init__(self, store: Path) -> None:
        group = zarr.open_group(store, mode="r", use_consolidated=False)

        def open_field(name: str, rows: int) -> MappedArray | _Loaded:
            array = group[f"core/{name}"]
            try:
                flat = MappedArray(array, store / "core" / name)
                flat.ensure(rows)
            except ValueError:
                return _Loaded(array[:])
            return flat

        super().__init__(group, group[ATOMS_PTR][:], open_field)

    def epoch(self, order: Int64Array, _: Any) -> None:
        """Read everything once."""
        for start in range(0, len(order), BATCH_SIZE):
            self.gather(order[start : start + BATCH_SIZE])


class _Loaded:
    """An array in memory."""

    def __init__(self, data: AnyArray) -> None:
        self.data = data


class FarReader(Reader):
    """The far store, staged; rows of the next group are asked for while one is read."""

    def __init__(self, url: str, cache: Path, limit: int | None) -> None:
        root = Root.of(zarr.storage.FsspecStore.from_url(url, read_only=True))
        group = root.open_group()
        if group is None:
            raise FileNotFoundError(url)
        attributes = Attributes.read(group)

        def check() -> None:
            now = zarr.open_group(root.path, mode="r", zarr_format=3, use_consolidated=False)
            if Attributes.read(now).generation != attributes.generation:
                raise RuntimeError(f"{url} was rewritten")

        identity = stage_identity(root.path, group, attributes)
        self.stage = Stage(identity, cache, limit, check=check)

        def open_field(name: str, rows: int) -> Any:
            array = self.stage.array(f"core/{name}", lambda: group[f"core/{name}"])
            array.commit(rows)
            return array

        super().__init__(group, group[ATOMS_PTR][:], open_field)

    def epoch(self, order: Int64Array, plan: "Plan") -> None:
        """Read everything once."""
        groups = list(itertools.pairwise(plan.ends.tolist()))
        ahead = AHEAD if self.stage.cache.limit is None else 1
        asked = 0
        for place, (first, last) in enumerate(groups):
            while asked < min(place + ahead + 1, len(groups)):
                self.stage.advise(self.wanted(*plan.runs(order, *groups[asked])))
                asked += 1
            for start in range(first, last, BATCH_SIZE):
                self._read(order[start : min(start + BATCH_SIZE, last)])

    def _read(self, index: Int64Array) -> None:
        def copy() -> dict[str, AnyArray]:
            return self.gather(index)

        if not self.stage.read_settled([*self.arrays.values()], copy):
            self.stage.read(self.wanted(index, index + 1), copy)


class Plan:
    """The order of an epoch, and where its groups of blocks end."""

    def __init__(self, seed: int, bounds: Int64Array, group: int) -> None:
        self.bounds = bounds
        self.order = block_order(seed, 0, bounds, group)
        self.ends = group_bounds(seed, 0, bounds, group)

    def runs(self, order: Int64Array, first: int, last: int) -> tuple[Int64Array, Int64Array]:
        """First and last sample of the blocks of a group."""
        blocks = np.unique(np.searchsorted(self.bounds, order[first:last], side="right") - 1)
        return self.bounds[blocks], self.bounds[blocks + 1]


def _measured(settings: Settings, codec: str, store: Path, url: str) -> list[Row]:
    local = LocalReader(store)
    half = int(sum(array.data.nbytes for array in local.arrays.values())) // 2
    plan = _plan(settings, local, half)
    taken: dict[str, list[float]] = {
        "local store": [],
        "first epoch": [],
        "second epoch": [],
        "epochs with a cache of half": [],
    }
    for _ in range(min(ROUNDS, settings.size.rounds)):
        with TemporaryDirectory(dir=settings.work) as folder:
            start = perf_counter()
            far = FarReader(url, Path(folder), None)
            far.epoch(plan.order, plan)
            taken["first epoch"].append(perf_counter() - start)
            taken["second epoch"].append(_seconds(far, plan))
            taken["local store"].append(_seconds(local, plan))
            _check(far, local)
            far.stage.close()
        if len(plan.ends) > LEAST_GROUPS:
            with TemporaryDirectory(dir=settings.work) as folder:
                far = FarReader(url, Path(folder), half)
                far.epoch(plan.order, plan)
                taken["epochs with a cache of half"].append(_seconds(far, plan))
                far.stage.close()
    return _rows(settings, codec, local.count, taken)


def _rows(
    settings: Settings, codec: str, count: int, taken: Mapping[str, Sequence[float]]
) -> list[Row]:
    timings = [Timing(name, np.array(seconds)) for name, seconds in taken.items() if seconds]
    case = f"molecules, {codec}, {DELAY * 1000:.0f} ms a request, batches of {BATCH_SIZE}"
    rows = []
    for timing in timings:
        value, low, high = timing.quartiles(lambda seconds: count / seconds)
        ratios = {timings[0].name: speed_ratio(timing, timings[0])}
        note = "on every core; gathered by NumPy; the order is shuffled by groups of blocks"
        name, rounds = timing.name, timing.rounds
        rows.append(Row(SUITE, case, name, value, "samples/s", low, high, rounds, ratios, note))
    return rows


def _plan(settings: Settings, local: LocalReader, half: int) -> Plan:
    ptr = local._ptr
    layouts = [
        UnitLayout(16_384, array.data[:1].nbytes, ptr if LEVELS[name] == "atom" else None)
        for name, array in local.arrays.items()
    ]
    return Plan(settings.seed, *choose_blocks(local.count, layouts, half))


def _seconds(reader: LocalReader | FarReader, plan: Plan) -> float:
    start = perf_counter()
    reader.epoch(plan.order, plan)
    return perf_counter() - start


def _check(far: Reader, local: Reader) -> None:
    """Every row that was staged is that of the local store."""
    for name, array in local.arrays.items():
        rows = min(len(array.data), len(far.arrays[name].data))
        np.testing.assert_array_equal(far.arrays[name].data[:rows], array.data[:rows])


def _stored(settings: Settings, codec: str, config: Mapping[str, Any]) -> Path:
    samples = samples_of(settings, "molecules")

    def write(place: Path) -> None:
        with zp.ZarrData(place / STORE, config=config or None) as sink:
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
