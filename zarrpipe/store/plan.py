"""An append as data: which rows go where, in the order that makes every kill leave a prefix."""

from typing import NamedTuple

import numpy as np
import torch

from zarrpipe.data.batch import Batch
from zarrpipe.data.csr import AnyArray
from zarrpipe.data.fields import Level
from zarrpipe.data.ids import structure_ids
from zarrpipe.data.schema import Field, Schema
from zarrpipe.store.commit import Extent
from zarrpipe.store.layout import (
    ATOMS_PTR,
    EDGES_PTR,
    IDS,
    SAMPLES_MASK,
    ArraySpec,
    field_path,
    present_path,
)


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
    schema: Schema, partly: frozenset[str], extent: Extent, batch: Batch
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
    first, fields = extent.samples, batch.fields
    starts = {level: extent.rows(level) for level in Level}
    writes = []
    for item in schema.values():
        value = fields.get(item.name)
        rows = _fill(item, batch) if value is None else _rows(item, extent, value)
        writes.append(RowWrite(field_path(item), starts[item.level], rows))
    for name in sorted(partly):
        here = batch.present(name).numpy() if name in batch else np.zeros(batch.num_graphs, bool)
        writes.append(RowWrite(present_path(name), first, here))
    writes.append(RowWrite(IDS, first, batch_ids(batch)))
    writes.append(RowWrite(SAMPLES_MASK, first, np.ones(batch.num_graphs, dtype=bool)))
    edge_ptr, atoms_ptr = batch.edge_ptr.numpy(), batch.batch_ptr.numpy()
    writes.append(RowWrite(EDGES_PTR, first + 1, edge_ptr[1:] + extent.edges))
    writes.append(RowWrite(ATOMS_PTR, first + 1, atoms_ptr[1:] + extent.atoms))
    return writes


def on_host(batch: Batch) -> Batch:
    """Batch on the CPU and without gradients: itself where it is already so."""
    tensors = (batch.batch_ptr, batch.edge_ptr, *batch.fields.values())
    if all(tensor.is_cpu and not tensor.requires_grad for tensor in tensors):
        return batch
    return batch.detach().cpu()


def batch_ids(batch: Batch) -> AnyArray:
    """Ids [B] uint64 of the structures of a batch on the CPU.

    A cell or pbc that a system lacks counts as zero, so that the id does not depend on what else
    is in the batch.
    """
    return structure_ids(
        batch.fields["positions"].numpy(),
        batch.fields["atomic_numbers"].numpy(),
        batch.batch_ptr.numpy(),
        _box(batch, "cell"),
        _box(batch, "pbc"),
    )


def _box(batch: Batch, name: str) -> AnyArray | None:
    """Rows of cell or pbc, zero where a system lacks it; None if all do."""
    value = batch.fields.get(name)
    if value is None:
        return None
    rows: AnyArray = value.numpy()
    if name not in batch.partly_present:
        return rows
    has = batch.present(name).numpy()
    return np.where(has.reshape(-1, *(1,) * (rows.ndim - 1)), rows, 0)


def plan_fill(spec: ArraySpec, rows: int, chunk_rows: int) -> RowWrite | None:
    """Fill written out for an array that is new where there are already `rows`, or None.

    Whole chunks before read as the fill value because they are not there; in the chunk that the
    next append continues, a hole would read as zeros.
    """
    start = rows - rows % chunk_rows
    if start == rows:
        return None
    return RowWrite(spec.path, start, np.full((rows - start, *spec.shape), spec.fill, spec.dtype))


def _rows(item: Field, extent: Extent, value: torch.Tensor) -> AnyArray:
    """Rows of a field, with store-global atom indices."""
    rows: AnyArray = value.numpy()
    if rows.dtype is not item.dtype:
        rows = rows.astype(item.dtype, copy=False)
    return rows + extent.atoms if item.name == "neighbor_list" else rows


def _fill(item: Field, batch: Batch) -> AnyArray:
    """Rows of a field that the batch lacks."""
    return np.full((batch.rows(item.level), *item.shape), item.fill, dtype=item.dtype)
