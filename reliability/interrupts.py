"""Interrupts and signal handlers at every line of every call that changes a store.

A tracer raises KeyboardInterrupt at one line of zarrpipe or zarr, or calls there what a signal
handler might call. For this, calls stay in the main thread, where a user's interrupts would not
reach most of them. A timer of the system interrupts them as they are. The same object then goes on:
the call is repeated, and more is written. After that the object is dropped as by a kill, and the
next writer goes on. Nothing that was acknowledged may be missing.
"""

import dis
import gc
import os
import signal
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from itertools import repeat
from multiprocessing import get_context
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import numpy as np
import zarr

import zarrpipe
from reliability.faults import _WRITES, Trial, _again, _everything
from reliability.hand import OBJECT, Hand, Step
from reliability.model import State
from reliability.places import PLACES, LocalPlace, MemoryPlace, Place
from reliability.report import Findings, Order
from reliability.scenarios import SCENARIOS, STORE, step_of
from reliability.truth import BASE, numbers_of, samples, serials
from zarrpipe.errors import StoreBusyError, StoreClosedError
from zarrpipe.store.write import exclusive_calls as calls
from zarrpipe.store.write import store_writer

_PACKAGE = Path(zarrpipe.__file__).parent
_TRACED = (
    f"{_PACKAGE / 'store'}{os.sep}",
    str(_PACKAGE / "sink.py"),
    f"{Path(zarr.__file__).parent}{os.sep}",
)
_KINDS = ("plain", "compressed", "memory")
_HANDLED = ("write", "write with a new field", "flush", "close", "zero", "drain")
_LEFT_OUT = ("merge", "write of mixed", "zero, opening", "drain, opening", "compact")
_CHANGES = frozenset({"write", "backend", "rewrite", "statistics", "sink.py", "api.py"})
_LOOK: Step = ("flush", {})
_A_FEW, _TIMERS = 6, 40
_HANDLERS = ("write", "flush", "defer", "close", "exit")
_HANDLER_START = 1 << 20


class SmallPlace(LocalPlace):
    """A directory with uncompressed stores of a few chunks, quick to copy and to compare."""

    config: Any = {group: {"chunk_size": 16} for group in ("meta", "core", "custom")}  # noqa: RUF012


@dataclass
class Tracer:
    """Counts lines in the calling thread, and does something at one of them.

    Parameters
    ----------
    at
        Number of the line, from 0 on; -1 for none.
    strike
        What to do there.
    """

    at: int = -1
    strike: Callable[[], object] = field(default=lambda: None)
    met: list[tuple[str, int]] = field(default_factory=list)

    @contextmanager
    def tracing(self) -> Iterator[None]:
        """Trace the block, in which calls stay in this thread."""
        before, others = sys.gettrace(), (calls, store_writer)
        runs = [module.run_uninterrupted for module in others]
        for module in others:
            module.run_uninterrupted = _run  # type: ignore[attr-defined]
        sys.settrace(self._enter)
        try:
            yield
        finally:
            sys.settrace(before)
            for module, run in zip(others, runs, strict=True):
                module.run_uninterrupted = run  # type: ignore[attr-defined]

    def _enter(self, frame: FrameType, event: str, argument: object) -> Any:
        return self._line if frame.f_code.co_filename.startswith(_TRACED) else None

    def _line(self, frame: FrameType, event: str, argument: object) -> Any:
        if event != "line" or frame.f_lasti in _untouched(frame.f_code):
            return self._line
        number = len(self.met)
        self.met.append((frame.f_code.co_filename, frame.f_lineno))
        if number == self.at:
            sys.settrace(None)
            self.strike()
        return self._line


def _run(task: Callable[[], Any]) -> Any:
    return task()


@cache
def _untouched(code: CodeType) -> frozenset[int]:
    """Instructions that begin a line and before which Python itself handles no signal.

    They are the end of a with statement, and the NOP of a ``try:``. What a tracer raises there
    would keep ``__exit__`` from being called.
    """
    found, steps = set(), list(dis.get_instructions(code))
    for index, step in enumerate(steps):
        later = [step for step in steps[index : index + 6] if step.opname != "SWAP"]
        names = [step.opname for step in later[:3]]
        leaves = names == ["LOAD_CONST"] * 3 and {step.argval for step in later[:3]} == {None}
        if leaves or names[:1] == ["NOP"] or names[:2] == ["PUSH_EXC_INFO", "WITH_EXCEPT_START"]:
            found.add(step.offset)
    return frozenset(found)


def interrupt() -> None:
    """What Ctrl-C does."""
    raise KeyboardInterrupt


@dataclass
class Handler:
    """What a signal handler of a user does with the sink that it interrupts.

    Parameters
    ----------
    name
        "write", "flush", "defer", "close" or "exit", which closes before it exits.
    """

    name: str
    hand: Hand
    acknowledged: list[int] = field(default_factory=list)

    def __call__(self) -> None:
        """Do it, and swallow the errors that are promised."""
        sink, numbers = self.hand.sink(), numbers_of(_HANDLER_START, 3, BASE)
        try:
            if self.name in ("write", "defer"):
                getattr(sink, self.name)(samples(numbers))
                self.acknowledged = numbers.tolist()
            elif self.name == "flush":
                sink.flush()
            else:
                sink.close()
        except (StoreBusyError, StoreClosedError):
            pass
        if self.name == "exit":
            raise SystemExit(0)


class Interruption(Trial):
    """A call that is interrupted once."""

    def begin(self, prepared: State) -> tuple[Hand, State, Step]:
        """Put the store back and do what comes before the call."""
        self.place.restore()
        hand, state = self.scenario.begin(self.place, prepared)
        return hand, state, self.scenario.step(self.place, state)

    def make_at(self, prepared: State, tracer: Tracer, where: str) -> None:
        """Interrupt a call at a line, and look at all that comes after it."""
        hand, state, step = self.begin(prepared)
        tracer.strike = interrupt
        with tracer.tracing():
            raised = _attempt(hand, step)
        self.after(hand, state, step, raised, where)

    def make_timed(self, prepared: State, seconds: float, where: str) -> None:
        """Interrupt a call by a timer, as a user does it."""
        hand, state, step = self.begin(prepared)
        with _timer(seconds, interrupt):
            raised = _attempt(hand, step)
        self.after(hand, state, step, raised, where)

    def after(self, hand: Hand, state: State, step: Step, raised: str | None, where: str) -> None:
        """Let the same object go on, kill it, and let the next writer go on."""
        self.found.done["interrupted" if raised else "went on"] += 1
        left = self.judge(where, state, step, raised)
        if left is None:
            return
        if step[0] in _WRITES and left not in (state, state.after(step)):
            self.found.add("torn", f"{where}: a part of the batch is there")
            return
        if raised is not None:
            again = _again(left, step, state)
            if again is not None:
                left = self.go_further(f"{where}, repeated", hand, left, again)
        if left is not None and step[0] in OBJECT | {"close": ""}:
            name = "append" if OBJECT.get(step[0]) == "writer" and left.numbers else "write"
            left = self.go_further(f"{where}, next", hand, left, step_of(name, left, 2, BASE))
        kill(hand)
        if left is not None and self.look(f"{where}, killed", left, _LOOK, strict=True):
            self.go_on(where, left)
            self.check(where)

    def go_further(self, where: str, hand: Hand, left: State, step: Step) -> State | None:
        """Make another call with the object that was interrupted; what must be there then."""
        try:
            hand(*step)
        except Exception as error:  # noqa: BLE001  whatever it is, the object cannot go on
            self.found.add("stuck", f"{where}: {type(error).__name__}: {error}")
            return None
        self.found.done["calls of the same object afterwards"] += 1
        return left.after(step)

    def check(self, where: str) -> None:
        """Look the closed store through."""
        report = zarrpipe.check(self.place.at(STORE), progress=False)
        if not report.ok:
            self.found.add("wrong", f"{where}, check: {report}")

    def make_handled(
        self, prepared: State, name: str, where: str, *, line: int = -1, seconds: float = 0
    ) -> None:
        """Let a handler call the sink at a line, or after a time."""
        hand, state, step = self.begin(prepared)
        hand.sink()
        handler, drained = Handler(name, hand), []  # type: tuple[Handler, list[int]]
        tracer = Tracer(line, handler)
        with tracer.tracing() if line >= 0 else _timer(seconds, handler):
            raised = _attempt(hand, step, drained)
        self.found.done[f"handler {name}: {raised or 'went on'}"] += 1
        self.judge_handled(where, state, step, raised, handler.acknowledged, drained)
        try:
            hand("close", {})  # which writes what was deferred
        except Exception as error:  # noqa: BLE001  whatever it is, the object cannot go on
            self.found.add("stuck", f"{where}: closing: {type(error).__name__}: {error}")
        kill(hand)
        there = self.judge_handled(
            f"{where}, closed", state, step, raised, handler.acknowledged, drained, final=True
        )
        if there is not None:
            self.go_on(where, State(tuple(there)))
            self.check(where)

    def judge_handled(
        self,
        where: str,
        state: State,
        step: Step,
        raised: str | None,
        extra: list[int],
        drained: list[int],
        *,
        final: bool = False,
    ) -> list[int] | None:
        """Numbers that are there, if they may be: each batch is whole, or not there."""
        try:
            there = serials(_everything(self.place.at(STORE)))
        except Exception as error:  # noqa: BLE001  whatever it is, the store does not open
            self.found.add("unopened", f"{where}: {type(error).__name__}: {error}")
            return None
        after = [n for n in state.after(step).numbers if n not in state.numbers]
        empties = step[0] in ("zero", "drain")
        kept, own, more = list(state.numbers), after, extra
        allowed = [[*kept, *own], [*kept, *more, *own], [*kept, *own, *more]]
        if empties:
            allowed = [[], more]
        if raised is not None:
            allowed += [kept, [*kept, *more]]
        if empties and raised is not None:
            allowed += [[], more]
        if final and more and step[0] not in ("zero", "drain"):
            allowed = [one for one in allowed if set(more) <= set(one)]
        if not final and raised is None and not more:
            allowed = [[] if empties else [*kept, *own]]
        if there not in allowed:
            missing = {*kept} - {*there} - {*drained}
            self.found.add(
                "lost" if missing else "torn", f"{where}: {len(there)} samples, {there[-8:]}"
            )
            return None
        return there


def _attempt(hand: Hand, step: Step, drained: list[int] | None = None) -> str | None:
    """Make a call; what it raised."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            told = hand(*step)
            if drained is not None and step[0] == "drain":
                drained += told[0]
    except KeyboardInterrupt:
        return "interrupted"
    except SystemExit:
        return "exited"
    except Exception as error:  # noqa: BLE001  it is told
        return f"unclear: {type(error).__name__}: {error}"
    return None


@contextmanager
def _timer(seconds: float, act: Callable[[], object]) -> Iterator[None]:
    """Do something in a signal handler once, if the timer finds the block inside of a call."""

    def handler(number: int, frame: FrameType | None) -> None:
        while frame is not None and not frame.f_code.co_filename.startswith(_TRACED):
            frame = frame.f_back
        if frame is not None:
            act()

    before = signal.signal(signal.SIGALRM, handler)
    try:
        signal.setitimer(signal.ITIMER_REAL, max(seconds, 1e-6))
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def kill(hand: Hand) -> None:
    """Let go of files and lock as a process that is killed does, without touching the store."""
    held, hand._held = hand._held, None
    if held is not None and held._writer is not None:
        held._writer.abandon()


def places() -> dict[str, Callable[[Path], Place]]:
    """Kinds of stores, by name."""
    return {"plain": SmallPlace, "compressed": PLACES["compressed"], "memory": MemoryPlace}


def run(order: Order) -> Findings:
    """Go through all points, or through `order.count` of them that are drawn."""
    found, rng = Findings(), np.random.default_rng(order.seed)
    names = [name for name in SCENARIOS if not name.startswith(_LEFT_OUT)]
    pairs = [(kind, name) for kind in _KINDS for name in names if order.only in _named(kind, name)]
    if order.count is not None:
        chosen = rng.permutation(len(pairs))[: -(-order.count // _A_FEW)]
        for number in sorted(chosen):
            found.merge(_scenario(order.work, *pairs[number], order.seed, _A_FEW))
        return found
    with ProcessPoolExecutor(mp_context=get_context("spawn")) as pool:
        for told in pool.map(
            _scenario, repeat(order.work), *zip(*pairs, strict=True), repeat(order.seed)
        ):
            found.merge(told)
    return found


def _scenario(work: Path, kind: str, name: str, seed: int, most: int | None = None) -> Findings:
    """Go through the points of a scenario on a kind of store."""
    found, start, where = Findings(), time.perf_counter(), _named(kind, name)
    rng = np.random.default_rng([seed, *where.encode()])
    scenario = SCENARIOS[name]
    place = places()[kind](work / where.replace(" ", "-"))
    prepared = scenario.prepare(place)
    place.keep()
    trial = Interruption(place, scenario, where, found)
    with _few_objects():
        lines, seconds = _lines_of(trial, prepared)
        found.done["lines"] += len(lines)
        for number in _points(lines, rng, most):
            path, line = lines[number]
            at = f"{where}, line event {number} ({Path(path).name}:{line})"
            trial.make_at(prepared, Tracer(number), at)
            found.done["points"] += 1
        for number in range(_TIMERS if most is None else 2):
            after = float(rng.uniform(0, seconds))
            trial.make_timed(prepared, after, f"{where}, timer {number}, {after * 1e3:.3f} ms")
        if name in _HANDLED:
            for number in _points(lines, rng, most and 10, handled=True):
                handler = _HANDLERS[int(rng.integers(len(_HANDLERS)))]
                path, line = lines[number]
                at = f"{where}, handler {handler}, event {number} ({Path(path).name}:{line})"
                trial.make_handled(prepared, handler, at, line=number)
                found.done["handler points"] += 1
            for number in range(_TIMERS if most is None else 5):
                handler, after = _HANDLERS[number % len(_HANDLERS)], float(rng.uniform(0, seconds))
                at = f"{where}, handler {handler}, timer {number}, {after * 1e3:.3f} ms"
                trial.make_handled(prepared, handler, at, seconds=after)
    took = time.perf_counter() - start
    print(f"{where}: {found.done['points']} of {len(lines)} lines in {took:.0f} s", flush=True)
    return found


def _lines_of(trial: Interruption, prepared: State) -> tuple[list[tuple[str, int]], float]:
    """Lines of an undisturbed call, and the seconds that one takes untraced."""
    for _ in range(2):
        hand, _, step = trial.begin(prepared)
        tracer = Tracer()
        with tracer.tracing():
            hand(*step)
        kill(hand)
    hand, _, step = trial.begin(prepared)
    start = time.perf_counter()
    hand(*step)
    took = time.perf_counter() - start
    kill(hand)
    return tracer.met, took


def _points(
    lines: Sequence[tuple[str, int]],
    rng: np.random.Generator,
    most: int | None,
    *,
    handled: bool = False,
) -> list[int]:
    """Numbers of line events: each line that is met, or a few events that are drawn.

    A line of the code that changes stores is taken when it is met first and last, any other at one
    of the times that is drawn.
    """
    if most is not None:
        return sorted(rng.permutation(len(lines))[:most].tolist())
    times: dict[tuple[str, int], list[int]] = {}
    for number, line in enumerate(lines):
        times.setdefault(line, []).append(number)
    chosen: set[int] = set()
    for (path, _), met in times.items():
        changes = path.startswith(_TRACED[:2]) and not _CHANGES.isdisjoint(Path(path).parts)
        if changes and not handled:
            chosen |= {met[0], met[-1]}
        elif changes or not handled:
            chosen.add(met[int(rng.integers(len(met)))])
    return sorted(chosen)


@contextmanager
def _few_objects() -> Iterator[None]:
    """Collect only what is made in the block, without the warnings of coroutines that were cut."""
    gc.collect()
    gc.freeze()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        warnings.simplefilter("ignore", RuntimeWarning)
        try:
            yield
        finally:
            gc.unfreeze()
            gc.collect()


def _named(kind: str, name: str) -> str:
    return f"{name} on a {kind} store"
