"""An append as data: which rows go where, in the order that makes every kill leave a prefix."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from zarrpipe.data.batch import Batch
from zarrpipe.data.csr import AnyArray
from zarrpipe.data.ids import batch_ids
from zarrpipe.data.schema import Field, Schema
from zarrpipe.errors import FieldError
from zarrpipe.store.format.commit_log import RowCounts
from zarrpipe.store.format.layout import (
    ATOMS_PTR,
    EDGES_PTR,
    IDS,
    SAMPLES_MASK,
    ArraySpec,
    field_path,
    present_path,
)

_STAGES = {SAMPLES_MASK: 1, EDGES_PTR: 1, ATOMS_PTR: 2}


class RowWrite(NamedTuple):
    """Rows of one array.

    Parameters
    ----------
    path
        Array, as a place in the store.
    start
        First row.
    values
        Rows, of the array's dtype.
    """

    path: str
    start: int
    values: AnyArray


def plan_append(
    schema: Schema, nullable: frozenset[str], extent: RowCounts, batch: Batch
) -> list[RowWrite]:
    """Writes of an append in commit order: fields, presence, ids, masks, and pointers last.

    Parameters
    ----------
    schema
        Fields of the store, those that are new with this batch included.
    partly
        Fields that have a presence array, those that get one with this batch included.
    extent
        What is committed.
    batch
        Systems that fit the schema, on the CPU and without gradients; at least one.
    """
    first, arrays, ptr = extent.samples, _arrays(batch), batch.batch_ptr.numpy()
    writes = []
    for item in schema.values():
        values = arrays.get(item.name)
        rows = _fill(item, batch) if values is None else _rows(item, extent, values)
        writes.append(RowWrite(field_path(item), extent.rows(item.level), rows))
    for name in sorted(nullable):
        here = batch.present(name).numpy() if name in arrays else np.zeros(batch.num_graphs, bool)
        writes.append(RowWrite(present_path(name), first, here))
    writes.append(RowWrite(IDS, first, batch_ids(batch, arrays)))
    writes.append(RowWrite(SAMPLES_MASK, first, np.ones(batch.num_graphs, dtype=bool)))
    writes.append(RowWrite(EDGES_PTR, first + 1, batch.edge_ptr.numpy()[1:] + extent.edges))
    writes.append(RowWrite(ATOMS_PTR, first + 1, ptr[1:] + extent.atoms))
    return writes


def in_stages(writes: Sequence[RowWrite]) -> list[list[RowWrite]]:
    """Writes in groups that must follow each other, each of writes that may go on at once.

    Examples
    --------
    >>> rows = np.zeros(1)
    >>> paths = ["core/positions", IDS, SAMPLES_MASK, EDGES_PTR, ATOMS_PTR]
    >>> stages = in_stages([RowWrite(path, 0, rows) for path in paths])
    >>> [[write.path for write in stage] for stage in stages]
    [['core/positions', 'meta/ids'], ['meta/samples_mask', 'meta/edges_ptr'], ['meta/atoms_ptr']]
    """
    stages: list[list[RowWrite]] = [[], [], []]
    for write in writes:
        stages[_STAGES.get(write.path, 0)].append(write)
    return [stage for stage in stages if stage]


def on_host(batch: Batch) -> Batch:
    """Batch on the CPU and without gradients: itself where it is already so.

    Raises
    ------
    FieldError
        If a tensor is on the meta device.
    """
    tensors = (batch.batch_ptr, batch.edge_ptr, *batch.fields.values())
    if any(tensor.is_meta for tensor in tensors):
        raise FieldError("a batch on the meta device has no data that could be stored")
    if all(tensor.is_cpu and not tensor.requires_grad for tensor in tensors):
        return batch
    return batch.detach().cpu()


def _arrays(batch: Batch) -> dict[str, AnyArray]:
    """Fields as arrays that share the tensors' memory."""
    return {name: value.numpy() for name, value in batch.fields.items()}


def plan_fill(spec: ArraySpec, rows: int, chunk_rows: int) -> RowWrite | None:
    """Fill written out for an array that is new where there are already `rows`, or None.

    Whole chunks before read as the fill value because they are not there; in the chunk that the
    next append continues, a hole would read as zeros.
    """
    start = rows - rows % chunk_rows
    if start == rows:
        return None
    return RowWrite(spec.path, start, np.full((rows - start, *spec.shape), spec.fill, spec.dtype))


def _rows(item: Field, extent: RowCounts, values: AnyArray) -> AnyArray:
    """Rows of a field as they are stored, with store-global atom indices."""
    rows = values if values.dtype is item.dtype else values.astype(item.dtype, copy=False)
    return rows + extent.atoms if item.name == "neighbor_list" else rows


def _fill(item: Field, batch: Batch) -> AnyArray:
    """Rows of a field that the batch lacks."""
    return np.full((batch.rows(item.level), *item.shape), item.fill, dtype=item.dtype)
