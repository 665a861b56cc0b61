"""The findings of a check, and its report."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from zarrpipe.data.levels import Level
from zarrpipe.data.tables import text_table

_FIRST = 5


class Severity(StrEnum):
    """How bad a finding is."""

    ERROR = "error"
    WARNING = "warning"
    NOTE = "note"


_ORDER = {severity: rank for rank, severity in enumerate(Severity)}


@dataclass(frozen=True)
class Finding:
    """One result of a check.

    Parameters
    ----------
    kind
        One word for programs.
    severity
        An error makes samples unreadable or wrong, a warning may do so, a note is a fact.
    place
        Path of the array or file in the store.
    message
        The finding, the expectation and the way out.
    repair, drop
        Actions of ``repair=True``, which loses nothing, and of ``repair=True, drop=True``, which
        deletes samples; "" for none.
    """

    kind: str
    severity: Severity
    place: str
    message: str
    repair: str = ""
    drop: str = ""

    @property
    def repairable(self) -> bool:
        """Whether ``repair=True`` repairs it."""
        return bool(self.repair)

    def __str__(self) -> str:
        lines = [f"{self.severity.value:<8} {self.place}: {self.message} [{self.kind}]"]
        lines += [f"         --repair: {self.repair}"] if self.repair else []
        lines += [f"         --repair --drop: {self.drop}"] if self.drop else []
        return "\n".join(lines)


@dataclass(frozen=True)
class FieldFacts:
    """A stored field: `shape` is that of a row, `present` counts samples that are not deleted."""

    name: str
    level: Level
    dtype: str
    shape: tuple[int, ...]
    unit: str
    present: int


@dataclass(frozen=True)
class Report:
    """The result of `zarrpipe.check`; `print` it to read it.

    Parameters
    ----------
    store
        Place of the store.
    samples, atoms, edges
        Committed numbers, including those of deleted samples.
    deleted
        Number of deleted samples.
    fields, findings
        Stored fields, and findings, the worst first.
    repairs
        Actions of ``repair=True``, in order.

    Examples
    --------
    >>> report = Report("run", 2, 0, 6, 0)
    >>> report.ok, report.exit_code
    (True, 0)
    """

    store: str
    samples: int = 0
    deleted: int = 0
    atoms: int = 0
    edges: int = 0
    fields: tuple[FieldFacts, ...] = ()
    findings: tuple[Finding, ...] = ()
    repairs: tuple[str, ...] = field(default=())

    @property
    def ok(self) -> bool:
        """Whether no finding is an error."""
        return not self.of(Severity.ERROR)

    @property
    def exit_code(self) -> int:
        """0 if `ok`, else 1."""
        return 0 if self.ok else 1

    def of(self, severity: Severity) -> tuple[Finding, ...]:
        """Findings of one severity."""
        return tuple(item for item in self.findings if item.severity is severity)

    def kinds(self, severity: Severity | None = None) -> set[str]:
        """Kinds of the findings, of one severity if given."""
        return {item.kind for item in self.findings if severity in (None, item.severity)}

    def plan(self, *, drop: bool = False) -> tuple[str, ...]:
        """Actions of a repair, each listed once."""
        steps = [item.repair for item in self.findings]
        steps += [f"{item.place}: {item.drop}" for item in self.findings if item.drop and drop]
        return tuple(dict.fromkeys(step for step in steps if step))

    def to_dict(self) -> dict[str, Any]:
        """Convert the report to plain types, for JSON."""
        return {
            "store": self.store,
            "ok": self.ok,
            "samples": self.samples,
            "deleted": self.deleted,
            "atoms": self.atoms,
            "edges": self.edges,
            "fields": [_plain(item) for item in self.fields],
            "findings": [{**_plain(item), "repairable": item.repairable} for item in self.findings],
            "repairs": list(self.repairs),
        }

    def __str__(self) -> str:
        lines = [
            self.store,
            (
                f"  {self.samples:,} samples ({self.deleted:,} deleted), {self.atoms:,} atoms, "
                f"{self.edges:,} edges"
            ),
            *_table(self.fields),
        ]
        if self.repairs:
            lines += ["done:", *(f"  {item}" for item in self.repairs)]
        lines += ["findings:" if self.findings else "findings: none"]
        lines += [f"  {item}".replace("\n", "\n  ") for item in self.findings]
        return "\n".join([*lines, self._verdict])

    @property
    def _verdict(self) -> str:
        count = {severity: len(self.of(severity)) for severity in Severity}
        shown = ", ".join(f"{n} {s.value}{'' if n == 1 else 's'}" for s, n in count.items() if n)
        return f"{'good' if self.ok else 'DAMAGED'}{': ' if shown else ''}{shown}"


def worst_first(findings: list[Finding]) -> tuple[Finding, ...]:
    """Sort findings by severity, and else leave their order."""
    return tuple(sorted(findings, key=lambda item: _ORDER[item.severity]))


def some(numbers: Any, one: str, many: str = "") -> str:
    """The count of numbers and the first of them; `many` is the plural of `one`.

    >>> some([3], "sample"), some(range(7), "sample")
    ('1 sample (3)', '7 samples (0, 1, 2, 3, 4, ...)')
    """
    listed = [int(number) for number in numbers[:_FIRST]]
    shown = ", ".join(map(str, listed)) + (", ..." if len(numbers) > _FIRST else "")
    return f"{len(numbers):,} {one if len(numbers) == 1 else many or f'{one}s'} ({shown})"


def _plain(item: FieldFacts | Finding) -> Mapping[str, Any]:
    return {key: list(v) if isinstance(v, tuple) else v for key, v in vars(item).items()}


def _table(fields: tuple[FieldFacts, ...]) -> list[str]:
    header = [("field", "level", "dtype", "row", "unit", "present")] if fields else []
    rows = [
        (
            *(item.name, item.level, item.dtype, shape_text(item.shape)),
            *(item.unit or "-", f"{item.present:,}"),
        )
        for item in fields
    ]
    return [f"  {line}" for line in text_table(header, rows)]


def shape_text(shape: tuple[int, ...]) -> str:
    """Shape of a row for people.

    >>> shape_text((3, 3)), shape_text(())
    ('3x3', '1')
    """
    return "x".join(map(str, shape)) or "1"
