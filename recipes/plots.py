"""The figures of a run: learning curves, and predicted against reference labels."""

import csv
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import ticker
from matplotlib.colors import LogNorm

import zarrpipe as zp
from figures import panels
from zarrpipe.errors import ArgumentError
from zarrpipe.ml import Committee
from zarrpipe.ml.labels import pairs_of

COLOURS = {"train": "#7a8a99", "val": "#1f6fb4", "rate": "#d9772b"}
SHADED = 5000
"""Points from which on a parity plot shows their density."""

BINS = 160

MARKED = 30
"""Points up to which each of a curve has a marker."""


@dataclass(frozen=True)
class Label:
    """How a label is shown: what it is called, its unit, and those of its errors."""

    title: str
    unit: str
    error_unit: str
    metric: str


LABELS = {
    "energy": Label("energy per atom", "eV/atom", "meV/atom", "meV_atom"),
    "forces": Label("force component", "eV/\u00c5", "meV/\u00c5", "meV_A"),
    "stress": Label("stress component", "eV/\u00c5\u00b3", "meV/\u00c5\u00b3", "meV_A3"),
}


def learning_curves(metrics: Path, path: Path) -> None:
    """Loss, errors by label and learning rate against the step, from a ``metrics.csv``."""
    curves = read_metrics(metrics)
    labels = [name for name in LABELS if _column("val", name, "mae") in curves]
    labels = labels or [name for name in LABELS if _column("train", name, "mae") in curves]
    if "train/loss" not in curves:
        raise ArgumentError(
            f"{metrics} has no train/loss yet: expected a run of more steps than its "
            "trainer.log_every_n_steps"
        )
    count = len(labels) + 2
    columns = count if count < 5 else 3
    rows = -(-count // columns)
    figure, axes = panels(rows, columns, (3.6 * columns, 3.1 * rows))
    free = list(np.ravel(axes))
    _curve(free[0], curves["train/loss"], COLOURS["train"], "batches")
    free[0].set(ylabel="loss")
    for axis, name in zip(free[1:], labels, strict=False):
        _errors(axis, curves, name)
    rate = free[len(labels) + 1]
    for name in sorted(name for name in curves if name.startswith("lr-")):
        rate.plot(*curves[name], color=COLOURS["rate"])
    rate.set(ylabel="learning rate")
    for axis in free[:count]:
        axis.set_xlabel("step")
        axis.set_yscale("log")
        _few_ticks(axis)
    for axis in free[count:]:
        axis.set_visible(False)
    figure.savefig(path, dpi=150)


def read_metrics(path: Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Steps and values of each column of a ``metrics.csv`` that are there."""
    if not path.is_file():
        raise ArgumentError(f"there is no {path}: expected a run that has logged something")
    found: dict[str, list[tuple[float, float]]] = {}
    with path.open(newline="") as file:
        for row in csv.DictReader(file):
            for name, value in row.items():
                if value and name != "step":
                    found.setdefault(name, []).append((float(row["step"]), float(value)))
    return {name: tuple(np.array(points).T) for name, points in found.items()}


def _column(part: str, label: str, kind: str) -> str:
    return f"{part}/{label}_{kind}_{LABELS[label].metric}"


def _errors(axis: Any, curves: Mapping[str, Any], name: str) -> None:
    """Draw the errors of a label."""
    for part, title in (("train", "training"), ("val", "validation")):
        for kind, line in (("mae", "-"), ("rmse", ":")):
            points = curves.get(_column(part, name, kind))
            if points is not None:
                points = _whole_epochs(*points) if part == "train" else points
                marker = "o" if len(points[0]) <= MARKED else None
                text = f"{title} {kind.upper()}"
                axis.plot(*points, line, marker=marker, ms=3, color=COLOURS[part], label=text)
    label = LABELS[name]
    axis.set(ylabel=f"error of {label.title} ({label.error_unit})")
    axis.legend(frameon=False, fontsize=8)


def _whole_epochs(steps: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Points without those of epochs that were cut short, whose few batches say little."""
    gaps = np.diff(steps, prepend=-1)
    whole = gaps > 0.5 * np.median(gaps)
    return steps[whole], values[whole]


def _curve(axis: Any, points: tuple[np.ndarray, np.ndarray], colour: str, name: str) -> None:
    """Draw what was logged, and its running mean."""
    steps, values = points
    axis.plot(steps, values, color=colour, lw=0.6, alpha=0.6, label=name)
    width = max(1, len(values) // 20)
    if width > 1:
        mean = np.convolve(values, np.ones(width) / width, "valid")
        first = (width - 1) // 2
        axis.plot(steps[first : first + len(mean)], mean, color=COLOURS["val"], label="mean")
        axis.legend(frameon=False, fontsize=8)


def _few_ticks(axis: Any) -> None:
    """Readable numbers on a logarithmic axis of less or more than a decade."""
    low, high = axis.get_ylim()
    if high / low < 1000:
        axis.yaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
        axis.yaxis.set_major_formatter(ticker.FormatStrFormatter("%g"))
        axis.yaxis.set_minor_formatter(ticker.NullFormatter())


@dataclass
class Pairs:
    """Labels and predictions of components, as they come batch by batch."""

    labels: list[np.ndarray] = field(default_factory=list)
    predictions: list[np.ndarray] = field(default_factory=list)

    def add(self, label: Any, prediction: Any) -> None:
        """Add tensors of equal shape."""
        self.labels.append(label.detach().double().cpu().numpy().ravel())
        self.predictions.append(prediction.detach().double().cpu().numpy().ravel())

    def arrays(self) -> tuple[np.ndarray, np.ndarray]:
        """All of them."""
        return np.concatenate(self.labels), np.concatenate(self.predictions)


def compare(batches: Iterable[zp.Batch], committee: Committee) -> dict[str, Pairs]:
    """Labels that are there and their predictions: per atom, or by component."""
    found: dict[str, Pairs] = {}
    for batch in batches:
        mean, _ = committee.predict(batch, stress="cell" in batch)
        for name, (predicted, label) in pairs_of(mean, batch).items():
            found.setdefault(name, Pairs()).add(label, predicted)
    return {name: pairs for name, pairs in found.items() if sum(map(len, pairs.labels))}


def parity(found: Mapping[str, Pairs], path: Path, title: str) -> None:
    """Predicted against reference labels, a panel for each label."""
    names = [name for name in LABELS if name in found]
    if not names:
        raise ArgumentError(f"no sample of {title} has a label to compare with: label some first")
    figure, axes = panels(1, len(names), (4.2 * len(names), 4.2))
    for axis, name in zip(np.atleast_1d(axes), names, strict=True):
        _parity(axis, LABELS[name], *found[name].arrays())
    figure.suptitle(title, fontsize=10)
    figure.savefig(path, dpi=150)


def _parity(axis: Any, label: Label, true: np.ndarray, predicted: np.ndarray) -> None:
    """Draw one panel."""
    finite = np.isfinite(true) & np.isfinite(predicted)
    true, predicted = true[finite], predicted[finite]
    error = (predicted - true) * 1000
    both = np.concatenate([true, predicted])
    low, high = both.min(), both.max()
    edge = 0.04 * (high - low) or 0.1
    limits = (low - edge, high + edge)
    text = (
        f"MAE {np.abs(error).mean():.4g} {label.error_unit}\n"
        f"RMSE {np.sqrt(np.square(error).mean()):.4g} {label.error_unit}\n{len(true):,} values"
    )
    if len(true) >= SHADED:
        bins = np.linspace(*limits, BINS)
        count, _, _ = np.histogram2d(true, predicted, bins=(bins, bins))
        shown = np.ma.masked_equal(count.T, 0)
        axis.pcolormesh(bins, bins, shown, norm=LogNorm(), cmap="viridis", rasterized=True)
        axis.plot([], [], " ", label=text)
    else:
        axis.plot(true, predicted, ".", ms=3, alpha=0.6, color=COLOURS["val"], label=text)
    axis.plot(limits, limits, color="black", lw=0.6, zorder=0)
    axis.set(xlim=limits, ylim=limits, aspect="equal")
    for one in (axis.xaxis, axis.yaxis):
        one.set_major_locator(ticker.MaxNLocator(5))
    axis.set(xlabel=f"{label.title} ({label.unit})", ylabel=f"predicted ({label.unit})")
    axis.legend(loc="upper left", frameon=False, fontsize=9, handlelength=0.8)
