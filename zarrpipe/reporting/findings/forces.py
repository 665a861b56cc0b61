"""Forces of a few samples that are those of the others once they are converted from a unit."""

from collections.abc import Iterator, Mapping

import numpy as np

from zarrpipe.data.csr import AnyArray, Int64Array
from zarrpipe.reporting.contents import Finding, FloatArray, Severity
from zarrpipe.reporting.findings.finding import WAY_OUT, count_text, finding, places_of
from zarrpipe.reporting.values.energies import LEAST_SPREAD, spread_about
from zarrpipe.reporting.values.measured import Measured
from zarrpipe.store.query.derived import BoolArray
from zarrpipe.store.query.elements import SYMBOLS
from zarrpipe.transforms.units import parse

_UNITS = {
    "kcal/mol/Angstrom": "kcal/mol",
    "kJ/mol/Angstrom": "kJ/mol",
    "Hartree/Bohr": "Hartree",
    "Hartree/Angstrom": "Hartree",
}
"""Units of forces, with that of the energy beside each."""
LEAST_LIKE, _MOST_SHARE = 10, 0.3
"""Samples that are alike, at least, and the share of them whose forces may be in another unit."""
GAP, _LEAST_GAP = 4.0, 0.6
"""Empty range between the forces of the few and of the others: in spreads of the logarithm to base
10, and at least."""
_NEAR, _LEAST_NEAR, _BEYOND = 3.0, 0.12, 0.15
"""How near the medians are after the conversion, in spreads and at least, and how far a sample may
be outside of the others, in logarithms to base 10."""
_USUAL_ENERGY, _LOW = 12.0, 0.1
"""Deviation of the energy in eV that fits the forces, and quantile below which energies are low."""


def forces_in_units(one: Measured, unsound: BoolArray) -> Mapping[int, str]:
    """Places of the samples whose forces are in another unit, with the unit.

    Samples are compared with those of their composition or, where these are few, of their
    elements; `unsound` [K] are those whose geometry is broken.
    """
    with np.errstate(all="ignore"):
        size = np.log10(one.values.rms_force)
    size[unsound | one.energies.free] = np.nan
    found: dict[int, str] = {}
    for here in _alike(one, np.isfinite(size)):
        few, others = _apart(size[here])
        if not len(few):
            continue
        unit = _unit(size[here[few]], size[here[others]])
        if unit and _energies_agree(one, here[few], here[others], unit):
            found |= dict.fromkeys(here[few].tolist(), unit)
    return found


def force_unit_findings(
    one: Measured, in_units: Mapping[int, str], named: Mapping[int, str]
) -> Iterator[Finding]:
    """Findings about forces, except those of samples that the finding on energies has `named`."""
    size = one.values.rms_force
    for unit in sorted({*in_units.values()}):
        places = np.array(
            [at for at, own in in_units.items() if own == unit and not forces_too(at, own, named)],
            dtype=np.int64,
        )
        if not len(places):
            continue
        rest = np.delete(size, [*in_units])
        usual = float(np.median(rest[np.isfinite(rest)]))
        yield finding(
            one,
            Severity.ERROR,
            f"Forces of {count_text(len(places))} are in another unit, likely {unit}",
            f"Their root mean square is typically {np.median(size[places]):.3g} eV/Angstrom, that "
            f"of the others {usual:.3g}, with none between; taken as {unit} they are among those "
            "of their composition or elements",
            WAY_OUT,
            places=places,
            section="forces",
        )


def forces_too(place: int, unit: str, energies: Mapping[int, str]) -> bool:
    """Whether the energy of a sample is in the unit that fits its forces in `unit`."""
    return energies.get(place) == _UNITS[unit]


def _alike(one: Measured, known: BoolArray) -> Iterator[Int64Array]:
    """Places of the samples of each composition that has enough, then of each set of elements."""
    places = places_of(known)
    codes = one.values.codes[places]
    _, inverse, counts = np.unique(codes, return_inverse=True, return_counts=True)
    many = counts[inverse.reshape(-1)] >= LEAST_LIKE
    yield from _parts(places[many], codes[many])
    left = places[~many]
    if len(left) >= LEAST_LIKE:
        sets = np.zeros(len(known), dtype=np.uint64)
        marks = np.random.default_rng(0).integers(1, 1 << 63, len(SYMBOLS), dtype=np.uint64)
        there = np.flatnonzero(one.values.with_element)
        for element, rows in zip(there, one.with_elements(there), strict=True):
            sets[rows] ^= marks[element]
        yield from _parts(left, sets[left])


def _parts(places: Int64Array, keys: AnyArray) -> Iterator[Int64Array]:
    """Places by equal keys, of keys that have enough."""
    order = np.argsort(keys, kind="stable")
    for part in np.split(places[order], np.flatnonzero(np.diff(keys[order])) + 1):
        if len(part) >= LEAST_LIKE:
            yield part


def _apart(size: FloatArray) -> tuple[Int64Array, Int64Array]:
    """Places of a few values [K] with a wide gap to the others, and of the others."""
    order = np.argsort(size)
    steps, most = np.diff(size[order]), max(1, int(_MOST_SHARE * len(size)))
    ends = np.r_[np.arange(most), np.arange(len(steps) - most, len(steps))]
    ends = np.unique(ends[(ends >= 0) & (ends < len(steps))])
    at = int(ends[np.argmax(steps[ends])])
    low, high = order[: at + 1], order[at + 1 :]
    few, others = (low, high) if len(low) < len(high) else (high, low)
    rest = size[others]
    spread = spread_about(rest, float(np.median(rest)))
    if len(others) < LEAST_LIKE - 2 or steps[at] < max(_LEAST_GAP, GAP * spread):
        return order[:0], order
    return few, others


def _unit(few: FloatArray, others: FloatArray) -> str:
    """The unit from which the logarithms of a few are those of the others; empty without one."""
    middle = float(np.median(others))
    near = max(_NEAR * spread_about(others, middle), _LEAST_NEAR)
    offs = {}
    for unit in _UNITS:
        taken = few + np.log10(parse(unit).value)
        inside = taken.min() > others.min() - _BEYOND and taken.max() < others.max() + _BEYOND
        off = abs(float(np.median(taken)) - middle)
        if inside and off < near:
            offs[unit] = off
    return min(offs, key=lambda unit: offs[unit]) if offs else ""


def _energies_agree(one: Measured, few: Int64Array, others: Int64Array, unit: str) -> bool:
    """Whether energies do not say that the forces are real.

    Atoms that have such large forces have a high energy, and relaxed structures, of which forces
    are small, have the lowest.
    """
    energies = one.energies
    own, rest = energies.residual[few], energies.residual[others]
    known, rest = np.isfinite(own), rest[np.isfinite(rest)]
    small = parse(unit).value > 1
    if not known.any() or not len(rest):
        return not small
    middle = float(np.median(rest))
    spread = max(spread_about(rest, middle), LEAST_SPREAD)
    total = one.values.energy_per_atom[few] - own
    energy = one.values.energy_per_atom[few] * parse(_UNITS[unit]).value - total
    fits = np.abs(energy - middle) <= _USUAL_ENERGY * spread
    usual = np.abs(own - middle) <= _USUAL_ENERGY * spread
    if small:
        usual &= own > np.quantile(rest, _LOW)
    return bool((fits | usual)[known].mean() >= 0.5)
