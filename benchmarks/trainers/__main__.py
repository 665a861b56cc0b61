"""Train through zarrpipe and through a library's own loader, side by side.

    python -m benchmarks.trainers mace

Prints a line for each library: the largest relative difference of the losses, the seconds of a
step of each, and the shares of time that waited for a batch. Each library needs its environment,
which ``make trainers`` makes.
"""

import argparse
import importlib
import json
import tempfile
from dataclasses import asdict
from pathlib import Path

import torch

from benchmarks.machine import facts
from benchmarks.trainers.run import Pair

LIBRARIES = ("mace", "nequip", "matgl", "schnetpack", "torchmd_net", "fairchem")
HEADER = (
    "| library | release | difference of losses | ms a step, own loader | zarrpipe | ratio "
    "| wait, own loader | zarrpipe |\n|---|---|---|---|---|---|---|---|"
)


def main() -> None:
    """Run the pairs that are named."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.trainers", description=__doc__)
    parser.add_argument("library", nargs="+", choices=LIBRARIES)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--out", type=Path, help="file that gets a line of JSON a library")
    given = parser.parse_args()
    torch.set_num_threads(1)
    print(HEADER)
    for name in given.library:
        with tempfile.TemporaryDirectory() as work:
            pair = importlib.import_module(f"benchmarks.trainers.{name}").pair(
                Path(work), given.steps
            )
        print(row(pair), flush=True)
        if given.out is not None:
            with given.out.open("a") as file:
                file.write(json.dumps({**asdict(pair), "machine": facts()}) + "\n")


def row(pair: Pair) -> str:
    """A line of the table."""
    ours, theirs = pair.ours, pair.theirs
    return (
        f"| {pair.library} | {pair.release} | {pair.difference:.1e} | {theirs.step_s * 1e3:.1f} "
        f"| {ours.step_s * 1e3:.1f} | {pair.ratio:.2f} | {theirs.wait:.1%} | {ours.wait:.1%} |"
    )


if __name__ == "__main__":
    main()
