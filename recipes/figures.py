"""Figures that need no display, for the recipes that draw."""

from typing import Any

import numpy as np
from matplotlib import ticker
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure


def panels(rows: int, columns: int, size: tuple[float, float]) -> tuple[Any, Any]:
    """Figure and axes that need no display and leave no global state."""
    figure = Figure(size, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, columns)
    for axis in np.ravel(axes):
        axis.spines[["top", "right"]].set_visible(False)
    return figure, axes


def plain_ticks(axis: Any) -> None:
    """Numbers without powers of ten on a logarithmic axis."""
    axis.yaxis.set_major_formatter(ticker.ScalarFormatter())
    axis.yaxis.set_minor_formatter(ticker.FormatStrFormatter("%.0f"))
