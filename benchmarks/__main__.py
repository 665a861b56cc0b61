"""Command line, for example ``python -m benchmarks --only reads --data molecules``."""

import argparse
import importlib
import importlib.util
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.machine import facts, on_cores
from benchmarks.rows import Row, by_case, table, write_rows
from benchmarks.settings import SIZES, Settings

SUITES = (
    "reads",
    "writes",
    "whole",
    "loop",
    "cold",
    "far",
    "objects",
    "memory",
    "scale",
    "plans",
    "files",
)
"""Modules of this package, each with ``run(settings) -> list[Row]``."""


def parser() -> argparse.ArgumentParser:
    """The arguments."""
    arguments = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    add = arguments.add_argument
    add("--only", default="", help=f"suites, by default all: {','.join(SUITES)}")
    add("--data", default="molecules,structures,edges,bonds", help="data sets")
    add("--engines", default="", help="names of engines, by default all that are installed")
    add("--batch-sizes", default="1,64,512", help="samples in a batch")
    add("--size", default="full", choices=list(SIZES), help="how much is measured")
    add("--seed", default=0, type=int, help="of the data and of the order")
    add("--core", default=0, type=int, help="core that all runs on; -1 for any")
    add("--work", default=Path("runs/bench/work"), type=Path, help="where stores are kept")
    add("--name", default="bench", help="results go to runs/bench/<name>.jsonl")
    add("--out", default=None, type=Path, help="results file, instead of --name")
    return arguments


def main(given: Sequence[str] | None = None) -> list[Row]:
    """Run suites, print their tables and append their rows to the results file."""
    options = parser().parse_args(given)
    settings = Settings(
        work=options.work.resolve(),
        size=SIZES[options.size],
        data=_names(options.data),
        engines=_names(options.engines),
        batch_sizes=tuple(map(int, _names(options.batch_sizes))),
        seed=options.seed,
        core=None if options.core < 0 else options.core,
    )
    settings.work.mkdir(parents=True, exist_ok=True)
    out = options.out or Path("runs/bench") / f"{options.name}.jsonl"
    rows: list[Row] = []
    for suite in _suites(options.only):
        start = time.perf_counter()
        module = importlib.import_module(f"benchmarks.{suite}")
        with on_cores(None if settings.core is None else {settings.core}):
            found: list[Row] = module.run(settings)
        took = time.perf_counter() - start
        write_rows(out, found, {**facts(), "suite_seconds": round(took, 1)})
        for (_, case, _), some in by_case(found).items():
            print(f"\n{suite}: {case}\n{table(some)}")
        print(f"\n{suite} took {took:.0f} s", flush=True)
        rows += found
    print(f"\nresults: {out}")
    return rows


def _suites(only: str) -> list[str]:
    wanted = _names(only) or SUITES
    for suite in wanted:
        if suite not in SUITES:
            raise SystemExit(f"no suite {suite!r}; there are {', '.join(SUITES)}")
    return [s for s in wanted if only or importlib.util.find_spec(f"benchmarks.{s}") is not None]


def _names(listed: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in listed.split(",") if name.strip())


if __name__ == "__main__":
    main()
