"""Which chunks may be absent, and where rows were lost with an absent one.

Zarr reads an absent chunk as the fill value, and a writer may have left it out for that reason.
Arrays that zarrpipe makes record whether it leaves any out (see `is_dense`); readers, rewrites and
checks go by that alone.
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
    """Which chunks may be absent of the array at a path of a store, if the array is dense.

    zarrpipe writes every chunk, except those of a nullable field before the first sample that has
    it. Other writers may leave out any chunk of fill values.
    """
    if not attributes.ours:
        return "any"
    group, name = path.split("/")
    return "leading" if group == "present" or name in attributes.nullable else "none"


class MissingChunks:
    """Looks for chunks, or shards, of one array that are absent and must not be."""

    def __init__(self, absent_chunks: AbsentChunks) -> None:
        self._absent_chunks, self._leading = absent_chunks, 0

    def refuse(self, array: zarr.Array[Any], start: int, values: AnyArray) -> None:
        """Raise StoreFormatError if committed rows from `start` on are fill for lack of a chunk."""
        if self._absent_chunks == "any" or not is_dense(array):
            return
        unit = int((array.shards or array.chunks)[0])
        for index in find_absent_chunks(array, start, values):
            end = min(start + len(values), (index + 1) * unit)
            leading = self._absent_chunks == "leading" and end % unit == 0
            if not (leading and self._leads(array, index)):
                raise lost_chunk(chunk_place(array, index), index * unit, end)

    def _leads(self, array: zarr.Array[Any], index: int) -> bool:
        """Whether all chunks before an absent one are absent."""
        while self._leading < index and not sync(chunk_place(array, self._leading).exists()):
            self._leading += 1
        return self._leading >= index


def find_absent_chunks(array: zarr.Array[Any], start: int, values: AnyArray) -> list[int]:
    """Numbers of the absent chunks, or shards, of `values` that were read from row `start` on."""
    unit, stop = int((array.shards or array.chunks)[0]), start + len(values)
    found = []
    for index in range(start // unit, -(-stop // unit)) if values.size else ():
        rows = values[max(index * unit - start, 0) : (index + 1) * unit - start]
        fill = _is_fill(rows[:1], array.fill_value) and _is_fill(rows, array.fill_value)
        if fill and not sync(chunk_place(array, index).exists()):
            found.append(index)
    return found


def lost_chunk(place: object, start: int, stop: int) -> StoreFormatError:
    """The error for an absent chunk, or shard, of committed rows."""
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
