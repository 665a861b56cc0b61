"""Stores that engines have written, kept in the working directory until something changes."""

import hashlib
import inspect
import shutil
from collections.abc import Callable
from pathlib import Path

from benchmarks import data
from benchmarks.data import SETS, Samples, make
from benchmarks.engines.base import Engine, keep_nothing
from benchmarks.settings import Settings
from zarrpipe.store.format import layout


def kept(work: Path, name: str, fingerprint: str, write: Callable[[Path], None]) -> Path:
    """Directory `name` of `work` that `write` has filled, remade if its fingerprint is another.

    It appears under its name only when it is complete.
    """
    place, mark = work / name, work / name / "fingerprint"
    digest = hashlib.sha256(fingerprint.encode()).hexdigest()
    if mark.exists() and mark.read_text() == digest:
        return place
    partial = place.with_name(f"{place.name}.partial")
    for old in (place, partial):
        shutil.rmtree(old, ignore_errors=True)
    partial.mkdir(parents=True)
    write(partial)
    (partial / "fingerprint").write_text(digest)
    partial.rename(place)
    return place


def kept_samples(settings: Settings, name: str, engine: Engine, samples: Samples) -> Path:
    """Directory with the samples of a data set as an engine keeps them."""
    if engine.write is keep_nothing:
        return settings.work
    folder = engine.shares or engine.name
    slug = "".join(c if c.isalnum() else "-" for c in folder.lower())
    return kept(
        settings.work / f"{name}-{len(samples)}",
        slug,
        f"{name} {len(samples)} {settings.seed} {code()} {inspect.getsource(engine.write)}",
        lambda place: engine.write(samples, place),
    )


def code() -> str:
    """The code on which what is kept depends."""
    parts = (inspect.getsource(data.make), repr(data.SETS), inspect.getsource(layout))
    return "\n".join(parts)


def samples_of(settings: Settings, name: str) -> Samples:
    """Samples of a data set at the size of the run."""
    return make(SETS[name], settings.size.samples[name], settings.seed)
