"""A measurement as one row: of a results file (JSON lines), of a table, of a plot."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Row:
    """One thing that was measured.

    Parameters
    ----------
    suite
        Name of the suite.
    case
        What was asked for, such as "molecules, batches of 64".
    name
        Who did it: an engine, or the reference.
    value
        Median over the rounds.
    unit
        Unit of the value, such as "samples/s", "ms" or "MB".
    low, high
        Quartiles over the rounds; the value itself where there was one round.
    rounds
        Number of rounds.
    ratios
        By name of a reference: the value over that of the reference, taken in each round, and of
        these the median.
    note
        What a reader has to know beside the numbers.
    """

    suite: str
    case: str
    name: str
    value: float
    unit: str
    low: float
    high: float
    rounds: int = 1
    ratios: Mapping[str, float] = field(default_factory=dict)
    note: str = ""

    @classmethod
    def single(
        cls,
        suite: str,
        case: str,
        name: str,
        value: float,
        unit: str,
        ratios: Mapping[str, float] | None = None,
        note: str = "",
    ) -> "Row":
        """Row of a number that was measured once."""
        return cls(suite, case, name, value, unit, value, value, 1, ratios or {}, note)


def write_rows(path: Path, rows: Iterable[Row], facts: Mapping[str, Any]) -> None:
    """Append rows to a results file, one JSON object a line, each with the facts of the run."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        for row in rows:
            file.write(json.dumps({**asdict(row), "facts": dict(facts)}) + "\n")


def read_rows(paths: Iterable[Path]) -> tuple[list[Row], dict[str, Any]]:
    """Rows of results files and the facts of the last; a later row replaces an equal earlier one.

    Rows are equal if suite, case and name are.
    """
    rows: dict[tuple[str, str, str], Row] = {}
    facts: dict[str, Any] = {}
    for path in paths:
        for line in path.read_text().splitlines():
            found = json.loads(line)
            facts = found.pop("facts")
            row = Row(**found)
            rows[row.suite, row.case, row.name] = row
    return list(rows.values()), facts


def number(value: float) -> str:
    """A number with three significant digits, thousands set apart.

    Examples
    --------
    >>> number(1234567.0), number(12.345), number(0.01234)
    ('1 230 000', '12.3', '0.0123')
    """
    if value == 0 or value != value:
        return f"{value:.0f}"
    digits = 2
    size = abs(value)
    while size >= 10:
        size, digits = size / 10, digits - 1
    while size < 1:
        size, digits = size * 10, digits + 1
    rounded = round(value, digits)
    return f"{rounded:,.{max(digits, 0)}f}".replace(",", " ")


def table(rows: Sequence[Row], *, markdown: bool = False) -> str:
    """Table of the rows of one case, in their order."""
    references = list(dict.fromkeys(name for row in rows for name in row.ratios))
    unit = rows[0].unit
    head = ["", unit, "quartiles", *(f"/ {name}" for name in references)]
    lines = [
        [
            f"{row.name} *" if row.note and markdown else row.name,
            number(row.value),
            f"{number(row.low)} - {number(row.high)}" if row.rounds > 1 else "",
            *(number(row.ratios[name]) if name in row.ratios else "" for name in references),
        ]
        for row in rows
    ]
    if markdown:
        rule = ["---", *("---:" for _ in head[1:])]
        return "\n".join(f"| {' | '.join(line)} |" for line in [head, rule, *lines])
    widths = [max(map(len, column)) for column in zip(head, *lines, strict=True)]
    return "\n".join(
        "  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]).rstrip()
        for line in [head, *lines]
    )


def by_case(rows: Iterable[Row]) -> dict[tuple[str, str, str], list[Row]]:
    """Rows of each table: same suite, same case, same unit."""
    cases: dict[tuple[str, str, str], list[Row]] = {}
    for row in rows:
        cases.setdefault((row.suite, row.case, row.unit), []).append(row)
    return cases
