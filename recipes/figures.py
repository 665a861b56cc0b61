"""The figures of a closed loop: a learning curve, and predicted against reference forces."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import ticker
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from records import Row
from settings import TEST_TEMPERATURES

COLOURS = {"committee": "#1f6fb4", "random": "#d9772b"}
QUANTITIES = (
    ("mae", "force MAE (meV/\u00c5)", True),
    ("largest", "largest error of a force component (eV/\u00c5)", False),
)


def learning_curve(rows: Sequence[Row], path: Path) -> None:
    """Errors of each arm at both temperatures against the number of labels.

    Where an arm has several rows for a round (several seeds), the line is their mean and the shade
    reaches from the smallest to the largest.
    """
    figure, axes = panels(1, 2, (9.0, 3.8))
    for axis, (quantity, title, logarithmic) in zip(axes, QUANTITIES, strict=True):
        for kelvin, style in zip(TEST_TEMPERATURES, ("-", "--"), strict=True):
            for arm in sorted({row.arm for row in rows}):
                _draw_arm(
                    axis, [row for row in rows if row.arm == arm], f"{quantity}_{kelvin}", style
                )
        axis.set(xlabel="labels", ylabel=title)
        if logarithmic:
            axis.set_yscale("log")
            plain_ticks(axis)
        else:
            axis.set_ylim(bottom=0)
    axes[0].legend(frameon=False, fontsize=9)
    figure.savefig(path, dpi=150)


def _draw_arm(axis: Any, rows: Sequence[Row], column: str, style: str) -> None:
    rounds = [[row for row in rows if row.round == n] for n in sorted({row.round for row in rows})]
    labels = [np.mean([row.labels for row in group]) for group in rounds]
    values = [[getattr(row, column) for row in group] for group in rounds]
    colour = COLOURS[rows[0].arm]
    name = f"{rows[0].arm}, {column.split('_')[1]} K"
    axis.plot(
        labels, [np.mean(v) for v in values], style, marker="o", ms=4, color=colour, label=name
    )
    axis.fill_between(
        labels, [min(v) for v in values], [max(v) for v in values], color=colour, alpha=0.15, lw=0
    )


def parity(arms: Mapping[str, Path], path: Path) -> None:
    """Force components of the committee against those of xTB, a panel for each arm."""
    figure, axes = panels(1, len(arms), (4.2 * len(arms), 4.0))
    for axis, (name, directory) in zip(np.atleast_1d(axes), arms.items(), strict=True):
        with np.load(directory / "test_forces.npz") as forces:
            for kelvin in reversed(TEST_TEMPERATURES):
                true, predicted = forces[f"xtb_{kelvin}"].ravel(), forces[str(kelvin)].ravel()
                error = np.abs(true - predicted).mean() * 1000
                axis.plot(
                    true, predicted, ".", ms=2, label=f"{kelvin} K, MAE {error:.0f} meV/\u00c5"
                )
        low, high = axis.get_xlim()
        axis.plot([low, high], [low, high], color="black", lw=0.6, zorder=0)
        axis.set(title=name, xlabel="xTB force (eV/\u00c5)", ylabel="predicted force (eV/\u00c5)")
        axis.set_aspect("equal", adjustable="datalim")
        axis.legend(frameon=False, fontsize=9, markerscale=4)
    figure.savefig(path, dpi=150)


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
