"""Samples that repeat others, elements that hardly occur, splits that overlap."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from zarrpipe.data.csr import Int64Array
from zarrpipe.reporting.contents import Finding, Severity
from zarrpipe.reporting.findings.finding import count_text, finding, places_of
from zarrpipe.reporting.values.distances import RADII
from zarrpipe.reporting.values.measured import Measured
from zarrpipe.store.query.derived import BoolArray
from zarrpipe.store.query.elements import SYMBOLS
from zarrpipe.training.splits.assignment import SPLITS

SAME_ENERGY = 1e-4
"""Energy per atom, eV, by which equal structures may differ."""
_RARE, _FEW_ELEMENTS, _NAMED, _STRUCTURES = 3, 12, 8, 4
_NOBLE_GASES = (2, 10, 18, 36, 54, 86)
_FITS = (0.7, 1.3)
"""Median distances of nearest neighbours, by the covalent radii, that fit an element."""


@dataclass(frozen=True)
class Repeats:
    """Samples of equal ids: places `later` [R] that have the structure of those at `first` [R].

    `differs` [R] says whether the energies of the two are not the same, eV for each atom.
    """

    first: Int64Array
    later: Int64Array
    differs: BoolArray


def repeats(one: Measured) -> Repeats:
    """Find the samples that have the id of an earlier one."""
    ids, values = one.values.ids, one.values
    order = np.argsort(ids, kind="stable")
    starts = np.flatnonzero(np.diff(ids[order], prepend=ids[order[:1]] + np.uint64(1)))
    lengths = np.diff(np.append(starts, len(order)))
    first = np.repeat(order[starts], lengths)
    later = order != first
    first, later = first[later], order[later]
    energy = values.energy_per_atom
    with np.errstate(invalid="ignore"):
        differs = np.abs(energy[first] - energy[later]) > SAME_ENERGY
    return Repeats(first, later, differs)


def sample_findings(one: Measured) -> Iterator[Finding]:
    """Findings about repeated samples, rare elements and splits."""
    if not len(one.values):
        return
    yield from _repeated(one)
    yield from _elements(one)
    yield from _splits(one)


def _repeated(one: Measured) -> Iterator[Finding]:
    found = repeats(one)
    worse, equal = places_of(found.differs), places_of(~found.differs)
    if len(worse):
        energy = one.values.energy_per_atom
        off = np.abs(energy[found.first] - energy[found.later])
        worse = worse[np.argsort(-off[worse])]
        named = _equal(one, found, worse[:1])
        yield finding(
            one,
            Severity.ERROR,
            f"{count_text(len(worse))} with the structure of another one and another energy",
            f"Samples {named} are the same structure, and their energies differ by "
            f"{off[worse[0]]:.3g} eV an atom",
            "keep the one whose label is right: the same structure cannot have two energies",
            places=_pairs(found, worse),
            section="repeated",
        )
    if len(equal):
        many = len(equal) > 0.01 * len(one.values)
        yield finding(
            one,
            Severity.WARNING if many else Severity.NOTE,
            f"{count_text(len(equal))} with the structure of an earlier one",
            f"{_equal(one, found, equal)}; {len(equal) / len(one.values):.2%} of "
            "all. Splits by id keep equal structures in one split",
            "keep them as weights, or copy the store without them",
            places=_pairs(found, equal),
            section="repeated",
        )


def _equal(one: Measured, found: Repeats, which: Int64Array) -> str:
    """Numbers of equal samples, as "0 = 71 = 142; 5 = 9", of a few structures."""
    texts = []
    for first in dict.fromkeys(found.first[which].tolist()):
        later = found.later[which[found.first[which] == first]][:_NAMED]
        texts.append(" = ".join(map(str, sorted(one.samples([first, *later])))))
        if len(texts) == _STRUCTURES:
            break
    return "; ".join(texts)


def _pairs(found: Repeats, which: Int64Array) -> Int64Array:
    """Places of both samples of each pair, those of an earlier pair once."""
    both = np.stack([found.later[which], found.first[which]], axis=1).reshape(-1)
    return both[np.sort(np.unique(both, return_index=True)[1])]


def _elements(one: Measured) -> Iterator[Finding]:
    values = one.values
    if values.of_element[0]:
        places = one.with_elements(np.array([0]))[0]
        yield finding(
            one,
            Severity.ERROR,
            f"{count_text(len(places))} with atoms of no element",
            f"{count_text(int(values.of_element[0]), 'atom')} with atomic number 0, or one that no "
            "element has",
            "write them with their elements, or delete them",
            places=places,
            section="elements",
        )
    there = np.flatnonzero(values.with_element[1:]) + 1
    rare = there[values.with_element[there] <= _RARE]
    rare = rare[values.with_element[rare] < 0.02 * len(values)]
    if not len(rare):
        return
    by_element = one.with_elements(rare)
    places = np.unique(np.concatenate(by_element))
    parts = [
        f"{SYMBOLS[z]} in {count_text(len(own))}{_misfit(one, int(z))}"
        for z, own in zip(rare[:_NAMED], by_element, strict=False)
    ]
    more = f" and {len(rare) - _NAMED} more elements" if len(rare) > _NAMED else ""
    odd = len(there) <= _FEW_ELEMENTS and len(rare) <= len(there) / 2
    yield finding(
        one,
        Severity.WARNING if odd else Severity.NOTE,
        f"{count_text(len(rare), 'element')} in very few samples",
        f"{', '.join(parts)}{more}, of {len(values):,} samples: a wrong atomic number, or too "
        "little to learn from",
        "look at them, and delete them or add samples with these elements",
        places=places,
        section="elements",
    )


def _misfit(one: Measured, element: int) -> str:
    """Text on an element whose nearest neighbours do not fit its covalent radius; else empty."""
    ratios = [
        float(np.median(lengths)) / float(RADII[list(pair)].sum())
        for pair, lengths in one.distances.by_pair.items()
        if element in pair
    ]
    nearest = min(ratios, default=float("nan"))
    fits = _FITS[0] <= nearest <= _FITS[1] or not np.isfinite(nearest)
    if fits or element in _NOBLE_GASES:
        return ""
    return f" (neighbours at {nearest:.2f} of the covalent radii, which does not fit)"


def _splits(one: Measured) -> Iterator[Finding]:
    """Structures in two splits, and elements that training lacks."""
    splits, ids, codes = one.splits, one.values.ids, one.values.codes
    train = splits == 0
    for place, name in enumerate(SPLITS[1:], 1):
        own = splits == place
        if not own.any() or not train.any():
            continue
        shared = places_of(own)[np.isin(ids[own], ids[train])]
        if len(shared):
            yield finding(
                one,
                Severity.ERROR,
                f"{count_text(len(shared))} of {name} with the structure of a training sample",
                f"{len(shared)} of {int(own.sum()):,} {name} samples, so that the errors of {name} "
                "are smaller than those of unseen structures",
                "split by id, or write other index files (zarrpipe split)",
                places=shared,
                section="splits",
            )
        new = places_of(own)[~np.isin(codes[own], codes[train])]
        unseen = one.elements_of(new) - one.elements_of(places_of(train)) if len(new) else None
        if unseen:
            rows = one.with_elements(np.array(sorted(unseen)))
            places = np.intersect1d(np.concatenate(rows), places_of(own))
            yield finding(
                one,
                Severity.WARNING,
                f"{count_text(len(unseen), 'element')} of {name} that training lacks",
                f"{', '.join(SYMBOLS[z] for z in sorted(unseen))}: a model cannot know them",
                "add training samples with them, or another split (split_by, index files)",
                places=places,
                section="splits",
            )
