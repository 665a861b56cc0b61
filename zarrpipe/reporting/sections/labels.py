"""Sections on labels: presence, energies, forces, stress."""

from collections.abc import Sequence

import numpy as np

from zarrpipe.data.tables import Table
from zarrpipe.dataset.store_info import number_text
from zarrpipe.reporting.contents import Figure, FloatArray, Kind, Section, Series
from zarrpipe.reporting.sections.plots import histogram, legend, names_of, summary, there
from zarrpipe.reporting.values.measured import Measured
from zarrpipe.reporting.values.scan import FORCE_EDGES
from zarrpipe.store.query.elements import SYMBOLS
from zarrpipe.transforms.units import parse

_COMBINED = ("energy", "forces", "stress", "virial", "dipole", "charges")
_ELEMENTS, _COMBINATIONS = 8, 12
_GPA = 1 / parse("GPa").value


def presence(sides: Sequence[Measured]) -> Section:
    """Which samples have which field, and which labels come together."""
    fields = [*dict.fromkeys(name for one in sides for name in one.values.present)]
    header, rows = ["field"], [[name] for name in fields]
    for label, one in zip(names_of(sides, ""), sides, strict=True):
        header += [f"{label} samples".strip(), f"{label} share".strip()]
        for row, name in zip(rows, fields, strict=True):
            has = one.values.present.get(name)
            count = 0 if has is None else int(has.sum())
            row += [f"{count:,}", f"{count / max(1, len(one.values)):.1%}"]
    table = Table(tuple(header), tuple(map(tuple, rows)), range(1, len(header)), "fields:")
    return Section(
        "presence",
        "Presence of labels",
        "",
        (table, *(_together(one, label) for label, one in _labelled(sides))),
    )


def _labelled(sides: Sequence[Measured]) -> list[tuple[str, Measured]]:
    return [*zip(names_of(sides, ""), sides, strict=True)]


def _together(one: Measured, label: str) -> Table:
    """Samples by the labels that they have."""
    names = [name for name in _COMBINED if name in one.values.present]
    codes = np.zeros(len(one.values), dtype=np.int64)
    for place, name in enumerate(names):
        codes += one.values.present[name].astype(np.int64) << place
    found, counts = np.unique(codes, return_counts=True)
    order = np.argsort(-counts, kind="stable")[:_COMBINATIONS]
    rows = tuple(
        (
            ", ".join(name for place, name in enumerate(names) if found[i] >> place & 1) or "none",
            f"{counts[i]:,}",
            f"{counts[i] / len(codes):.1%}",
        )
        for i in order
    )
    return Table(("labels", "samples", "share"), rows, (1, 2), f"{label} together:".strip())


def energies(sides: Sequence[Measured]) -> Section | None:
    """Energies per atom after the reference energies."""
    figure = histogram(
        sides,
        "energies",
        "Energy per atom after reference energies",
        _residual,
        "energy (eV/atom)",
    )
    if figure is None:
        return None
    tables = [
        summary(
            sides,
            {
                "energy per atom (eV)": lambda one: one.values.energy_per_atom,
                "after reference energies (eV)": _residual,
            },
            "",
        )
    ]
    for label, one in _labelled(sides):
        if one.energies.free_atoms:
            rows = tuple(
                (symbol, number_text(energy)) for symbol, energy in one.energies.free_atoms.items()
            )
            title = f"{label} free atoms, which are left out of the fit:".strip()
            tables.append(Table(("element", "energy (eV)"), rows, (1,), title))
    spreads = "; ".join(
        f"{label} spread {one.energies.spread:.4g} eV/atom".strip()
        for label, one in _labelled(sides)
    )
    text = (
        "The reference energies are a fit by least absolute deviations to up to 20,000 samples, so "
        "that broken ones do not change them. The spread is 1.4826 times the median absolute "
        f"deviation ({spreads})."
    )
    return Section("energies", "Energies", text, tuple(tables), there(figure))


def _residual(one: Measured) -> FloatArray:
    return one.energies.residual


def forces(sides: Sequence[Measured]) -> Section | None:
    """Norms of forces, of all atoms and by element."""
    counts = [one.values.force_counts for one in sides]
    total = sum(counts)
    used = np.flatnonzero(np.asarray(total).sum(axis=0)[1:-1])
    if not len(used):
        return None
    here = slice(int(used[0]), int(used[-1]) + 1)
    several = len(sides) > 1
    edges = FORCE_EDGES[here.start : here.stop + 1]
    series = [
        Series(label, one[:, 1:-1].sum(axis=0)[here] / (one.sum() or 1 if several else 1), edges)
        for label, one in zip(legend(sides, "all elements"), counts, strict=True)
    ]
    if len(sides) == 1:
        order = np.argsort(-counts[0].sum(axis=1), kind="stable")[:_ELEMENTS]
        series += [
            Series(SYMBOLS[z], counts[0][z, 1:-1][here].astype(np.float64), edges)
            for z in order
            if counts[0][z].any()
        ]
    small, large = (sum(int(one[:, end].sum()) for one in counts) for end in (0, -1))
    note = f"{small:,} forces are below {FORCE_EDGES[0]:g}" if small else ""
    note += f"; {large:,} above {FORCE_EDGES[-1]:g}" if large else ""
    figures = (
        Figure(
            "forces",
            "Norms of the forces, of each atom",
            Kind.HISTOGRAM,
            tuple(series),
            "force (eV/Angstrom)",
            "share of atoms" if several else "atoms",
            log_x=True,
            log_y=not several,
            note=note.lstrip("; "),
        ),
        histogram(
            sides,
            "largest_forces",
            "Largest force of each sample",
            lambda one: one.values.max_force,
            "force (eV/Angstrom)",
            log_x=True,
        ),
    )
    table = summary(
        sides, {"largest force of a sample (eV/Angstrom)": lambda one: one.values.max_force}, ""
    )
    return Section("forces", "Forces", "", (table,), there(*figures))


def stress(sides: Sequence[Measured]) -> Section | None:
    """Pressures and eigenvalues of the stress."""
    figures = there(
        histogram(
            sides,
            "pressures",
            "Pressure",
            lambda one: one.values.pressure * _GPA,
            "pressure (GPa)",
        ),
        histogram(
            sides,
            "stress_eigenvalues",
            "Eigenvalues of the stress",
            lambda one: one.values.principal.reshape(-1) * _GPA,
            "stress (GPa)",
            y_label="eigenvalues",
        ),
    )
    if not figures:
        return None
    table = summary(
        sides,
        {
            "pressure (GPa)": lambda one: one.values.pressure * _GPA,
            "pressure (eV/Angstrom^3)": lambda one: one.values.pressure,
            "largest component (GPa)": lambda one: one.values.stress * _GPA,
            "largest component (eV/Angstrom^3)": lambda one: one.values.stress,
        },
        "",
    )
    text = (
        "The pressure is minus a third of the trace of the stress, which is positive under "
        f"tension; 1 eV/Angstrom^3 is {_GPA:.4f} GPa."
    )
    return Section("stress", "Stress", text, (table,), figures)
