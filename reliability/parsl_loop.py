"""The Parsl recipe with a worker killed each 20 s, beside a run that is left alone."""

import os
import random
import subprocess
import sys
import time
from pathlib import Path

from reliability.report import Findings, Order
from zarrpipe import ZarrDataset

RECIPE = Path(__file__).resolve().parents[1] / "recipes" / "closed_loop_parsl.py"
PERIOD = 20.0
"""Seconds from one kill to the next."""

KEYS = ("round", "walker", "frame")
FIELDS = ("positions", "energy", "forces", "deviation")
_MARK = "ZARRPIPE_PARSL_RUN"


def run(order: Order) -> Findings:
    """Compare the labels of the two runs, of four workers each; `count` is that of rounds."""
    findings = Findings()
    calm, killed = order.work / "calm", order.work / "killed"
    options = [
        f"--seed={order.seed}",
        f"--rounds={order.count or 6}",
        "--timeout=30",
        "--patience=90",
    ]
    for out, rng in ((calm, None), (killed, random.Random(order.seed))):
        started = time.perf_counter()
        process = _start(out, options)
        kills = 0
        while True:
            try:
                code = process.wait(PERIOD)
                break
            except subprocess.TimeoutExpired:
                kills += rng is not None and _kill_a_worker(out, rng)
        log = out.with_suffix(".log").read_text()
        findings.facts[f"seconds {out.name}"] = round(time.perf_counter() - started, 1)
        findings.facts[f"said {out.name}"] = log.splitlines()[-2:]
        findings.facts[f"pools anew {out.name}"] = log.count("the pools are started anew")
        findings.done["kills"] += kills
        if code:
            findings.add("stuck", f"the run {out.name} ended with {code}, {log[-2000:]}")
            return findings
    expected, found = _labels(calm), _labels(killed)
    findings.done["labels"] += len(found)
    for key in expected.keys() - found.keys():
        findings.add("lost", f"a label, {key}")
    for key in found.keys() - expected.keys():
        findings.add("torn", f"a label that the calm run has not, {key}")
    for key in expected.keys() & found.keys():
        if len(found[key]) > 1:
            findings.add("wrong", f"a label is there {len(found[key])} times, {key}")
        if found[key][0] != expected[key][0]:
            findings.add("wrong", f"a label has another value, {key}")
    return findings


def _start(out: Path, options: list[str]) -> "subprocess.Popen[bytes]":
    """Start the recipe, whose processes are known by a variable of their environment."""
    out.parent.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", _MARK: str(out)}
    with out.with_suffix(".log").open("w") as file:
        return subprocess.Popen(
            [sys.executable, "-W", "ignore", str(RECIPE), f"--out={out}", "--workers=4", *options],
            stdout=file,
            stderr=subprocess.STDOUT,
            env=environment,
        )


def _kill_a_worker(out: Path, rng: random.Random) -> bool:
    """Kill one of the workers, whether it has a task or none; False if there are none yet."""
    import psutil  # noqa: PLC0415  Parsl needs it

    workers = []
    for one in psutil.process_iter():
        try:
            if "parsl_pool" not in " ".join(one.cmdline()):
                continue
            if one.environ().get(_MARK) == str(out):
                started = [part for part in one.children() if "spawn_main" in str(part.cmdline())]
                started.sort(key=psutil.Process.create_time)
                workers += started[1:]  # the first one keeps what the pool and its workers share
        except psutil.Error:
            continue
    if not workers:
        return False
    rng.choice(workers).kill()
    return True


def _labels(out: Path) -> dict[tuple[int, ...], list[bytes]]:
    """The labels of each round, walker and frame."""
    batch = ZarrDataset(out / "labelled.zarr").__getitems__(slice(None))
    found: dict[tuple[int, ...], list[bytes]] = {}
    for index in range(batch.num_graphs):
        system = batch.get_data(index)
        key = tuple(int(system[name]) for name in KEYS)
        found.setdefault(key, []).append(
            b"".join(system[name].numpy().tobytes() for name in FIELDS)
        )
    return found
