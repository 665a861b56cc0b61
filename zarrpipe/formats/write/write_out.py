"""Write samples of a store to a file of another program."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from zarrpipe.data.validate import check_flag
from zarrpipe.dataset.zarr_dataset import ZarrDataset
from zarrpipe.formats.write.formats import format_of
from zarrpipe.formats.write.samples import Choice, Samples
from zarrpipe.formats.write.target import check_vacant, new_target, place_of
from zarrpipe.formats.write.written import Written
from zarrpipe.store.backend.location import StoreLike


def write_out(
    store_or_dataset: StoreLike | Sequence[StoreLike] | ZarrDataset,
    out: str | Path,
    *,
    format: str | None = None,  # noqa: A002  the word of every library for it
    where: str | None = None,
    fields: Sequence[str] | None = None,
    split: str | Path | None = None,
    splits: Sequence[float] = (0.9, 0.05, 0.05),
    split_by: str = "id",
    sort: str | None = None,
    limit: int | None = None,
    overwrite: bool = False,
    progress: bool = False,
) -> Written:
    """Write samples of a store to a file of another program, with the values that they have.

    Numbers stay in ASE's units: eV, eV/Angstrom, and stress in eV/Angstrom^3 with tension
    positive. A label that a sample lacks is absent in the file too. What a format cannot carry is
    in the result, by name and reason; docs/guides/export.md has a table of all formats.

    The file appears under its name when it is complete and on disk. Samples are read in batches of
    about 32 MB.

    Parameters
    ----------
    store_or_dataset : StoreLike, sequence of StoreLike, or ZarrDataset
        A store, several, or a dataset with its own fields, samples and transform.
    out : str or Path
        The file, or the directory of a "metatrain" export. Its suffix says the format.
    format : str, optional
        "extxyz", "traj", "db", "aselmdb" (all read by ASE), "mace" (the HDF5 files that MACE trains
        on), "metatrain" (memory-mapped arrays), "npz", or "parquet".
    where : str, optional
        Condition that a sample has to meet; see `ZarrDataset.where`.
    fields : sequence of str, optional
        Fields to write; by default all. Positions and atomic numbers always come.
    split : str or Path, optional
        "train", "val" or "test", of which `splits` says what they are; or an index file that
        `write_split` wrote.
    splits : sequence of float
        Shares of training, validation and test, as the argument `split` of `ZarrDataModule`. A data
        module with the same shares and `split_by` has the same samples in each split.
    split_by : str
        "id", or the name of a field whose equal values stay in one split.
    sort : str, optional
        Column of conditions, or what follows from such columns, by which samples are sorted, the
        largest first: ``"max_force"``, or ``"-max_force"`` for the smallest first. Samples without
        a value come last.
    limit : int, optional
        Most samples to write, the first ones.
    overwrite : bool
        Whether a file of that name is replaced, when the new one is complete.
    progress : bool
        Whether a progress bar is shown.

    Returns
    -------
    Written
        The path, the format, the number of samples, and what was left out and why.

    Raises
    ------
    FileExistsError
        If something is at `out` (StoreExistsError), and `overwrite` is False or it is a directory
        with other files.
    ValueError
        If the format is not known, or a field, a condition, a split or an order is wrong.
    RuntimeError
        If no sample is chosen (StoreEmptyError).
    ImportError
        If the library of a format is not installed: ``pip install 'zarrpipe[import]'``.

    Examples
    --------
    >>> import tempfile, zarrpipe as zp
    >>> from pathlib import Path
    >>> store = {}
    >>> with zp.ZarrData(store) as sink:
    ...     for energy in (-1.0, -3.0, -2.0):
    ...         sink.write(zp.AtomicData([[0.0, 0.0, 0.0]], [2], energy=energy))
    >>> out = Path(tempfile.mkdtemp()) / "helium.npz"
    >>> written = zp.write_out(store, out, sort="-energy", limit=2)
    >>> written.format, written.num_samples, dict(written.left_out)
    ('npz', 2, {})
    """
    place = place_of(out)
    found = format_of(place, format)
    check_flag("progress", progress)
    check_vacant(place, found.folder_of, overwrite=check_flag("overwrite", overwrite))
    given = store_or_dataset
    dataset = given if isinstance(given, ZarrDataset) else ZarrDataset(given, fields=fields)
    chosen = Choice(where, split, splits, split_by, sort, limit).of(dataset)
    samples = Samples(chosen, fields, progress=progress)
    with new_target(place, found.folder_of, overwrite=overwrite) as path:
        left_out = found.write(path, samples)
    return Written(place, found.name, len(samples), left_out)
