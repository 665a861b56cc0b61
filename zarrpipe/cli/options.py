"""Options that several commands share, and how their values are read."""

from typing import Annotated

import typer

from zarrpipe.errors import ArgumentError

Store = Annotated[
    str, typer.Argument(metavar="STORE", help="Path or URL of the store.", show_default=False)
]
Stores = Annotated[
    list[str],
    typer.Argument(
        metavar="STORE",
        help="Paths or URLs of one store, or of several that are taken as one.",
        show_default=False,
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]
Where = Annotated[
    str | None,
    typer.Option(
        "--where",
        metavar="CONDITION",
        help="Only samples that meet it, as \"max_force < 20 and has_element('Cu')\".",
        show_default=False,
    ),
]
At = Annotated[
    str | None,
    typer.Option(
        "--at",
        metavar="MARK",
        help="Only the samples that were stored when a mark was made; zarrpipe info lists marks.",
        show_default=False,
    ),
]
Fields = Annotated[
    str | None,
    typer.Option(
        "--fields",
        metavar="NAME,...",
        help="Only these, separated by commas.",
        show_default=False,
    ),
]
Split = Annotated[
    str | None,
    typer.Option(
        "--split",
        metavar="SPLIT",
        help="Only a split: train, val or test of --fractions and --by, or an index file.",
        show_default=False,
    ),
]
Sort = Annotated[
    str | None,
    typer.Option(
        "--sort",
        metavar="COLUMN",
        help="The largest first, of a column or of what follows from columns, as max_force.",
        show_default=False,
    ),
]
Fractions = Annotated[
    str,
    typer.Option(
        "--fractions",
        metavar="TRAIN,VAL,TEST",
        help="Shares of the splits, which sum to 1.",
    ),
]
By = Annotated[
    str,
    typer.Option(
        "--by",
        metavar="FIELD",
        help="A field whose equal values stay in one split; id stands for equal structures.",
    ),
]
Shuffle = Annotated[
    int | None,
    typer.Option(
        "--shuffle",
        metavar="SEED",
        help="Put the samples in a random order, which the seed decides.",
        show_default=False,
    ),
]
Publish = Annotated[
    bool,
    typer.Option(
        "--publish",
        help="Compress it in few large files with checksums, to archive or to send; by default "
        "chunks are plain, the fastest to train on.",
    ),
]

FRACTIONS = "0.9,0.05,0.05"
"""Default of `Fractions`, that of the data module."""


def names_of(text: str | None) -> list[str] | None:
    """Names that are separated by commas; None for all."""
    if text is None:
        return None
    names = [name.strip() for name in text.split(",")]
    if not all(names):
        raise ArgumentError(f"--fields is {text!r}, expected names as energy,forces")
    return names


def fractions_of(text: str) -> list[float]:
    """Numbers that are separated by commas."""
    try:
        return [float(part) for part in text.split(",")]
    except ValueError as error:
        raise ArgumentError(f"--fractions is {text!r}, expected numbers as {FRACTIONS}") from error
