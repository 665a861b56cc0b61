"""The command ``report``: a store as a page to look at, or two beside each other."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from zarrpipe.cli.exit_codes import GOOD
from zarrpipe.cli.options import FRACTIONS, By, Fractions, Json, Where, fractions_of
from zarrpipe.cli.output import show
from zarrpipe.data.tables import Table
from zarrpipe.errors import ArgumentError

if TYPE_CHECKING:
    from zarrpipe.reporting.contents import Report

_SHOWN = 8


def report(
    store: Annotated[
        str, typer.Argument(metavar="STORE", help="Path or URL of the store.", show_default=False)
    ],
    other: Annotated[
        str | None,
        typer.Argument(
            metavar="[OTHER]", help="A second store to set beside it.", show_default=False
        ),
    ] = None,
    *,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            metavar="FILE.html",
            help="Write the page there; it needs no network.",
            show_default=False,
        ),
    ] = None,
    plots: Annotated[
        Path | None,
        typer.Option(
            "--plots", metavar="DIR", help="Write each figure as PNG.", show_default=False
        ),
    ] = None,
    where: Where = None,
    fractions: Fractions = FRACTIONS,
    by: By = "id",
    index_files: Annotated[
        Path | None,
        typer.Option(
            "--splits",
            metavar="DIR",
            help="Splits by the train.npy, val.npy and test.npy of a directory.",
            show_default=False,
        ),
    ] = None,
    samples: Annotated[
        int,
        typer.Option("--samples", min=1, metavar="N", help="Samples whose distances are searched."),
    ] = 20_000,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of the choice of samples.")] = 0,
    as_json: Json = False,
) -> int:
    """Report what is in a store and what looks wrong, as a page to look at.

    Findings come first, the worst on top. Sizes, labels, presence and repeated structures are those
    of all samples; distances are those of some, and the page says of how many.
    """
    from zarrpipe.reporting.measure import report as measured

    _check_places(out, plots)
    split = fractions_of(fractions) if index_files is None else _index_files(index_files)
    found = measured(
        store, other, where=where, split=split, split_by=by, max_samples=samples, seed=seed
    )
    if out is not None:
        from zarrpipe.reporting.page import write_page

        write_page(found, out)
    if plots is not None:
        from zarrpipe.reporting.figures import write_plots

        write_plots(found, plots)
    facts = found.to_dict() if as_json else {}
    show(facts, _text(found, out), as_json=as_json)
    return GOOD


def _check_places(out: Path | None, plots: Path | None) -> None:
    """Refuse places that cannot be written, before the store is read."""
    if out is not None and (out.is_dir() or not out.parent.is_dir()):
        raise ArgumentError(f"-o is {out}, expected a file in a directory that is there")
    if plots is not None and plots.exists() and not plots.is_dir():
        raise ArgumentError(f"--plots is {plots}, which is a file: expected a directory")


def _index_files(folder: Path) -> dict[str, Any]:
    """Index files of a directory by split."""
    found = {path.stem: path for path in folder.glob("*.npy") if path.stem in _SPLITS}
    if not found:
        raise ArgumentError(
            f"--splits is {folder}, which has no {', '.join(f'{name}.npy' for name in _SPLITS)}: "
            "expected a directory that zarrpipe split has written"
        )
    return {name: found.get(name) for name in _SPLITS}


_SPLITS = ("train", "val", "test")


def _text(found: "Report", out: Path | None) -> list[object]:
    """Findings as a table, and where the page is."""
    rows = tuple(
        (
            str(one.severity),
            *([found.stores[one.store]] if len(found.stores) > 1 else []),
            one.title,
            _listed(one.samples, one.count),
        )
        for one in found.findings
    )
    header = ("", *(["store"] if len(found.stores) > 1 else []), "finding", "samples")
    title = f"findings in {', '.join(found.stores)}:"
    parts: list[object] = [Table(header, rows, title=title)] if rows else [f"{title} none"]
    parts.append(
        f"distances were searched in {found.looked_at:,} of {found.samples:,} samples"
        + (f"; the page is {out}" if out is not None else "; -o FILE.html writes a page")
    )
    return parts


def _listed(samples: tuple[int, ...], count: int) -> str:
    """The first numbers, and how many there are."""
    shown = ", ".join(map(str, samples[:_SHOWN]))
    return shown if count <= _SHOWN else f"{shown}, ... ({count:,})"
