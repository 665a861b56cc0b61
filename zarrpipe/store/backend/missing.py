"""Chunks that are not there: where that is legitimate, and where rows were lost with them.

Zarr reads a chunk that is not there as the fill value, and whoever wrote it may have left it out
for that. Arrays that zarrpipe makes say whether it leaves any out (see `is_dense`); readers,
rewrites and checks go by that alone.
"""

from typing import Any

import numpy as np
import zarr

from zarrpipe.compat import sync
from zarrpipe.data.csr import AnyArray
from zarrpipe.errors import StoreFormatError
from zarrpipe.store.backend.array_reader import AbsentChunks
from zarrpipe.store.format.layout import is_dense
from zarrpipe.store.format.metadata import Attributes


def allowed_absent_chunks(attributes: Attributes, path: str) -> AbsentChunks:
    """Which chunks of a dense array may not be there.

    All are written of what was written, and only an array that came later has rows before that were
    not. Other writers than zarrpipe may leave out what is all fill.

    Parameters
    ----------
    attributes
        Of the root of its store.
    path
        Place of the array.
    """
    if not attributes.ours:
        return "any"
    group, name = path.split("/")
    return "leading" if group == "present" or name in attributes.nullable else "none"


class MissingChunks:
    """Looks for chunks, or shards, of one array that are not there and should be.

    Parameters
    ----------
    absent_chunks
        Which of them may not be there, if the array is dense.
    """

    def __init__(self, absent_chunks: AbsentChunks) -> None:
        self._absent_chunks, self._lead = absent_chunks, 0

    def refuse(self, array: zarr.Array[Any], start: int, values: AnyArray) -> None:
        """Refuse committed rows that are the fill value because their chunk is not there.

        Parameters
        ----------
        array
            The array, as it is now.
        start
            First row.
        values
            Rows from there on, as they were read.

        Raises
        ------
        StoreFormatError
            If a chunk is missing.
        """
        if self._absent_chunks == "any" or not is_dense(array):
            return
        unit = int((array.shards or array.chunks)[0])
        for index in find_absent_chunks(array, start, values):
            end = min(start + len(values), (index + 1) * unit)
            if self._absent_chunks == "leading" and end % unit == 0 and self._leads(array, index):
                continue
            raise lost_chunk(chunk_place(array, index), index * unit, end)

    def _leads(self, array: zarr.Array[Any], index: int) -> bool:
        """Whether there is no chunk before one that is not there."""
        while self._lead < index and not sync(chunk_place(array, self._lead).exists()):
            self._lead += 1
        return self._lead >= index


def find_absent_chunks(array: zarr.Array[Any], start: int, values: AnyArray) -> list[int]:
    """Numbers of the chunks, or shards, that are not there, of rows that were read.

    Parameters
    ----------
    array
        The array.
    start
        First row.
    values
        Rows from there on, as they were read.
    """
    unit, stop = int((array.shards or array.chunks)[0]), start + len(values)
    found = []
    for index in range(start // unit, -(-stop // unit)) if values.size else ():
        rows = values[max(index * unit - start, 0) : (index + 1) * unit - start]
        fill = _is_fill(rows[:1], array.fill_value) and _is_fill(rows, array.fill_value)
        if fill and not sync(chunk_place(array, index).exists()):
            found.append(index)
    return found


def lost_chunk(place: object, start: int, stop: int) -> StoreFormatError:
    """What to raise where the chunk, or shard, of committed rows is not there."""
    return StoreFormatError(
        f"{place} is not there, and should hold rows {start} to {stop}: it was removed, the store "
        "was not copied whole, or it was copied with Zarr, which needs write_empty_chunks=True for "
        "that; `zarrpipe check` says which samples are lost"
    )


def chunk_place(array: zarr.Array[Any], index: int) -> Any:
    """Where the chunk, or shard, with a number is stored."""
    grid = (index, *[0] * (array.ndim - 1))
    return array.store_path / array.metadata.encode_chunk_key(grid)


def _is_fill(rows: AnyArray, fill: Any) -> bool:
    return bool(np.isnan(rows).all() if fill != fill else (rows == fill).all())  # noqa: PLR0124
