"""Reads: shuffled batches out of every engine, warm."""

from benchmarks.check import check_batch
from benchmarks.data import Samples, shuffled_batches
from benchmarks.engines import chosen
from benchmarks.engines.base import Engine, Reader
from benchmarks.keeping import kept_samples, samples_of
from benchmarks.rows import Row
from benchmarks.settings import Settings
from benchmarks.timing import Task, Timing, in_turn, speed_ratio

SUITE = "reads"
REFERENCES = ("zarrpipe", "gather from RAM", "memory copy", "atompack")
DRAWN = 65_536


def run(settings: Settings) -> list[Row]:
    """Samples/s of each engine, for each data set and batch size."""
    rows = []
    for name in settings.data:
        samples = samples_of(settings, name)
        engines = [e for e in chosen(settings.engines) if e.edges or name != "edges"]
        readers = {e: e.open(samples, kept_samples(settings, name, e, samples)) for e in engines}
        try:
            for size in settings.batch_sizes:
                rows += _compare(settings, samples, readers, size, f"{name}, batches of {size}")
        finally:
            for reader in readers.values():
                reader.close()
    return rows


def _compare(
    settings: Settings, samples: Samples, readers: dict[Engine, Reader], size: int, case: str
) -> list[Row]:
    """Rows of one data set and batch size; every engine gives the right values before it counts."""
    drawn = min(DRAWN, 8 * len(samples))
    batches = shuffled_batches(len(samples), size, drawn, settings.seed)
    tasks = []
    for engine, reader in readers.items():
        for index in batches[:2]:
            found = reader.arrays(reader.read(reader.request(index)))
            if found is not None:
                check_batch(engine.name, samples, index, found, single=engine.single)
        tasks.append(Task(engine.name, reader.read, [reader.request(i) for i in batches]))
    timings = in_turn(
        tasks,
        rounds=settings.size.rounds,
        round_seconds=settings.size.round_seconds,
        task_seconds=settings.size.engine_seconds,
    )
    notes = {engine.name: engine.note for engine in readers}
    return [_row(case, timing, timings, len(batches[0]), notes) for timing in timings]


def _row(
    case: str, timing: Timing, timings: list[Timing], batch: int, notes: dict[str, str]
) -> Row:
    value, low, high = timing.quartiles(lambda seconds: batch / seconds)
    ratios = {
        other.name: speed_ratio(timing, other) for other in timings if other.name in REFERENCES
    }
    unit, note = "samples/s", notes[timing.name]
    return Row(SUITE, case, timing.name, value, unit, low, high, timing.rounds, ratios, note)
