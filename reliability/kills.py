"""Processes that are killed while they change a store, at moments that nobody chose.

Each life opens the store that the last one left, goes through some methods and is killed, most
often by a timer of the system that it starts as it calls the method whose turn it is: after a
random part of the time that this method takes, to the microsecond. The others are killed from
outside. Then a reader compares every acknowledged sample by value.
"""

import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from reliability.hand import OBJECT, Step
from reliability.lives import CONFIGS, TARGET, Lives, Told
from reliability.model import State, explain
from reliability.report import Findings, Order
from reliability.truth import (
    BASE,
    STRESSED,
    UNLABELLED,
    WEIGHED,
    everything,
    numbers_of,
    serials,
    wrong_values,
)

METHODS = (
    "open",
    "write",
    "append",
    "first",
    "add_custom",
    "delete",
    "defragment",
    "compact",
    "merge",
    "drain",
    "zero",
    "flush",
    "close",
)
_SECONDS = {"open": 0.05, "first": 0.15, "defragment": 0.8, "compact": 0.8, "merge": 0.8}
"""How long methods take that take longer than 20 ms, until it is known better."""

_MANY = 2500  # samples, from which on a store is emptied
_VARIANTS = (BASE, BASE, BASE, STRESSED, UNLABELLED, WEIGHED, None)


class History:
    """One store through many lives.

    Parameters
    ----------
    work
        Directory of the store, which is made.
    config
        Its kind, a name of `CONFIGS`.
    rng
        Draws what is done.
    """

    def __init__(self, work: Path, config: str, rng: np.random.Generator) -> None:
        self.config, self.rng = config, rng
        self.store = work / config / "store"
        self.store.parent.mkdir(parents=True)
        self.state, self.before, self.next = State(), State(), 0

    @property
    def target(self) -> Path:
        """Where merges go."""
        return self.store.with_name(TARGET)

    def plan(self, method: str) -> tuple[list[Step], int]:
        """Steps of a life, and which of them is the call of `method`."""
        steps: list[Step] = [("open", {})] if (self.store / "zarr.json").exists() else []
        state, held = self.state, "writer" if steps else ""
        if method == "open" and steps:
            return [*steps, self._drawn("append" if state.numbers else "first", state)], 0
        before = [str(self.rng.choice(("write", "append", "delete", "flush"))) for _ in range(2)]
        before += ["write"] * (len(state.numbers) < 40)
        if len(state.numbers) > _MANY or method == "first":
            before = [str(self.rng.choice(("drain", "zero")))]
        armed = 0
        for name in (*before, method, "write", "close"):
            chosen = "write" if name == "open" else name
            if not state.numbers and chosen in ("append", "delete", "add_custom", "drain"):
                chosen = "write" if method != "first" else "zero"
            wanted = held if chosen == "close" else OBJECT.get(chosen, "")
            if held and held != wanted:
                steps.append(("close", {}))
            held = "" if chosen == "close" else wanted
            armed = len(steps) if name == method else armed
            steps.append(self._drawn(chosen, state))
            state = state.after(steps[-1])
        return steps, armed

    def _drawn(self, name: str, state: State) -> Step:
        """A call of a method with drawn arguments."""
        given: dict[str, Any] = {}
        if name in ("write", "append", "first"):
            count = int(self.rng.choice((1, 7, 64, 400)))
            variant = _VARIANTS[int(self.rng.integers(len(_VARIANTS)))]
            given = {"start": self.next, "count": count, "variant": variant}
            self.next = int(numbers_of(**given)[-1]) + 1
        elif name == "delete":
            share = self.rng.random(len(state.numbers)) < self.rng.uniform(0, 0.2)
            given = {"indices": np.flatnonzero(share).tolist()}
        elif name == "add_custom":
            self.next += 1
            given = {"key": f"mark{self.next}", "numbers": list(state.numbers)}
        elif name == "drain":
            given = {"marks": {mark: sorted(numbers) for mark, numbers in state.marks.items()}}
        return name, given

    def check(self, steps: list[Step], told: Told, found: Findings) -> str:
        """Compare what is there with what must be; the method that was cut short."""
        state, pending, merged = self.state, None, State()
        for step, result in zip(steps, told.ended, strict=False):
            merged = state if step[0] == "merge" else merged
            if step[0] == "drain" and result is not None:
                self._compare("what drain gave", state, None, result[0], result[1], found)
            state = state.after(step)
        if told.begun > len(told.ended):
            pending = steps[told.begun - 1]
            merged = state if pending[0] == "merge" else merged
        where = f"{self.config} store, {pending[0] if pending else 'nothing'} was going on"
        if told.error:
            found.add("stuck", f"{where}: {told.error}; steps {_names(steps)}")
        if self._check_store(where, state, pending, found):
            self._check_target(where, steps, told, merged, found)
        else:  # from here on a new store, so that one defect is told once
            shutil.rmtree(self.store.parent)
            self.store.parent.mkdir()
            self.state = State()
        return pending[0] if pending else "nothing"

    def settle(self, step: Step, lives: Lives, found: Findings) -> None:
        """Open the store after a deletion that was cut short: only then it is told to readers."""
        told = lives.live(self.store, self.config, [("open", {}), ("close", {})])
        if told.error:
            found.add("stuck", f"{self.config} store, opened after a deletion: {told.error}")
        there = everything(self.store)
        self._compare(
            f"{self.config} store, opened after a deletion",
            self.before,
            step,
            serials(there),
            wrong_values(there, self.state.marks),
            found,
        )
        self.state = State(tuple(serials(there)), self.state.marks)

    def _check_store(self, where: str, state: State, step: Step | None, found: Findings) -> bool:
        try:
            there = everything(self.store) if (self.store / "zarr.json").exists() else None
        except Exception as error:  # noqa: BLE001  whatever it is, the store does not open
            found.add("unopened", f"{where}: {type(error).__name__}: {error}")
            return False
        numbers, wrong = serials(there), wrong_values(there, state.marks)
        marks = state.marks
        if wrong and step is not None and step[0] == "add_custom":
            marks = state.after(step).marks
            wrong = wrong_values(there, marks)
        right = self._compare(where, state, step, numbers, wrong, found)
        self.before, self.state = state, State(tuple(numbers), marks if numbers else {})
        found.done["samples compared"] += len(numbers)
        return right

    def _compare(
        self,
        where: str,
        state: State,
        step: Step | None,
        numbers: list[int],
        wrong: str | None,
        found: Findings,
    ) -> bool:
        defect = explain(state, step, numbers) or (("wrong", wrong) if wrong else None)
        if defect is not None:
            found.add(defect[0], f"{where}: {defect[1]}")
        return defect is None

    def _check_target(
        self, where: str, steps: list[Step], told: Told, merged: State, found: Findings
    ) -> None:
        """What a merge left is twice the `merged` samples or nothing, and there if it ended."""
        ended = [step[0] for step, _ in zip(steps, told.ended, strict=False)]
        if not self.target.exists():
            if "merge" in ended:
                found.add("lost", f"{where}: the merged store is not there")
            return
        try:
            there = everything(self.target)
        except Exception as error:  # noqa: BLE001  whatever it is, the store does not open
            found.add("unopened", f"{where}, the merged store: {type(error).__name__}: {error}")
        else:
            numbers = serials(there)
            expected = list(merged.numbers) * 2
            if numbers != expected or wrong_values(there, merged.marks):
                found.add("torn", f"{where}: the merged store has {len(numbers)} samples")
            found.done["merged stores compared"] += 1
        shutil.rmtree(self.target)


def _names(steps: list[Step]) -> list[str]:
    return [name for name, _ in steps]


def run(order: Order) -> Findings:
    """Kill `order.count` processes, each method's turn after the other."""
    found, rng = Findings(), np.random.default_rng(order.seed)
    histories = [History(order.work, config, rng) for config in CONFIGS]
    usual = {(kind, name): _SECONDS.get(name, 0.02) for kind in CONFIGS for name in METHODS}
    struck: Counter[str] = Counter()
    with Lives() as lives:
        for number in range(order.count or 0):
            history = histories[number % len(histories)]
            steps, armed = history.plan(METHODS[number // len(histories) % len(METHODS)])
            key = history.config, steps[armed][0]
            kill: dict[str, float] = {}
            if number % 7 == 6:
                kill = {"outside": float(rng.uniform(0, 0.4))}
            else:
                kill = {"delay": float(rng.uniform(0, 1.1 * usual[key]))}
            told = lives.live(history.store, history.config, steps, armed=armed, **kill)
            if told.begun == armed + 1 > len(told.ended) and "delay" in kill:
                usual[key] = max(usual[key], 1.5 * kill["delay"])  # at least as long as it lasted
            elif len(told.ended) > armed:
                usual[key] = 0.4 * usual[key] + 0.6 * told.seconds[armed]
            pending = history.check(steps, told, found)
            if pending == "delete" and history.state.numbers:
                history.settle(steps[told.begun - 1], lives, found)
            struck[pending] += 1
            found.done["kills"] += 1
            found.done.update(f"ended {step[0]}" for step in steps[: len(told.ended)])
    found.done.update({f"killed in {name}": count for name, count in struck.items()})
    inside = sum(count for name, count in struck.items() if name != "nothing")
    found.facts["share_of_kills_inside_a_method"] = round(inside / max(1, sum(struck.values())), 3)
    return found
