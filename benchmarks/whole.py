"""Whole: what it costs to take everything out of a sink."""

import mmap

import numpy as np

import zarrpipe as zp
from benchmarks.check import check_batch
from benchmarks.data import AnyArray
from benchmarks.engines.ours import STORE, write_store
from benchmarks.keeping import code, kept, samples_of
from benchmarks.rows import Row
from benchmarks.settings import Settings
from benchmarks.timing import Task, in_turn, time_ratio

SUITE = "whole"
COPY = "memory copy"
FRESH = "memory copy into fresh pages"


def run(settings: Settings) -> list[Row]:
    """Milliseconds of ``ZarrData.read`` against a memory copy of the same bytes."""
    count = settings.size.whole
    samples = samples_of(settings, "molecules").part(0, count)
    place = kept(
        settings.work, f"whole-{count}", code() + str(count), lambda at: write_store(samples, at)
    )
    sink = zp.ZarrData(place / STORE)
    batch = sink.read()
    found = {name: value.numpy() for name, value in batch.fields.items()}
    check = {**found, "batch_ptr": batch.batch_ptr.numpy()}
    check_batch("zarrpipe", samples, np.arange(len(samples)), check)
    source = np.ones(samples.nbytes + 8 * len(samples), dtype=np.uint8)
    target = np.ones_like(source)
    tasks = [
        Task("zarrpipe", lambda _: sink.read()),
        Task(COPY, lambda _: np.copyto(target, source)),
        Task(FRESH, lambda _: np.copyto(_fresh(len(source)), source)),
    ]
    timings = in_turn(tasks, rounds=settings.size.rounds)
    references = timings[1:]
    rows = []
    for timing in timings:
        value, low, high = timing.quartiles(lambda seconds: 1e3 * seconds)
        ratios = {other.name: time_ratio(timing, other) for other in references}
        case = f"read() of {len(samples):,} samples, {source.nbytes / 1e6:.0f} MB"
        name, rounds = timing.name, timing.rounds
        rows.append(Row(SUITE, case, name, value, "ms", low, high, rounds, ratios))
    return rows


def _fresh(size: int) -> AnyArray:
    """Bytes that no process has touched."""
    return np.frombuffer(mmap.mmap(-1, size), dtype=np.uint8)
