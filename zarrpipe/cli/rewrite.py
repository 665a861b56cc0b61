"""Commands that write stores and index files: ``split``, ``merge``, ``compact`` and ``copy``."""

from typing import TYPE_CHECKING, Annotated

import typer

from zarrpipe.cli.exit_codes import GOOD
from zarrpipe.cli.options import (
    FRACTIONS,
    At,
    By,
    Fields,
    Fractions,
    Json,
    Publish,
    Shuffle,
    Store,
    Stores,
    Where,
    fractions_of,
    names_of,
)
from zarrpipe.cli.output import report, show
from zarrpipe.data.tables import Table

if TYPE_CHECKING:
    from zarrpipe.store.format.config import ZarrWriteConfig

Target = Annotated[
    str, typer.Argument(metavar="TARGET", help="Place of the new store.", show_default=False)
]


def split(
    stores: Stores,
    *,
    directory: Annotated[
        str,
        typer.Option(
            "--output",
            "-o",
            metavar="DIRECTORY",
            help="Where the index files are to be; it is made.",
            show_default=False,
        ),
    ],
    fractions: Fractions = FRACTIONS,
    by: By = "id",
    where: Where = None,
    at: At = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace index files that are there.")
    ] = False,
    as_json: Json = False,
) -> int:
    """Write the index files of a split: train.npy, val.npy, test.npy.

    They name structures by their ids, which no change of a store moves; ZarrDataModule takes them
    as split={"val": "DIRECTORY/val.npy", "test": "DIRECTORY/test.npy"}.
    """
    from zarrpipe.dataset.zarr_dataset import ZarrDataset
    from zarrpipe.training.splits.of_dataset import write_splits

    dataset, shares = ZarrDataset(stores, at=at), fractions_of(fractions)
    written, shared = write_splits(
        directory, dataset, shares, by=by, where=where, overwrite=overwrite
    )
    if shared:
        report(
            f"warning: {shared:,} of the structures stand in several splits by {by}: each is in "
            "the first of train, val, test"
        )
    splits = {
        name: {"file": str(one.path), "samples": one.samples, "structures": one.structures}
        for name, one in written.items()
    }
    rows = tuple(
        (name, f"{one.samples:,}", f"{one.structures:,}", str(one.path))
        for name, one in written.items()
    )
    table = Table(("split", "samples", "structures", "file"), rows, (1, 2))
    facts = {"stores": stores, "by": by, "where": where, "shared": shared, "splits": splits}
    show(facts, table, as_json=as_json)
    return GOOD


def merge(
    sources: Annotated[
        list[str],
        typer.Argument(metavar="SOURCE", help="Paths or URLs of stores.", show_default=False),
    ],
    target: Target,
    *,
    where: Where = None,
    fields: Fields = None,
    shuffle: Shuffle = None,
    publish: Publish = False,
    as_json: Json = False,
) -> int:
    """Write the samples of stores into one new store.

    It is arranged for fast reading. The sources stay as they are; writers may go on.
    """
    from zarrpipe.store.rewrite.merge import merge as merged

    names, config = names_of(fields), _published() if publish else None
    count = merged(sources, target, where=where, fields=names, config=config, shuffle=shuffle)
    facts = {"sources": sources, "target": target, "samples": count}
    number = "1 store" if len(sources) == 1 else f"{len(sources):,} stores"
    show(facts, f"{target}: {count:,} samples of {number}", as_json=as_json)
    return GOOD


def compact(
    store: Store, *, shuffle: Shuffle = None, publish: Publish = False, as_json: Json = False
) -> int:
    """Rewrite a store in its place, in few large files.

    Deleted samples are left out. The new store is swapped in when it is complete. No writer may
    have the store open.
    """
    from zarrpipe.store.rewrite.merge import compact as compacted

    count = compacted(store, config=_published() if publish else None, shuffle=shuffle)
    show({"store": store, "samples": count}, f"{store}: {count:,} samples", as_json=as_json)
    return GOOD


def copy(
    source: Store,
    target: Target,
    *,
    overwrite: Annotated[
        bool,
        typer.Option("--overwrite", help="Replace a store at TARGET, which has to be local."),
    ] = False,
    verify: Annotated[
        bool,
        typer.Option(
            "--verify/--no-verify", help="Read the structures back and compare them by their ids."
        ),
    ] = True,
    as_json: Json = False,
) -> int:
    """Copy a store as it is now, to or from any place.

    A writer may go on meanwhile: the copy is what it had stored at one moment. Samples, ids, order,
    chunks and codecs stay; deleted samples are left out.
    """
    from zarrpipe.store.rewrite.copy import copy as copied

    count = copied(source, target, overwrite=overwrite, verify=verify)
    facts = {"source": source, "target": target, "samples": count}
    show(facts, f"{target}: {count:,} samples of {source}", as_json=as_json)
    return GOOD


def _published() -> "ZarrWriteConfig":
    """Chunks and codecs of a store to archive or to send."""
    from zarrpipe.store.format.config import ZarrWriteConfig

    return ZarrWriteConfig.published(checksum=True)
