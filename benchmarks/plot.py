"""The plot of reads: samples/s by engine."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.rows import Row

SETS = ("molecules", "structures")
OURS, OTHER = "#b3123d", "#3b4a5a"
FLOORS = ("gather from RAM", "memory copy")


def plot_reads(rows: Sequence[Row], path: Path) -> None:
    """Save a plot of the suite reads, a panel for each data set and a row for each engine."""
    import matplotlib as mpl  # noqa: PLC0415  optional

    mpl.use("Agg")
    from matplotlib import pyplot as plt  # noqa: PLC0415  after the choice of a backend

    speeds: dict[tuple[str, int], dict[str, float]] = {}
    for row in rows:
        if row.suite == "reads" and row.case.startswith(SETS):
            name, _, size = row.case.partition(", batches of ")
            speeds.setdefault((name, int(size)), {})[row.name] = row.value
    sizes = sorted({size for _, size in speeds})
    panels = [name for name in SETS if (name, sizes[0]) in speeds]
    order = sorted(speeds[panels[0], sizes[-1]], key=speeds[panels[0], sizes[-1]].__getitem__)
    figure, axes = plt.subplots(
        1,
        len(panels),
        sharex=True,
        sharey=True,
        squeeze=False,
        figsize=(10, 0.36 * len(order) + 1.5),
    )
    for axis, name in zip(axes[0], panels, strict=True):
        for batch, marker in zip(sizes, "os", strict=False):
            _panel(axis, order, speeds[name, batch], batch, marker)
        axis.set_title(name)
    axes[0][-1].legend(loc="lower right", frameon=False)
    for label in axes[0][0].get_yticklabels():
        if label.get_text() == "zarrpipe":
            label.set(color=OURS, fontweight="bold")
        elif label.get_text() in FLOORS:
            label.set(fontstyle="italic")
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def _panel(axis: Any, order: list[str], speeds: dict[str, float], size: int, marker: str) -> None:
    """Points of one batch size."""
    engines = [engine for engine in order if engine in speeds]
    places = [order.index(engine) for engine in engines]
    values = [speeds[engine] for engine in engines]
    colors = [OURS if engine.startswith("zarrpipe") else OTHER for engine in engines]
    zorder = 3 if marker == "s" else 4
    filled = colors if marker == "s" else ["white"] * len(colors)
    axis.scatter(values, places, s=42, marker=marker, c=filled, edgecolors=colors, zorder=zorder)
    axis.scatter(
        [],
        [],
        s=42,
        marker=marker,
        label=f"batches of {size}",
        edgecolors=OTHER,
        c=OTHER if marker == "s" else "white",
    )
    axis.set_xscale("log")
    axis.set_yticks(range(len(order)), order)
    axis.set_xlabel("samples/s, one core, warm")
    axis.grid(axis="both", color="#d9dde2", linewidth=0.6, zorder=0)
    axis.tick_params(axis="y", length=0)
    for side in ("top", "right", "left"):
        axis.spines[side].set_visible(False)
