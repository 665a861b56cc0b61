"""What an import will do, told before it writes, and what it has done."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from zarrpipe.adapters.dialects import LABELS, unit_of
from zarrpipe.data.batch import Batch
from zarrpipe.data.fields import CORE_FIELDS
from zarrpipe.errors import ArgumentError, LabelError
from zarrpipe.formats.read.conversion import SourceUnits, normalized_unit
from zarrpipe.formats.read.frames import (
    POSITIONS,
    Entry,
    Failure,
    FrameBlock,
    Kind,
    Part,
    Scan,
)
from zarrpipe.formats.read.labels import ISOLATED_ATOM, LabelPlan
from zarrpipe.formats.read.sources import Source
from zarrpipe.transforms.units import parse

_SHOWN = 20
"""Failures that a report lists one by one."""


class ScannedSource(NamedTuple):
    """A source and what a look through it found."""

    source: Source
    scan: Scan


@dataclass(frozen=True)
class ImportPlan:
    """The sources of an import, and the field, unit and sign of each of their keys.

    Parameters
    ----------
    sources
        Each source with its scan.
    labels
        The keys of each field, and why others are left out.
    units
        Units of the sources, and the factors to those of ASE.
    not_recognised
        Files in directories that no reader takes.
    doubts
        What is not plausible about the labels, if the import was told to go on.
    stated
        Units that the sources state of their labels, where these are not those of ASE.
    units_given
        Names of the units that were given, before which those of sources have no say.
    """

    sources: tuple[ScannedSource, ...]
    labels: LabelPlan
    units: SourceUnits
    isolated: bool = False
    not_recognised: tuple[str, ...] = ()
    doubts: tuple[str, ...] = ()
    stated: Mapping[str, str] = field(default_factory=dict)
    units_given: Collection[str] = ()

    @property
    def num_frames(self) -> int:
        """Number of frames that can be read, as far as is known."""
        return sum(scan.num_frames for _, scan in self.sources)

    @property
    def failures(self) -> tuple[Failure, ...]:
        """Frames that a look through the sources found unreadable."""
        return tuple(failure for _, scan in self.sources for failure in scan.failures)

    @property
    def left_out(self) -> dict[Entry, str]:
        """Why entries are left out, of which some sources may have others that are taken."""
        found = {entry: why for _, scan in self.sources for entry, why in scan.left_out.items()}
        return {**found, **self.labels.left_out}

    def parts(self) -> list[tuple[int, Part]]:
        """All parts in order, each with the place of its source."""
        return [
            (place, part) for place, (_, scan) in enumerate(self.sources) for part in scan.parts
        ]

    def to_dict(self) -> dict[str, Any]:
        """The plan as plain types."""
        return {
            "frames": self.num_frames,
            "sources": [
                {"path": source.path, "format": source.reader.name, "frames": scan.num_frames}
                for source, scan in self.sources
            ],
            "fields": {
                name: {
                    "keys": [_key(entry) for entry in entries],
                    "level": self.labels.level(name),
                    "unit": self.units.unit(name),
                    "factor": self.units.factors.get(name, 1.0),
                }
                for name, entries in self.labels.fields.items()
            },
            "left_out": {_key(entry): why for entry, why in self.left_out.items()},
            "not_recognised": list(self.not_recognised),
            "doubts": list(self.doubts),
        }

    def __str__(self) -> str:
        return "\n".join(self._lines())

    def _lines(self) -> Iterable[str]:
        count = len(self.sources)
        yield f"{count} {'source' if count == 1 else 'sources'}, {self.num_frames:,} frames"
        names = {name: self._described(name) for name in self.labels.fields}
        width = max(map(len, [*names, *[ISOLATED_ATOM] * self.isolated]), default=0)
        for name in sorted(names, key=lambda name: (name not in LABELS.values(), name)):
            yield f"  {name:{width}}  from {names[name]}"
        if self.isolated:
            yield f"  {ISOLATED_ATOM:{width}}  marks single atoms"
        files = any(source.reader.name != "zarr" for source, _ in self.sources)
        for name in ("energy", "forces") if files else ():
            if name not in names:
                yield f"  no {name}: no key is named as one; labels={{{name!r}: KEY}} names it"
        if not all(scan.exhaustive for _, scan in self.sources):
            yield "  keys of some frames only were looked at; what others add is told at the end"
        left_out = self.left_out
        if left_out or self.not_recognised:
            yield "left out:"
        for entry, why in left_out.items():
            yield f"  {entry} {why}"
        for path in self.not_recognised:
            yield f"  {path} is of no known format"
        for doubt in self.doubts:
            yield f"doubtful: {doubt}"

    def _described(self, name: str) -> str:
        """Keys, unit and conversion of a field."""
        entries = self.labels.fields[name]
        text = ", else ".join(map(str, entries))
        factor, unit = self.units.factors.get(name, 1.0), self.units.unit(name)
        if self.labels.kinds[entries[0]].type == "str":
            return f"{text}, text"
        if factor != 1.0:
            return f"{text}, {unit} times {factor:.9g} is {CORE_FIELDS[name].unit}"
        return f"{text}, {unit}" if unit else text


def _key(entry: Entry) -> str:
    return f"{entry.place}:{entry.key}" if entry.place else entry.key


@dataclass
class ImportReport:
    """What an import has done.

    Parameters
    ----------
    plan
        What was decided before.
    num_samples
        Samples that this call wrote.
    num_before
        Samples of this import that were there already, of a call that was killed.
    failures
        Frames that could not be read, each by file, number and line.
    not_finite
        Number of samples with NaN or infinity, by label; they are stored as they are.
    cut
        Fields of strings that had too many different ones, and the samples that lack them.
    left_out
        Why entries were left out of frames behind those that were looked at first.
    """

    plan: ImportPlan
    num_samples: int = 0
    num_before: int = 0
    failures: list[Failure] = field(default_factory=list)
    not_finite: dict[str, int] = field(default_factory=dict)
    cut: dict[str, int] = field(default_factory=dict)
    left_out: dict[Entry, str] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """The report as plain types."""
        plan = self.plan.to_dict()
        later = {_key(entry): why for entry, why in self.left_out.items()}
        return {
            **plan,
            "left_out": {**later, **plan["left_out"]},
            "samples": self.num_samples,
            "samples_before": self.num_before,
            "failures": [failure._asdict() for failure in self.failures],
            "not_finite": self.not_finite,
            "cut": self.cut,
        }

    def __str__(self) -> str:
        return "\n".join(self._lines())

    def _lines(self) -> Iterable[str]:
        before = f", after {self.num_before:,} that were there" if self.num_before else ""
        yield f"{self.num_samples:,} samples written{before}"
        for name, count in self.not_finite.items():
            yield f"{count:,} samples have {name} that is NaN or infinite"
        for name, count in self.cut.items():
            yield f"{count:,} samples lack {name}, which has too many different strings for a field"
        for entry, why in self.left_out.items():
            yield f"some samples lack {entry}, which {why}"
        if self.failures:
            yield f"{len(self.failures):,} frames could not be read:"
        yield from (f"  {failure}" for failure in self.failures[:_SHOWN])
        if len(self.failures) > _SHOWN:
            yield f"  and {len(self.failures) - _SHOWN:,} more"


def united_entries(scans: Iterable[Scan]) -> dict[Entry, frozenset[Kind]]:
    """Kinds of the values of each entry in all scans."""
    found: dict[Entry, frozenset[Kind]] = {}
    for scan in scans:
        for entry, kinds in scan.entries.items():
            found[entry] = found.get(entry, frozenset()) | kinds
    return found


def check_levels_used(levels: Mapping[str, str], scans: Sequence[Scan]) -> None:
    """Raise ArgumentError if levels are given for a key that no source has."""
    known = {entry.key for scan in scans for entry in scan.entries}
    wrong = sorted(levels.keys() - known)
    if wrong:
        raise ArgumentError(
            f"levels has {wrong}, which no source of unsaid levels has; there is "
            f"{', '.join(sorted(known)) or 'nothing'}"
        )


def stated_units(
    blocks: Sequence[FrameBlock | Batch],
    labels: LabelPlan,
    given: Mapping[str, str],
    scans: Sequence[Scan] = (),
) -> dict[str, str]:
    """Units that the sources state of their labels, where these are not those of ASE.

    Frames that state none have the unit of ASE. Those that are `given` are not looked at. Raises
    LabelError for a unit that is not known, and for several units of a label.
    """
    found = _units_of_scans(labels, given, scans)
    for block in blocks:
        for name, texts in units_beside(block, labels, given).items():
            found[name] = found.get(name, set()) | texts
    units: dict[str, str] = {}
    for name, texts in found.items():
        spellings = {_unless_ours(name, text) for text in texts}
        if len(spellings) > 1:
            shown = ", ".join(sorted(text or "none" for text in texts))
            raise LabelError(
                f"the files state several units of {name} ({shown}): give units={{{name!r}: ...}} "
                f"(--units {name}=...), or import them one by one"
            )
        (unit,) = spellings
        if unit:
            units[name] = unit
    return units


def units_beside(
    block: FrameBlock | Batch, labels: LabelPlan, given: Collection[str]
) -> dict[str, set[str]]:
    """Units that frames state beside a label, as in ``stress_unit=GPa``; "" for none.

    Labels beside which no frame states a unit are left out.
    """
    found: dict[str, set[str]] = {}
    if isinstance(block, Batch):
        return found
    for entry, column in block.columns.items():
        name = unit_of(entry.key)
        if name is None or name not in labels.fields or name in given:
            continue
        if column.values.dtype != object:
            continue
        there = np.zeros(len(block), dtype=bool)
        for source in labels.fields[name]:
            there |= block.columns[source].present if source in block.columns else False
        texts = {str(text) for text in column.values[column.present & there]}
        silent = {""} if (there & ~column.present).any() else set()
        found[name] = texts | silent
    return found


def check_units_beside(block: FrameBlock | Batch, plan: "ImportPlan") -> None:
    """Refuse frames that state another unit of a label than those that were looked at."""
    for name, texts in units_beside(block, plan.labels, plan.units_given).items():
        planned = _unless_ours(name, plan.stated.get(name, ""))
        wrong = {text for text in texts if _unless_ours(name, text) != planned}
        if wrong:
            raise LabelError(
                f"frames state {', '.join(sorted(text or 'no unit' for text in wrong))} as the "
                f"unit of {name}, and those that were looked at {planned or 'that of ASE'}: give "
                f"units={{{name!r}: ...}} (--units {name}=...), or import them apart"
            )


def _unless_ours(name: str, text: str) -> str:
    """Unit written out; "" for none and for that of ASE. Raises LabelError if it is not known."""
    if text in ("", "none") or name not in CORE_FIELDS:
        return "" if text == "none" else text
    try:
        return (
            ""
            if parse(normalized_unit(text)) == parse(CORE_FIELDS[name].unit)
            else normalized_unit(text)
        )
    except ArgumentError as error:
        raise LabelError(
            f"the files state a unit of {name}, and {error}: give units={{{name!r}: ...}} "
            f"(--units {name}=...)"
        ) from None


def _units_of_scans(
    labels: LabelPlan, given: Mapping[str, str], scans: Sequence[Scan]
) -> dict[str, set[str]]:
    """Units of fields that sources state as a whole; a source that is silent states "none"."""
    found: dict[str, set[str]] = {}
    fields = {**labels.fields, "positions": (POSITIONS,)}
    for name, entries in fields.items():
        if not any(entry in scan.units for scan in scans for entry in entries) or name in given:
            continue
        found[name] = {
            scan.units.get(entry, "none")
            for scan in scans
            for entry in entries
            if entry in scan.entries or entry in scan.units or entry == POSITIONS
        }
    return found
