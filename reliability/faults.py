"""Every operation of every method that changes a store fails, or is the last, one after the other.

No chance is in it: the operations of a call are counted, and then the call is made once for each of
them and each thing that can happen there. The next reader, the next writer and a repetition with
the same object have to find all that was acknowledged.
"""

import errno
import gc
import time
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import repeat
from multiprocessing import get_context
from pathlib import Path

import numpy as np

from reliability.hand import Hand, Step
from reliability.interpose import Faults, Killed, Mode
from reliability.model import State, explain
from reliability.places import PLACES, Place
from reliability.report import Findings, Order
from reliability.scenarios import (
    SCENARIOS,
    STORE,
    TARGET,
    Scenario,
    new_hand,
    possible,
    step_of,
)
from reliability.truth import BASE, everything, serials, wrong_values
from zarrpipe.data.batch import Batch
from zarrpipe.errors import StoreNotFoundError
from zarrpipe.store.backend.location import StoreLike

_A_FEW = 6
_WRITES = ("write", "append", "first")


@dataclass(frozen=True)
class Trial:
    """One call, in which one operation goes wrong."""

    place: Place
    scenario: Scenario
    where: str
    found: Findings

    def make(self, prepared: State, faults: Faults) -> None:
        """Make the call and look at what it left."""
        self.place.restore()
        hand, state = self.scenario.begin(self.place, prepared)
        step = self.scenario.step(self.place, state)
        with self.place.meeting(faults):
            raised = attempt(hand, step, (faults.code,))
        where = f"{self.where}, operation {faults.at} {faults.mode.value}"
        where += f" ({faults.met[faults.at][0]})" if faults.at < len(faults.met) else ""
        self.found.done[f"{faults.mode.value}: {'raised' if raised else 'went on'}"] += 1
        left = self.judge(where, state, step, raised)
        once = faults.mode is Mode.FAIL and raised is not None
        if once and left is not None and step[0] in _WRITES and left.numbers != state.numbers:
            self.found.add("torn", f"{where}: a part of a batch is there that was refused")
            return
        if left is not None and faults.mode not in (Mode.KILL, Mode.TEAR):
            left = self.recover(where, hand, state, left, step, raised)
        del hand
        gc.collect()  # a process that is dead holds no lock
        if left is not None and step[0] == "delete":  # only the next opening tells readers of it
            new_hand(self.place)("open", {})
            gc.collect()
            left = self.look(f"{where}, opened", state, step, strict=raised is None)
        if left is not None and faults.mode is not Mode.FAIL:
            self.go_on(where, left)

    def judge(self, where: str, state: State, step: Step, raised: str | None) -> State | None:
        """Look at what a call left that raised something or nothing; None after a defect."""
        if raised is not None and raised.startswith("unclear"):
            self.found.add("unclear", f"{where}: {raised}")
        left = self.look(where, state, step, strict=raised is None)
        if step[0] == "drain" and raised not in (None, "killed") and left == State():
            self.found.add("lost", f"{where}: the drained samples are neither returned nor there")
            return None
        return left

    def recover(
        self, where: str, hand: Hand, asked: State, left: State, step: Step, raised: str | None
    ) -> State | None:
        """Repeat a call that failed, now that nothing fails, and close the object."""
        repeated = left if raised is None else self.repeat(where, hand, asked, left, step)
        try:
            hand("close", {})
        except Exception as error:  # noqa: BLE001  whatever it is, the object cannot go on
            self.found.add("stuck", f"{where}: closing: {type(error).__name__}: {error}")
            return None
        return repeated

    def look(self, where: str, state: State, step: Step, *, strict: bool) -> State | None:
        """Compare what is there with what may be; what it is, None after a defect."""
        after = state.after(step)
        at = TARGET if step[0] == "merge" else STORE
        if step[0] == "merge":
            defect = self.merged(state, strict=strict)
            if defect:
                self.found.add(*_told(defect, where))
                return None
        try:
            there = _everything(self.place.at(STORE))
        except Exception as error:  # noqa: BLE001  whatever it is, the store does not open
            self.found.add("unopened", f"{where}: {at}: {type(error).__name__}: {error}")
            return None
        numbers = serials(there)
        defect = explain(after if strict else state, None if strict else step, numbers)
        if defect is None:
            wrongs = [wrong_values(there, one.marks) for one in (after, state)[: 2 - strict]]
            if all(wrongs):  # a field that was being added may be there, or not
                defect = "wrong", str(wrongs[0])
            elif wrongs[0]:
                after = state
        if defect:
            self.found.add(*_told(defect, where))
            return None
        return State(tuple(numbers), after.marks if numbers else {})

    def merged(self, state: State, *, strict: bool) -> tuple[str, str] | None:
        """What is wrong with the target of a merge."""
        try:
            there = _everything(self.place.at(TARGET))
        except Exception as error:  # noqa: BLE001  whatever it is, the store does not open
            return "unopened", f"the target: {type(error).__name__}: {error}"
        numbers = serials(there)
        if numbers != [*state.numbers] * 2 and (strict or numbers):
            return "torn", f"the target has {len(numbers)} samples"
        wrong = wrong_values(there, state.marks)
        return ("wrong", wrong) if wrong else None

    def repeat(self, where: str, hand: Hand, asked: State, left: State, step: Step) -> State | None:
        """Call the method that failed again, with the same object, now that nothing fails."""
        again = _again(left, step, asked)
        if again is None or (step[0] == "merge" and self.merged(state=asked, strict=True) is None):
            return left
        try:
            hand(*again)
        except Exception as error:  # noqa: BLE001  whatever it is, the object cannot go on
            self.found.add("stuck", f"{where}: repeated: {type(error).__name__}: {error}")
            return None
        self.found.done["repeated"] += 1
        return self.look(f"{where}, repeated", left, again, strict=True)

    def go_on(self, where: str, left: State) -> None:
        """Let the next writer append, close and find everything."""
        hand = new_hand(self.place)
        step = step_of("write", left, 2, BASE)
        try:
            hand(*step)
            hand("close", {})
        except Exception as error:  # noqa: BLE001  whatever it is, the next writer cannot go on
            self.found.add("stuck", f"{where}: next writer: {type(error).__name__}: {error}")
            return
        self.look(f"{where}, next writer", left, step, strict=True)


def _told(defect: tuple[str, str], where: str) -> tuple[str, str]:
    return defect[0], f"{where}: {defect[1]}"


def _everything(store: StoreLike) -> Batch | None:
    try:
        return everything(store)
    except StoreNotFoundError:
        return None


def attempt(hand: Hand, step: Step, codes: Sequence[int]) -> str | None:
    """Make a call that is to fail with one of the error numbers.

    Returns
    -------
    str or None
        None if it came to its end, "failed" if it raised what it should, "killed" if it was
        killed, else what is unclear about what it raised.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # it was emptied, not all is removed
            hand(*step)
    except Killed:
        return "killed"
    except Exception as error:  # noqa: BLE001  it is told
        chain: BaseException | None = error
        while chain is not None and isinstance(error, OSError):
            if isinstance(chain, OSError) and chain.errno in codes:
                return "failed"
            chain = chain.__cause__ or chain.__context__
        return f"unclear: {type(error).__name__}: {error}"
    return None


def _again(left: State, step: Step, asked: State) -> Step | None:
    """The call that completes what a failed one left; None if nothing is missing."""
    name, given = step
    if name == "delete":
        gone = {asked.numbers[place] for place in given["indices"]}
        places = [place for place, number in enumerate(left.numbers) if number in gone]
        return (name, {"indices": places}) if places else None
    if name == "add_custom" and given["key"] in left.marks:
        return None
    if name in ("write", "append", "first") and left != asked:
        return None  # a part is there, of which the caller was not told
    return step


def points(counted: Faults) -> list[tuple[int, Mode]]:
    """What is to happen where: reads fail, changes fail and kill, and writes tear."""
    found = []
    for number, (name, change) in enumerate(counted.met):
        modes = [Mode.FAIL, Mode.FULL, Mode.KILL] if change else [Mode.FAIL]
        modes += [Mode.TEAR] if name == "os.pwrite" else []
        found += [(number, mode) for mode in modes]
    return found


def run(order: Order) -> Findings:
    """Go through all points, or through `order.count` of them in scenarios that are drawn."""
    found, rng = Findings(), np.random.default_rng(order.seed)
    pairs = [(kind, name) for kind in PLACES for name in SCENARIOS if possible(name, kind)]
    pairs = [pair for pair in pairs if order.only in _named(*pair)]
    if order.count is not None:
        chosen = rng.permutation(len(pairs))[: -(-order.count // _A_FEW)]
        pairs = [pairs[number] for number in sorted(chosen)]
        for kind, name in pairs:
            _all_points(order.work, kind, name, rng, found)
        return found
    with ProcessPoolExecutor(mp_context=get_context("spawn")) as pool:
        for told in pool.map(_every_point, repeat(order.work), *zip(*pairs, strict=True)):
            found.merge(told)
    return found


def _every_point(work: Path, kind: str, name: str) -> Findings:
    """Go through all points of a scenario, in a process of a pool."""
    found = Findings()
    start = time.perf_counter()
    _all_points(work, kind, name, None, found)
    took = time.perf_counter() - start
    print(f"{_named(kind, name)}: {found.done['points']} points in {took:.0f} s", flush=True)
    return found


def _all_points(
    work: Path, kind: str, name: str, rng: np.random.Generator | None, found: Findings
) -> None:
    """Go through the points of a scenario on a kind of store."""
    scenario = SCENARIOS[name]
    place = PLACES[kind](work / _named(kind, name).replace(" ", "-"))
    prepared = scenario.prepare(place)
    place.keep()
    trial = Trial(place, scenario, _named(kind, name), found)
    counted = Faults()
    trial.make(prepared, counted)
    found.done[f"operations of {name}"] += len(counted.met)
    with _few_objects():
        for number, mode in _drawn(points(counted), rng):
            code = errno.ENOSPC if mode is Mode.FULL or number % 2 else errno.EIO
            trial.make(prepared, Faults(mode, number, code))
            found.done["points"] += 1


@contextmanager
def _few_objects() -> Iterator[None]:
    """Collect only what is made in the block, where killed calls leave files and coroutines."""
    gc.collect()
    gc.freeze()
    with warnings.catch_warnings():
        for left in (ResourceWarning, RuntimeWarning):
            warnings.simplefilter("ignore", left)
        try:
            yield
        finally:
            gc.unfreeze()
            gc.collect()


def _named(kind: str, name: str) -> str:
    return f"{name} on a {kind} store"


def _drawn(
    found: Sequence[tuple[int, Mode]], rng: np.random.Generator | None
) -> Iterator[tuple[int, Mode]]:
    chosen = range(len(found)) if rng is None else rng.permutation(len(found))[:_A_FEW]
    yield from (found[number] for number in sorted(chosen))
