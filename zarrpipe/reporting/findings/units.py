"""Labels that look like another unit or sign: of all samples, of a group, or of a few.

All samples and groups are judged by sizes that labels in ASE's units cannot have, see
`zarrpipe.formats.read.plausibility`. A few samples are judged by the others: their labels are far
off, and are among the others once they are converted from a unit.
"""

from collections.abc import Collection, Iterator, Mapping

import numpy as np

from zarrpipe.data.csr import Int64Array
from zarrpipe.formats.read.plausibility import doubts
from zarrpipe.reporting.contents import Finding, Severity
from zarrpipe.reporting.findings.finding import WAY_OUT, count_text, finding, places_of
from zarrpipe.reporting.findings.forces import force_unit_findings, forces_too
from zarrpipe.reporting.findings.stresses import few_stresses, is_compressed, pressure_sign
from zarrpipe.reporting.values.energies import spread_about
from zarrpipe.reporting.values.measured import Measured
from zarrpipe.store.query.derived import BoolArray
from zarrpipe.training.statistics import sample_blocks
from zarrpipe.transforms.units import parse

_ENERGY_UNITS = ("kcal/mol", "Hartree", "Rydberg", "kJ/mol")
_LABELS = ("energy", "forces", "stress", "virial", "cell")
_SECTIONS = {"energy": "energies", "forces": "forces", "cell": "volume"}
"""Section that shows a label; stress and virial are in the section stress."""
_MOST_JUDGED = 2000
_LEAST_OF_A_GROUP, _MOST_GROUPS = 5, 12
_FAR, _NEAR = 12.0, 8.0
"""Deviations, in spreads, of an energy that is far off, and of one that is among the others."""
_LEAST_OFF = 0.3
"""Energy per atom, eV, by which an energy in another unit is off at least."""


def unit_findings(
    one: Measured, broken: BoolArray, energies: Mapping[int, str], forces: Mapping[int, str]
) -> Iterator[Finding]:
    """Findings about units and signs; `broken` [K] are samples whose geometry has blown up.

    `energies` and `forces` are the places of the samples with labels in another unit, and it.
    """
    judged = places_of(~broken)
    every = _doubts(one, judged)
    for label, text in every.items():
        yield _of_all(one, label, text)
    few = []
    if "stress" not in every:
        few = [*few_stresses(one, broken), *pressure_sign(one, broken)]
    yield from few
    yield from _few_energies(one, energies, forces)
    if "forces" not in every:
        yield from force_unit_findings(one, forces, energies)
    yield from _of_groups(one, broken, {*every, *(["stress"] if few else [])})


def _of_all(one: Measured, label: str, text: str) -> Finding:
    """A doubt about a label of all samples."""
    said, _, way_out = text.rpartition("give ")
    has = places_of(one.values.present[label])
    meant = label == "stress" and "sign" not in text and is_compressed(one)
    return finding(
        one,
        Severity.WARNING if meant else Severity.ERROR,
        f"{label} of all samples may be in another unit or sign",
        said.rstrip(" :;,")
        + (", or are meant: atoms are as near as at high pressure" if meant else ""),
        f"import the files again and give {way_out}, or convert with transforms.ConvertUnits",
        places=has,
        section=_SECTIONS.get(label, "stress"),
    )


def _doubts(one: Measured, places: Int64Array) -> dict[str, str]:
    """Doubts about the labels of up to 2,000 of the samples at these places."""
    fields = [name for name in _LABELS if name in one.dataset.schema]
    if not len(places) or not {*fields} - {"cell"}:
        return {}
    chosen = places[np.linspace(0, len(places) - 1, min(_MOST_JUDGED, len(places))).astype(int)]
    rows = one.values.rows[np.unique(chosen)]
    atoms = one.values.atoms[np.unique(chosen)]
    batches = [one.dataset.gather(rows[here], fields) for here in sample_blocks(atoms)]
    if "cell" not in fields:  # of which stresses need the density
        batches = [batch for batch in batches if "stress" not in batch]
    return doubts(batches) if batches else {}


def _few_energies(
    one: Measured, found: Mapping[int, str], forces: Mapping[int, str]
) -> Iterator[Finding]:
    """Energies that are far off, and fit after conversion from a unit."""
    for unit in sorted({*found.values()}):
        places = np.array([place for place, own in found.items() if own == unit])
        order = places[np.argsort(-np.abs(one.energies.deviation[places]))]
        off = float(np.median(np.abs(one.energies.residual[order])))
        both = all(at in forces and forces_too(at, forces[at], found) for at in places.tolist())
        what = "Energy and forces" if both else "Energy"
        verb = "are" if both else "is"
        yield finding(
            one,
            Severity.ERROR,
            f"{what} of {count_text(len(places))} {verb} in another unit, likely {unit}",
            f"They are typically {off:.3g} eV an atom from the energies that the composition "
            f"suggests, and fit when they are taken as {unit}{_forces_too(one, order, unit)}",
            WAY_OUT,
            places=order,
            section="energies",
        )


def energies_in_units(one: Measured, broken: BoolArray) -> dict[int, str]:
    """Places of the samples whose energy fits once it is converted, with the unit.

    Where an energy of zero fits, every energy does once it is divided by a large factor.
    """
    energies, values = one.energies, one.values
    off = np.abs(energies.residual - energies.median)
    far = (np.abs(energies.deviation) > _FAR) & (off > _LEAST_OFF) & ~broken & ~energies.free
    places = places_of(far)
    if not len(places):
        return {}
    kept = energies.residual[np.isfinite(energies.residual) & ~far & ~energies.free]
    if not len(kept):
        return {}
    window = _NEAR * max(spread_about(kept, float(np.median(kept))), 0.01)
    totals = values.energy_per_atom[places] - energies.residual[places]
    left = {}
    for unit in _ENERGY_UNITS:
        converted = values.energy_per_atom[places] * parse(unit).value
        left[unit] = np.abs(converted - totals - energies.median)
    table = np.stack([*left.values()])
    best = table.argmin(axis=0)
    near = np.minimum(window, 0.1 * off[places])
    fits = (table.min(axis=0) < near) & (np.abs(totals + energies.median) > near)
    return {
        int(place): _ENERGY_UNITS[which]
        for place, which, fit in zip(places, best, fits, strict=True)
        if fit
    }


def _forces_too(one: Measured, places: Int64Array, unit: str) -> str:
    """Whether the forces of some samples are larger than the others by the factor of a unit."""
    forces = one.values.max_force
    others = np.ones(len(forces), dtype=bool)
    others[places] = False
    own, rest = forces[places], forces[others]
    own, rest = own[np.isfinite(own)], rest[np.isfinite(rest) & (rest > 0)]
    if not len(own) or not len(rest):
        return ""
    ratio = float(np.median(own) / np.median(rest))
    factor = 1 / parse(unit).value
    same = abs(np.log(ratio * parse(unit).value)) < abs(np.log(factor)) / 2
    return f"; their forces are {ratio:.3g} times those of the others" if same else ""


def _of_groups(one: Measured, broken: BoolArray, said: Collection[str]) -> Iterator[Finding]:
    """Doubts about the labels of each group, except labels in `said`, which have a finding."""
    for group in one.groups:
        counts = np.bincount(group.codes[group.codes >= 0], minlength=len(group.labels))
        for code in np.argsort(-counts)[:_MOST_GROUPS].tolist():
            here = places_of((group.codes == code) & ~broken & ~one.energies.free)
            if len(here) < _LEAST_OF_A_GROUP or len(here) == len(one.values):
                continue
            for label, text in _doubts(one, here).items():
                if label not in said:
                    what, _, way_out = text.rpartition("give ")
                    yield finding(
                        one,
                        Severity.ERROR,
                        f"{label} where {group.name} is {group.text(code)} may be in another "
                        "unit or sign",
                        what.rstrip(" :;,"),
                        f"import these samples again and give {way_out}",
                        places=here[one.values.present[label][here]],
                        section=_SECTIONS.get(label, "stress"),
                    )
