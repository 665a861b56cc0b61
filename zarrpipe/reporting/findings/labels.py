"""Labels that are missing, not finite, without a cell, or far from those of their like."""

from collections.abc import Iterator

import numpy as np

from zarrpipe.data.csr import Int64Array
from zarrpipe.data.fields import CORE_FIELDS
from zarrpipe.reporting.contents import Finding, Severity
from zarrpipe.reporting.findings.finding import count_text, finding, places_of
from zarrpipe.reporting.values.energies import LEAST_OF_A_COMPOSITION, LEAST_SPREAD
from zarrpipe.reporting.values.measured import Measured
from zarrpipe.store.query.derived import BoolArray

_TRAINED = ("energy", "forces", "stress")
_MOST_OTHERS, _MOSTLY = 10, 0.8
FAR = 20.0
LEAST_OFF, _ANY_COMPOSITION = 0.2, 5.0
"""Energy per atom, eV, by which an outlier is off at least, and by which no composition is."""
_COMPOSITIONS_OF_AN_ELEMENT = 3
"""Compositions for each element, from which the spread about the reference energies is known."""
_LABELS = frozenset({"energy", "forces", "stress", "virial", "charges", "dipole"})
"""Labels of the registry; other fields of it, as momenta, are there or not."""


def label_findings(one: Measured, explained: BoolArray) -> Iterator[Finding]:
    """Findings about labels; `explained` [K] samples have energies that another finding names."""
    yield from _not_finite(one)
    yield from _stress_without_cell(one)
    yield from _missing(one)
    yield from _far_energies(one, explained)


def _not_finite(one: Measured) -> Iterator[Finding]:
    for name, bad in one.values.not_finite.items():
        if name != "positions" and bad.any():
            yield finding(
                one,
                Severity.ERROR if name in CORE_FIELDS else Severity.WARNING,
                f"{count_text(int(bad.sum()))} with NaN or infinite {name}",
                "The store says that these samples have the label, so a loss over them is NaN",
                f"write them without {name}, or delete them",
                places=places_of(bad),
                section="presence",
            )


def _stress_without_cell(one: Measured) -> Iterator[Finding]:
    has = one.values.present.get("stress")
    if has is None:
        return
    places = places_of(has & ~np.isfinite(one.values.volume))
    if len(places):
        yield finding(
            one,
            Severity.ERROR,
            f"{count_text(len(places))} with a stress but no cell",
            "A stress is an energy by volume, which these samples do not have",
            "write them without stress, or with their cell",
            places=places,
            section="stress",
        )


def _missing(one: Measured) -> Iterator[Finding]:
    """Labels that some samples lack, and the usual ones that all lack."""
    count = len(one.values)
    for name in ("energy", "forces"):
        if name not in one.values.present:
            yield Finding(
                Severity.NOTE,
                f"No sample has {name}",
                f"The store has no field {name!r}",
                "nothing to do, unless you train on it",
                section="presence",
            )
    others = []
    for name, has in one.values.present.items():
        lacks = ~has & ~one.energies.free
        if name == "stress":
            lacks &= one.values.periodic
        places = places_of(lacks)
        if (name in CORE_FIELDS and name not in _LABELS) or not len(places) or not has.any():
            continue
        if name not in CORE_FIELDS:
            others += [] if one.dataset.schema[name].categories else [f"{name} ({len(places):,})"]
            continue
        why = _group_that_lacks(one, places)
        yield finding(
            one,
            Severity.WARNING if name in _TRAINED and not why else Severity.NOTE,
            f"{count_text(len(places))} without {name}",
            f"{len(places) / count:.1%} of {count:,} samples lack it{why}"
            + ("; only periodic samples are counted" if name == "stress" else ""),
            "train with a loss over the labels that are there, label them, or leave them out "
            f"with where='has({name})'",
            places=places,
            section="presence",
        )
    if others:
        yield Finding(
            Severity.NOTE,
            "Own fields that some samples lack",
            f"Number of samples that lack each: {', '.join(others[:_MOST_OTHERS])}",
            "nothing to do, unless you train on them",
            section="presence",
        )


def _group_that_lacks(one: Measured, places: Int64Array) -> str:
    """Text on the groups that consist of exactly these samples; empty without any."""
    for group in one.groups:
        own = np.unique(group.codes[places])
        if own[0] >= 0 and np.isin(group.codes, own).sum() == len(places) and len(own) <= 3:
            names = ", ".join(group.text(code) for code in own)
            return f": those whose {group.name} is {names}"
    return ""


def _far_energies(one: Measured, explained: BoolArray) -> Iterator[Finding]:
    energies = one.energies
    deviation = np.nan_to_num(np.abs(energies.deviation), nan=0.0, posinf=0.0)
    off = np.abs(energies.residual - energies.median)
    with np.errstate(invalid="ignore"):
        far = (deviation > FAR) & (np.abs(energies.off) > LEAST_OFF)
        far &= _comparable(one)
        far |= off > max(_ANY_COMPOSITION, FAR * energies.spread)
    places = places_of(far & ~explained & ~energies.free)
    if len(places):
        order = places[np.argsort(-off[places])]
        worst = int(order[0])
        times = max(deviation[worst], off[worst] / max(energies.spread, LEAST_SPREAD))
        yield finding(
            one,
            Severity.WARNING,
            f"{count_text(len(order))} with an unusual energy",
            f"Sample {one.samples([worst])[0]}: {energies.residual[worst] - energies.median:+.4g} "
            f"eV an atom after the reference energies, {times:.0f} times the usual "
            f"spread{_mostly(one, order)}",
            "look at them: a calculation that did not converge, another functional, or a wrong "
            "element",
            places=order,
            section="energies",
        )


def _comparable(one: Measured) -> BoolArray:
    """Which energies [K] have others to be compared with: of their composition, or of many.

    A fit of E reference energies goes exactly through the energies of E compositions, so that the
    spread about it says nothing where there are few more of them.
    """
    _, inverse, counts = np.unique(one.values.codes, return_inverse=True, return_counts=True)
    many = len(counts) >= _COMPOSITIONS_OF_AN_ELEMENT * np.count_nonzero(one.values.with_element)
    comparable: BoolArray = (counts >= LEAST_OF_A_COMPOSITION)[inverse.reshape(-1)] | many
    return comparable


def _mostly(one: Measured, places: Int64Array) -> str:
    """Text on a string that most of these samples share and most others lack; empty without one."""
    for group in one.groups:
        codes = group.codes[places]
        if not (codes >= 0).any():
            continue
        most = int(np.bincount(codes[codes >= 0]).argmax())
        share = float((codes == most).mean())
        if len(places) > 2 and share > _MOSTLY > float((group.codes == most).mean()):
            return f"; {share:.0%} of them where {group.name} is {group.text(most)}"
    return ""
