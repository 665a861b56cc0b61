"""One process changes a store in every way there is while others read it in every way there is.

Every value that a reader is given is compared with what the number of its sample says. A reader
may be told that the store was emptied, rewritten or is gone, and then goes on by a refresh or by
opening it again; it may never be given a sample that is not right.
"""

import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from reliability.hand import OBJECT, Hand, Step
from reliability.lives import CONFIGS
from reliability.model import State
from reliability.report import Findings, Order
from reliability.scenarios import step_of
from reliability.truth import BASE, STRESSED, UNLABELLED, WEIGHED

READERS = 8
WHERE = {"write": "live", "read": "readers"}
_MANY = 3000
_VARIANTS = (BASE, BASE, STRESSED, UNLABELLED, WEIGHED, None)
_CHANGES = (
    "write",
    "append",
    "delete",
    "defragment",
    "zero",
    "drain",
    "flush",
    "compact",
    "replace",
)
_WEIGHTS = np.array([12, 8, 2, 1, 0.5, 0.5, 2, 1, 0.5])


def run(order: Order) -> Findings:
    """Read beside a writer for `order.minutes`, with `order.count` readers on each kind."""
    found, seconds = Findings(), 60 * (order.minutes or 1)
    kinds = [kind for kind in ("mapped", "compressed") if order.only in kind]
    for place, kind in enumerate(kinds):
        store = order.work / kind / "store"
        store.parent.mkdir()
        jobs = [_start("write", store, kind, order.seed + place, seconds / len(kinds))]
        for number in range(READERS if order.count is None else order.count):
            seed = order.seed + 1000 * (place + 1)
            jobs.append(_start("read", store, kind, seed, seconds / len(kinds), number))
        for job in jobs:
            told = job.communicate(timeout=seconds + 300)[0]
            if job.returncode == 0:
                *shown, last = told.splitlines()
                print("\n".join(shown), flush=True)
                found.merge(Findings.from_json(last))
            else:
                found.add("crashed", f"{job.args!r}: exit code {job.returncode}")
    found.facts["readers"] = READERS if order.count is None else order.count
    return found


def _start(what: str, *given: Any) -> subprocess.Popen[str]:
    """A process that writes or reads, and tells its findings at its end."""
    return subprocess.Popen(
        [
            sys.executable,
            "-c",
            f"from reliability.{WHERE[what]} import {what}; {what}()",
            json.dumps([str(one) if isinstance(one, Path) else one for one in given]),
        ],
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[1],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def write() -> None:
    """Change a store until the time is over."""
    place, kind, seed, seconds = json.loads(sys.argv[1])
    writer, found = Writer(Path(place), kind, np.random.default_rng(seed)), Findings()
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        found.done[f"writer: {writer.change()}"] += 1
    writer.hand("close", {})
    print(found.as_json())


@dataclass
class Writer:
    """Changes a store, each time in another way."""

    store: Path
    kind: str
    rng: np.random.Generator
    state: State = field(default_factory=State)
    next: int = 0

    def __post_init__(self) -> None:
        self.hand = Hand(self.store, self.store.with_name("merged"), CONFIGS[self.kind])
        self._object = ""

    def change(self) -> str:
        """Change the store once; how."""
        name = str(self.rng.choice(_CHANGES, p=_WEIGHTS / _WEIGHTS.sum()))
        if len(self.state.numbers) > _MANY:
            name = str(self.rng.choice(("zero", "drain", "replace")))
        if len(self.state.numbers) < 40:
            name = "write"
        wanted = OBJECT.get(name, "")
        if self._object != wanted:
            self.hand("close", {})
        self._object = wanted
        if name == "replace":
            self._replace()
            return name
        step = self._step(name)
        self.hand(*step)
        self.state = self.state.after(step)
        if name == "write":
            time.sleep(float(self.rng.uniform(0, 0.005)))
        return name

    def _step(self, name: str) -> Step:
        step = step_of(name, self.state, 0, BASE)
        if name in ("write", "append"):
            variant = _VARIANTS[int(self.rng.integers(len(_VARIANTS)))]
            step = name, {"start": self.next, "count": int(self.rng.integers(1, 120))}
            step[1]["variant"] = variant
            self.next += 160 * 8 + 8 * step[1]["count"]
        elif name == "delete":
            gone = self.rng.random(len(self.state.numbers)) < 0.05
            step = name, {"indices": np.flatnonzero(gone).tolist()}
        return step

    def _replace(self) -> None:
        """Put a store that another process may have written in the place of this one."""
        other, old = self.store.with_name("other"), self.store.with_name("old")
        for left in (other, old):
            shutil.rmtree(left, ignore_errors=True)
        self.state = State()
        step = self._step("write")
        hand = Hand(other, other, CONFIGS[self.kind])
        hand(*step)
        hand("close", {})
        self.store.rename(old)
        other.rename(self.store)
        self.state = self.state.after(step)
        shutil.rmtree(old)
