"""What a machine with a GPU has to show, in at most 8 minutes.

    make gpu
    python -m benchmarks.gpu --out runs/gpu/gpu.jsonl

Runs the tests that are marked ``gpu``, then times the way of batches to the device beside a plain
copy of as many page-locked bytes, and trains a small MACE from a store. Each part is a process with
a time limit of its own. Prints one table. The exit code is 0 if each part gave its figures, 1 if
one did not, and 2 where there is no such device.
"""

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

import torch

from benchmarks.gpu.device import described, missing
from benchmarks.machine import facts
from benchmarks.rows import Row, number, read_rows, write_rows
from benchmarks.settings import SIZES, Settings

ROOT = Path(__file__).parents[2]
LIMITS = {"marked": 120.0, "transfers": 130.0, "wait": 190.0}
"""Parts, each a module with ``rows(settings, device) -> Iterator[Row]``, and their seconds."""


@dataclass(frozen=True)
class Part:
    """What a part has shown, and why it did not show all, "" if it did."""

    name: str
    rows: list[Row]
    failure: str


def main(given: Sequence[str] | None = None) -> int:
    """Run the parts and print what they measured; gives the exit code."""
    options = _arguments(given)
    device = torch.device(options.device)
    lacking = missing(device)
    if lacking:
        print(lacking, file=sys.stderr)
        return 2
    if options.part:
        return _run_here(options.part, options, device)
    begun = time.monotonic()
    where = {**facts(), "device": described(device)}
    parts = []
    for name in options.only or LIMITS:
        print(f"{name}, at most {LIMITS[name]:.0f} s", flush=True)
        parts.append(run_part(name, LIMITS[name], options))
        write_rows(options.out, parts[-1].rows, where)
    print(f"\n{report(parts)}\n\n{machine(where)}")
    print(f"{time.monotonic() - begun:.0f} s; results: {options.out}")
    return 1 if any(part.failure for part in parts) else 0


def run_part(name: str, limit: float, options: argparse.Namespace) -> Part:
    """Run a part in a process of its own, which is killed with its children at the limit."""
    with tempfile.TemporaryDirectory() as folder:
        found = Path(folder) / "rows.jsonl"
        command = [sys.executable, "-m", "benchmarks.gpu", "--part", name, "--out", str(found)]
        for option in ("device", "size", "work"):
            command += [f"--{option}", str(getattr(options, option))]
        with subprocess.Popen(command, cwd=ROOT, start_new_session=True) as process:
            try:
                code = process.wait(limit)
                failure = f"ended with exit code {code}" if code else ""
            except subprocess.TimeoutExpired:
                failure = f"was stopped after {limit:.0f} s"
            finally:
                if process.poll() is None:
                    os.killpg(process.pid, signal.SIGKILL)
        rows = read_rows([found])[0] if found.exists() else []
    return Part(name, rows, failure)


def report(parts: Sequence[Part]) -> str:
    """One table of all parts, and a line for each that did not show all."""
    lines = [
        "| part | case | | measured | quartiles | / pinned copy |",
        "| --- | --- | --- | ---: | ---: | ---: |",
    ]
    for part in parts:
        for row in part.rows:
            quartiles = f"{number(row.low)} - {number(row.high)}" if row.rounds > 1 else ""
            ratio = number(row.ratios["pinned copy"]) if row.ratios else ""
            cells = (part.name, row.case, row.name, f"{number(row.value)} {row.unit}")
            lines.append("| " + " | ".join((*cells, quartiles, ratio)) + " |")
    failed = [f"**{part.name}** {part.failure}: see above" for part in parts if part.failure]
    return "\n".join([*lines, *([""] if failed else []), *failed])


def machine(where: dict[str, object]) -> str:
    """The device, the machine and the releases."""
    versions = where["versions"]
    assert isinstance(versions, dict)
    releases = ", ".join(f"{name} {version}" for name, version in versions.items())
    return (
        f"{where['device']}; {where['cpu']}, {where['cores']} cores, {where['memory_gb']} GB; "
        f"{where['system']}, Python {where['python']}; {str(where['date'])[:10]}, "
        f"commit {where['commit'] or 'unknown'}.\n\n{releases}."
    )


def _run_here(name: str, options: argparse.Namespace, device: torch.device) -> int:
    """Run a part in this process; its rows are written as they come."""
    options.work.mkdir(parents=True, exist_ok=True)
    settings = Settings(work=options.work.resolve(), size=SIZES[options.size], core=None)
    for row in import_module(f"benchmarks.gpu.{name}").rows(settings, device):
        write_rows(options.out, [row], {})
    return 0


def _arguments(given: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    add = parser.add_argument
    add("--only", nargs="+", choices=list(LIMITS), help="parts, by default all")
    add("--device", default="cuda", help="the device; cpu shows that the command runs, no more")
    add("--size", default="full", choices=list(SIZES), help="how much is measured")
    add("--work", default=Path("runs/gpu/work"), type=Path, help="where stores are kept")
    add("--out", default=Path("runs/gpu/gpu.jsonl"), type=Path, help="results file")
    add("--part", choices=list(LIMITS), help=argparse.SUPPRESS)
    return parser.parse_args(given)


if __name__ == "__main__":
    sys.exit(main())
