"""The bars that zarrpipe is held to, read off the rows of a run."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from benchmarks.rows import Row, number


@dataclass(frozen=True)
class Bar:
    """Something that has to be reached.

    Parameters
    ----------
    what
        In words.
    suite, case, name
        Rows that it is about; `case` and `name` as patterns. Where there are several, the worst
        counts.
    limit
        What has to be reached; None for what is only reported.
    reference
        Take the row's ratio to this; "" takes its value.
    inverse
        Take one over the ratio.
    most
        Whether the limit is the most that it may be; otherwise it is the least.
    or_value
        A value of the row that is enough by itself.
    """

    what: str
    suite: str
    case: str
    name: str
    limit: float | None
    reference: str = ""
    inverse: bool = False
    most: bool = False
    or_value: float | None = None


def _reads(what: str, limit: float | None, reference: str, size: int, **more: str) -> Bar:
    """Bar on molecules and structures."""
    case, name = f"[ms]*s, batches of {size}", more.get("name", "zarrpipe")
    return Bar(f"{what}, batches of {size}", "reads", case, name, limit, reference)


def _against(engine: str, limit: float) -> Bar:
    """Bar on zarrpipe's reads against a slower engine."""
    what = f"reads against {engine}"
    return Bar(what, "reads", "[ms]*s, batches of *", engine, limit, "zarrpipe", inverse=True)


def _append(size: int, limit: float) -> Bar:
    case, raw = f"append of {size} sample*", "raw positional writes"
    what = f"append of {size} against raw positional writes, times"
    if size == 32:
        case = "append of 32 samples"
    return Bar(what, "writes", case, "zarrpipe", limit, raw, most=True)


_EVERY, _ITS = "zarrpipe, every tensor made", "nvalchemi on zarrpipe"
BARS = (
    _reads("reads against NumPy index + take from RAM", 1 / 1.2, "gather from RAM", 1),
    _reads("reads against NumPy index + take from RAM", 1.0, "gather from RAM", 64),
    _reads("reads against NumPy index + take from RAM", 1.5, "gather from RAM", 512),
    _reads("reads against atompack", 1.3, "atompack", 64),
    _reads("reads against atompack", 2.0, "atompack", 512),
    _reads("reads against a memory copy", None, "memory copy", 64),
    _reads("reads against a memory copy (aim 0.33)", None, "memory copy", 512),
    _reads("the same, every tensor made", None, "gather from RAM", 1, name=_EVERY),
    _reads("the same, every tensor made", None, "gather from RAM", 64, name=_EVERY),
    _against("LMDB of pickled NumPy", 20),
    _against("HDF5 CSR", 30),
    _against("zarr-python oindex", 300),
    _reads("nvalchemi's batches by our gather against its own", 10, "nvalchemi", 64, name=_ITS),
    _reads("nvalchemi's batches by our gather against its own", 10, "nvalchemi", 512, name=_ITS),
    Bar(
        "edges against NumPy index + take from RAM",
        "reads",
        "edges, *",
        "zarrpipe",
        1.5,
        "gather from RAM",
    ),
    Bar(
        "bytes/s of batches with bonds and strings against those without",
        "reads",
        "bonds beside molecules, *",
        "bonds",
        1.0,
        "molecules",
    ),
    Bar(
        "train loader without workers against the bare gather",
        "loop",
        "*without workers",
        "train loader, no workers",
        0.6,
        "bare gather",
    ),
    Bar("two workers against none", "loop", "*every core", "two workers", 0.25, "no workers"),
    _append(256, 3),
    _append(32, 5),
    _append(1, 10),
    Bar(
        "append of 32 with bonds and strings against raw positional writes, times",
        "writes",
        "append of 32 samples of bonds",
        "zarrpipe",
        None,
        "raw positional writes",
        most=True,
    ),
    Bar(
        "append of 32 against zarr-python's append",
        "writes",
        "append of 32 samples",
        "zarr-python append",
        50,
        "zarrpipe",
    ),
    Bar(
        "append of 32 against nvalchemi's 200th write",
        "writes",
        "append of 32 samples",
        "nvalchemi",
        200,
        "zarrpipe",
    ),
    Bar(
        "append at 5 M samples against at 5 k, times",
        "writes",
        "*that has some",
        "at 5,000,000 samples",
        1.2,
        "at 5,000 samples",
        most=True,
    ),
    Bar(
        "read() of 20,000 samples against a memory copy, times (or 100 ms)",
        "whole",
        "*",
        "zarrpipe",
        3,
        "memory copy",
        most=True,
        or_value=100,
    ),
    Bar(
        "first cold epoch of 1.5 GB against reading its files in order",
        "cold",
        "*",
        "first epoch*",
        0.5,
        "files read in order",
    ),
    Bar(
        "20 ms a request: first epoch, block-shuffled, samples/s",
        "far",
        "*",
        "first epoch",
        100_000,
    ),
    Bar(
        "20 ms a request: second epoch against a local store",
        "far",
        "*",
        "second epoch",
        0.8,
        "local store",
    ),
    Bar("memory growth over 20 epochs, MB", "memory", "growth*", "*", 20, most=True),
    Bar("private memory of a further worker, MB", "memory", "*", "*further worker", 50, most=True),
    Bar("100 M samples: open, s", "scale", "*", "open", 1, most=True),
    Bar("100 M samples: plan one epoch, s", "scale", "*", "plan one epoch*", 20, most=True),
    Bar("100 M samples: resident memory of a rank, MB", "scale", "*", "peak*", 2048, most=True),
    Bar("import of extxyz against ase.io.read", "files", "*", "*two processes", 1.5, "ase.io.read"),
    Bar("share of a budget of atoms that is filled", "plans", "*", "share of*", 0.95),
    Bar("heaviest of 8 ranks beyond their mean", "plans", "*", "*worst step", 0.05, most=True),
    Bar(
        "10 M samples: plan batches by atoms, s", "plans", "*seconds", "each*by atoms", 5, most=True
    ),
    Bar(
        "10 M samples: plan an epoch drawn by weights, s",
        "plans",
        "*seconds",
        "drawn*",
        None,
        most=True,
    ),
)
"""In the order of the tables."""


def measured(bar: Bar, rows: Iterable[Row]) -> tuple[float, bool | None] | None:
    """The worst that was measured, and whether it is enough; None where nothing was measured."""
    found = []
    for row in rows:
        if row.suite != bar.suite or not fnmatchcase(row.case, bar.case):
            continue
        if not fnmatchcase(row.name, bar.name):
            continue
        if bar.reference and bar.reference not in row.ratios:
            continue
        value = row.ratios[bar.reference] if bar.reference else row.value
        found.append((1 / value if bar.inverse else value, row.value))
    if not found:
        return None
    worst, value = max(found) if bar.most else min(found)
    if bar.limit is None:
        return worst, None
    enough = worst <= bar.limit if bar.most else worst >= bar.limit
    return worst, enough or (bar.or_value is not None and value <= bar.or_value)


def bars_table(rows: Sequence[Row], bars: Sequence[Bar] = BARS) -> str:
    """Markdown table of the bars, with the worst of the cases of each."""
    lines = ["| | bar | measured | |", "| --- | ---: | ---: | --- |"]
    for bar in bars:
        result = measured(bar, rows)
        if result is None:
            continue
        worst, enough = result
        limit = "" if bar.limit is None else f"{'<=' if bar.most else '>='} {number(bar.limit)}"
        verdict = "reported" if enough is None else "met" if enough else "**missed**"
        lines.append(f"| {bar.what} | {limit} | {number(worst)} | {verdict} |")
    return "\n".join(lines)
