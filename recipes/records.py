"""The table of a closed loop: one row per arm and round, kept as CSV."""

import csv
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from pathlib import Path


@dataclass(frozen=True)
class Row:
    """A finished round.

    Attributes
    ----------
    arm, round, labels
        Which arm, which of its rounds from 0, and how many labels it had then.
    mae_500, mae_800
        Mean error of a force component on the test trajectories, in meV/Angstrom.
    largest_500, largest_800
        Largest error of a force component there, in eV/Angstrom.
    share
        Share of the frames looked at that the trust levels let through.
    restarts
        Walkers that left the trusted region.
    simulating, labelling, training
        Seconds; of a round that was cut off, of its last part alone.
    """

    arm: str
    round: int
    labels: int
    mae_500: float
    mae_800: float
    largest_500: float
    largest_800: float
    share: float
    restarts: int
    simulating: float
    labelling: float
    training: float


HEADER = (
    "arm        round labels | MAE 500 K  800 K meV/A | largest 500 K  800 K eV/A | "
    "selected restarts | sim  label  train s"
)


def format_row(row: Row) -> str:
    """One line under `HEADER`."""
    return (
        f"{row.arm:<10} {row.round:>5} {row.labels:>6} | {row.mae_500:>9.1f} {row.mae_800:>6.1f}"
        f"       | {row.largest_500:>13.2f} {row.largest_800:>6.2f}      | "
        f"{row.share:>7.0%} {row.restarts:>9} | {row.simulating:>3.0f} {row.labelling:>6.1f} "
        f"{row.training:>6.0f}"
    )


def write_rows(path: Path, rows: Iterable[Row]) -> None:
    """Replace the table by `rows`, in one piece."""
    partial = path.with_suffix(".partial")
    with partial.open("w", newline="") as file:
        table = csv.DictWriter(file, [column.name for column in fields(Row)])
        table.writeheader()
        table.writerows(
            {
                name: round(value, 4) if isinstance(value, float) else value
                for name, value in asdict(row).items()
            }
            for row in rows
        )
    partial.replace(path)


def read_rows(path: Path) -> list[Row]:
    """Rows of the table; none where there is no file."""
    if not path.exists():
        return []
    kinds = {column.name: column.type for column in fields(Row)}
    with path.open(newline="") as file:
        return [
            Row(**{name: kinds[name](value) for name, value in line.items()})  # type: ignore[operator]
            for line in csv.DictReader(file)
        ]
