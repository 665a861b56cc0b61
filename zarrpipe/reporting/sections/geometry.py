"""Sections on volumes, distances and the structure-property map."""

from collections.abc import Iterator, Sequence

import numpy as np

from zarrpipe.data.tables import Table
from zarrpipe.dataset.store_info import number_text
from zarrpipe.reporting.contents import Figure, FloatArray, Kind, Section, Series
from zarrpipe.reporting.sections.plots import histogram, legend, names_of, summary, there
from zarrpipe.reporting.values.distances import CUTOFF, RADII
from zarrpipe.reporting.values.measured import Measured
from zarrpipe.reporting.values.structure_map import StructureMap
from zarrpipe.store.query.derived import BoolArray
from zarrpipe.store.query.elements import SYMBOLS

_PAIRS, _MOST_KINDS = 30, 8


def volume(sides: Sequence[Measured]) -> Section | None:
    """Volume of an atom in periodic samples."""
    figure = histogram(
        sides,
        "volumes",
        "Volume of an atom, of periodic samples",
        lambda one: 1 / one.values.atoms_per_volume,
        "volume (Angstrom^3/atom)",
        log_x=True,
    )
    if figure is None:
        return None
    table = summary(
        sides,
        {
            "volume of an atom (Angstrom^3)": lambda one: 1 / one.values.atoms_per_volume,
            "atoms in an Angstrom^3": lambda one: one.values.atoms_per_volume,
            "mass density (g/cm^3)": lambda one: one.values.density,
        },
        "",
    )
    density = histogram(
        sides,
        "densities",
        "Mass density of periodic samples",
        lambda one: one.values.density,
        "density (g/cm^3)",
    )
    return Section("volume", "Volume and density", "", (table,), there(figure, density))


def distances(sides: Sequence[Measured]) -> Section | None:
    """Nearest neighbours by the covalent radii, and by pair of elements."""
    figure = histogram(
        sides,
        "distances",
        "Shortest distance of a sample, by the sum of the covalent radii",
        lambda one: one.ratio,
        "distance / sum of covalent radii",
    )
    if figure is None:
        return None
    looked = "; ".join(
        f"{label} {len(one.distances.chosen):,} of {len(one):,} samples".strip()
        for label, one in zip(names_of(sides, ""), sides, strict=True)
    )
    text = (
        f"Searched in {looked}: evenly spread ones, and those with the largest forces, stresses "
        f"and densities and the most unusual energies. Neighbours are searched within {CUTOFF:g} "
        "Angstrom; covalent radii are those of Cordero et al. (2008). Two atoms that overlap have "
        "a ratio below 0.6."
    )
    tables = tuple(
        Table(
            ("pair", "shortest (Angstrom)", "ratio", "median (Angstrom)", "ratio", "atoms"),
            tuple(_pairs(one)),
            (1, 2, 3, 4, 5),
            f"{label} nearest neighbour of each atom, by pair of elements:".strip(),
        )
        for label, one in zip(names_of(sides, ""), sides, strict=True)
    )
    shortest = summary(sides, {"shortest distance (Angstrom)": lambda one: one.shortest}, "")
    return Section("distances", "Nearest distances", text, (shortest, *tables), (figure,))


def _pairs(one: Measured) -> Iterator[tuple[str, ...]]:
    """Rows of the pairs of elements, the shortest ratio first."""
    found = []
    for (first, second), values in one.distances.by_pair.items():
        total = float(RADII[first] + RADII[second])
        low, middle = float(values.min()), float(np.median(values))
        order = low / total if np.isfinite(total) else np.inf
        cells = [number_text(low), f"{low / total:.2f}", number_text(middle)]
        cells += [f"{middle / total:.2f}", f"{len(values):,}"]
        found.append((order, (f"{SYMBOLS[first]}-{SYMBOLS[second]}", *cells)))
    for _, row in sorted(found)[:_PAIRS]:
        yield row


def structure_map(sides: Sequence[Measured], mapped: StructureMap | None) -> Section | None:
    """The map of evenly spread structures."""
    if mapped is None:
        return None
    first, second = mapped.explained
    text = (
        f"The first two principal components, with {first:.0%} and {second:.0%} of the variance, "
        "of radial histograms by element up to 5 Angstrom, of "
        f"{sum(map(len, mapped.places)):,} evenly spread structures. Structures close to each "
        "other have similar neighbours."
    )
    series = []
    for label, one, places, points in zip(
        legend(sides, ""), sides, mapped.places, mapped.points, strict=True
    ):
        parts = [(label, np.ones(len(places), dtype=bool))] if label else _kinds(one, places)
        energy: FloatArray = (one.energies.residual - one.energies.median)[places]
        shaded = len(parts) == 1 and not label and bool(np.isfinite(energy).any())
        series += [
            Series(
                name,
                points[here, 1],
                points[here, 0],
                samples=np.array(one.samples(places[here]), dtype=np.int64),
                shades=energy[here] if shaded else np.empty(0),
            )
            for name, here in parts
            if here.any()
        ]
    figure = Figure(
        "map",
        "Structure-property map",
        Kind.POINTS,
        tuple(series),
        f"component 1 ({first:.0%})",
        f"component 2 ({second:.0%})",
        shade_label="energy off (eV/atom)",
    )
    return Section("map", "Structure-property map", text, (), (figure,))


def _kinds(one: Measured, places: np.ndarray) -> list[tuple[str, BoolArray]]:
    """Points by the strings of a field that has a few, or else all of them."""
    for group in sorted(one.groups, key=lambda group: group.name == "round"):
        codes = group.codes[places]
        used = np.unique(codes[codes >= 0])
        if 2 <= len(used) <= _MOST_KINDS:
            parts = [(f"{group.name} {group.text(code)}", codes == code) for code in used]
            return [*parts, (f"no {group.name}", codes < 0)]
    return [("samples", np.ones(len(places), dtype=bool))]
