"""Run reliability campaigns: ``python -m reliability kills --count 1000 --seed 1``.

Each prints what it did and found and appends it as one line of JSON to the results file. The exit
code is 1 where a campaign found a defect.
"""

import argparse
import importlib
import secrets
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.machine import facts
from reliability.report import Findings, Order, table, write_row


@dataclass(frozen=True)
class Campaign:
    """A module of this package with ``run(order: Order) -> Findings``.

    Parameters
    ----------
    module
        Its name.
    about
        What it does.
    count, minutes
        How much of it a run without arguments does; None where it does not count, or has no time.
    """

    module: str
    about: str
    count: int | None = None
    minutes: float | None = None


CAMPAIGNS = {
    "kills": Campaign("reliability.kills", "processes that are killed while they write", 1000),
    "faults": Campaign("reliability.faults", "every operation fails, or is the last one"),
    "interrupts": Campaign("reliability.interrupts", "Ctrl-C and signal handlers at every line"),
    "disk": Campaign("reliability.disk", "the disk runs full at each step, and has room again"),
    "live": Campaign("reliability.live", "readers beside a writer that does everything", None, 10),
    "parts": Campaign("reliability.parts", "killed writers of parts, readers, ranks", 20, 5),
    "parties": Campaign("reliability.parties", "several writers at once", 10),
    "objects": Campaign("reliability.objects", "writers of an object store that are killed", 200),
    "parsl": Campaign("reliability.parsl_loop", "the Parsl recipe, whose workers are killed", 6),
    "fuzz": Campaign("reliability.fuzz", "stores that are damaged at random", 10_000),
}
"""By name, in the order of a run of all."""


def parser() -> argparse.ArgumentParser:
    """The arguments."""
    listed = "\n".join(f"  {name:10} {item.about}" for name, item in CAMPAIGNS.items())
    arguments = argparse.ArgumentParser(
        prog="python -m reliability",
        description=__doc__,
        epilog=f"campaigns:\n{listed}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = arguments.add_argument
    add("campaign", choices=[*CAMPAIGNS, "all"], help="what to run")
    add("--count", "--kills", type=int, dest="count", help="how many trials")
    add("--minutes", type=float, help="how long")
    add("--seed", type=int, help="of all that is drawn; by default another in each run")
    add("--only", default="", help="only parts whose name contains this text")
    add("--work", type=Path, help="where stores are made; by default where temporary files are")
    add("--out", type=Path, default=Path("runs/reliability/reliability.jsonl"), help="results")
    return arguments


def main(given: Sequence[str] | None = None) -> int:
    """Run one campaign or all; the exit code."""
    options = parser().parse_args(given)
    names = list(CAMPAIGNS) if options.campaign == "all" else [options.campaign]
    rows = [_carry_out(name, options) for name in names]
    print(f"\nresults: {options.out}")
    return int(any(row["defects"] for row in rows))


def _carry_out(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """Run a campaign, print its figures and write them down."""
    campaign = CAMPAIGNS[name]
    seed = secrets.randbelow(2**32) if options.seed is None else options.seed
    amount = {
        what: getattr(campaign, what) if getattr(options, what) is None else getattr(options, what)
        for what in ("count", "minutes")
    }
    print(f"\n{name}: {campaign.about}; seed {seed}", flush=True)
    if options.work is not None:
        options.work.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f"reliability-{name}-", dir=options.work))
    order = Order(work, seed, **amount, only=options.only)
    start = time.perf_counter()
    try:
        found: Findings = importlib.import_module(campaign.module).run(order)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    took = round(time.perf_counter() - start, 1)
    row = found.row(
        campaign=name, arguments={**amount, "only": options.only}, seed=seed, seconds=took
    )
    print(f"{table(row)}\n{name} took {took:.0f} s", flush=True)
    write_row(options.out, {**row, **facts()})
    return row


if __name__ == "__main__":
    sys.exit(main())
