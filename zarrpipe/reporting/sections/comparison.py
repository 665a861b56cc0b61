"""What one data set has that another lacks."""

from collections.abc import Iterator, Sequence

import numpy as np

from zarrpipe.data.csr import Int64Array
from zarrpipe.data.tables import Table
from zarrpipe.dataset.store_info import number_text
from zarrpipe.reporting.contents import Finding, FloatArray, Section, Severity
from zarrpipe.reporting.findings.finding import MOST_SAMPLES, count_text
from zarrpipe.reporting.findings.samples import SAME_ENERGY
from zarrpipe.reporting.values.measured import Measured
from zarrpipe.reporting.values.structure_map import StructureMap
from zarrpipe.store.query.elements import SYMBOLS, formulas

_USUAL = 0.95
_SHOWN, _FORMULAS, _SAME_FORCE = 25, 10, 1e-3


def comparison(sides: Sequence[Measured], mapped: StructureMap | None) -> Section:
    """Structures, elements, compositions, labels and regions of two data sets."""
    one, other = sides
    tables = [_contents(one, other)]
    shared = shared_structures(one, other)
    differ = shared_that_differ(one, other, *shared)
    if len(differ[0]):
        tables.append(_shared(one, other, *differ))
    text = (
        "Structures are the same where their ids are. Labels are compared where both data sets "
        f"have the structure: {len(shared[0]):,} structures, of which {len(differ[0]):,} differ."
    )
    if mapped is not None:
        new, old = (_beyond(*pair) for pair in (mapped.points, mapped.points[::-1]))
        text += (
            f" Of the evenly spread structures of B {new:.1%} are farther from all of A, by "
            f"descriptors, than {_USUAL:.0%} of A's are from their own neighbours; of A {old:.1%} "
            "from B."
        )
    return Section("comparison", "What B has that A lacks, and the reverse", text, tuple(tables))


def comparison_findings(sides: Sequence[Measured]) -> Iterator[Finding]:
    """Structures with two energies, and elements that the first data set lacks."""
    one, other = sides
    first, second = shared_structures(one, other)
    off = _difference(one, other, first, second)
    worse = np.flatnonzero(np.nan_to_num(off) > SAME_ENERGY)
    if len(worse):
        worse = worse[np.argsort(-off[worse])]
        names = one.samples(first[worse[:1]])[0], other.samples(second[worse[:1]])[0]
        yield Finding(
            Severity.WARNING,
            f"{count_text(len(worse), 'structure')} of B with another energy than in A",
            f"Sample {names[0]} of A is sample {names[1]} of B, and their energies differ by "
            f"{off[worse[0]]:.3g} eV an atom",
            "do not train on both as they are: labels of two methods, or of two units",
            other.samples(second[worse[:MOST_SAMPLES]]),
            len(worse),
            store=1,
            section="comparison",
        )
    new = _elements(other) - _elements(one)
    if new:
        yield Finding(
            Severity.NOTE,
            f"B has {count_text(len(new), 'element')} that A lacks",
            ", ".join(SYMBOLS[z] for z in sorted(new)),
            "a model that was trained on A alone does not know them",
            store=1,
            section="comparison",
        )


def shared_structures(one: Measured, other: Measured) -> tuple[Int64Array, Int64Array]:
    """Places of the first samples of each structure that both have, in each of them."""
    _, first, second = np.intersect1d(one.values.ids, other.values.ids, return_indices=True)
    return first.astype(np.int64), second.astype(np.int64)


def _difference(
    one: Measured, other: Measured, first: Int64Array, second: Int64Array
) -> FloatArray:
    """Difference of the energies of shared structures, eV an atom; NaN without both."""
    off: FloatArray = np.abs(
        one.values.energy_per_atom[first] - other.values.energy_per_atom[second]
    )
    return off


def shared_that_differ(
    one: Measured, other: Measured, first: Int64Array, second: Int64Array
) -> tuple[Int64Array, Int64Array]:
    """Those of the shared structures whose energies or largest forces differ."""
    forces = one.values.max_force[first], other.values.max_force[second]
    with np.errstate(invalid="ignore"):
        differ = _difference(one, other, first, second) > SAME_ENERGY
        differ |= np.abs(forces[0] - forces[1]) > _SAME_FORCE * np.maximum(*forces)
    return first[differ], second[differ]


def _elements(one: Measured) -> set[int]:
    return {*np.flatnonzero(one.values.of_element).tolist()}


def _contents(one: Measured, other: Measured) -> Table:
    """Numbers of what only one of them has, and what both have."""
    rows: list[tuple[str, ...]] = []
    for what, name in (("structures", "ids"), ("compositions", "codes")):
        mine, yours = (np.unique(getattr(side.values, name)) for side in (one, other))
        both = len(np.intersect1d(mine, yours, assume_unique=True))
        rows.append((what, f"{len(yours) - both:,}", f"{len(mine) - both:,}", f"{both:,}"))
    old_elements, new_elements = _elements(one), _elements(other)
    parts = (
        new_elements - old_elements,
        old_elements - new_elements,
        old_elements & new_elements,
    )
    rows.append(("elements", *(_listed([SYMBOLS[z] for z in sorted(part)]) for part in parts)))
    new, old = _only(other, one), _only(one, other)
    rows.append(("most frequent of these compositions", new, old, ""))
    return Table(("", "only in B", "only in A", "in both"), tuple(rows))


def _only(one: Measured, other: Measured) -> str:
    """Most frequent formulas that another data set lacks."""
    codes, first, counts = np.unique(one.values.codes, return_index=True, return_counts=True)
    new = np.flatnonzero(~np.isin(codes, other.values.codes))
    chosen = new[np.argsort(-counts[new], kind="stable")[:_FORMULAS]]
    if not len(chosen):
        return "none"
    batch = one.dataset.gather(one.values.rows[first[chosen]], ())
    texts = formulas(batch.atomic_numbers.numpy(), batch.batch_ptr.numpy())
    pairs = zip(texts, counts[chosen].tolist(), strict=True)
    return ", ".join(f"{text} ({count:,})" for text, count in pairs)


def _listed(names: Sequence[str]) -> str:
    return f"{len(names)}: {' '.join(names)}" if names else "0"


def _shared(one: Measured, other: Measured, first: Int64Array, second: Int64Array) -> Table:
    """Labels of the structures that both have, those that differ most first."""
    off = _difference(one, other, first, second)
    order = np.argsort(-np.nan_to_num(off, nan=-1.0), kind="stable")[:_SHOWN]
    rows = tuple(
        (
            *(str(side.samples(places[[at]])[0]) for side, places in sides),
            *(_number(side.values.energy_per_atom[places[at]]) for side, places in sides),
            *(_number(side.values.max_force[places[at]]) for side, places in sides),
        )
        for at in order
        for sides in [((one, first), (other, second))]
    )
    header = (
        *("sample of A", "sample of B", "energy A (eV/atom)", "energy B (eV/atom)"),
        *("largest force A (eV/Angstrom)", "largest force B (eV/Angstrom)"),
    )
    more = f", {len(rows)} of {len(off):,}" if len(off) > len(rows) else ""
    return Table(header, rows, range(6), f"structures in both, with other labels{more}:")


def _number(value: float) -> str:
    return number_text(float(value)) if np.isfinite(value) else "-"


def _beyond(known: FloatArray, others: FloatArray) -> float:
    """Share of others that are farther from the known than these usually are from each other."""
    if len(known) < 2 or not len(others):
        return float("nan")
    own = np.quantile(_nearest(known, known, itself=True), _USUAL)
    return float((_nearest(others, known) > own + 1e-6).mean())


def _nearest(points: FloatArray, among: FloatArray, *, itself: bool = False) -> FloatArray:
    """Distance [K] from each point to the nearest of others."""
    squares = (points**2).sum(axis=1)[:, None] + (among**2).sum(axis=1) - 2 * points @ among.T
    if itself:
        np.fill_diagonal(squares, np.inf)
    nearest: FloatArray = np.sqrt(np.maximum(squares.min(axis=1), 0.0))
    return nearest
