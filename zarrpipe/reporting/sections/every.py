"""All sections of a report, and the facts of its first screen."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from zarrpipe.reporting.contents import FloatArray, Section
from zarrpipe.reporting.sections.comparison import comparison
from zarrpipe.reporting.sections.composition import compositions, elements, groups, sizes
from zarrpipe.reporting.sections.geometry import distances, structure_map, volume
from zarrpipe.reporting.sections.labels import energies, forces, presence, stress
from zarrpipe.reporting.sections.samples import outliers, overview, repeated, splits
from zarrpipe.reporting.values.measured import Measured, Settings
from zarrpipe.reporting.values.structure_map import StructureMap
from zarrpipe.store.query.elements import SYMBOLS
from zarrpipe.training.splits.assignment import SplitRule


def facts_of(sides: Sequence[Measured]) -> Mapping[str, Any]:
    """Numbers by name; of two stores, a mapping for each by its letter."""
    if len(sides) == 1:
        return _facts(sides[0])
    return {letter: _facts(one) for letter, one in zip("AB", sides, strict=True)}


def _facts(one: Measured) -> dict[str, Any]:
    values = one.values
    facts: dict[str, Any] = {
        "samples": len(one),
        "atoms": int(one.dataset.num_atoms.sum()),
        "elements": [SYMBOLS[z] for z in np.flatnonzero(values.of_element)],
        "compositions": len(np.unique(values.codes)),
    }
    if not values.complete:
        facts["labels read of"] = len(values)
    if len(one.distances.chosen) < len(one):
        facts["distances searched of"] = len(one.distances.chosen)
    if deleted := sum(facts.deleted for facts in one.infos):
        facts["deleted"] = deleted
    for name in ("energy", "forces", "stress"):
        if name in values.present:
            facts[f"with {name}"] = int(values.present[name].sum())
    facts["spread of energies (eV/atom)"] = one.energies.spread
    facts["largest force (eV/Angstrom)"] = _largest(values.max_force)
    return facts


def _largest(values: FloatArray) -> float:
    finite = values[np.isfinite(values)]
    return float(finite.max()) if len(finite) else float("nan")


def sections_of(
    sides: Sequence[Measured], settings: Settings, mapped: StructureMap | None
) -> tuple[Section, ...]:
    """The sections in the order of the page."""
    rule = str(SplitRule.of(settings.split, settings.split_by))
    if not any(map(len, sides)):
        return (overview(sides),)
    found = (
        overview(sides),
        comparison(sides, mapped) if len(sides) > 1 else None,
        sizes(sides),
        elements(sides),
        compositions(sides),
        presence(sides),
        energies(sides),
        forces(sides),
        stress(sides),
        volume(sides),
        distances(sides),
        structure_map(sides, mapped),
        outliers(sides),
        repeated(sides),
        groups(sides),
        splits(sides, f"{rule} of {settings.split_by}"),
    )
    return tuple(one for one in found if one is not None)
