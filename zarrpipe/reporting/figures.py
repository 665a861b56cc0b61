"""Figures of a report by matplotlib: PNG files, and SVG for the page; no pyplot, no window."""

import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import BytesIO, StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from zarrpipe.libraries import require
from zarrpipe.reporting.contents import Figure, FloatArray, Kind, Report, Series
from zarrpipe.reporting.periodic_table import draw_elements
from zarrpipe.reporting.texts import symbols

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Canvas

COLOURS = ("#3a86c8", "#d9701f", "#1a9e77", "#b06aa5", "#a3820f", "#56a8d8", "#8a8a8a")
"""After Okabe and Ito's palette for the colour-blind, legible on white and on black."""
INK = "#2f3437"
_DASHES = ("-", "--", ":", "-.")
_MARKERS = ("o", "^", "s", "D", "v", "P", "X")
_WIDTH, _HEIGHT = 5.4, 3.2  # inches
_LOW = 1.0  # inches of a single value
_ROW = 0.17  # inches more for each bar beyond _MANY_BARS
_LONG_LABEL, _MANY_BARS, _MANY_POINTS = 6, 16, 800
_SHORTER = (
    (re.compile(r"<metadata>.*?</metadata>|<style.*?</style>", re.DOTALL), ""),
    (re.compile(r'<g id="[^"]*">'), "<g>"),  # ids that each figure of a page would have
    (re.compile(r"\s*\n\s*"), "\n"),
)
_TAG, _DIGITS = re.compile(r"<[^>]*>"), re.compile(r"(\d\.\d\d)\d+")
_STYLE: dict[str, Any] = {
    "axes.axisbelow": True,
    "axes.edgecolor": INK,
    "axes.grid": True,
    "axes.labelcolor": INK,
    "axes.linewidth": 0.8,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "font.family": "DejaVu Sans",
    "font.size": 9.0,
    "grid.alpha": 0.3,
    "grid.color": "#808080",
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "legend.labelcolor": INK,
    "lines.linewidth": 1.6,
    "svg.fonttype": "none",
    "svg.hashsalt": "zarrpipe",
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
}


def write_plots(report: Report, directory: str | Path) -> list[Path]:
    """Write each figure of a report as ``NAME.png``, 810 pixels wide.

    Parameters
    ----------
    report : Report
        What `zarrpipe.report` returned.
    directory : str or Path
        Where to; it is made if it is not there, and files of these names are replaced.

    Returns
    -------
    list of Path
        The files, in the order of the report.

    Raises
    ------
    MissingLibraryError
        If matplotlib is not installed.
    """
    target = Path(directory)
    target.mkdir(parents=True, exist_ok=True)
    written = []
    for figure in (figure for section in report.sections for figure in section.figures):
        path = target / f"{figure.name}.png"
        path.write_bytes(png(figure))
        written.append(path)
    return written


def png(figure: Figure) -> bytes:
    """Draw a figure, with its title, on white."""
    stream = BytesIO()
    with _drawn(figure) as canvas:
        canvas.axes[0].set_title(plain(figure.title), loc="left", fontsize=10, fontweight="bold")
        canvas.savefig(stream, format="png", dpi=150, facecolor="white")
    return stream.getvalue()


def svg(figure: Figure) -> str:
    """Draw a figure as an ``<svg>`` element in the text colour and font of the page around it.

    Many points are a picture inside of it, which is smaller than a path for each.
    """
    stream = StringIO()
    with _drawn(figure) as canvas:
        canvas.savefig(stream, format="svg", transparent=True, metadata={"Date": None})
    text = stream.getvalue()
    for pattern, shorter in _SHORTER:
        text = pattern.sub(shorter, text)
    text = _TAG.sub(lambda tag: _DIGITS.sub(r"\1", tag[0]), text)  # coordinates, not labels
    return text[text.index("<svg") :].replace(INK, "currentColor")


@contextmanager
def _drawn(figure: Figure) -> "Iterator[Canvas]":
    """A canvas of matplotlib with the figure on it, in our style until it is saved."""
    matplotlib = require("matplotlib", "report")
    with matplotlib.rc_context(_STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # the page's font may have it
        rows = len(figure.series[0].labels) if figure.kind is Kind.BARS and figure.series else 0
        size = (_WIDTH, _HEIGHT + _ROW * max(0, rows - _MANY_BARS))
        if _is_one_value(figure):
            size = (_WIDTH, _LOW)
        canvas = require("matplotlib.figure", "report").Figure(figsize=size, layout="constrained")
        axes = canvas.add_subplot()
        if any(np.isfinite(series.y).any() for series in figure.series):
            _DRAW[figure.kind](axes, figure)
        else:
            axes.text(0.5, 0.5, "no values", ha="center", va="center", transform=axes.transAxes)
            axes.set_axis_off()
        yield canvas


def _is_one_value(figure: Figure) -> bool:
    """Whether all values of a histogram are the same."""
    if figure.kind is not Kind.HISTOGRAM or not figure.series:
        return False
    edges = figure.series[0].x
    return len(edges) > 1 and bool(edges[0] == edges[-1])


def plain(text: str) -> str:
    """Text of which matplotlib reads no dollar as the begin of a formula."""
    return text.replace("$", r"\$")


def _histogram(axes: "Axes", figure: Figure) -> None:
    edges = figure.series[0].x
    if _is_one_value(figure):
        style: dict[str, Any] = {"ha": "center", "va": "center", "transform": axes.transAxes}
        axes.text(0.5, 0.65, f"all are {edges[0]:.6g}", fontsize=12, **style)
        axes.text(0.5, 0.2, plain(symbols(figure.x_label)), **style)
        axes.set_axis_off()
        return
    for place, series in enumerate(figure.series):
        colour = COLOURS[place % len(COLOURS)]
        style = {"fill": True, "alpha": 0.75, "color": colour}
        if place:  # an outline over what is filled: both stay visible
            style = {"linewidth": 1.6, "color": colour, "linestyle": _dash(place)}
        axes.stairs(_known(series.y), series.x, label=plain(series.name), **style)
    _finish(axes, figure)
    if not figure.log_x:
        whole = bool((edges % 1 == 0.5).all())  # bins around integers
        axes.locator_params(axis="x", nbins=7, integer=whole)
        axes.ticklabel_format(axis="x", useOffset=False)
    if figure.log_y:
        axes.set_ylim(bottom=0.5)


def _bars(axes: "Axes", figure: Figure) -> None:
    labels = list(dict.fromkeys(label for series in figure.series for label in series.labels))
    flat = len(labels) > _MANY_BARS or any(len(label) > _LONG_LABEL for label in labels)
    width = 0.8 / len(figure.series)
    for place, series in enumerate(figure.series):
        heights = dict(zip(series.labels, series.y.tolist(), strict=True))
        at = np.arange(len(labels)) + (place - (len(figure.series) - 1) / 2) * width
        values = _known(np.array([heights.get(label, 0.0) for label in labels]))
        draw = axes.barh if flat else axes.bar
        draw(at, values, width, color=COLOURS[place % len(COLOURS)], label=plain(series.name))
    ticks, axis = range(len(labels)), axes.yaxis if flat else axes.xaxis
    axis.set_ticks(
        ticks, [plain(f"{label[:34]}…" if len(label) > 35 else label) for label in labels]
    )
    axis.grid(visible=False)
    if flat:
        axes.margins(y=0.01)
        axes.invert_yaxis()
    _finish(axes, figure, swapped=flat)


def _lines(axes: "Axes", figure: Figure) -> None:
    for place, series in enumerate(figure.series):
        x, y, _ = _finite(series)
        marker = "." if len(x) < 40 else None
        colour = COLOURS[place % len(COLOURS)]
        axes.plot(
            x, y, linestyle=_dash(place), marker=marker, color=colour, label=plain(series.name)
        )
    _finish(axes, figure)


def _points(axes: "Axes", figure: Figure) -> None:
    many = sum(len(series.y) for series in figure.series) > _MANY_POINTS
    for place, series in enumerate(figure.series):
        x, y, labels = _finite(series)
        size = float(np.clip(2000 / max(len(x), 1), 4, 26))
        style: dict[str, Any] = {
            "s": size,
            "marker": _MARKERS[place % len(_MARKERS)],
            "linewidths": 0,
        }
        style |= {"alpha": 0.7, "label": plain(series.name), "rasterized": many}
        if len(series.shades):
            _shaded(axes, figure, series, style)
        else:
            axes.scatter(x, y, color=COLOURS[place % len(COLOURS)], **style)
        for at_x, at_y, label in zip(x, y, labels, strict=False):
            axes.annotate(
                plain(label), (at_x, at_y), (3, 3), textcoords="offset points", fontsize=8
            )
    _finish(axes, figure)


def _shaded(axes: "Axes", figure: Figure, series: Series, style: dict[str, Any]) -> None:
    """Points in colours of one scale, which leaves out a few per cent at each end."""
    low, high = np.percentile(series.shades[np.isfinite(series.shades)], [2, 98])
    kept = np.isfinite(series.y) & np.isfinite(series.x)
    shades = np.where(np.isfinite(series.shades), series.shades, np.nan)[kept]
    drawn = axes.scatter(
        *(series.x[kept], series.y[kept]),
        c=shades,
        cmap="viridis",
        vmin=low,
        vmax=high,
        plotnonfinite=True,
        **style,
    )
    bar = axes.figure.colorbar(drawn, ax=axes, extend="both")
    bar.set_label(plain(symbols(figure.shade_label)))


def _finish(axes: "Axes", figure: Figure, *, swapped: bool = False) -> None:
    """Labels, scales and, for several series, a legend; `swapped` if y runs to the right."""
    x_label, y_label, log_x, log_y = figure.x_label, figure.y_label, figure.log_x, figure.log_y
    if swapped:
        x_label, y_label, log_x, log_y = y_label, x_label, log_y, log_x
    axes.set(xlabel=plain(symbols(x_label)), ylabel=plain(symbols(y_label)))
    if log_x:
        axes.set_xscale("log")
    if log_y:
        axes.set_yscale("log")
    axes.margins(x=0.02)
    if len(figure.series) > 1:
        outside: dict[str, Any] = {"loc": "upper left", "bbox_to_anchor": (1.0, 1.0)}
        axes.legend(fontsize=8, **(outside if figure.kind is Kind.POINTS else {}))


def _finite(series: Series) -> tuple[FloatArray, FloatArray, list[str]]:
    """The points of a series that have a place, and their labels."""
    x = series.x if len(series.x) else np.arange(len(series.y), dtype=float)
    kept = np.isfinite(x) & np.isfinite(series.y)
    labels = [label for label, keep in zip(series.labels, kept, strict=False) if keep]
    return x[kept], series.y[kept], labels


def _known(values: FloatArray) -> FloatArray:
    """Heights, 0 for those that are not finite."""
    return np.where(np.isfinite(values), values, 0.0)


def _dash(place: int) -> str:
    return _DASHES[place % len(_DASHES)]


_DRAW: "dict[Kind, Callable[[Axes, Figure], None]]" = {
    Kind.HISTOGRAM: _histogram,
    Kind.BARS: _bars,
    Kind.LINES: _lines,
    Kind.POINTS: _points,
    Kind.ELEMENTS: draw_elements,
}
