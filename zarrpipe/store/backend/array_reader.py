"""The protocol of readers of an array's rows, and the checks that they all make.

Zarr reads an absent chunk as the fill value, and a writer may leave out a chunk of fill values.
Arrays that zarrpipe creates record whether every chunk is stored (see `is_dense`), so that readers,
rewrites and checks recognize a lost chunk.
"""

from collections.abc import Callable
from typing import Any, Literal, Protocol

import numpy as np
import zarr

from zarrpipe.compat import sync
from zarrpipe.data.csr import AnyArray
from zarrpipe.errors import StoreFormatError
from zarrpipe.store.format.layout import is_dense
from zarrpipe.store.format.metadata import Attributes

AbsentChunks = Literal["any", "leading", "none"]
"""Which chunks of an array may be absent: any, those before the first one, or none."""

OpenArray = Callable[[], zarr.Array[Any]]


class ArrayReader(Protocol):
    """Rows of one array as one NumPy array."""

    @property
    def data(self) -> AnyArray:
        """Read-only array of the rows read so far."""
        ...

    def ensure(self, rows: int) -> None:
        """Read at least the first `rows`, which are committed."""
        ...

    def grow(self) -> None:
        """Follow the array to its present size, including uncommitted rows."""
        ...


def check_rows(place: object, have: int, rows: int) -> None:
    """Refuse an array with fewer rows than are committed."""
    if rows > have:
        raise StoreFormatError(
            f"{place} has {have} rows, the pointers say {rows}: the array was truncated or belongs "
            "to another store; put it back from a copy"
        )


def allowed_absent_chunks(attributes: Attributes, path: str) -> AbsentChunks:
    """Which chunks of a dense array may be absent, by the path of the array in a store.

    zarrpipe writes every chunk, except those of a nullable field before the first sample that has
    it. Other writers may leave out any chunk of fill values.
    """
    if not attributes.ours:
        return "any"
    group, _, name = path.rpartition("/")
    return "leading" if group == "present" or name in attributes.nullable else "none"


class MissingChunks:
    """Finds lost chunks, or shards, of one array."""

    def __init__(self, absent_chunks: AbsentChunks) -> None:
        self._absent_chunks, self._leading = absent_chunks, 0

    def refuse(self, array: zarr.Array[Any], start: int, values: AnyArray) -> None:
        """Raise StoreFormatError if a chunk of `values`, read from row `start` on, is lost."""
        if self._absent_chunks == "any" or not is_dense(array):
            return
        unit = int((array.shards or array.chunks)[0])
        for index in find_absent_chunks(array, start, values):
            end = min(start + len(values), (index + 1) * unit)
            leading = self._absent_chunks == "leading" and end % unit == 0
            if not (leading and self._leads(array, index)):
                raise lost_chunk(chunk_place(array, index), index * unit, end)

    def _leads(self, array: zarr.Array[Any], index: int) -> bool:
        """Whether all chunks before number `index` are absent."""
        while self._leading < index and not sync(chunk_place(array, self._leading).exists()):
            self._leading += 1
        return self._leading >= index


def find_absent_chunks(array: zarr.Array[Any], start: int, values: AnyArray) -> list[int]:
    """Numbers of the absent chunks, or shards, of `values`, read from row `start` on."""
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
        f"{place} is not there, and should hold rows {start} to {stop}: it was removed, or the "
        "store is an incomplete copy (Zarr needs write_empty_chunks=True to copy every chunk); "
        "`zarrpipe check` lists the lost samples"
    )


def chunk_place(array: zarr.Array[Any], index: int) -> Any:
    """Place of the chunk, or shard, with a number."""
    grid = (index, *[0] * (array.ndim - 1))
    return array.store_path / array.metadata.encode_chunk_key(grid)


def _is_fill(rows: AnyArray, fill: Any) -> bool:
    return bool(np.isnan(rows).all() if fill != fill else (rows == fill).all())  # noqa: PLR0124
