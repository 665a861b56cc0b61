"""Figures and tables of one data set, or of two in the same axes."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from zarrpipe.data.tables import Table
from zarrpipe.dataset.store_info import number_text
from zarrpipe.reporting.contents import Figure, FloatArray, Kind, Series
from zarrpipe.reporting.values.measured import Measured

BINS, MOST_BARS = 60, 30
_TAIL = 0.5
"""Per cent of the values at each end that a histogram may leave out if they are far away."""
_FAR = 10.0
_SAME = 1e-5
"""Relative difference of values that are shown as one."""
_ZERO, _MANY = 1e-9, 20
"""Part of the largest value that is shown as zero, and counts that need a logarithmic axis."""
_LONGEST = 24

ValuesOf = Callable[[Measured], FloatArray]


def names_of(sides: Sequence[Measured], alone: str = "samples") -> tuple[str, ...]:
    """Name of each series: A and B, or what is counted where there is one data set."""
    return (alone,) if len(sides) == 1 else ("A", "B")


def legend(sides: Sequence[Measured], alone: str = "samples") -> tuple[str, ...]:
    """As `names_of`, with the name of each of two stores."""
    if len(sides) == 1:
        return (alone,)
    names = [one.place.rstrip("/").rpartition("/")[2][:_LONGEST] for one in sides]
    return tuple(f"{letter}: {name}" for letter, name in zip("AB", names, strict=True))


def histogram(
    sides: Sequence[Measured],
    name: str,
    title: str,
    values_of: ValuesOf,
    x_label: str,
    *,
    log_x: bool = False,
    y_label: str = "samples",
) -> Figure | None:
    """Histogram of the finite values of each data set; None where there are none."""
    parts = [_usable(values_of(one), log_x=log_x) for one in sides]
    every = np.concatenate(parts)
    if not len(every):
        return None
    low, high = _range(every)
    if log_x and high - low < 1:  # less than a decade
        return histogram(sides, name, title, values_of, x_label, y_label=y_label)
    edges = _edges(every, low, high)
    outside = every[(every < edges[0]) | (every > edges[-1])]
    note = (
        f"{len(outside):,} values are outside: from {_text(outside.min(), log_x=log_x)} to "
        f"{_text(outside.max(), log_x=log_x)}"
        if len(outside)
        else ""
    )
    several = len(sides) > 1
    series = tuple(
        Series(label, _counts(part, edges, share=several), 10**edges if log_x else edges)
        for label, part in zip(legend(sides, y_label), parts, strict=True)
    )
    y_label = f"share of {y_label}" if several else y_label
    return Figure(
        *(name, title, Kind.HISTOGRAM, series, x_label, y_label),
        log_x=log_x,
        log_y=not several and max(one.y.max() for one in series) >= _MANY,
        note=note,
    )


def _edges(values: FloatArray, low: float, high: float) -> FloatArray:
    """Edges of the bins: twice the value where there is one, and around integers."""
    if high - low <= _SAME * max(abs(low), abs(high)):
        return np.full(2, float(np.median(values)))
    if high - low <= BINS and np.array_equal(values, np.round(values)):
        return np.arange(np.floor(low), np.ceil(high) + 2) - 0.5
    return np.linspace(low, high, BINS + 1)


def _counts(values: FloatArray, edges: FloatArray, *, share: bool) -> FloatArray:
    """Values in each bin, or the share of them."""
    same = edges[0] == edges[-1]
    found = np.array([len(values)]) if same else np.histogram(values, edges)[0]
    counts: FloatArray = found / max(1, len(values)) if share else found.astype(np.float64)
    return counts


def _usable(values: FloatArray, *, log_x: bool) -> FloatArray:
    """Finite values, or the logarithms of the positive ones."""
    finite = values[np.isfinite(values)]
    if not log_x:
        return finite
    logarithms: FloatArray = np.log10(finite[finite > 0])
    return logarithms


def _range(values: FloatArray) -> tuple[float, float]:
    """All values, or most of them where the others would make them a single bar."""
    low, high = float(values.min()), float(values.max())
    first, last = np.percentile(values, [_TAIL, 100 - _TAIL])
    width = max(float(last - first), 1e-6 * max(abs(first), abs(last), 1e-6))
    low = low if first - low < _FAR * width else float(first - width)
    high = high if high - last < _FAR * width else float(last + width)
    return low, high


def _text(value: float, *, log_x: bool) -> str:
    return number_text(10**value if log_x else value)


def bars(
    sides: Sequence[Measured],
    name: str,
    title: str,
    counts_of: Callable[[Measured], Mapping[str, float]],
    *,
    y_label: str = "samples",
) -> Figure | None:
    """Bars of the largest counts of all data sets together, in their order."""
    tables = [counts_of(one) for one in sides]
    totals: dict[str, float] = {}
    for table in tables:
        for label, count in table.items():
            totals[label] = totals.get(label, 0) + count
    if not totals:
        return None
    largest = {*sorted(totals, key=lambda label: -totals[label])[:MOST_BARS]}
    shown = tuple(label for label in totals if label in largest)
    series = tuple(
        Series(
            label,
            np.array([float(table.get(one, 0)) for one in shown])
            / (max(1, len(side.values)) if len(sides) > 1 else 1),
            labels=shown,
        )
        for label, table, side in zip(legend(sides, y_label), tables, sides, strict=True)
    )
    y_label = f"share of {y_label}" if len(sides) > 1 else y_label
    left = len(totals) - len(shown)
    note = f"the {len(shown)} largest; {left:,} more are not shown" if left else ""
    return Figure(name, title, Kind.BARS, series, y_label=y_label, note=note)


def there(*figures: Figure | None) -> tuple[Figure, ...]:
    """The figures that have something to show."""
    return tuple(one for one in figures if one is not None)


def summary(
    sides: Sequence[Measured], rows: Mapping[str, ValuesOf], title: str, first: str = "quantity"
) -> Table:
    """Table of smallest, median and largest finite values by quantity and data set."""
    cells = []
    for what, values_of in rows.items():
        for label, one in zip(names_of(sides), sides, strict=True):
            values = values_of(one)
            finite = values[np.isfinite(values)]
            if len(finite):
                numbers = np.array([finite.min(), np.median(finite), finite.max()])
                numbers[np.abs(numbers) < _ZERO * np.abs(numbers).max()] = 0.0
                side = [label] if len(sides) > 1 else []
                cells.append((what, *side, *map(number_text, numbers), f"{len(finite):,}"))
    side = ["store"] if len(sides) > 1 else []
    header = (first, *side, "smallest", "median", "largest", "samples")
    return Table(header, tuple(cells), range(1 + len(side), len(header)), title)
