"""Sections on sizes, elements, compositions, strings and growth."""

from collections.abc import Mapping, Sequence
from functools import partial

import numpy as np

from zarrpipe.data.tables import Table
from zarrpipe.dataset.store_info import number_text
from zarrpipe.reporting.contents import Figure, Kind, Section, Series
from zarrpipe.reporting.sections.plots import (
    MOST_BARS,
    bars,
    histogram,
    legend,
    names_of,
    summary,
    there,
)
from zarrpipe.reporting.values.measured import Group, Measured, counts_of
from zarrpipe.store.query.elements import SYMBOLS, formulas

_FORMULAS, _GROUPS, _IMPORTS, _LONGEST, _FEW = 25, 25, 20, 60, 12


def sizes(sides: Sequence[Measured]) -> Section:
    """Atoms of the samples."""
    figure = histogram(
        sides,
        "sizes",
        "Atoms of a sample",
        lambda one: one.values.atoms.astype(np.float64),
        "atoms",
    )
    table = summary(
        sides, {"atoms of a sample": lambda one: one.values.atoms.astype(np.float64)}, ""
    )
    return Section("sizes", "Sizes", "", (table,), there(figure))


def elements(sides: Sequence[Measured]) -> Section:
    """Periodic tables and a table of the elements."""
    known = np.flatnonzero(sum(one.values.of_element for one in sides))
    symbols = tuple(SYMBOLS[z] for z in known)
    figures = tuple(
        Figure(
            f"elements_{what}",
            f"{what.capitalize()} by element",
            Kind.ELEMENTS,
            tuple(
                Series(label, _by_element(one, what)[known].astype(np.float64), labels=symbols)
                for label, one in zip(legend(sides, what), sides, strict=True)
            ),
            y_label=what,
            log_y=True,
        )
        for what in ("atoms", "samples")
    )
    header, rows = ["element"], [[symbol] for symbol in symbols]
    for label, one in zip(names_of(sides, ""), sides, strict=True):
        header += [f"{label} {what}".strip() for what in ("atoms", "samples", "reference (eV)")]
        for row, z in zip(rows, known, strict=True):
            reference = one.energies.references[z]
            row += [f"{_by_element(one, what)[z]:,}" for what in ("atoms", "samples")]
            row += ["-" if np.isnan(reference) else number_text(float(reference))]
    table = Table(tuple(header), tuple(map(tuple, rows)), range(1, len(header)), "elements:")
    text = (
        "The reference energy of an element is that of one atom, fitted to the total energies by "
        "least absolute deviations."
    )
    return Section("elements", "Elements", text, (table,), figures)


def _by_element(one: Measured, what: str) -> np.ndarray:
    return one.values.of_element if what == "atoms" else one.values.with_element


def compositions(sides: Sequence[Measured]) -> Section:
    """The most frequent formulas."""
    figure = bars(sides, "compositions", "Samples by composition", frequent_formulas)
    text = "; ".join(
        f"{label} {len(np.unique(one.values.codes)):,} different compositions".strip()
        for label, one in zip(names_of(sides, ""), sides, strict=True)
    )
    return Section("compositions", "Compositions", f"{text}.", (), there(figure))


def frequent_formulas(one: Measured) -> Mapping[str, int]:
    """Samples by formula, the most frequent first."""
    codes, first, counts = np.unique(one.values.codes, return_index=True, return_counts=True)
    order = np.argsort(-counts, kind="stable")[:_FORMULAS]
    if not len(codes):
        return {}
    batch = one.dataset.gather(one.values.rows[first[order]], ())
    texts = formulas(batch.atomic_numbers.numpy(), batch.batch_ptr.numpy())
    short = [text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…" for text in texts]
    return dict(zip(short, counts[order].tolist(), strict=True))


def groups(sides: Sequence[Measured]) -> Section | None:
    """Samples and labels by round and by each field of strings, and imports."""
    names = [*dict.fromkeys(group.name for one in sides for group in one.groups)]
    names = [name for name in names if any(_tells(one, name) for one in sides)]
    figures = [
        growth(sides)
        if name == "round" and max(len(_counts(one, name)) for one in sides) > MOST_BARS
        else bars(sides, f"by_{name}", f"Samples by {name}", partial(_counts, name=name))
        for name in names
    ]
    tables = [
        _group_table(one, group, label)
        for label, one in zip(names_of(sides, ""), sides, strict=True)
        for group in one.groups
        if group.name in names
    ]
    tables += [
        table
        for label, one in zip(names_of(sides, ""), sides, strict=True)
        if (table := _imports(one, label)) is not None
    ]
    if not tables:
        return None
    text = (
        "Growth by round, samples by each field of strings, and what imports brought. Strings that "
        "name single samples are left out."
    )
    return Section("groups", "Rounds and sources", text, tuple(tables), there(*figures))


def growth(sides: Sequence[Measured]) -> Figure:
    """Samples until each round."""
    series = []
    for label, one in zip(legend(sides), sides, strict=True):
        counts = _counts(one, "round")
        rounds = np.array([int(text) for text in counts], dtype=np.float64)
        series.append(Series(label, np.cumsum([*counts.values()]).astype(np.float64), rounds))
    title = "Samples until each round"
    return Figure("by_round", title, Kind.LINES, tuple(series), "round", "samples")


def _tells(one: Measured, name: str) -> bool:
    """Whether labels gather samples, other than names of single ones."""
    counts = _counts(one, name)
    gathers = len(counts) <= _FEW or 2 * len(counts) < sum(counts.values())
    return bool(counts) and (gathers or name == "round")


def _counts(one: Measured, name: str) -> Mapping[str, int]:
    for group in one.groups:
        if group.name == name:
            return {label: count for label, count in counts_of(group).items() if count}
    return {}


def _group_table(one: Measured, group: Group, label: str) -> Table:
    """Samples, and medians of the labels, by the most frequent labels of a group."""
    counts = np.array([*counts_of(group).values()])
    order = np.argsort(-counts, kind="stable")[:_GROUPS]
    if group.name == "round":
        order = np.sort(order)
    rows = []
    for code in order[counts[order] > 0].tolist():
        here = group.codes == code
        numbers = (
            _median((one.energies.residual - one.energies.median)[here]),
            _median(one.values.max_force[here]),
        )
        rows.append((group.text(code), f"{counts[code]:,}", *numbers))
    used = int((counts > 0).sum())
    more = f", the {len(rows)} largest of {used:,}" if used > len(rows) else ""
    header = (
        group.name,
        "samples",
        "median energy, after reference energies (eV/atom)",
        "median largest force (eV/Angstrom)",
    )
    return Table(header, tuple(rows), (1, 2, 3), f"{label} by {group.name}{more}:".strip())


def _median(values: np.ndarray) -> str:
    finite = values[np.isfinite(values)]
    return number_text(float(np.median(finite))) if len(finite) else "-"


def _imports(one: Measured, label: str) -> Table | None:
    """Sources that the attributes of the stores name."""
    rows = []
    for facts in one.infos:
        for record in facts.imports:
            sources = record.get("sources", []) if isinstance(record, Mapping) else []
            for source in sources:
                if isinstance(source, Mapping):
                    frames = source.get("frames", 0)
                    rows.append((str(source.get("path", "")), f"{frames:,}"))
    if not rows:
        return None
    more = f", the first {_IMPORTS} of {len(rows):,}" if len(rows) > _IMPORTS else ""
    title = f"{label} imports{more}:".strip()
    return Table(("file", "frames"), tuple(rows[:_IMPORTS]), (1,), title)
