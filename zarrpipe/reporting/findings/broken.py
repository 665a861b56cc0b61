"""Frames that have blown up: atoms on top of each other, huge forces, atoms far away."""

from collections.abc import Iterator

import numpy as np

from zarrpipe.data.csr import Int64Array
from zarrpipe.reporting.contents import Finding, FloatArray, Severity
from zarrpipe.reporting.findings.finding import count_text, finding, places_of
from zarrpipe.reporting.values.distances import CUTOFF, LARGEST, RADII
from zarrpipe.reporting.values.measured import Measured
from zarrpipe.store.query.derived import BoolArray
from zarrpipe.store.query.elements import SYMBOLS

TOO_CLOSE, CLOSE = 0.5, 0.6
"""Distances by the sum of the covalent radii that are impossible, and that are rare."""
HUGE_FORCE, LARGE_FORCE = 1000.0, 50.0
"""Forces that no usable frame has, and that few have, eV/Angstrom."""
_MUCH_LARGER = 20.0
"""Times the median of the largest forces, which a large force exceeds."""
_OPPOSITE, _SCAN = 1e-3, 3
"""Relative difference of the two forces of a dimer, and dimers from which they are a scan."""
_DENSEST = 0.8
"""Atoms for each Angstrom^3; hydrogen at 500 GPa has 0.6."""


def broken_geometry(one: Measured) -> BoolArray:
    """Which scanned samples [K] have a geometry that no usable frame has; dimers may."""
    with np.errstate(invalid="ignore"):
        close = one.ratio < TOO_CLOSE
    dense = np.nan_to_num(one.values.atoms_per_volume) > _DENSEST
    broken: BoolArray = close & ~short_dimers(one) | dense | one.values.not_finite["positions"]
    return broken


def broken_frames(one: Measured) -> BoolArray:
    """Which scanned samples [K] have a geometry or forces that no usable frame has."""
    force = one.values.max_force
    with np.errstate(invalid="ignore"):
        huge = (force > HUGE_FORCE) & np.isfinite(force)
    broken: BoolArray = broken_geometry(one) | huge & ~short_dimers(one)
    return broken


def short_dimers(one: Measured) -> BoolArray:
    """Which samples [K] are two close atoms without a cell and with opposite, finite forces."""
    values = one.values
    with np.errstate(invalid="ignore"):
        close = one.ratio < CLOSE
        opposite = np.abs(values.rms_norm - values.max_force) <= _OPPOSITE * values.max_force
    dimers: BoolArray = close & opposite & (values.atoms == 2) & ~values.periodic
    return dimers


def broken_findings(one: Measured, broken: BoolArray, explained: Int64Array) -> Iterator[Finding]:
    """Findings about `broken` frames [K]; `explained` are places of labels in another unit."""
    bad = one.values.not_finite["positions"]
    if bad.any():
        yield finding(
            one,
            Severity.ERROR,
            f"Positions of {count_text(int(bad.sum()))} are NaN or infinite",
            "Such frames end every training run that draws them",
            "delete them",
            places=places_of(bad),
            section="outliers",
        )
    exploded = places_of(broken & ~bad)
    if len(exploded):
        order = exploded[np.argsort(-_badness(one)[exploded], kind="stable")]
        yield finding(
            one,
            Severity.ERROR,
            f"{_number(len(order), 'frame has', 'frames have')} blown up",
            f"{_of_one(one, int(order[0]))}. Atoms nearer than {TOO_CLOSE} of the sum of their "
            f"covalent radii, forces above {HUGE_FORCE:g} eV/Angstrom or more than {_DENSEST} "
            "atoms in an Angstrom^3 are counted",
            f"look at them below, and delete them{_condition(one, order)}",
            places=order,
            section="outliers",
        )
    yield from _not_searched(one, broken)
    apart = short_dimers(one)
    yield from _short_dimers(one, apart)
    apart = apart | broken
    apart[explained] = True
    yield from _large_forces(one, apart)
    yield from _close(one, broken | short_dimers(one))
    yield from _lonely(one, broken)


def _condition(one: Measured, places: Int64Array) -> str:
    """A condition that leaves out all of these samples, by the forces that they have; or none."""
    least = float(one.values.max_force[places].min())  # NaN where one has none
    if not least > LARGE_FORCE:
        return " by their numbers: no condition on their forces leaves them out"
    limit = min(HUGE_FORCE, 10 ** np.floor(np.log10(least)))
    limit = max(limit, LARGE_FORCE)
    return f", or leave them out with where='max_force < {limit:g}'"


def _short_dimers(one: Measured, dimers: BoolArray) -> Iterator[Finding]:
    """Two atoms that are very close, as in a scan of their distance."""
    places = places_of(dimers)
    if len(places):
        order = places[np.argsort(one.ratio[places])]
        yield finding(
            one,
            Severity.NOTE if len(order) >= _SCAN else Severity.WARNING,
            f"{_number(len(order), 'dimer', 'dimers')} with a short distance",
            f"{_distance_text(one, int(order[0]))}; the forces on the two atoms are finite and "
            "opposite, as in a scan of the distance",
            "keep them if they are meant, and look at their weight in the loss of forces",
            places=order,
            section="distances",
        )


def _not_searched(one: Measured, broken: BoolArray) -> Iterator[Finding]:
    """Samples whose neighbours cannot be searched, neither here nor by a model."""
    found = one.distances
    places = found.chosen[np.isnan(found.shortest)]
    places = places[~broken[places]]
    if len(places):
        yield finding(
            one,
            Severity.ERROR,
            f"{count_text(len(places))} without a usable cell or positions",
            "Periodic samples whose cell is missing, zero or not finite, or positions beyond "
            f"{LARGEST:g} Angstrom: their neighbours cannot be found, of {len(found.chosen):,} "
            "samples that were looked at",
            "write them with their cell, or with pbc=False, or delete them",
            places=places,
            section="distances",
        )


def _large_forces(one: Measured, known: BoolArray) -> Iterator[Finding]:
    force = one.values.max_force
    finite = force[np.isfinite(force)]
    if not len(finite):
        return
    limit = max(LARGE_FORCE, _MUCH_LARGER * float(np.median(finite)))
    places = places_of((np.nan_to_num(force, nan=0.0, posinf=0.0) > limit) & ~known)
    if len(places):
        order = places[np.argsort(-force[places])]
        yield finding(
            one,
            Severity.WARNING,
            f"Forces of {count_text(len(order))} are very large",
            f"Up to {force[order[0]]:.4g} eV/Angstrom, where the median of the largest forces is "
            f"{np.median(finite):.3g}",
            f"look at them; where='max_force < {limit:.3g}' leaves them out",
            places=order,
            section="forces",
        )


def _close(one: Measured, broken: BoolArray) -> Iterator[Finding]:
    ratio = np.nan_to_num(one.ratio, nan=np.inf)
    places = places_of((ratio < CLOSE) & ~broken)
    if len(places):
        order = places[np.argsort(ratio[places])]
        yield finding(
            one,
            Severity.WARNING,
            f"Atoms of {count_text(len(order))} are close to each other",
            f"{_distance_text(one, int(order[0]))}, in "
            f"{_number(len(order), 'sample', 'samples')} below {CLOSE} of the covalent radii, of "
            f"{len(one.distances.chosen):,} whose distances were looked at",
            "look at them: short distances are meant in data for collisions and high pressure",
            places=order,
            section="distances",
        )


def _lonely(one: Measured, broken: BoolArray) -> Iterator[Finding]:
    found = one.distances
    lonely = np.zeros(len(one.values), dtype=np.int64)
    lonely[found.chosen] = found.lonely
    lonely[one.energies.free | broken | (one.values.atoms < 3)] = 0
    places = places_of(lonely > 0)
    if len(places):
        order = places[np.argsort(-lonely[places], kind="stable")]
        yield finding(
            one,
            Severity.NOTE,
            f"Atoms of {count_text(len(order))} are far from all others",
            f"In {_number(len(order), 'sample', 'samples')} of {len(found.chosen):,} that were "
            f"looked at, an atom has no neighbour within {CUTOFF:g} Angstrom",
            "look whether they have drifted away",
            places=order,
            section="distances",
        )


def _badness(one: Measured) -> FloatArray:
    """Order of broken frames [K]: by the ratio of distances first, then by force."""
    ratio = np.nan_to_num(one.ratio, nan=1.0, posinf=1.0)
    force = np.nan_to_num(one.values.max_force, nan=0.0, posinf=1e9)
    badness: FloatArray = force / LARGE_FORCE + 1 / np.maximum(ratio, 1e-3)
    return badness


def _of_one(one: Measured, place: int) -> str:
    """The numbers of a broken frame."""
    values, parts = one.values, []
    if np.isfinite(one.ratio[place]):
        parts.append(_distance_text(one, place))
    if np.isfinite(values.max_force[place]):
        parts.append(f"largest force {values.max_force[place]:.4g} eV/Angstrom")
    if np.isfinite(one.energies.residual[place]):
        off = one.energies.residual[place] - one.energies.median
        parts.append(f"energy off {off:+.4g} eV an atom")
    if values.atoms_per_volume[place] > _DENSEST:
        parts.append(f"{values.atoms_per_volume[place]:.3g} atoms in an Angstrom^3")
    return f"Sample {one.samples([place])[0]}: {', '.join(parts)}"


def _distance_text(one: Measured, place: int) -> str:
    """The pair of a sample that is closest by its covalent radii, and its distance."""
    where = int(np.searchsorted(one.distances.chosen, place))
    pair, ratio = one.distances.pair[where], float(one.distances.ratio[where])
    return (
        f"{'-'.join(SYMBOLS[z] for z in pair)} {ratio * RADII[pair].sum():.3g} Angstrom "
        f"({ratio:.2f} of the covalent radii)"
    )


def _number(count: int, singular: str, plural: str) -> str:
    return f"{count:,} {singular if count == 1 else plural}"
