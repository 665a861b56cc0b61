"""Stresses of a few samples in another unit or very large, and stresses with the wrong sign."""

from collections.abc import Iterator

import numpy as np

from zarrpipe.data.csr import Int64Array
from zarrpipe.formats.read.plausibility import LARGEST_STRESS, USUAL_DENSITY
from zarrpipe.reporting.contents import Finding, FloatArray, Severity
from zarrpipe.reporting.findings.finding import WAY_OUT, count_text, finding, places_of
from zarrpipe.reporting.values.measured import Measured
from zarrpipe.store.query.derived import BoolArray
from zarrpipe.transforms.units import parse

_STRESS_UNITS = ("GPa", "kbar", "bar")
_DECADES = 1.5
"""Powers of ten by which a stress may differ from the usual ones after its conversion."""
_DENSER = 1.15
"""Number density, by that of the others, of a sample under a pressure that is meant."""
_COMPRESSED, _MOSTLY = 0.85, 0.9
"""Nearest distance by the covalent radii, and share of positive pressures, at high pressure."""
_LEAST_OF_A_GROUP = 5
_RISING, _SURE = 0.6, 3.0
"""Correlation of pressure and volume that a stress has with the wrong sign at least, and standard
deviations by which its Fisher transform is above that of chance."""


def few_stresses(one: Measured, broken: BoolArray) -> Iterator[Finding]:
    """Stresses that are too large, of samples whose forces are not."""
    values = one.values
    off = (values.stress > stress_limits(values.atoms_per_volume)) & ~broken
    off &= np.isfinite(values.stress)
    usual = np.isfinite(values.stress) & ~off & ~broken & (values.stress > 0)
    places = places_of(off)
    if not len(places) or not usual.any():
        return
    sizes, typical = values.stress[places], float(np.median(values.stress[usual]))
    size = float(np.median(sizes))
    unit = None if _dense(one, places, usual) else _unit_of(sizes, typical)
    looks = (
        f"they look like {unit}"
        if unit
        else "no unit brings all of them among the others, so they may be meant"
    )
    yield finding(
        one,
        Severity.ERROR if unit else Severity.WARNING,
        f"Stress of {count_text(len(places))} is in another unit, likely {unit}"
        if unit
        else f"Stress of {count_text(len(places))} is very large",
        f"Their largest components are typically {size:.3g} eV/Angstrom^3 ({size * 160.2:.3g} "
        f"GPa), those of the others {typical:.3g}: {looks}",
        WAY_OUT if unit else "look at them: such stresses are meant in data for high pressure",
        places=places[np.argsort(-sizes)],
        section="stress",
    )


def _unit_of(sizes: FloatArray, typical: float) -> str | None:
    """The unit from which all sizes are near the typical one; None without any."""
    offs = {name: np.abs(np.log10(sizes * parse(name).value / typical)) for name in _STRESS_UNITS}
    unit = min(offs, key=lambda name: float(np.median(offs[name])))
    return unit if np.median(offs[unit]) < 1.0 and offs[unit].max() < _DECADES else None


def _dense(one: Measured, places: Int64Array, usual: BoolArray) -> bool:
    """Whether large stresses are those of samples that are denser than the others."""
    values = one.values
    like = usual & np.isin(values.codes, values.codes[places])
    density = values.atoms_per_volume
    if not like.any():
        return False
    denser = density[places] > _DENSER * float(np.nanmedian(density[like]))
    return bool((denser & (values.pressure[places] > 0)).mean() > _MOSTLY)


def is_compressed(one: Measured) -> bool:
    """Whether most samples have a pressure and atoms nearer than usual, as at high pressure."""
    pressure, ratio = one.values.pressure, one.ratio
    pressure, ratio = pressure[np.isfinite(pressure)], ratio[np.isfinite(ratio)]
    pressed = len(pressure) and (pressure > 0).mean() > _MOSTLY
    return bool(pressed and len(ratio) and np.median(ratio) < _COMPRESSED)


def stress_limits(atoms_per_volume: FloatArray) -> FloatArray:
    """Largest plausible stress [K] at a density, eV/Angstrom^3."""
    density = np.nan_to_num(atoms_per_volume, nan=0.0, posinf=0.0)
    limits: FloatArray = LARGEST_STRESS * np.maximum(1.0, density / USUAL_DENSITY) ** 2
    return limits


def pressure_sign(one: Measured, broken: BoolArray) -> Iterator[Finding]:
    """Whether pressures rise with the volume in most compositions, as with the wrong sign."""
    found, weights, places = pressures_by_volume(one, broken)
    mean = float(np.average(found, weights=weights)) if found else 0.0
    if mean > _RISING and np.arctanh(min(mean, 0.999)) * np.sqrt(sum(weights)) > _SURE:
        yield finding(
            one,
            Severity.ERROR,
            "Stress may have the sign of a pressure",
            "Among samples of one composition those of larger volume have the larger pressure "
            f"(correlation {mean:.2f}); a stress is positive under tension",
            "import again with stress_sign='pressure' (--stress-sign pressure)",
            places=places,
            section="stress",
        )


def pressures_by_volume(
    one: Measured, broken: BoolArray
) -> tuple[list[float], list[int], Int64Array]:
    """Correlation of pressure and volume in each composition whose volume varies, and its weight.

    Pressures are multiplied by the volume, as a vacuum above a slab lessens each stress in
    proportion. The last array are the places of the samples that have both.
    """
    values = one.values
    volume = 1 / values.atoms_per_volume
    work = values.pressure * volume
    good = np.isfinite(work) & ~broken
    good &= values.stress <= stress_limits(values.atoms_per_volume)
    found, weights = [], []
    codes = values.codes[good]
    _, inverse, counts = np.unique(codes, return_inverse=True, return_counts=True)
    for group in np.argsort(-counts)[:50]:
        if counts[group] < 2 * _LEAST_OF_A_GROUP:
            break
        here = places_of(good)[inverse.reshape(-1) == group]
        own = volume[here]
        if own.std() < 0.01 * own.mean() or work[here].std() == 0:
            continue
        found.append(float(np.corrcoef(own, work[here])[0, 1]))
        weights.append(len(here) - 3)
    return found, weights, places_of(good)
