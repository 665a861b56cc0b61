"""Objects: what a write into an object store costs its caller and the network, with a stage or not.

The store is moto's S3 server behind a proxy that takes 20 ms for a request.
"""

from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter

import numpy as np
import torch

import zarrpipe as zp
from benchmarks.machine import every_core, on_cores
from benchmarks.rows import Row
from benchmarks.settings import Settings
from benchmarks.timing import Timing
from reliability.object_server import Behaviour, ObjectServer, environment_of, object_server

SUITE = "objects"
DELAY = 0.02
MOLECULES, ATOMS, EDGES = 32, 9, 36
WRITES, DIRECT_WRITES = 1000, 10
RATES, INTERVALS = (100, 10, 1), 20
NOTE = "bytes of all requests over bytes of the values, in 20 uploads"


def run(settings: Settings) -> list[Row]:
    """Time of a write of 32 molecules, and bytes that are sent for the bytes that are written."""
    with (
        object_server() as server,
        TemporaryDirectory(dir=settings.work) as work,
        environment_of(server, Path(work)),
        on_cores(every_core()),
    ):
        return [*_times(server, Path(work), settings), *_bytes(server)]


def batch_of(number: int) -> zp.Batch:
    """32 molecules with edges, energies and forces."""
    rng, atoms = np.random.default_rng(number), MOLECULES * ATOMS
    pairs = np.arange(MOLECULES).repeat(EDGES)[:, None] * ATOMS + rng.integers(
        0, ATOMS, (MOLECULES * EDGES, 2)
    )
    values = {
        "positions": rng.normal(size=(atoms, 3)),
        "forces": rng.normal(size=(atoms, 3)),
        "atomic_numbers": rng.integers(1, 10, atoms),
        "energy": rng.normal(size=(MOLECULES, 1)),
        "neighbor_list": pairs,
    }
    ends = torch.arange(MOLECULES + 1)
    fields = {name: torch.from_numpy(value) for name, value in values.items()}
    return zp.Batch(fields, ends * ATOMS, ends * EDGES)


def _times(server: ObjectServer, work: Path, settings: Settings) -> list[Row]:
    taken: dict[str, list[float]] = {}
    batches = [batch_of(number) for number in range(WRITES + 1)]
    server.behave(Behaviour(delay=DELAY))
    for number in range(min(5, settings.size.rounds)):
        sinks = {
            "local store": (zp.ZarrData(work / f"{number}.zarr"), WRITES),
            "with a stage": (zp.ZarrData(server.url(f"staged-{number}")), WRITES),
            "without": (zp.ZarrData(server.url(f"direct-{number}"), stage=False), DIRECT_WRITES),
        }
        for name, (sink, writes) in sinks.items():
            sink.write(batches[0])
            start = perf_counter()
            for batch in batches[1 : writes + 1]:
                sink.write(batch)
            taken.setdefault(name, []).append((perf_counter() - start) / writes)
            sink.close()
            assert len(zp.ZarrDataset(sink.store)) == (writes + 1) * MOLECULES
    timings = [Timing(name, np.array(seconds)) for name, seconds in taken.items()]
    case = f"write of {MOLECULES} molecules, {DELAY * 1000:.0f} ms a request"
    rows = []
    for timing in timings:
        value, low, high = timing.quartiles(lambda seconds: 1000 * seconds)
        ratio = float(np.median(timing.seconds / timings[0].seconds))
        ratios = {timings[0].name: ratio}
        rows.append(Row(SUITE, case, timing.name, value, "ms", low, high, timing.rounds, ratios))
    return rows


def _bytes(server: ObjectServer) -> list[Row]:
    rows = []
    for rate in RATES:
        with zp.ZarrData(server.url(f"rate-{rate}"), flush_seconds=3600) as sink:
            sink.write(batch_of(0))
            server.behave(Behaviour())
            written = 0
            for number in range(INTERVALS * rate):
                batch = batch_of(number + 1)
                written += sum(batch[name].nbytes for name in batch.fields)
                sink.write(batch)
                if number % rate == rate - 1:
                    sink._write_waiting()
            sent = server.traffic().sent
        name = f"{rate} writes between uploads"
        rows.append(
            Row.single(SUITE, "bytes sent", name, sent / written, "bytes a byte", note=NOTE)
        )
    return rows
