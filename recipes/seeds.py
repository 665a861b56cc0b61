"""The closed loop over several seeds, its stability, and the table of mean and spread.

    python recipes/seeds.py --out runs/seeds --seeds "[0,1,2]"

Takes half an hour on two idle cores and goes on where it was. All seeds share one test set. Writes
``summary.csv`` and ``learning_curve.png`` (mean, smallest and largest), and prints the table of the
README.
"""

import csv
import subprocess
import sys
from pathlib import Path
from statistics import mean, stdev

from figures import learning_curve
from records import Row, read_rows

HERE = Path(__file__).parent
COLUMNS = {
    "mae_500": "force MAE 500 K (meV/\u00c5)",
    "mae_800": "force MAE 800 K (meV/\u00c5)",
    "largest_500": "largest error 500 K (eV/\u00c5)",
    "largest_800": "largest error 800 K (eV/\u00c5)",
    "intact": "intact after 10 ps at 500 K",
}


def main(
    out: Path = Path("runs/seeds"),
    seeds: tuple[int, ...] = (0, 1, 2),
    stability: bool = True,
    options: tuple[str, ...] = (),
) -> None:
    """Run what is missing and aggregate.

    Parameters
    ----------
    out
        Directory with a run for each seed.
    seeds
        Seeds of the closed loop.
    stability
        Run ``stability.py`` on each.
    options
        More arguments of ``closed_loop.py``, for example ``["--steps=100"]``.
    """
    test = f"--test_dir={out / 'test'}"
    for seed in seeds:
        run = out / f"seed-{seed}"
        _command("closed_loop.py", f"--out={run}", f"--seed={seed}", test, *options)
        if stability and not (run / "stability.csv").exists():
            _command("stability.py", f"--run={run}", f"--seed={seed}", test)
    rows = [row for seed in seeds for row in read_rows(out / f"seed-{seed}" / "metrics.csv")]
    learning_curve(rows, out / "learning_curve.png")
    table = summary(rows, [read_shares(out / f"seed-{seed}") for seed in seeds])
    with (out / "summary.csv").open("w", newline="") as file:
        csv.writer(file).writerows(table)
    print(markdown(table))


def _command(script: str, *arguments: str) -> None:
    print("$", script, *arguments, flush=True)
    subprocess.run([sys.executable, HERE / script, *arguments], check=True)


def read_shares(run: Path) -> dict[str, float]:
    """Share of intact trajectories by arm; empty where it was not measured."""
    path = run / "stability.csv"
    if not path.exists():
        return {}
    with path.open(newline="") as file:
        return {line["arm"]: float(line["intact_share"]) for line in csv.DictReader(file)}


def summary(rows: list[Row], shares: list[dict[str, float]]) -> list[list[str]]:
    """Table of mean and standard deviation at the end of each arm, its header first."""
    last = max(row.round for row in rows)
    table = [["arm", "labels", *COLUMNS.values()]]
    for arm in sorted({row.arm for row in rows}):
        final = [row for row in rows if row.arm == arm and row.round == last]
        values = {name: [getattr(row, name) for row in final] for name in list(COLUMNS)[:-1]}
        values["intact"] = [share[arm] for share in shares if arm in share]
        digits = {"mae_500": 1, "mae_800": 1}
        cells = [_spread(values[name], digits.get(name, 2)) for name in COLUMNS]
        table.append([arm, f"{mean(row.labels for row in final):.0f}", *cells])
    return table


def _spread(values: list[float], digits: int) -> str:
    """Mean and standard deviation, as far as there are values."""
    if not values:
        return ""
    middle = f"{mean(values):.{digits}f}"
    return f"{middle} \u00b1 {stdev(values):.{digits}f}" if len(values) > 1 else middle


def markdown(table: list[list[str]]) -> str:
    """Markdown of a table whose first row is its header."""
    lines = [table[0], ["---"] * len(table[0]), *table[1:]]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


if __name__ == "__main__":
    from jsonargparse import auto_cli

    auto_cli(main, as_positional=False)
