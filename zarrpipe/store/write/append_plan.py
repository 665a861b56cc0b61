"""Plan of an append: the arrays to create, and the rows to write, in commit order."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import torch

from zarrpipe.data.batch import Batch
from zarrpipe.data.categories import looked_up, translation
from zarrpipe.data.csr import AnyArray
from zarrpipe.data.ids import batch_ids
from zarrpipe.data.levels import Level
from zarrpipe.data.schema import Field, Schema
from zarrpipe.data.validate import plain_array
from zarrpipe.errors import FieldError
from zarrpipe.store.format.commit_log import RowCounts
from zarrpipe.store.format.layout import (
    ATOMS_PTR,
    EDGES_PTR,
    IDS,
    SAMPLES_MASK,
    ArraySpec,
    field_spec,
    pointer_spec,
    present_path,
    present_spec,
)

_TRUE = np.ones(256, dtype=bool)
_STAGES = {SAMPLES_MASK: 1, EDGES_PTR: 1, ATOMS_PTR: 2}


class RowWrite(NamedTuple):
    """Rows to write to the array at `path` from row `start` on, of the array's dtype."""

    path: str
    start: int
    values: AnyArray


def plan_append(
    schema: Schema,
    nullable: frozenset[str],
    counts: RowCounts,
    batch: Batch,
    arrays: Mapping[str, AnyArray],
) -> tuple[list[RowWrite], RowCounts]:
    """Writes of an append in commit order, and the rows that are committed after it.

    Fields come first, then presence, ids, masks, and pointers last. `schema` and `nullable` include
    the changes that the batch causes. The batch has at least one system and fits the schema;
    `arrays` has its fields, see `host_arrays`.
    """
    first, systems = counts.samples, batch.num_graphs
    starts, writes = {Level.SYSTEM: first, **counts.by_level}, []
    for item in schema.values():
        start, values = starts.get(item.level), arrays.get(item.name)
        if start is None:
            start = counts.rows(item.level)
        if values is None:
            shape = (batch.num_rows(item.level), *item.shape)
            values = np.full(shape, item.fill, dtype=item.dtype)
        elif item.categories is not None:
            values = _stored_codes(item, values, batch)
        elif values.dtype is not item.dtype:
            values = values.astype(item.dtype, copy=False)
        if item.index_of is not None:
            values = values + counts.rows(item.index_of)
        writes.append(RowWrite(item.path, start, values))
    for name in sorted(nullable):
        here = batch.present(name).numpy() if name in arrays else np.zeros(systems, bool)
        writes.append(RowWrite(present_path(name), first, here))
    writes.append(RowWrite(IDS, first, batch_ids(batch, arrays)))
    kept = _TRUE[:systems] if systems <= len(_TRUE) else np.ones(systems, dtype=bool)
    writes.append(RowWrite(SAMPLES_MASK, first, kept))
    after: dict[Level, int] = {}
    for level in reversed(schema.pointer_levels):  # those of atoms, which commit, come last
        ends = _ends(batch, level, systems) + starts.get(level, 0)
        writes.append(RowWrite(level.pointers, first + 1, ends))
        after[level] = int(ends[-1])
    return writes, RowCounts(first + systems, after)


def _stored_codes(item: Field, codes: AnyArray, batch: Batch) -> AnyArray:
    """Codes [B] of a batch in the vocabulary of the store, which has all its strings."""
    given, stored = batch.roles[item.name].categories, item.categories
    table = None if given is None or stored is None else translation(given, stored)
    return codes if table is None else looked_up(item.name, codes, table)


def _ends(batch: Batch, level: Level, systems: int) -> AnyArray:
    """End [B] of the rows of each system of a batch at a level, which the batch may lack."""
    ptr = batch._pointers.get(level)
    return np.zeros(systems, dtype=np.int64) if ptr is None else ptr.numpy()[1:]


def in_stages(writes: Sequence[RowWrite]) -> list[list[RowWrite]]:
    """Divide writes into consecutive stages; the writes of a stage may run concurrently.

    >>> rows = np.zeros(1)
    >>> paths = ["core/positions", IDS, SAMPLES_MASK, "meta/edges_ptr", ATOMS_PTR]
    >>> stages = in_stages([RowWrite(path, 0, rows) for path in paths])
    >>> [[write.path for write in stage] for stage in stages]
    [['core/positions', 'meta/ids'], ['meta/samples_mask', 'meta/edges_ptr'], ['meta/atoms_ptr']]
    """
    stages: list[list[RowWrite]] = [[], [], []]
    for write in writes:
        is_pointer = write.path.startswith("meta/level_ptrs/")
        stages[_STAGES.get(write.path, int(is_pointer))].append(write)
    return [stage for stage in stages if stage]


def host_arrays(batch: Batch) -> tuple[Batch, dict[str, AnyArray]]:
    """Batch on the CPU without gradients, and its fields as arrays that share its memory.

    Raises FieldError if a tensor is on the meta device.
    """
    try:
        return batch, _arrays(batch)
    except (RuntimeError, TypeError):  # it is on another device, or has gradients
        if any(value.is_meta for value in batch.fields.values()):
            raise FieldError(
                "a batch on the meta device has no data that could be stored"
            ) from None
        batch = batch.detach().cpu()
        return batch, _arrays(batch)


def masked(batch: Batch, mask: Any) -> Batch:
    """Systems of a batch for which the mask [N] is True.

    Raises FieldError if the mask is not a dense bool array with one entry for each system.
    """
    expected = f"expected bool and ({batch.num_graphs},): one entry for each system of the batch"
    if isinstance(mask, np.ndarray):
        mask = plain_array("mask", mask)
    try:
        chosen = torch.as_tensor(mask).detach().cpu()
    except (TypeError, ValueError, RuntimeError) as error:
        raise FieldError(
            f"mask of type {type(mask).__name__} holds no bools, {expected}"
        ) from error
    if chosen.dtype is not torch.bool or chosen.shape != (batch.num_graphs,):
        whole = not (
            chosen.is_floating_point() or chosen.is_complex() or chosen.dtype is torch.bool
        )
        hint = " (numbers of systems are for batch.index_select)" if whole else ""
        raise FieldError(
            f"mask has dtype {chosen.dtype} and shape {tuple(chosen.shape)}, {expected}{hint}"
        )
    if chosen.layout is not torch.strided:
        raise FieldError(f"mask is a tensor of layout {chosen.layout}: give mask.to_dense()")
    return batch if bool(chosen.all()) else batch.index_select(chosen)


def _arrays(batch: Batch) -> dict[str, AnyArray]:
    """Fields as arrays that share the tensors' memory."""
    return {name: value.numpy() for name, value in batch.fields.items()}


def plan_fill(spec: ArraySpec, rows: int, chunk_rows: int) -> RowWrite | None:
    """Write of fill values for a new array in a store of `rows` rows; None if not needed.

    Whole chunks are left absent and read as the fill value. In the chunk that the next append
    continues, a hole would read as zeros.
    """
    start = rows - rows % chunk_rows
    if start == rows:
        return None
    return RowWrite(spec.path, start, np.full((rows - start, *spec.shape), spec.fill, spec.dtype))


@dataclass(frozen=True)
class NewArray:
    """An array to create in a store that has `rows` rows of its level.

    If `zeros`, these rows are written as zeros or False; else they read as the fill value.
    """

    spec: ArraySpec
    rows: int
    zeros: bool = False

    def fill(self, chunk_rows: int) -> RowWrite | None:
        """Write for the stored rows; None if they read as the fill value."""
        if self.zeros:
            return RowWrite(self.spec.path, 0, np.zeros(self.rows, dtype=self.spec.dtype))
        return plan_fill(self.spec, self.rows, chunk_rows)


@dataclass(frozen=True)
class SchemaChange:
    """Arrays to create, in order, and the schema and nullable fields of the store after it."""

    arrays: tuple[NewArray, ...]
    schema: Schema
    nullable: frozenset[str]


def plan_schema_change(
    schema: Schema,
    nullable: frozenset[str],
    counts: RowCounts,
    batch: Batch,
    units: Mapping[str, str] = MappingProxyType({}),
) -> SchemaChange | None:
    """Plan the arrays to create before a batch that fits `schema` is appended, or return None.

    `units` are those of custom fields, by field name.
    """
    new = schema.new_fields(batch, units)
    missing = {name for name in schema if name not in batch} | batch.partly_present
    if counts.samples:
        missing |= {item.name for item in new}
    missing -= nullable
    grown = schema.with_categories(batch)
    if not new and not missing and grown is schema:
        return None
    extended = grown.extended(new)
    arrays = [
        NewArray(pointer_spec(level), counts.samples + 1, zeros=True)
        for level in extended.pointer_levels
        if level not in schema.pointer_levels
    ]
    arrays += [NewArray(field_spec(item), counts.rows(item.level)) for item in new]
    arrays += [
        NewArray(present_spec(extended[name]), counts.samples, zeros=name not in schema)
        for name in sorted(missing)
    ]
    return SchemaChange(tuple(arrays), extended, nullable | missing)
