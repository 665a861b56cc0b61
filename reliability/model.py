"""What a store must hold after each step, and after one that a kill cut short."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from reliability.hand import Step
from reliability.truth import numbers_of

_WRITES = ("write", "append", "first")
_EMPTIES = ("drain", "zero")


@dataclass(frozen=True)
class State:
    """Samples of a store.

    Parameters
    ----------
    numbers
        In order.
    marks
        Fields that were added to what was stored, and which samples had been stored.
    """

    numbers: tuple[int, ...] = ()
    marks: Mapping[str, frozenset[int]] = field(default_factory=dict)

    def after(self, step: Step) -> "State":
        """What is there once a step is done."""
        name, given = step
        if name in _WRITES:
            return State((*self.numbers, *_new(given)), self.marks)
        if name in _EMPTIES:
            return State()
        if name == "delete":
            gone = set(given["indices"])
            kept = (n for place, n in enumerate(self.numbers) if place not in gone)
            return State(tuple(kept), self.marks)
        if name == "add_custom":
            return State(self.numbers, {**self.marks, given["key"]: frozenset(self.numbers)})
        return self


def _new(given: Mapping[str, Any]) -> list[int]:
    written: list[int] = numbers_of(**given).tolist()
    return written


def explain(before: State, step: Step | None, found: Sequence[int]) -> tuple[str, str] | None:
    """What is wrong with the samples that are found; None if nothing is.

    Parameters
    ----------
    before
        What was acknowledged.
    step
        What was being done; None for nothing.
    found
        Numbers of the samples that are there.

    Returns
    -------
    kind, text
        As `Findings.add` takes them.
    """
    after = before if step is None else before.after(step)
    held, there = set(before.numbers), list(found)
    must = held & set(after.numbers)
    if step is not None and step[0] in _EMPTIES and not there:
        return None
    if step is not None and step[0] in _EMPTIES:
        must = held
    missing = must - set(there)
    if missing:
        return "lost", f"{len(missing)} of {len(must)} samples, {sorted(missing)[:5]} among them"
    extra = set(there) - held - set(after.numbers)
    if extra or len(set(there)) != len(there):
        return "torn", f"{len(there)} samples, {sorted(extra)[:5]} are not to be there"
    order = [*before.numbers, *(n for n in after.numbers if n not in held)]
    allowed = [n for n in order if n in set(there)]
    if allowed != there:
        return "wrong", "the order of the samples is another"
    if step is not None and step[0] in _WRITES and order[: len(there)] != there:
        return "torn", "the samples of the last batch are no prefix of it"
    return None
