"""Writes: what one append costs, and whether that depends on how much is stored."""

import importlib.util
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

import zarrpipe as zp
from benchmarks.check import check_batch
from benchmarks.data import DataSet, Samples, make
from benchmarks.engines.ours import DatasetReader, as_batch
from benchmarks.keeping import code, kept, samples_of
from benchmarks.rows import Row
from benchmarks.settings import Settings
from benchmarks.timing import Task, Timing, time_ratio, timed
from benchmarks.writers import RAW, WRITERS, RawWriter, SinkWriter, Writer, WriterKind

SUITE = "writes"
REFERENCES = ("zarrpipe", RAW)
WRITES = {1: 128, 32: 64, 256: 24}
"""Writes of a round, by samples in a write."""
WARMED = "nvalchemi"
"""The writer whose writes take longer and longer: it is timed after many, in one case only."""
WARMED_SIZE = 32
CAPACITY = 10_000_000
BLOCK = 50_000


def run(settings: Settings) -> list[Row]:
    """Milliseconds of an append, by engine, and by what the store has already."""
    rows = []
    for size in WRITES:
        rows += _compare(settings, "molecules", size)
    if "bonds" in settings.data:
        rows += _compare(settings, "bonds", 32)
    return rows + _stored(settings)


def _compare(settings: Settings, name: str, size: int) -> list[Row]:
    """Rows of appends of one number of samples of a set."""
    samples = samples_of(settings, name)
    number = WRITES[size] if settings.size.rounds > 5 else 2
    parts = _parts(samples, size, number)
    nbytes = (settings.size.rounds + 4) * sum(part.nbytes for part in parts)
    with tempfile.TemporaryDirectory(dir=settings.work) as folder:
        opened = [
            (kind, kind.open(_folder(Path(folder), kind), nbytes))
            for kind in _kinds(settings, samples, size)
        ]
        tasks = []
        for kind, writer in opened:
            requests = [writer.request(part) for part in parts]
            if kind.name == WARMED:
                for turn in range(settings.size.warm_writes):
                    writer.write(requests[turn % number])
            least = number if isinstance(writer, SinkWriter | RawWriter) else 1
            tasks.append(Task(kind.name, writer.write, requests, least))
        timings = timed(settings, tasks)
        for kind, writer in opened:
            writer.close()
            if isinstance(writer, SinkWriter):
                _check(Path(folder) / _slug(kind.name), parts, size)
    notes = {kind.name: kind.note for kind, _ in opened}
    case = f"append of {size} {'sample' if size == 1 else 'samples'}"
    if name != "molecules":
        case += f" of {name}"
    return [_row(case, timing, timings, REFERENCES, notes[timing.name]) for timing in timings]


def _kinds(settings: Settings, samples: Samples, size: int) -> list[WriterKind]:
    """Writers that are installed, asked for and hold the samples; the floor always."""
    return [
        kind
        for kind in WRITERS
        if all(importlib.util.find_spec(module) is not None for module in kind.needs)
        and (not settings.engines or kind.name in (*settings.engines, RAW))
        and (kind.name != WARMED or size == WARMED_SIZE)
        and samples.levels <= kind.levels
    ]


def _parts(samples: Samples, size: int, number: int) -> list[Samples]:
    """Runs of `size` samples."""
    starts = np.arange(number) * size % max(1, len(samples) - size + 1)
    return [samples.part(int(start), int(start) + size) for start in starts]


def _folder(parent: Path, kind: WriterKind) -> Path:
    folder = parent / _slug(kind.name)
    folder.mkdir()
    return folder


def _slug(name: str) -> str:
    return "".join(c if c.isalnum() else "-" for c in name)


def _check(place: Path, parts: Sequence[Samples], size: int) -> None:
    """Compare the last samples with what was written last, which is a whole number of rounds."""
    reader = DatasetReader(place)
    count = len(zp.ZarrDataset(place / "store.zarr"))
    last = parts[-1]
    found = reader.arrays(reader.read(np.arange(count - size, count)))
    check_batch("zarrpipe", last, np.arange(len(last)), found)


def _stored(settings: Settings) -> list[Row]:
    """Rows of the same appends to a short store and to a long one."""
    short, long = settings.size.stored
    parts = _parts(samples_of(settings, "molecules"), 32, 16 if settings.size.rounds > 5 else 2)
    long_store = kept(
        settings.work,
        f"appended-{long}",
        f"{long} {CAPACITY} {code()}",
        lambda place: _fill(place, long),
    )
    with tempfile.TemporaryDirectory(dir=settings.work) as folder:
        _fill(Path(folder), short)
        writers: dict[str, Writer] = {
            f"at {short:,} samples": SinkWriter(Path(folder), capacity=CAPACITY),
            f"at {long:,} samples": SinkWriter(long_store, capacity=CAPACITY),
        }
        tasks = [
            Task(name, writer.write, [writer.request(part) for part in parts], len(parts))
            for name, writer in writers.items()
        ]
        timings = timed(settings, tasks)
        for writer in writers.values():
            writer.close()
    case = "append of 32 samples to a store that has some"
    return [_row(case, timing, timings, (timings[0].name,), "") for timing in timings]


def _fill(place: Path, count: int) -> None:
    """Store with samples of one atom."""
    atom = DataSet("atom", 1, 1)
    with zp.ZarrData(place / "store.zarr", capacity=CAPACITY) as sink:
        for number, start in enumerate(range(0, count, BLOCK)):
            sink.write(as_batch(make(atom, min(BLOCK, count - start), number)))


def _row(
    case: str, timing: Timing, timings: list[Timing], references: Sequence[str], note: str
) -> Row:
    value, low, high = timing.quartiles(lambda seconds: 1e3 * seconds)
    ratios = {
        other.name: time_ratio(timing, other) for other in timings if other.name in references
    }
    return Row(SUITE, case, timing.name, value, "ms", low, high, timing.rounds, ratios, note)
