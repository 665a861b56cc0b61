"""Sections on the whole, repeated samples, splits and outliers."""

from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np

from zarrpipe.data.csr import Int64Array
from zarrpipe.data.tables import Table
from zarrpipe.dataset.store_info import number_text
from zarrpipe.reporting.contents import FloatArray, Section
from zarrpipe.reporting.findings.samples import repeats
from zarrpipe.reporting.sections.plots import bars, names_of, there
from zarrpipe.reporting.values.energies import spread_about
from zarrpipe.reporting.values.measured import Measured, first_of
from zarrpipe.store.query.elements import formulas
from zarrpipe.training.splits.assignment import SPLITS

_SHOWN, _OUTLIERS, _LONGEST = 25, 12, 40
_LEAST = 3.5
"""Deviation of an outlier, at least."""


def overview(sides: Sequence[Measured]) -> Section:
    """Facts of the stores, and their fields."""
    rows: dict[str, list[str]] = {}
    for one in sides:
        for what, text in _overview(one):
            rows.setdefault(what, []).append(text)
    header = () if len(sides) == 1 else ("", "A", "B")
    facts = Table(header, tuple((what, *texts) for what, texts in rows.items()))
    fields = [
        Table(
            ("field", "level", "dtype", "row", "unit", "samples"),
            tuple(_fields(one)),
            (5,),
            f"{label} fields:".strip(),
        )
        for label, one in zip(names_of(sides, ""), sides, strict=True)
    ]
    return Section("overview", "Overview", "", (facts, *fields))


def _overview(one: Measured) -> Iterator[tuple[str, str]]:
    values, scanned = one.values, len(one.values)
    yield "store", one.place
    yield "samples", f"{len(one):,}"
    yield "deleted samples", f"{sum(facts.deleted for facts in one.infos):,}"
    yield "atoms", f"{int(one.dataset.num_atoms.sum()):,}"
    yield "elements", f"{int((values.of_element > 0).sum())}"
    yield "compositions", f"{len(np.unique(values.codes)):,}"
    yield "periodic samples", f"{int(values.periodic.sum()):,}"
    yield (
        "labels read of",
        "all samples" if values.complete else f"{scanned:,} of {len(one):,} samples",
    )
    yield "distances searched in", f"{len(one.distances.chosen):,} of {len(one):,} samples"
    sizes = [facts.bytes_stored for facts in one.infos]
    known = [size for size in sizes if size is not None]
    yield "bytes", f"{sum(known):,}" if len(known) == len(sizes) else "not counted"
    writers = [facts.writer for facts in one.infos if facts.writing]
    yield "written at the moment by", ", ".join(writers) or "none"


def _fields(one: Measured) -> Iterator[tuple[str, ...]]:
    for name, item in one.dataset.schema.items():
        row = "x".join(map(str, item.shape)) or "1"
        dtype = "string" if item.categories is not None else str(item.dtype)
        count = int(one.values.present[name].sum())
        yield name, str(item.level), dtype, row, item.unit or "-", f"{count:,}"


def repeated(sides: Sequence[Measured]) -> Section:
    """Samples with the structure of an earlier one."""
    tables, texts = [], []
    for label, one in zip(names_of(sides, ""), sides, strict=True):
        found = repeats(one)
        worse = int(found.differs.sum())
        texts.append(
            f"{label} {len(found.later):,} samples have the structure of an earlier one, {worse:,} "
            "of them with another energy".strip()
        )
        if len(found.later):
            tables.append(_repeats_table(one, label))
    text = (
        f"{'; '.join(texts)}. Structures are the same where their 64-bit ids are: a hash of "
        "atomic numbers, positions, cell and pbc."
    )
    return Section("repeated", "Repeated structures", text, tuple(tables))


def _repeats_table(one: Measured, label: str) -> Table:
    """Pairs of equal structures, those whose energies differ most first."""
    found, energy = repeats(one), one.values.energy_per_atom
    with np.errstate(invalid="ignore"):
        off = np.nan_to_num(np.abs(energy[found.first] - energy[found.later]), nan=-1.0)
    order = np.argsort(-off, kind="stable")[:_SHOWN]
    first, later = one.samples(found.first[order]), one.samples(found.later[order])
    rows = tuple(
        (str(one), str(other), number_text(float(difference)) if difference >= 0 else "-")
        for one, other, difference in zip(first, later, off[order], strict=True)
    )
    more = f", {len(rows)} of {len(off):,}" if len(off) > len(rows) else ""
    header = ("sample", "again", "difference of energies (eV/atom)")
    return Table(header, rows, (0, 1, 2), f"{label} repeated structures{more}:".strip())


def splits(sides: Sequence[Measured], described: str) -> Section:
    """Sizes of the splits, and what they share with training."""
    figure = bars(sides, "splits", "Samples by split", _by_split)
    header = (
        *("split", "samples", "atoms", "elements", "compositions"),
        *("structures also in train", "compositions also in train"),
    )
    tables = [
        Table(
            header,
            tuple(_split_rows(one)),
            range(1, len(header)),
            f"{label} splits:".strip(),
        )
        for label, one in zip(names_of(sides, ""), sides, strict=True)
    ]
    text = f"Splits by {described}, as a `ZarrDataModule` makes them."
    return Section("splits", "Splits", text, tuple(tables), there(figure))


def _by_split(one: Measured) -> Mapping[str, int]:
    counts = np.bincount(one.splits[one.splits >= 0], minlength=len(SPLITS)).tolist()
    return dict(zip(SPLITS, counts, strict=True)) if sum(counts) else {}


def _split_rows(one: Measured) -> Iterator[tuple[str, ...]]:
    values, train = one.values, one.splits == 0
    for place, name in enumerate((*SPLITS, "none")):
        own = one.splits == (place if place < len(SPLITS) else -1)
        if not own.any() and name == "none":
            continue
        shared = [
            f"{int(np.isin(every[own], every[train]).sum()):,}" if place else "-"
            for every in (values.ids, values.codes)
        ]
        counts = (
            int(own.sum()),
            int(values.atoms[own].sum()),
            len(one.elements_of(np.flatnonzero(own))),
            len(np.unique(values.codes[own])),
        )
        yield name, *(f"{count:,}" for count in counts), *shared


def outliers(sides: Sequence[Measured]) -> Section:
    """The samples that are farthest from the others, by each measure."""
    tables = [
        table
        for label, one in zip(names_of(sides, ""), sides, strict=True)
        for table in _outlier_tables(one, label)
    ]
    text = (
        "Deviations are in units of 1.4826 times the median absolute deviation from the median: of "
        "energies within a composition of at least 8 samples, or else of all samples; of forces "
        f"and volumes by their logarithms. Those of at least {_LEAST:g} are listed."
    )
    return Section("outliers", "Outliers", text, tuple(tables))


def _outlier_tables(one: Measured, label: str) -> Iterator[Table]:
    energy = one.energies.residual - one.energies.median
    force, ratio = one.values.max_force, one.ratio
    volume = 1 / one.values.atoms_per_volume
    for title, unit, values, deviation in (
        ("energy after reference energies", "eV/atom", energy, one.energies.deviation),
        ("largest force", "eV/Angstrom", force, _deviation(force, np.log)),
        ("shortest distance", "of the covalent radii", ratio, _deviation(ratio)),
        ("volume", "Angstrom^3/atom", volume, _deviation(volume, np.log)),
    ):
        order = first_of(np.abs(deviation), _OUTLIERS)
        order = order[np.abs(deviation[order]) >= _LEAST]
        if len(order):
            rows = zip(
                map(str, one.samples(order)),
                _formulas(one, order),
                (number_text(float(values[place])) for place in order),
                (f"{deviation[place]:+.1f}" for place in order),
                strict=True,
            )
            header = ("sample", "formula", f"{title} ({unit})", "deviation")
            yield Table(header, tuple(rows), (0, 2, 3), f"{label} {title}:".strip())


def _deviation(
    values: FloatArray, scale: Callable[[FloatArray], FloatArray] | None = None
) -> FloatArray:
    """Robust deviations of the finite values; NaN elsewhere, and where all are equal."""
    with np.errstate(all="ignore"):
        scaled = values if scale is None else scale(values)
    known = scaled[np.isfinite(scaled)]
    if not len(known):
        return np.full(len(values), np.nan)
    middle = float(np.median(known))
    spread = spread_about(known, middle)
    deviation: FloatArray = (scaled - middle) / (spread if spread > 0 else np.nan)
    return deviation


def _formulas(one: Measured, places: Int64Array) -> list[str]:
    batch = one.dataset.gather(one.values.rows[places], ())
    texts = formulas(batch.atomic_numbers.numpy(), batch.batch_ptr.numpy())
    return [text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…" for text in texts]
