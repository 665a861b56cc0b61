"""Write the samples of a plan as a new store, field by field, with the pointers last.

Since all sizes are known in advance, each array gets its exact shape and is filled from its first
row to its last, some megabytes at a time. The pointers are written backwards: their first chunk
comes last, and until then the store has no samples.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import zarr

from zarrpipe.data.csr import AnyArray
from zarrpipe.data.ids import UInt64Array, structure_ids, zero_missing
from zarrpipe.data.levels import Level
from zarrpipe.data.schema import Schema
from zarrpipe.errors import StoreFormatError
from zarrpipe.store.backend.location import Root
from zarrpipe.store.format.commit_log import RowCounts
from zarrpipe.store.format.config import ZarrArrayConfig, ZarrWriteConfig
from zarrpipe.store.format.layout import (
    ATOMS_PTR,
    GROUPS,
    IDS,
    SAMPLES_MASK,
    ArraySpec,
    chunk_rows,
    create_array,
    field_spec,
    present_path,
    present_spec,
    store_specs,
)
from zarrpipe.store.format.metadata import Attributes, new_generation
from zarrpipe.store.rewrite.merge_plan import MergePlan
from zarrpipe.store.statistics.label_rows import BUCKETS, active_rows
from zarrpipe.store.statistics.stored_sums import sums_over, write_sums
from zarrpipe.store.statistics.sums import LabelSums
from zarrpipe.store.write.array_writer import ArrayWriter, open_array_writer
from zarrpipe.store.write.plain_array_writer import PlainArrayWriter

_LARGE, _ENCODED, _INNER = 1 << 26, 1 << 23, 1 << 20
_MOST_CHUNKS = 4_096
_CHECKED = 1 << 20
"""Atoms of a block that is read back."""


def write_store(
    plan: MergePlan,
    root: Root,
    config: ZarrWriteConfig,
    *,
    capacity: int | None = None,
    others: Mapping[str, Any] | None = None,
    done: Callable[[int], object] = int,
) -> None:
    """Write the samples of a plan to an empty place or an empty store, and close the store.

    `capacity` is the expected number of samples, for the size of chunks; by default that of the
    plan. `others` are further attributes of the root. `done` gets the number of bytes of each
    block of a field.
    """
    root, schema = root.for_writing(), plan.schema.with_units(config.units)
    attributes = Attributes(
        0,
        nullable=frozenset(plan.present),
        generation=new_generation(),
        imports=tuple(record for source in plan.sources for record in source.imports()),
        marks=plan.marks,
    )
    group = _vacated(root, attributes)
    arrays = _create(group, root, plan, config, capacity)
    group = group.update_attributes({**(others or {}), **attributes.to_dict(schema)})
    for item in plan.schema.values():
        _fill(arrays[item.path], plan, item.name, done)
    if plan.counts.samples:
        for name, has in plan.present.items():
            arrays[present_path(name)].write(0, has)
        ids = plan.ids()
        arrays[IDS].write(0, ids)
        arrays[SAMPLES_MASK].write(0, np.ones(plan.counts.samples, dtype=bool))
        if plan.verify:
            _check_structures(plan, arrays, ids)
        for source in plan.sources:
            source.check_unchanged()
        for level in reversed(schema.pointer_levels):  # those of atoms, which commit, come last
            _write_backwards(arrays[level.pointers], plan.ptr(level))
        written = _NewStore(group, schema, attributes, plan.counts, arrays)
        write_sums(group, sums_over(written, _sums(plan, written)))
    for array in arrays.values():
        array.close()
    complete = replace(attributes, num_samples=plan.counts.samples)
    group.update_attributes(complete.to_dict(schema))


@dataclass(frozen=True)
class _NewStore:
    """A store whose rows are written and whose samples are then counted."""

    group: zarr.Group
    schema: Schema
    attributes: Attributes
    counts: RowCounts
    arrays: Mapping[str, ArrayWriter]

    def array(self, path: str) -> ArrayWriter:
        """Rows of an array."""
        return self.arrays[path]


def _sums(plan: MergePlan, written: _NewStore) -> LabelSums:
    """Sums of the new store: merged from its sources, or counted if a source has none."""
    sources = [source for source in plan.sources if len(source.samples)]
    stored = [found for source in sources if (found := source.sums()) is not None]
    if len(stored) == len(sources):
        sums, *rest = stored
        for one in rest:
            sums.merge(one)
        return sums
    sums = LabelSums.empty(BUCKETS)
    for rows in active_rows(written, 0):
        sums.add(rows)
    return sums


def field_bytes(plan: MergePlan) -> int:
    """Number of bytes of all fields of a plan."""
    fields = plan.schema.values()
    return sum(plan.counts.rows(item.level) * field_spec(item).row_bytes for item in fields)


def fitted(chosen: ZarrArrayConfig, spec: ArraySpec, rows: int) -> ZarrArrayConfig:
    """Config of an array of `rows` rows, with the sizes that `chosen` leaves open.

    Mapped chunks have up to 64 MiB, for few files with little unused space. Decoded chunks have up
    to 8 MiB, or 1 MiB in shards of up to 64 MiB.

    >>> from zarrpipe.data.fields import Level
    >>> positions = ArraySpec("core/positions", Level.ATOM, np.dtype("f4"), (3,), 0.0)
    >>> fitted(ZarrArrayConfig(), positions, 100_000).chunk_size
    131072
    >>> fitted(ZarrArrayConfig(), positions, 100_000_000).chunk_size
    4194304
    >>> published = fitted(ZarrArrayConfig(sharded=True), positions, 100_000_000)
    >>> published.chunk_size, published.shard_size
    (65536, 4194304)
    """
    sharded = chosen.sharded and chosen.shard_size is None
    chunk, shard = chosen.chunk_size, chosen.shard_size
    if chunk is None:
        limit = _INNER if sharded else _LARGE if chosen.is_plain else _ENCODED
        chunk = _grown(chunk_rows(spec, capacity=1), spec, rows, limit)
    if sharded:
        shard = _grown(chunk, spec, rows, _LARGE)
    return replace(chosen, chunk_size=chunk, shard_size=shard)


def _grown(least: int, spec: ArraySpec, rows: int, limit: int) -> int:
    """Double `least` until all `rows` fit, within `limit` bytes and a number of chunks."""
    grown = least
    while grown < rows and (2 * grown * spec.row_bytes <= limit or grown * _MOST_CHUNKS < rows):
        grown *= 2
    return grown


def _vacated(root: Root, attributes: Attributes) -> zarr.Group:
    """Root group, after removing samples, fields and pointers."""
    group, content = root.open_group(), attributes.to_dict(Schema({}))
    if group is None:
        group = zarr.create_group(root.path, attributes=content)
    else:
        group = group.update_attributes(content)
        if ATOMS_PTR in group:
            del group[ATOMS_PTR]
    for name in GROUPS:
        group.require_group(name)
    return group


def array_specs(plan: MergePlan) -> list[ArraySpec]:
    """Specs of the arrays of the new store, those of pointers first; its sums are none of them."""
    schema = plan.schema
    return store_specs(schema) + [present_spec(schema[name]) for name in plan.present]


def _create(
    group: zarr.Group,
    root: Root,
    plan: MergePlan,
    config: ZarrWriteConfig,
    capacity: int | None,
) -> dict[str, ArrayWriter]:
    """Arrays of the new store, with their exact shapes, by path."""
    schema = plan.schema
    pointers = {level.pointers for level in schema.pointer_levels}
    arrays = {}
    for spec in array_specs(plan):
        rows = plan.counts.rows(spec.level) + (spec.path in pointers)
        chosen = config.for_array(spec.path)
        if capacity is None:
            chosen = fitted(chosen, spec, rows)
        alone = ZarrWriteConfig(meta=chosen, core=chosen, custom=chosen)
        array = create_array(group, spec, alone, capacity or 1)
        directory = None if root.directory is None else root.directory / spec.path
        arrays[spec.path] = open_array_writer(array, directory)
        arrays[spec.path].trim(rows)
    return arrays


def _fill(array: ArrayWriter, plan: MergePlan, name: str, done: Callable[[int], object]) -> None:
    """Write every row of a field."""
    item, row = plan.schema[name], 0
    unit = 1 if isinstance(array, PlainArrayWriter) else array.chunk_rows  # encode each once
    for values in plan.blocks(item, unit):
        array.write(row, values)
        row += len(values)
        done(values.nbytes)
    array.close()


def _check_structures(plan: MergePlan, arrays: Mapping[str, ArrayWriter], ids: UInt64Array) -> None:
    """Read the structures back, in blocks of bounded atoms, and compare them with their ids."""
    ptr, schema = plan.ptr(Level.ATOM), plan.schema
    positions, numbers = (arrays[schema[name].path] for name in ("positions", "atomic_numbers"))
    step, start = max(_CHECKED, positions.chunk_rows), 0
    while start < len(ids):
        stop = max(start + 1, int(np.searchsorted(ptr, ptr[start] + step, "right")) - 1)
        atoms, box = (int(ptr[start]), int(ptr[stop])), []
        for name in ("cell", "pbc"):
            rows = arrays[schema[name].path].read(start, stop) if name in schema else None
            if rows is not None and name in plan.present:
                rows = zero_missing(rows, plan.present[name][start:stop])
            box.append(rows)
        own = ptr[start : stop + 1] - ptr[start]
        found = structure_ids(positions.read(*atoms), numbers.read(*atoms), own, *box)
        wrong = np.flatnonzero(found != ids[start:stop])
        if len(wrong):
            raise StoreFormatError(
                f"{len(wrong)} samples, the first of them {start + wrong[0]} of the new store, do "
                "not have the structures that their ids were stored for: a source has changed or "
                "is damaged, or the target does not keep what is written to it; "
                "`zarrpipe check` of the sources says more"
            )
        start = stop


def _write_backwards(array: ArrayWriter, values: AnyArray) -> None:
    """Write whole chunks from last to first."""
    unit = array.chunk_rows
    for start in reversed(range(0, len(values), unit)):
        array.write(start, values[start : start + unit])
