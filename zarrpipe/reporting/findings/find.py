"""All findings of a store, the worst first."""

import numpy as np

from zarrpipe.reporting.contents import Finding, Severity
from zarrpipe.reporting.findings.broken import (
    broken_findings,
    broken_frames,
    broken_geometry,
    short_dimers,
)
from zarrpipe.reporting.findings.finding import worst_first
from zarrpipe.reporting.findings.forces import forces_in_units
from zarrpipe.reporting.findings.labels import label_findings
from zarrpipe.reporting.findings.samples import repeats, sample_findings
from zarrpipe.reporting.findings.unchecked import unchecked
from zarrpipe.reporting.findings.units import energies_in_units, unit_findings
from zarrpipe.reporting.values.measured import Measured


def find(one: Measured) -> tuple[tuple[Finding, ...], tuple[str, ...]]:
    """Look for every fault, and say what was not checked.

    Where one fault of a sample explains another, only the first is reported.
    """
    if not len(one):
        return (_empty(one),), ()
    forces = forces_in_units(one, broken_geometry(one) | short_dimers(one))
    broken = broken_frames(one)
    broken[[*forces]] = False
    energies = energies_in_units(one, broken)
    in_units = np.array([*energies, *forces], dtype=np.int64)
    explained = broken | short_dimers(one)
    explained[in_units] = True
    found = repeats(one)
    explained[found.later[found.differs]] = True
    findings = worst_first(
        [
            *unit_findings(one, broken, energies, forces),
            *broken_findings(one, broken, in_units),
            *label_findings(one, explained),
            *sample_findings(one),
        ]
    )
    return findings, tuple(unchecked(one, broken))


def _empty(one: Measured) -> Finding:
    """An empty store, or a condition that nothing meets."""
    count = sum(facts.samples for facts in one.infos)
    if count:
        return Finding(
            Severity.ERROR,
            "No sample meets the condition",
            f"none of {count:,} samples meets it",
            "give another condition",
        )
    return Finding(Severity.ERROR, "The store is empty", "it has no samples", "write samples to it")
