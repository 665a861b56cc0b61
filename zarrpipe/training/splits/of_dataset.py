"""Splits of a dataset without a data module: the samples of one, and the index files of all."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from zarrpipe.data.csr import Int64Array
from zarrpipe.dataset.zarr_dataset import ZarrDataset
from zarrpipe.errors import ArgumentError
from zarrpipe.training.splits.assignment import SPLITS, SplitAssignment, SplitRule
from zarrpipe.training.splits.index_files import read_ids, write_ids


@dataclass(frozen=True)
class WrittenSplit:
    """The index file of a split, and how many samples and different structures it names."""

    path: Path
    samples: int
    structures: int


def write_splits(
    directory: str | Path,
    dataset: ZarrDataset,
    fractions: Sequence[float],
    *,
    by: str = "id",
    where: str | None = None,
    overwrite: bool = False,
) -> tuple[Mapping[str, WrittenSplit], int]:
    """Write ``train.npy``, ``val.npy`` and ``test.npy``, of the splits that have a fraction.

    They are the splits that a `ZarrDataModule` makes of the same `fractions` and ``split_by=by``,
    but that they do not grow with the store. An index file names structures, so a structure that
    stands in several groups of `by` is in the first of the splits that have it.

    Parameters
    ----------
    directory : str or Path
        Where the files are to be; it is made.
    dataset : ZarrDataset
        Where the samples are.
    fractions : sequence of float
        Of training, validation and test; they sum to 1.
    by : str
        "id", or a field of systems whose equal values stay in one split.
    where : str, optional
        Condition that a sample has to meet to be in any split.
    overwrite : bool
        Whether to replace index files that are there.

    Returns
    -------
    mapping of str to WrittenSplit, int
        What was written by split, and the number of structures that stood in several.

    Raises
    ------
    ValueError
        If the fractions are wrong, a file is there, or the directory cannot be made.
    SchemaError
        If there is no field `by`, or a sample lacks it.
    """
    rule, folder = SplitRule.of(fractions, by), Path(directory)
    chosen = [name for name, share in zip(SPLITS, rule.shares, strict=False) if share > 0]
    rows = SplitAssignment(rule, where, lambda: dataset.schema).rows(dataset)
    every = {name: dataset.ids_of(rows[name]) for name in chosen}
    files = {name: folder / f"{name}.npy" for name in chosen}
    _make(folder, [] if overwrite else [*files.values()])
    taken, seen = np.zeros(0, dtype=np.uint64), 0
    written = {}
    for name in chosen:
        own = np.unique(every[name])
        ids = np.setdiff1d(own, taken, assume_unique=True)
        seen += len(own) - len(ids)
        taken = np.union1d(taken, ids)
        samples = sum(int(np.isin(of_split, ids, kind="sort").sum()) for of_split in every.values())
        written[name] = WrittenSplit(files[name], samples, write_ids(files[name], ids))
    return written, seen


def rows_of_split(
    dataset: ZarrDataset,
    split: str | None,
    fractions: Sequence[float],
    *,
    by: str = "id",
    where: str | None = None,
) -> tuple[Int64Array, float | None]:
    """Positions [K] of the samples of a split, ascending, and its share of the hashes of the ids.

    `split` is "train", "val" or "test" of `fractions`, the path of an index file, or None for all
    samples. The share is None unless it alone decides which samples these are.

    Raises ValueError if there is no such split or file, or none of its ids is in the dataset.
    """
    if split is None:
        every = np.arange(len(dataset)) if where is None else dataset.where(where)
        return every, 1.0 if where is None else None
    if split in SPLITS:
        rule = SplitRule.of(fractions, by)
        rows = SplitAssignment(rule, where, lambda: dataset.schema).rows(dataset)[split]
        first = split == "train" and rule.by_hash_of_id and where is None
        return rows.astype(np.int64), rule.shares[0] if first else None
    if not split.endswith(".npy"):
        raise ArgumentError(
            f"split is {split!r}, expected one of {', '.join(SPLITS)}, or an index file (.npy)"
        )
    ids = read_ids(split, "split")
    rows = np.flatnonzero(np.isin(dataset.ids, ids, kind="sort"))
    if len(ids) and not len(rows):
        raise ArgumentError(
            f"none of the {len(ids)} ids of {split} is in the stores: give the index file that was "
            "written for these stores"
        )
    return rows if where is None else dataset.where(where, rows), None


def _make(folder: Path, new: Sequence[Path]) -> None:
    """Make a folder in which no file of some stands."""
    for path in new:
        if path.exists():
            raise ArgumentError(
                f"{path} is there already: give another directory, or overwrite it (overwrite=True "
                "or --overwrite)"
            )
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ArgumentError(
            f"the directory {folder} cannot be made ({error.strerror}): give a place that may be "
            "written"
        ) from error
