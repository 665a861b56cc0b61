"""All sections of a report, and the facts of its first screen."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from zarrpipe.reporting.contents import Section
from zarrpipe.reporting.values.measured import Measured, Settings
from zarrpipe.store.query.elements import SYMBOLS


def facts_of(sides: Sequence[Measured]) -> Mapping[str, Any]:
    """Numbers by name; of two stores, a mapping for each by its letter."""
    if len(sides) == 1:
        return _facts(sides[0])
    return {letter: _facts(one) for letter, one in zip("AB", sides, strict=True)}


def _facts(one: Measured) -> dict[str, Any]:
    values, energies = one.values, one.energies
    known = np.flatnonzero(values.of_element)
    facts: dict[str, Any] = {
        "samples": len(one),
        "atoms": int(one.dataset.num_atoms.sum()),
        "elements": [SYMBOLS[z] for z in known],
        "compositions": len(np.unique(values.codes)),
        "scanned": len(values),
        "distances of": len(one.distances.chosen),
        "deleted": sum(facts.deleted for facts in one.infos),
        "bytes": _sum([facts.bytes_stored for facts in one.infos]),
    }
    for name, has in values.present.items():
        if name in ("energy", "forces", "stress"):
            facts[f"with {name}"] = int(has.sum())
    facts["spread of energies (eV/atom)"] = energies.spread
    facts["largest force (eV/Angstrom)"] = _largest(values.max_force)
    return facts


def _sum(parts: Sequence[int | None]) -> int | None:
    known = [part for part in parts if part is not None]
    return sum(known) if len(known) == len(parts) else None


def _largest(values: np.ndarray) -> float:
    finite = values[np.isfinite(values)]
    return float(finite.max()) if len(finite) else float("nan")


def sections_of(sides: Sequence[Measured], settings: Settings) -> tuple[Section, ...]:
    """The sections in the order of the page."""
    return ()
