"""What a campaign is asked to do, and what it found."""

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

KINDS = {
    "lost": "acknowledged samples that are not there",
    "torn": "samples that are there in part, or that nobody wrote",
    "wrong": "samples with values that are not theirs",
    "unopened": "stores that no longer open",
    "stuck": "writers that could not go on, or could not repeat what had failed",
    "crashed": "readers that died or hung",
    "unclear": "errors that are not promised, or none where one is",
}
"""What a campaign may find, by name; each is a defect."""

_MOST_SHOWN, _MOST_ALIKE = 20, 2


@dataclass(frozen=True)
class Order:
    """What a campaign is asked to do.

    Parameters
    ----------
    work
        Empty directory for its stores.
    seed
        Of everything that is drawn.
    count
        How many trials; None for the campaign's own number.
    minutes
        How long; None for the campaign's own time.
    only
        Text that the names of its parts have to contain, to meet a defect again.
    """

    work: Path
    seed: int = 0
    count: int | None = None
    minutes: float | None = None
    only: str = ""


@dataclass
class Findings:
    """What a campaign did and found.

    Parameters
    ----------
    done
        How often what was done, by name.
    facts
        Further results that are no defects.
    defects
        Kind and description of each defect, with how to meet it again.
    """

    done: Counter[str] = field(default_factory=Counter)
    facts: dict[str, Any] = field(default_factory=dict)
    defects: list[tuple[str, str]] = field(default_factory=list)
    _shown: Counter[tuple[str, str]] = field(default_factory=Counter, repr=False)

    def add(self, kind: str, text: str) -> None:
        """Note a defect; the first few of those that begin alike are printed at once."""
        if kind not in KINDS:
            raise ValueError(f"kind={kind!r}, expected one of {list(KINDS)}")
        self.defects.append((kind, text))
        alike = (kind, text.partition(",")[0])
        self._shown[alike] += 1
        if self._shown[alike] <= _MOST_ALIKE:
            print(f"{kind.upper()}: {text}", flush=True)

    def merge(self, other: "Findings") -> None:
        """Add what another part of the campaign found."""
        self.done.update(other.done)
        self._shown.update(other._shown)
        self.facts.update(other.facts)
        self.defects += other.defects

    def as_json(self) -> str:
        """For `from_json` in another process."""
        return json.dumps([self.done, self.facts, self.defects])

    @classmethod
    def from_json(cls, text: str) -> "Findings":
        """What `as_json` wrote."""
        done, facts, defects = json.loads(text)
        return cls(Counter(done), facts, [(kind, told) for kind, told in defects])

    def row(self, **more: Any) -> dict[str, Any]:
        """Everything as one JSON object."""
        counts = Counter(kind for kind, _ in self.defects)
        return {
            **more,
            **{kind: counts[kind] for kind in KINDS},
            "defects": [f"{kind}: {text}" for kind, text in self.defects[:_MOST_SHOWN]],
            "done": dict(sorted(self.done.items())),
            **self.facts,
        }


def write_row(out: Path, row: Mapping[str, Any]) -> None:
    """Append a row to a JSON Lines file."""
    out.parent.mkdir(parents=True, exist_ok=True)
    with out.open("a") as file:
        file.write(json.dumps(row) + "\n")


def table(row: Mapping[str, Any]) -> str:
    """The figures of a row for people."""
    lines = [f"{kind:10} {row[kind]:>7}  {about}" for kind, about in KINDS.items()]
    lines += [f"  {name}: {count}" for name, count in row["done"].items()]
    return "\n".join(lines)
