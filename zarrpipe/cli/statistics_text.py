"""Statistics as plain types and as tables."""

import dataclasses
from typing import Any

from zarrpipe.data.tables import Table
from zarrpipe.dataset.store_info import number_text
from zarrpipe.store.query.elements import SYMBOLS
from zarrpipe.training.statistics import Statistics


def facts_of(found: Statistics) -> dict[str, Any]:
    """Statistics as plain types, elements by symbol."""
    facts = {item.name: getattr(found, item.name) for item in dataclasses.fields(found)}
    for name in ("element_counts", "reference_energies"):
        facts[name] = {SYMBOLS[number]: value for number, value in facts[name].items()}
    return {**facts, "size_histogram": dict(found.size_histogram)}


def tables_of(found: Statistics) -> list[Table]:
    """Statistics as two tables: those of all atoms, and by element."""
    sizes = [*found.size_histogram] or [0]
    per_sample = f", {min(sizes):,} to {max(sizes):,} a sample" if found.num_samples else ""
    lines = (
        ("samples", f"{found.num_samples:,}"),
        ("atoms", f"{found.num_atoms:,}{per_sample}"),
        ("edges per atom", _text(found.edges_per_atom)),
        (
            "energy per atom without reference energies, mean (eV)",
            _text(found.energy_per_atom_mean),
        ),
        (
            "energy per atom without reference energies, spread (eV)",
            _text(found.energy_per_atom_std),
        ),
        ("forces, root mean square (eV/Angstrom)", _text(found.forces_rms)),
    )
    rows = tuple(
        (SYMBOLS[number], f"{count:,}", _text(found.reference_energies.get(number, float("nan"))))
        for number, count in found.element_counts.items()
    )
    return [
        Table((), lines, title="statistics:"),
        Table(("element", "atoms", "reference energy (eV)"), rows, (1, 2), "elements:"),
    ]


def _text(value: float) -> str:
    """Figure for people; "-" for one without any label."""
    return "-" if value != value else number_text(value)  # noqa: PLR0124  NaN
