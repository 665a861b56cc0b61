"""Chunks that are not there, where they must be.

Zarr reads a chunk that is not there as the fill value, and a writer may have left one out for that.
Of the two fields that every atom has, zarrpipe leaves none out.
"""

from typing import Any

import numpy as np
import zarr
from zarr.core.sync import sync

from zarrpipe.data.csr import AnyArray
from zarrpipe.data.fields import REQUIRED_FIELDS
from zarrpipe.errors import StoreFormatError
from zarrpipe.store.layout import MARK


def has_all_chunks(array: zarr.Array[Any]) -> bool:
    """Whether each chunk of an array is there as far as rows are committed."""
    return array.basename in REQUIRED_FIELDS and MARK in array.attrs


def refuse_absent(array: zarr.Array[Any], start: int, values: AnyArray) -> None:
    """Refuse rows of an array that are the fill value because their chunk is not there.

    Parameters
    ----------
    array
        One that has all chunks.
    start
        First row.
    values
        Rows from there on, as they were read.

    Raises
    ------
    StoreFormatError
        If a chunk, or a shard, is missing.
    """
    unit = int((array.shards or array.chunks)[0])
    first, stop = start, start + len(values)
    while first < stop:
        end = min(stop, first - first % unit + unit)
        rows = values[first - start : end - start]
        if _is_fill(rows[:1], array.fill_value) and _is_fill(rows, array.fill_value):
            grid = (first // unit, *[0] * (array.ndim - 1))
            place = array.store_path / array.metadata.encode_chunk_key(grid)
            if not sync(place.exists()):
                raise StoreFormatError(
                    f"{place} is not there, and should hold rows {first} to {end}: it was removed, "
                    "or the store was not copied whole"
                )
        first = end


def _is_fill(rows: AnyArray, fill: Any) -> bool:
    return bool(np.isnan(rows).all() if fill != fill else (rows == fill).all())  # noqa: PLR0124
