"""Commands that write files out of a store: ``export``."""

import sys
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
    Where,
    fractions_of,
    names_of,
)
from zarrpipe.cli.output import show
from zarrpipe.data.tables import Table

if TYPE_CHECKING:
    from zarrpipe.formats.write.written import Written


def export(
    store: Store,
    out: Annotated[
        str | None,
        typer.Argument(
            metavar="OUT",
            help="File to write, whose suffix says the format; may be left out with --card.",
            show_default=False,
        ),
    ] = None,
    *,
    form: Annotated[
        str | None,
        typer.Option(
            "--format",
            metavar="NAME",
            help="extxyz, traj, db, aselmdb, mace, metatrain, npz or parquet.",
        ),
    ] = None,
    where: Where = None,
    fields: Fields = None,
    split: Split = None,
    fractions: Fractions = FRACTIONS,
    by: By = "id",
    sort: Sort = None,
    at: At = None,
    limit: Annotated[
        int | None, typer.Option("--limit", metavar="N", help="Most samples to write.")
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace a file that is there.")
    ] = False,
    card: Annotated[
        bool,
        typer.Option("--card", help="Write a card of the store (Croissant, JSON-LD) beside it."),
    ] = False,
    license_: Annotated[
        str | None, typer.Option("--license", metavar="SPDX", help="With --card, as CC-BY-4.0.")
    ] = None,
    url: Annotated[
        str | None, typer.Option("--url", metavar="URL", help="With --card: where the data are.")
    ] = None,
    creator: Annotated[
        list[str] | None,
        typer.Option("--creator", metavar="NAME", help="With --card; may be repeated."),
    ] = None,
    as_json: Json = False,
) -> int:
    """Write samples to files of other programs.

    Numbers stay in ASE's units. What a format cannot carry is listed.
    """
    if out is None and not card:
        raise typer.BadParameter("it is missing, and --card was not given", param_hint="'OUT'")
    from zarrpipe.dataset.zarr_dataset import ZarrDataset
    from zarrpipe.formats.write.card import write_card
    from zarrpipe.formats.write.write_out import write_out

    done: list[Written] = []
    if out is not None:
        marked = None if at is None else ZarrDataset(store, names_of(fields), at=at)
        chosen = write_out(
            store if marked is None else marked,
            out,
            format=form,
            where=where,
            fields=names_of(fields),
            split=split,
            splits=fractions_of(fractions),
            split_by=by,
            sort=sort,
            limit=limit,
            overwrite=overwrite,
            progress=not as_json and sys.stderr.isatty(),
        )
        done.append(chosen)
    if card:
        about: dict[str, Any] = {"license": license_, "url": url, "creators": creator or ()}
        done.append(write_card(store, overwrite=overwrite, **about))
    facts = [_facts(one) for one in done]
    texts = [text for one in done for text in _texts(one)]
    show({"written": facts}, texts, as_json=as_json)
    return GOOD


def _facts(written: "Written") -> dict[str, Any]:
    return {
        "path": str(written.path),
        "format": written.format,
        "samples": written.num_samples,
        "left_out": dict(written.left_out),
    }


def _texts(written: "Written") -> list[object]:
    """What was written, and a table of what was left out."""
    line = f"{written.path}: {written.num_samples:,} samples, {written.format}"
    if not written.left_out:
        return [line]
    return [line, Table((), tuple(written.left_out.items()), title="not in it:")]
