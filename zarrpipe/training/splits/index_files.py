"""Index files: the ids of the structures of a split."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from zarrpipe.data.ids import UInt64Array
from zarrpipe.dataset.zarr_dataset import Index, ZarrDataset
from zarrpipe.errors import ArgumentError, ArgumentTypeError

_WAY_OUT = (
    "positions do not survive compaction, deletion and growth: write the ids of those samples with "
    "zarrpipe.write_split(path, dataset, positions) and give that file"
)


def read_ids(source: object, name: str) -> UInt64Array:
    """Ids [K] uint64, ascending and unique, of an index file or array; errors call it `name`."""
    given = f"{name} is {described(source)}"
    if isinstance(source, str | Path):
        values = _loaded(Path(source), given)
    elif isinstance(source, str | bytes | Mapping) or not hasattr(source, "__len__"):
        raise ArgumentTypeError(f"{given}, expected an index file or an array of ids, uint64")
    else:
        values = np.asarray(source)
    if values.dtype.kind in "ib" and values.size:
        raise ArgumentError(f"{given}, which has {values.dtype} and so no ids, uint64; {_WAY_OUT}")
    if values.ndim != 1 or (values.dtype.newbyteorder("=") != np.uint64 and values.size):
        raise ArgumentError(
            f"{given} with shape {values.shape} and dtype {values.dtype}, expected ids, [K] uint64"
        )
    return np.unique(values.astype(np.uint64, copy=False))


def described(source: object) -> str:
    """Short description of a source."""
    if isinstance(source, str | Path):
        return repr(str(source))
    if hasattr(source, "__len__"):
        return f"{type(source).__name__} of {len(source)}"
    return repr(source)


def write_split(path: str | Path, dataset: ZarrDataset, index: Index | None = None) -> int:
    """Write the index file of a split: the ids of its samples, which no change of a store moves.

    An index file that is there is replaced, when the new one is complete.

    Parameters
    ----------
    path : str or Path
        A ``.npy`` file.
    dataset : ZarrDataset
        Where the samples are.
    index : array [K] of int, mask or slice, optional
        Samples of the split; by default all of `dataset`.

    Returns
    -------
    int
        Number of ids, smaller than that of samples if some have the same structure. All samples
        of a structure are in the split, even if only one of them is given here.

    Raises
    ------
    TypeError, ValueError
        If `dataset` is not a ZarrDataset, or no file can be at `path`.

    Examples
    --------
    >>> import tempfile, zarrpipe as zp
    >>> from pathlib import Path
    >>> store, place = {}, Path(tempfile.mkdtemp())
    >>> with zp.ZarrData(store) as sink:
    ...     for number in (1, 8, 1):
    ...         sink.write(zp.AtomicData([[0.0, 0.0, 0.0]], [number]))
    >>> zp.write_split(place / "val.npy", zp.ZarrDataset(store), [0, 2])
    1
    >>> module = zp.ZarrDataModule(store, split={"val": place / "val.npy"})
    >>> len(module.train_dataset), len(module.val_dataset)
    (1, 2)
    """
    if not isinstance(dataset, ZarrDataset):
        raise ArgumentTypeError(
            f"dataset is {dataset!r}, expected a ZarrDataset: write_split(path, dataset, positions)"
        )
    target = Path(path)
    if target.is_dir() or not target.parent.is_dir():
        what = "is a directory" if target.is_dir() else f"is in no directory: {target.parent}"
        raise ArgumentError(
            f"path is {str(path)!r}, which {what}; expected the place of a .npy file"
        )
    return write_ids(target, dataset.ids if index is None else dataset.ids_of(index))


def write_ids(path: Path, ids: UInt64Array) -> int:
    """Write an index file of ids, and return how many different ones there are."""
    each = np.unique(ids)
    part = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with part.open("wb") as file:
            np.save(file, each)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
    return len(each)


def _loaded(path: Path, given: str) -> npt.NDArray[Any]:
    try:
        begins = _begin_of(path)
        kind = _other_kind(begins)
        if kind is None:
            with path.open("rb") as file:
                return np.lib.format.read_array(file, allow_pickle=False)
    except OSError as error:
        raise ArgumentError(
            f"{given}, which cannot be read ({error.strerror or error}): give a file that "
            "zarrpipe.write_split wrote"
        ) from error
    except (ValueError, EOFError) as error:
        raise ArgumentError(
            f"{given}, which is cut off, damaged or holds objects: write it anew with "
            "zarrpipe.write_split(path, dataset, positions)"
        ) from error
    raise ArgumentError(f"{given}, which {kind}, expected a .npy file of ids, uint64; {_WAY_OUT}")


def _begin_of(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(512)


def _other_kind(begins: bytes) -> str | None:
    """Kind of a file that is no .npy file, from its first bytes; None for a .npy file."""
    if begins.startswith(b"\x93NUMPY"):
        return None
    if begins.startswith(b"PK"):
        return "is an archive of arrays (.npz)"
    if not begins:
        return "is empty"
    printable = all(byte >= 32 or byte in b"\t\r\n\f" for byte in begins)
    return "is text" if printable else "is no file of NumPy's"


class IdTable:
    """The split of each id of index files, and which ids were found in a dataset.

    `ids` has the ids [K] of each split, unique and ascending, by the split's place in `names`.
    """

    def __init__(self, ids: Mapping[int, UInt64Array], names: tuple[str, ...]) -> None:
        every = np.concatenate([np.zeros(0, dtype=np.uint64), *ids.values()])
        of = [np.full(len(own), split, dtype=np.int8) for split, own in ids.items()]
        order = np.argsort(every, kind="stable")
        self._ids = every[order]
        self._splits = np.concatenate([np.zeros(0, dtype=np.int8), *of])[order]
        self._found = np.zeros(len(every), dtype=bool)
        twice = np.flatnonzero(self._ids[1:] == self._ids[:-1])
        if len(twice):
            first, second = (names[self._splits[twice[0] + k]] for k in (0, 1))
            raise ArgumentError(
                f"{len(twice)} ids are in the index files of two splits, the first of them, "
                f"{self._ids[twice[0]]:#018x}, in those of {first!r} and {second!r}: leave each "
                "in one of them"
            )

    def look_up(self, ids: UInt64Array) -> npt.NDArray[np.int8]:
        """Split [K] of each id, -1 if no file has it."""
        splits = np.full(len(ids), -1, dtype=np.int8)
        if len(self._ids):
            order = np.argsort(ids)  # a search for ascending ids is faster
            places = np.searchsorted(self._ids[:-1], ids[order])
            here = self._ids[places] == ids[order]
            splits[order[here]] = self._splits[places[here]]
            self._found[places[here]] = True
        return splits

    def missing(self, split: int) -> tuple[int, int]:
        """Number of a split's ids that no dataset has, and number of all its ids."""
        own = self._splits == split
        return int(np.count_nonzero(own & ~self._found)), int(np.count_nonzero(own))
