"""Heat map on the periodic table."""

from typing import TYPE_CHECKING, Any

import numpy as np

from zarrpipe.libraries import require
from zarrpipe.reporting.contents import Figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_ROWS = """
H  .  .  .  .  .  .  .  .  .  .  .  .  .  .  .  .  He
Li Be .  .  .  .  .  .  .  .  .  .  B  C  N  O  F  Ne
Na Mg .  .  .  .  .  .  .  .  .  .  Al Si P  S  Cl Ar
K  Ca Sc Ti V  Cr Mn Fe Co Ni Cu Zn Ga Ge As Se Br Kr
Rb Sr Y  Zr Nb Mo Tc Ru Rh Pd Ag Cd In Sn Sb Te I  Xe
Cs Ba .  Hf Ta W  Re Os Ir Pt Au Hg Tl Pb Bi Po At Rn
Fr Ra .  Rf Db Sg Bh Hs Mt Ds Rg Cn Nh Fl Mc Lv Ts Og
.  .  .  La Ce Pr Nd Pm Sm Eu Gd Tb Dy Ho Er Tm Yb Lu
.  .  .  Ac Th Pa U  Np Pu Am Cm Bk Cf Es Fm Md No Lr
"""
PLACES = {
    symbol: (row + 0.4 * (row > 6), column)
    for row, line in enumerate(_ROWS.strip().splitlines())
    for column, symbol in enumerate(line.split())
    if symbol != "."
}
"""Row and column of each element; lanthanides and actinides stand below."""
_SOME_RANGE, _WIDE_RANGE = 10.0, 100.0  # largest by smallest value


def draw_elements(axes: "Axes", figure: Figure) -> None:
    """Draw a cell for each element, coloured by its value of the first series."""
    series = figure.series[0]
    values = {
        label: value
        for label, value in zip(series.labels, series.y.tolist(), strict=True)
        if label in PLACES and np.isfinite(value)
    }
    scale = _scale(list(values.values()), log=figure.log_y)
    colours = require("matplotlib", "report").colormaps["viridis"]
    rectangle = require("matplotlib.patches", "report").Rectangle
    for symbol, (row, column) in PLACES.items():
        style: dict[str, Any] = {"facecolor": "none", "edgecolor": "#80808066", "linewidth": 0.5}
        ink, weight = "#8a8a8a", "normal"
        if symbol in values:
            shade = colours(scale(values[symbol]))
            ink = "black" if np.dot(shade[:3], (0.299, 0.587, 0.114)) > 0.5 else "white"
            style, weight = {"facecolor": shade, "edgecolor": "none"}, "bold"
        axes.add_patch(rectangle((column + 0.03, row + 0.03), 0.94, 0.94, **style))
        place = (column + 0.5, row + 0.53)
        text = axes.text(*place, symbol, ha="center", va="center", fontsize=7, color=ink)
        text.set(weight=weight, in_layout=False)  # the layout is of the axes, without 118 texts
    axes.set(xlim=(0, 18), ylim=(9.4, 0), aspect="equal")
    axes.set_axis_off()
    mappable = require("matplotlib.cm", "report").ScalarMappable(scale, colours)
    bar = axes.figure.colorbar(mappable, ax=axes, location="bottom", shrink=0.6, aspect=40, pad=0.0)
    bar.outline.set_visible(False)
    bar.set_label(figure.y_label.replace("$", r"\$"))


def _scale(values: list[float], *, log: bool) -> Any:
    """Normalize of matplotlib: logarithmic if positive values span much, or some and `log`."""
    colours = require("matplotlib.colors", "report")
    low, high = min(values, default=0.0), max(values, default=1.0)
    if low > 0 and high >= low * (_SOME_RANGE if log else _WIDE_RANGE):
        return colours.LogNorm(low, high)
    return colours.Normalize(min(low, 0.0), high if high > min(low, 0.0) else 1.0)
