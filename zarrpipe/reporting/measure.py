"""`report`: what a store has, what looks wrong in it, and which structures to look at."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from zarrpipe.data.validate import check_count
from zarrpipe.reporting.contents import Finding, Report
from zarrpipe.reporting.findings.find import find
from zarrpipe.reporting.findings.finding import worst_first
from zarrpipe.reporting.sections.comparison import comparison_findings
from zarrpipe.reporting.sections.every import facts_of, sections_of
from zarrpipe.reporting.values.chosen import structures_of
from zarrpipe.reporting.values.measured import Measured, Settings, measured
from zarrpipe.reporting.values.structure_map import map_of
from zarrpipe.store.backend.location import StoreLike
from zarrpipe.training.splits.datasets import place

Stored = StoreLike | Sequence[StoreLike]


def report(
    stores: Stored,
    other: Stored | None = None,
    *,
    where: str | None = None,
    split: Sequence[float] | Mapping[str, Any] = (0.9, 0.05, 0.05),
    split_by: str = "id",
    max_samples: int = 20_000,
    seed: int = 0,
) -> Report:
    """Report what a store has and what looks wrong in it, or compare two.

    Sizes, elements, labels, presence, repeated structures and splits are counted in all samples, up
    to 2 million samples of 67 million atoms, and in evenly spread runs of larger stores. Distances
    between atoms are those of `max_samples` evenly spread samples, and of those that are most
    likely broken: the largest forces, stresses and densities, and the most unusual energies.
    Nothing is written and nothing is locked; a writer may go on.

    Parameters
    ----------
    stores : StoreLike or sequence of StoreLike
        A store, or several that are taken as one.
    other : StoreLike or sequence of StoreLike, optional
        The same of a second data set, which is set beside the first.
    where : str, optional
        Condition that a sample has to meet; see `ZarrDataset.where`.
    split : sequence of float, or mapping of str to float or index file
        The splits that are looked at, as those of a `ZarrDataModule`.
    split_by : str
        "id", or a field whose equal values stay in one split.
    max_samples : int
        Samples whose neighbours are searched, at most.
    seed : int
        Of the choice of samples.

    Returns
    -------
    Report
        Facts, findings, sections and structures. Samples have the numbers that they have in a
        dataset of the stores.

    Raises
    ------
    StoreNotFoundError
        If there is no store at a place.
    StoreFormatError
        If it is damaged, or was rewritten meanwhile.
    ValueError
        If `where`, `split` or a number is wrong.
    MissingLibraryError
        If vesin is not installed.

    Examples
    --------
    >>> import zarrpipe as zp
    >>> store = {}
    >>> with zp.ZarrData(store) as sink:
    ...     for z in (0.7, 0.75, 0.1):
    ...         sink.write(zp.AtomicData([[0.0, 0.0, 0.0], [0.0, 0.0, z]], [1, 1], energy=-31.7))
    >>> found = zp.report(store).findings[0]
    >>> found.severity.value, found.title, found.samples
    ('error', '1 frame has blown up', (2,))
    """
    settings = Settings(
        seed=check_count("seed", seed, 0),
        max_samples=check_count("max_samples", max_samples, 1, unit="samples"),
        where=where,
        split=split,
        split_by=split_by,
    )
    sides = [measured(stores, _text(stores), settings)]
    if other is not None:
        sides.append(measured(other, _text(other), settings))
    (findings, unchecked), mapped = _findings(sides), map_of(sides, seed)
    return Report(
        stores=tuple(one.place for one in sides),
        facts=facts_of(sides),
        findings=findings,
        sections=sections_of(sides, settings, mapped),
        structures=structures_of(sides, findings, mapped, seed),
        looked_at=sum(len(one.distances.chosen) for one in sides),
        samples=sum(len(one) for one in sides),
        not_checked=unchecked,
    )


def _findings(sides: Sequence[Measured]) -> tuple[tuple[Finding, ...], tuple[str, ...]]:
    """Findings of each store and of the comparison, and what was not checked."""
    found, unchecked = [], list[str]()
    for store, side in enumerate(sides):
        own, left = find(side)
        found += [replace(one, store=store) for one in own]
        unchecked += [f"of {'AB'[store]}: {one}" if len(sides) > 1 else one for one in left]
    if len(sides) > 1 and all(map(len, sides)):
        found += comparison_findings(sides)
    return worst_first(found), tuple(unchecked)


def _text(stores: Stored) -> str:
    """Place of a store, or of several."""
    if isinstance(stores, str | Path):
        return str(stores)
    if isinstance(stores, Sequence):
        return f"[{', '.join(map(_text, stores))}]"
    return place(stores)
