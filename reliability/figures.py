"""Results as a table.

``python -m reliability.figures FILES --docs docs/understanding/reliability.md`` fills it in.
Of each campaign, or part of one (``--only``), the last line counts.
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from shlex import quote
from typing import Any

from benchmarks.report import fill, machine_text
from reliability.report import KINDS

_LISTED = 6


def command(row: Mapping[str, Any]) -> str:
    """What was run."""
    given = {name: value for name, value in row["arguments"].items() if value not in (None, "")}
    options = "".join(f" --{name} {quote(str(value))}" for name, value in given.items())
    return f"python -m reliability {row['campaign']}{options} --seed {row['seed']}"


def figures(rows: Sequence[Mapping[str, Any]]) -> str:
    """Markdown table of what was done and found, and the machine."""
    last = {(row["campaign"], row["arguments"].get("only")): row for row in rows}
    lines = ["| command | done | " + " | ".join(KINDS) + " | minutes | commit |"]
    lines.append("|---|---|" + "---|" * (len(KINDS) + 2))
    for row in last.values():
        most = sorted(row["done"].items(), key=lambda item: -item[1])[:_LISTED]
        done = ", ".join(f"{count:,} {name}" for name, count in most)
        found = " | ".join(str(row[kind]) for kind in KINDS)
        took = f"{row['seconds'] / 60:.0f}"
        lines.append(f"| `{command(row)}` | {done} | {found} | {took} | {row['commit']} |")
    meanings = "; ".join(f"{kind}: {meaning}" for kind, meaning in KINDS.items())
    return "\n".join([*lines, "", f"{meanings}.", "", machine_text([*last.values()][-1])])


def main(given: Sequence[str] | None = None) -> None:
    """Print the table, and bring a document up to date."""
    arguments = argparse.ArgumentParser(prog="python -m reliability.figures", description=__doc__)
    arguments.add_argument("results", nargs="+", type=Path, help="results files")
    arguments.add_argument("--docs", type=Path, help="document with marks")
    options = arguments.parse_args(given)
    lines = [line for path in options.results for line in path.read_text().splitlines()]
    text = figures([json.loads(line) for line in lines])
    print(text)
    if options.docs is not None:
        options.docs.write_text(fill(options.docs.read_text(), {"figures": text}))


if __name__ == "__main__":
    main()
