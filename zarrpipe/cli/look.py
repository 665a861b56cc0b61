"""Commands that say what is in a store: ``info``, ``stats``, ``head`` and ``show``."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from zarrpipe.cli.exit_codes import GOOD
from zarrpipe.cli.options import (
    FRACTIONS,
    At,
    By,
    Fields,
    Fractions,
    Json,
    Sort,
    Split,
    Store,
    Stores,
    Where,
    fractions_of,
    names_of,
)
from zarrpipe.cli.output import report
from zarrpipe.cli.output import show as printed
from zarrpipe.data.tables import Table

if TYPE_CHECKING:
    from collections.abc import Mapping

    from zarrpipe.dataset.store_info import StoreInfo
    from zarrpipe.dataset.zarr_dataset import ZarrDataset

Limit = Annotated[
    int, typer.Option("--limit", "-n", min=0, metavar="N", help="How many samples to show.")
]


def info(store: Store, *, as_json: Json = False) -> int:
    """Say what a store has.

    Fields with levels, units and presence, sizes, elements, ranges of labels, rounds, strings,
    chunks, bytes, and who writes it. It takes about a second for a million samples; the ranges of
    labels are those of a part of them then, and the column "of" says so. Of a parent of parts, it
    lists the parts; give one of them for its fields.
    """
    from zarrpipe.dataset.info import info as examined
    from zarrpipe.store.backend.parts import parts
    from zarrpipe.store.parts.parent_marks import parent_marks

    if places := parts(store):
        every = {name: examined(place) for name, place in places.items()}
        facts_by_part = {name: one.to_dict() for name, one in every.items()}
        marks = parent_marks(store)
        counts = {name: {"samples": one.count, "note": one.note} for name, one in marks.items()}
        tables = _parts_table(store, every)
        if marks:
            rows = tuple((name, f"{one.count:,}", one.note or "") for name, one in marks.items())
            tables.append(Table(("mark", "samples", "note"), rows, numbers={1}))
        printed({"parts": facts_by_part, "marks": counts}, tables, as_json=as_json)
        return GOOD
    facts = examined(store)
    printed(facts.to_dict(), facts.tables(), as_json=as_json)
    return GOOD


def _parts_table(store: str, every: "Mapping[str, StoreInfo]") -> list[object]:
    """Table of the parts of a parent, with their totals."""
    counts = [(one.samples, one.atoms, one.edges, one.bytes_stored or 0) for one in every.values()]
    totals = [f"{sum(column):,}" for column in zip(*counts, strict=True)]
    rows = [
        (name, *(f"{count:,}" for count in own), one.writer if one.writing else "")
        for (name, one), own in zip(every.items(), counts, strict=True)
    ]
    header = ("part", "samples", "atoms", "edges", "bytes", "writer")
    title = f"{store}: {totals[0]} samples in {len(every)} parts"
    return [Table(header, (*rows, ("all", *totals, "")), numbers={1, 2, 3, 4}, title=title)]


def stats(
    stores: Stores,
    *,
    where: Where = None,
    split: Split = None,
    fractions: Fractions = FRACTIONS,
    by: By = "id",
    at: At = None,
    as_json: Json = False,
) -> int:
    """Give reference energies, mean and spread of the labels.

    The reference energies of the elements are a least-squares fit of the energies; mean and spread
    are those of the energy per atom that is left.
    """
    from zarrpipe.cli.statistics_text import facts_of
    from zarrpipe.dataset.zarr_dataset import ZarrDataset
    from zarrpipe.training.splits.of_dataset import rows_of_split
    from zarrpipe.training.statistics import SplitStatistics

    dataset = ZarrDataset(stores, at=at)
    chosen = rows_of_split(dataset, split, fractions_of(fractions), by=by, where=where)
    found = SplitStatistics().of(dataset, *chosen)
    facts = {"stores": stores, "where": where, "split": split, "at": at, **facts_of(found)}
    printed(facts, found.tables(), as_json=as_json)
    return GOOD


def head(
    stores: Stores,
    *,
    limit: Limit = 10,
    fields: Fields = None,
    at: At = None,
    as_json: Json = False,
) -> int:
    """Show the first samples."""
    return show(stores, limit=limit, fields=fields, at=at, as_json=as_json)


def show(
    stores: Stores,
    *,
    where: Where = None,
    sort: Sort = None,
    tail: Annotated[
        bool, typer.Option("--tail", help="The last samples; with --sort the smallest first.")
    ] = False,
    limit: Limit = 10,
    fields: Fields = None,
    at: At = None,
    as_json: Json = False,
) -> int:
    """Show samples as a table.

    Columns are composition, atoms, energy, largest force, strings and round, or --fields. The index
    is that of the sample in a dataset of the stores.
    """
    import numpy as np

    from zarrpipe.dataset.zarr_dataset import ZarrDataset
    from zarrpipe.store.query.conditions import Condition
    from zarrpipe.store.query.evaluation import check as check_condition

    dataset, names = ZarrDataset(stores, at=at), names_of(fields)
    if sort is not None:
        check_condition(Condition.of(sort, "--sort", "max_force"), dataset.schema, number=True)
    matching = dataset.where(where) if where is not None else np.arange(len(dataset))
    among = dataset.index_select(matching)
    if sort is not None:
        chosen = among.nsmallest(sort, limit) if tail else among.nlargest(sort, limit)
    else:
        first = max(0, len(among) - limit) if tail else 0
        chosen = np.arange(first, min(first + limit, len(among)))
    index = matching[chosen].tolist()
    shown = dataset.index_select(index)
    columns = shown.to_dict(_columns(dataset, sort) if names is None else names)
    if columns.pop("index", None) is not None:
        report("warning: the field 'index' is left out, as index is the place of a sample here")
    units = {name: unit for name in columns if (unit := _unit(dataset, name))}
    facts = {
        "stores": stores,
        "samples": len(dataset),
        "matching": len(among),
        "units": units,
        "rows": [
            {"index": row, **{name: values[place] for name, values in columns.items()}}
            for place, row in enumerate(index)
        ],
    }
    printed(facts, _samples_table(facts, columns, units), as_json=as_json)
    return GOOD


def _columns(dataset: "ZarrDataset", sort: str | None) -> list[str]:
    """Columns that are shown unless some are asked for."""
    from zarrpipe.data.fields import COUNTS
    from zarrpipe.store.query.derived import DERIVED

    schema = dataset.schema
    names = ["formula", "num_atoms"]
    names += ["energy"] if "energy" in schema else []
    names += ["max_force"] if "forces" in schema else []
    names += [name for name, item in schema.items() if item.categories is not None]
    names += ["round"] if "round" in schema and schema["round"].level == "system" else []
    if sort in schema or sort in DERIVED or sort in COUNTS:  # rather than what follows from columns
        names.append(str(sort))
    return list(dict.fromkeys(names))


def _unit(dataset: "ZarrDataset", name: str) -> str:
    """Unit of a column, "" for none."""
    from zarrpipe.store.query.columns import derived_column

    derived = derived_column(name, dataset.schema)
    return dataset.units.get(name, "") if derived is None else derived.unit


def _samples_table(
    facts: dict[str, Any], columns: dict[str, list[Any]], units: dict[str, str]
) -> Table:
    """Table of the samples that are shown, under a title that counts them."""
    header = [f"{name} ({units[name]})" if name in units else name for name in columns]
    numbers = [
        place
        for place, values in enumerate(columns.values(), 1)
        if not any(isinstance(value, str) for value in values)
    ]
    cells = [[_cell(value) for value in values] for values in columns.values()]
    index = [str(row["index"]) for row in facts["rows"]]
    rows = tuple(zip(index, *cells, strict=True))
    met = (
        ""
        if facts["matching"] == facts["samples"]
        else f"the {facts['matching']:,} that match, of "
    )
    every = "1 sample" if facts["samples"] == 1 else f"{facts['samples']:,} samples"
    title = f"{len(rows):,} of {met}{every}"
    return Table(("index", *header), rows, (0, *numbers), title)


def _cell(value: Any) -> str:
    """A value for people; "-" for one that a sample lacks."""
    if isinstance(value, list):
        return " ".join(map(_cell, value))
    if isinstance(value, float):
        return f"{value:.8g}"
    return "-" if value is None else str(value)
