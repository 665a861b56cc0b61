"""Parquet through pyarrow: a row for each system, with lists for its atoms, edges and levels."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from zarrpipe.data.batch import Batch
from zarrpipe.data.csr import AnyArray
from zarrpipe.data.schema import Field
from zarrpipe.formats.write.left_out import empty_rows
from zarrpipe.formats.write.samples import Samples, kind_of
from zarrpipe.libraries import require


def write_parquet(path: Path, samples: Samples) -> dict[str, str]:
    """Write a column for each field; null stands for a field that a system lacks.

    Row numbers, as those of edges, count within the system. Levels and units are in the metadata of
    the columns, as JSON under the key ``zarrpipe``.
    """
    pa, parquet = require("pyarrow", "import"), require("pyarrow.parquet", "import")
    left_out = empty_rows(samples.schema)
    some = samples.without(*left_out)
    schema = pa.schema([_column(pa, item) for item in some.schema.values()])
    with parquet.ParquetWriter(str(path), schema, compression="zstd") as writer:
        for batch in some.batches():
            arrays = [_array(pa, batch, item) for item in some.schema.values()]
            writer.write_table(pa.Table.from_arrays(arrays, schema=schema))
    return left_out


def _column(pa: Any, item: Field) -> Any:
    """Type of a column, and what its values are."""
    kind = pa.string() if item.categories is not None else pa.from_numpy_dtype(item.dtype)
    for _ in _shape(item):
        kind = pa.list_(kind)
    if item.level.has_pointers:
        kind = pa.list_(kind)
    known: dict[str, Any] = {"level": str(item.level), "shape": item.shape}
    known |= {"unit": item.unit} if item.unit else {}
    known |= {} if item.level.built_in else {"kind": kind_of(item.level)}
    known |= {"index_of": str(item.index_of)} if item.index_of else {}
    return pa.field(item.name, kind, metadata={"zarrpipe": json.dumps(known)})


def _array(pa: Any, batch: Batch, item: Field) -> Any:
    """Values of a batch as an array of systems."""
    lacks = ~batch.present(item.name).numpy()
    mask = pa.array(lacks) if lacks.any() else None
    if item.categories is not None:
        return pa.array(batch.strings(item.name), pa.string())
    values = _local(batch, item)
    if not item.level.has_pointers and not _shape(item):
        return pa.array(values.reshape(-1), mask=lacks if mask is not None else None)
    rows = pa.array(values.reshape(-1))
    for place, length in reversed([*enumerate(_shape(item))]):
        outermost = place == 0 and not item.level.has_pointers
        ptr = np.arange(0, len(rows) + 1, length, dtype=np.int32)
        rows = pa.ListArray.from_arrays(pa.array(ptr), rows, mask=mask if outermost else None)
    if not item.level.has_pointers:
        return rows
    ptr = batch.level_ptr(item.level).numpy().astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(ptr), rows, mask=mask)


def _shape(item: Field) -> tuple[int, ...]:
    """Shape of a value: a row of one number is a number."""
    return () if item.shape == (1,) else item.shape


def _local(batch: Batch, item: Field) -> AnyArray:
    """Values of a field, row numbers as counted within their system."""
    values: AnyArray = batch[item.name].numpy()
    if item.index_of is None:
        return values
    counts = batch.rows_per_graph(item.level)
    first = batch.level_ptr(item.index_of)[:-1].repeat_interleave(counts).numpy()
    rows: AnyArray = values - first.reshape(-1, *(1,) * (values.ndim - 1))
    return rows
