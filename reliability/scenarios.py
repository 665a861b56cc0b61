"""Each public method that changes a store, in the situations in which it does something else."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from reliability.hand import Hand, Step
from reliability.interpose import Faults, Killed, Mode
from reliability.model import State
from reliability.places import Place
from reliability.truth import BASE, STRESSED, UNLABELLED, everything, numbers_of, serials

STORE, TARGET = "store", "target"
_GONE = [1, 2, 8, 20]
_FEW = 3


@dataclass(frozen=True)
class Scenario:
    """A call in a situation.

    Parameters
    ----------
    method
        What is called, a name of `Hand`.
    variant
        Of the samples that it writes, where it writes any.
    before
        Methods that the same object has called already, unharmed.
    prepared
        What stands there: "nothing", "filled", "empty" (and no samples in the target either), or
        "left" by a writer that was killed.
    """

    method: str
    variant: int | None = BASE
    before: tuple[str, ...] = ()
    prepared: str = "filled"

    def prepare(self, place: Place) -> State:
        """Make the stores as the scenario finds them; what they hold."""
        state = State()
        hand = new_hand(place)
        if self.prepared in ("filled", "left"):
            first: Step = ("write", {"start": 0, "count": place.stored, "variant": BASE})
            hand(*first)
            state = state.after(first)
        if self.prepared == "empty":
            for name in (STORE, TARGET):
                other = Hand(place.at(name), place.at(TARGET), place.config)
                other("write", {"start": 0, "count": 3, "variant": BASE})
                other("zero", {})
                other("close", {})
        hand("close", {})
        if self.prepared == "left":
            leave_killed(place, state)
            state = State(tuple(serials(everything(place.at(STORE)))))
        return state

    def begin(self, place: Place, state: State) -> tuple[Hand, State]:
        """The object on which the call is made, after what it did before, and what is there now."""
        hand = new_hand(place)
        for name in self.before:
            step = step_of(name, state, _FEW, BASE)
            hand(*step)
            state = state.after(step)
        return hand, state

    def step(self, place: Place, state: State) -> Step:
        """The call."""
        return step_of(self.method, state, place.more, self.variant)


SCENARIOS: Mapping[str, Scenario] = {
    "write to nothing": Scenario("write", None, prepared="nothing"),
    "write to an emptied store": Scenario("write", prepared="empty"),
    "write, opening": Scenario("write"),
    "write": Scenario("write", before=("write",)),
    "write with a new field": Scenario("write", STRESSED, before=("write",)),
    "write without a field": Scenario("write", UNLABELLED, before=("write",)),
    "write of mixed samples, opening": Scenario("write", None),
    "write after a kill": Scenario("write", None, prepared="left"),
    "flush": Scenario("flush", before=("write",)),
    "close": Scenario("close", before=("write",)),
    "zero": Scenario("zero", before=("write",)),
    "zero, opening": Scenario("zero"),
    "drain": Scenario("drain", before=("write",)),
    "drain, opening": Scenario("drain"),
    "AtomicDataZarrWriter.write": Scenario("first", prepared="nothing"),
    "AtomicDataZarrWriter.append": Scenario("append", before=("append",)),
    "add_custom": Scenario("add_custom", before=("append",)),
    "delete": Scenario("delete", before=("append",)),
    "defragment": Scenario("defragment", before=("append", "delete")),
    "AtomicDataZarrWriter.close": Scenario("close", before=("append",)),
    "compact": Scenario("compact", before=("append", "delete", "close")),
    "merge": Scenario("merge"),
    "merge into an empty store": Scenario("merge", prepared="empty"),
    "opening": Scenario("open"),
    "opening after a kill": Scenario("open", prepared="left"),
}
"""By name."""


def possible(name: str, place: str) -> bool:
    """Whether a kind of store can do what a scenario does."""
    return place != "remote" or SCENARIOS[name].method not in ("defragment", "compact")


def new_hand(place: Place) -> Hand:
    """A new object for the store of a place."""
    return Hand(place.at(STORE), place.at(TARGET), place.config)


def step_of(name: str, state: State, count: int, variant: int | None) -> Step:
    """Call of a method on what is there."""
    given: dict[str, Any] = {}
    if name in ("write", "append", "first"):
        start = max(state.numbers, default=-1) + 1
        given = {"start": start, "count": count, "variant": variant}
    elif name == "delete":
        given = {"indices": [*_GONE, len(state.numbers) - 1]}
    elif name == "add_custom":
        given = {"key": "mark", "numbers": list(state.numbers)}
    elif name == "drain":
        given = {"marks": {mark: sorted(numbers) for mark, numbers in state.marks.items()}}
    return name, given


def leave_killed(place: Place, state: State) -> None:
    """Leave the store as a writer that was killed in an append with a new field leaves it."""
    start = max(state.numbers) + 1
    given = {"start": start, "count": place.more, "variant": STRESSED}
    assert not np.isin(numbers_of(**given), state.numbers).any()
    place.keep()
    counted = Faults()
    hand = new_hand(place)
    with place.meeting(counted):
        hand("write", given)
    hand("close", {})
    place.restore()
    changes = [number for number, (_, change) in enumerate(counted.met) if change]
    last = Faults(Mode.KILL, changes[-1])  # the pointers, without which nothing is there
    hand = new_hand(place)
    with place.meeting(last):
        try:
            hand("write", given)
        except Killed:
            return
    raise AssertionError("the last operation of an append did not happen again")
