"""Words for facts, which the terminal shows."""

import math
from pathlib import Path

from zarrpipe.data.tables import printable
from zarrpipe.watch.facts import Facts, Metric, RunFacts, StoreFacts

_BLOCKS = "\u2581\u2582\u2583\u2584\u2585\u2586\u2587\u2588"
_LONG = 40


def line(facts: Facts, clock: str) -> str:
    """All facts in one line, for a pipe."""
    stores = (
        f"{short(one.store)}: {one.problem or ', '.join(_store_parts(one))}" for one in facts.stores
    )
    runs = (f"{short(run.run)}: {', '.join(_run_parts(run))}" for run in facts.runs)
    return printable("; ".join([clock, *stores, *runs, *facts.notes]))


def _store_parts(store: StoreFacts) -> list[str]:
    parts = [f"{store.samples:,} samples", f"{rate(store.samples_per_s)} samples/s"]
    killed = store.writer is not None and not store.writer.alive
    return [*parts, f"writer {writer_text(store)}"] if killed else parts


def _run_parts(run: RunFacts) -> list[str]:
    parts = [str(run.state)]
    parts += [
        f"{name} {value:,}"
        for name, value in (("epoch", run.epoch), ("round", run.round), ("step", run.step))
        if value is not None
    ]
    parts += [] if run.num_samples is None else [f"N {run.num_samples:,}"]
    parts += [] if run.wait is None else [f"wait {percent(run.wait)}"]
    parts += [f"{one.label} {figure(one.last)} {one.unit}".strip() for one in run.errors]
    return parts


def short(place: str) -> str:
    """A path as seen from the working directory, or its end if it is long."""
    if "://" in place:
        return place
    try:
        return str(Path(place).absolute().relative_to(Path.cwd()))
    except ValueError:
        parts = Path(place).parts
        return place if len(place) <= _LONG else str(Path("...", *parts[-2:]))


def trend(metric: Metric) -> str:
    """The last values as blocks, on a logarithmic scale if all are positive.

    >>> curve = tuple((step, value) for step, value in enumerate([8.0, 4.0, 2.0, 1.0]))
    >>> trend(Metric("val/forces_mae", "", 1.0, 1.0, curve))
    '\u2588\u2586\u2583\u2581'
    """
    values = metric.recent
    if min(values, default=0.0) > 0:
        values = tuple(map(math.log, values))
    low, high = min(values, default=0.0), max(values, default=0.0)
    if high == low:
        return _BLOCKS[0] * len(values)
    top = len(_BLOCKS) - 1
    return "".join(_BLOCKS[round((value - low) / (high - low) * top)] for value in values)


def rate(value: float | None) -> str:
    """Samples a second; "-" where it is not known."""
    return "-" if value is None else f"{value:,.1f}"


def percent(value: float | None) -> str:
    """A share; "-" where it is not known."""
    return "-" if value is None else f"{value:.1%}"


def figure(value: float | None) -> str:
    """Number with four figures; "-" where it is not known."""
    return "-" if value is None else f"{value:.4g}"


def count(value: int | None) -> str:
    """Whole number; "-" where it is not known."""
    return "-" if value is None else f"{value:,}"


def ago(then: float | None, now: float) -> str:
    """Time that has passed, in whole units.

    >>> ago(0.0, 5.2), ago(0.0, 150.0), ago(0.0, 7300.0), ago(None, 1.0)
    ('5 s ago', '2 min ago', '2 h ago', '-')
    """
    if then is None:
        return "-"
    passed = max(0, int(now - then))
    for unit, seconds in (("d", 86400), ("h", 3600), ("min", 60)):
        if passed >= seconds:
            return f"{passed // seconds} {unit} ago"
    return f"{passed} s ago"


def writer_text(store: StoreFacts) -> str:
    """Who writes a store."""
    writer = store.writer
    if writer is None:
        return "nobody"
    return f"{writer.pid} on {writer.host}" if writer.alive else f"{writer.pid} was killed"


def round_text(store: StoreFacts) -> str:
    """The last round of a store, and its samples."""
    if store.last_round is None:
        return "-"
    return f"{store.last_round} ({count(store.last_round_samples)})"
