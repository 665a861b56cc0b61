"""Results files as text: ``python -m benchmarks.report runs/bench/bench.jsonl``.

With ``--docs`` the tables between the marks ``<!-- begin NAME -->`` and ``<!-- end NAME -->`` of
a document are replaced, with ``--plot`` the plot of the reads is saved.
"""

import argparse
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.bars import bars_table
from benchmarks.plot import plot_reads
from benchmarks.rows import Row, by_case, read_rows, table


def machine_text(facts: Mapping[str, Any]) -> str:
    """The machine in a sentence, and the versions in another."""
    versions = ", ".join(f"{name} {version}" for name, version in facts["versions"].items())
    return (
        f"{facts['cpu']}, {facts['cores']} cores, {facts['memory_gb']} GB of memory; "
        f"{facts['system']}, Python {facts['python']}; {facts['date'][:10]}, "
        f"commit {facts['commit'] or 'unknown'}.\n\n{versions}."
    )


def suite_text(rows: Sequence[Row], suite: str) -> str:
    """Markdown tables of one suite."""
    parts = []
    for (name, case, _), some in by_case(rows).items():
        if name == suite:
            notes = "".join(f"\n\n\\* {row.name}: {row.note}" for row in some if row.note)
            parts.append(f"**{case}**\n\n{table(some, markdown=True)}{notes}")
    return "\n\n".join(parts)


def fill(document: str, texts: Mapping[str, str]) -> str:
    r"""Document with what stands between marks replaced; marks without a text keep theirs.

    Examples
    --------
    >>> fill("a <!-- begin x -->old<!-- end x --> b", {"x": "new"})
    'a <!-- begin x -->\nnew\n<!-- end x --> b'
    """
    for name, text in texts.items():
        begin, end = f"<!-- begin {name} -->", f"<!-- end {name} -->"
        pattern = re.compile(f"{re.escape(begin)}.*?{re.escape(end)}", re.DOTALL)
        document = pattern.sub(lambda _, new=f"{begin}\n{text}\n{end}": new, document)  # type: ignore[misc]
    return document


def main(given: Sequence[str] | None = None) -> None:
    """Print the bars, and bring a document and a plot up to date."""
    arguments = argparse.ArgumentParser(prog="python -m benchmarks.report", description=__doc__)
    arguments.add_argument("results", nargs="+", type=Path, help="results files; the last counts")
    arguments.add_argument("--docs", type=Path, help="document with marks")
    arguments.add_argument("--plot", type=Path, help="where to save the plot of the reads")
    options = arguments.parse_args(given)
    rows, facts = read_rows(options.results)
    print(bars_table(rows))
    if options.docs:
        texts = {suite: suite_text(rows, suite) for suite in {row.suite for row in rows}}
        texts |= {"machine": machine_text(facts), "bars": bars_table(rows)}
        options.docs.write_text(fill(options.docs.read_text(), texts))
    if options.plot:
        plot_reads(rows, options.plot)


if __name__ == "__main__":
    main()
