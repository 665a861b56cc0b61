"""A report as data: `measure` makes it; `figures`, `page` and JSON show it."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import numpy as np
import numpy.typing as npt

from zarrpipe.data.batch import Batch
from zarrpipe.data.tables import Table, html_table
from zarrpipe.reporting.texts import fact_text, words

FloatArray = npt.NDArray[np.float64]


class Kind(StrEnum):
    """How a figure is drawn."""

    HISTOGRAM = "histogram"  # of each series: edges [K + 1] in x, counts [K] in y
    BARS = "bars"  # of each series: labels [K] and heights [K] in y
    LINES = "lines"
    POINTS = "points"
    ELEMENTS = "elements"  # periodic table: of each series symbols in labels, values in y


class Severity(StrEnum):
    """How much a finding matters for training."""

    ERROR = "error"
    WARNING = "warning"
    NOTE = "note"


@dataclass(frozen=True)
class Series:
    """Values of one kind in a figure; points may name their samples [K] of the store.

    `shades` [K], if they are given, are numbers that the colours of points show.
    """

    name: str
    y: FloatArray
    x: FloatArray = field(default_factory=lambda: np.empty(0))
    labels: tuple[str, ...] = ()
    samples: npt.NDArray[np.int64] = field(default_factory=lambda: np.empty(0, dtype=np.int64))
    shades: FloatArray = field(default_factory=lambda: np.empty(0))


@dataclass(frozen=True)
class Figure:
    """A plot, by its numbers; `name` is that of its PNG."""

    name: str
    title: str
    kind: Kind
    series: tuple[Series, ...]
    x_label: str = ""
    y_label: str = ""
    log_x: bool = False
    log_y: bool = False
    note: str = ""
    shade_label: str = ""


@dataclass(frozen=True)
class Finding:
    """A fault or a likely one, the samples that have it, and the way out.

    `samples` are the first of the `count` samples that have it, the worst first: their numbers in
    `Report.stores[store]`. `section` is the name of the section with more detail, or empty.
    """

    severity: Severity
    title: str
    text: str
    way_out: str = ""
    samples: tuple[int, ...] = ()
    count: int = 0
    store: int = 0
    section: str = ""


@dataclass(frozen=True)
class Section:
    """A part of the report under a heading."""

    name: str
    title: str
    text: str = ""
    tables: tuple[Table, ...] = ()
    figures: tuple[Figure, ...] = ()


@dataclass(frozen=True)
class Structures:
    """Structures to turn in the browser, the worst first, with their numbers.

    Parameters
    ----------
    batch : Batch
        The structures [B], with forces where they have them.
    samples : ndarray of int64
        Their numbers [B] in the store; those of the second store follow those of the first.
    properties : mapping of str to ndarray
        Numbers [B] or strings [B] of each structure by name, such as ``max_force``, and
        ``map_1``, ``map_2``: its place in the structure-property map.
    units : mapping of str to str
        Unit of each property that has one.
    orders : mapping of str to ndarray
        By the name of an order, such as "largest force": which of the structures, the worst first.
    """

    batch: Batch
    samples: npt.NDArray[np.int64]
    properties: Mapping[str, Sequence[Any]]
    units: Mapping[str, str] = field(default_factory=dict)
    orders: Mapping[str, npt.NDArray[np.int64]] = field(default_factory=dict)


@dataclass(frozen=True)
class Report:
    """What `zarrpipe.report` found in a store, or in two.

    Parameters
    ----------
    stores : tuple of str
        Places of the stores.
    facts : mapping
        Numbers of the first screen by name, as samples, atoms, elements.
    findings : tuple of Finding
        The worst first.
    sections : tuple of Section
        Tables and figures, in the order of the page.
    structures : Structures or None
        Chosen ones; None if the store is empty.
    looked_at, samples : int
        Samples whose distances were searched, and all samples.
    not_checked : tuple of str
        What the findings do not judge, each with the reason.
    """

    stores: tuple[str, ...]
    facts: Mapping[str, Any]
    findings: tuple[Finding, ...]
    sections: tuple[Section, ...]
    structures: Structures | None
    looked_at: int
    samples: int
    not_checked: tuple[str, ...] = ()

    def _repr_html_(self) -> str:
        """Facts and findings for notebooks; `write_page` writes the whole report."""
        facts = [(words(name), fact_text(name, value)) for name, value in self.facts.items()]
        findings = [
            (one.severity.value, one.title, one.count or len(one.samples) or "", one.way_out)
            for one in self.findings
        ]
        places = " and ".join(self.stores)
        columns = ("", "finding", "samples", "way out")
        return html_table(f"report of {places}", ("", ""), facts) + html_table(
            f"{len(findings)} findings", columns, findings
        )

    def to_dict(self) -> dict[str, Any]:
        """Convert to plain types, for JSON: all numbers of facts, findings, tables and figures.

        The keys are the names of the parameters. Of the structures, `samples`, `properties`,
        `units` and `orders` are there, and no atoms.
        """
        found: dict[str, Any] = _plain(self)
        return found


def _plain(value: Any) -> Any:
    """Dataclasses, arrays and mappings as lists, dicts and numbers; a `Batch` is left out."""
    if dataclasses.is_dataclass(value):
        parts = {item.name: getattr(value, item.name) for item in dataclasses.fields(value)}
        return {name: _plain(part) for name, part in parts.items() if not isinstance(part, Batch)}
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    if isinstance(value, Mapping):
        return {str(key): _plain(one) for key, one in value.items()}
    if isinstance(value, str):
        return str(value)
    return (
        [_plain(one) for one in value]
        if isinstance(value, tuple | list | set | frozenset | range)
        else value
    )
