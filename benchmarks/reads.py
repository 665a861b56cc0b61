"""Reads: shuffled batches out of every engine, warm."""

from benchmarks.check import check_batch
from benchmarks.data import Int64Array, Samples, shuffled_batches
from benchmarks.engines import chosen
from benchmarks.engines.base import Engine, Reader
from benchmarks.engines.ours import ENGINES, DatasetReader
from benchmarks.keeping import kept_samples, samples_of
from benchmarks.rows import Row
from benchmarks.settings import Settings
from benchmarks.timing import Task, Timing, speed_ratio, timed

SUITE = "reads"
REFERENCES = ("zarrpipe", "gather from RAM", "memory copy", "atompack")
DRAWN = 65_536


def run(settings: Settings) -> list[Row]:
    """Samples/s of each engine, for each data set and batch size."""
    rows = []
    for name in settings.data:
        samples = samples_of(settings, name)
        engines = [e for e in chosen(settings.engines) if samples.levels <= e.levels]
        readers = {e: e.open(samples, kept_samples(settings, name, e, samples)) for e in engines}
        try:
            for size in settings.batch_sizes:
                rows += _compare(settings, samples, readers, size, f"{name}, batches of {size}")
        finally:
            for reader in readers.values():
                reader.close()
    if {"molecules", "bonds"} <= set(settings.data):
        rows += _beside(settings)
    return rows


def _beside(settings: Settings) -> list[Row]:
    """Bytes/s of zarrpipe's batches of the same molecules with bonds and strings and without."""
    sets = {name: samples_of(settings, name) for name in ("molecules", "bonds")}
    readers = {
        name: DatasetReader(kept_samples(settings, name, ENGINES[0], samples))
        for name, samples in sets.items()
    }
    rows = []
    for size in settings.batch_sizes:
        batches = _batches(settings, len(sets["molecules"]), size)
        tasks = [Task(name, reader.read, batches) for name, reader in readers.items()]
        timings = timed(settings, tasks)
        nbytes = {
            name: sum(map(samples.batch_bytes, batches)) / len(batches)
            for name, samples in sets.items()
        }
        for timing in timings:
            name, case = timing.name, f"bonds beside molecules, batches of {size}"
            value, low, high = (1e-6 * nbytes[name] * s for s in timing.quartiles(_per_second))
            ratio = nbytes[name] / nbytes["molecules"] * speed_ratio(timing, timings[0])
            ratios, rounds = {"molecules": ratio}, timing.rounds
            rows.append(Row(SUITE, case, name, value, "MB/s", low, high, rounds, ratios))
    return rows


def _per_second(seconds: float) -> float:
    return 1 / seconds


def _batches(settings: Settings, count: int, size: int) -> list[Int64Array]:
    return shuffled_batches(count, size, min(DRAWN, 8 * count), settings.seed)


def _compare(
    settings: Settings, samples: Samples, readers: dict[Engine, Reader], size: int, case: str
) -> list[Row]:
    """Rows of one data set and batch size; every engine gives the right values before it counts."""
    batches = _batches(settings, len(samples), size)
    tasks = []
    for engine, reader in readers.items():
        for index in batches[:2]:
            found = reader.arrays(reader.read(reader.request(index)))
            if found is not None:
                check_batch(engine.name, samples, index, found, single=engine.single)
        tasks.append(Task(engine.name, reader.read, [reader.request(i) for i in batches]))
    timings = timed(settings, tasks)
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
