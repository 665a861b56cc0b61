"""Writing a selection of samples as a new store, field by field, with its pointers last.

All extents are known before anything is written, so an array gets its exact shape at once and is
filled from its first row to its last, some megabytes at a time. The pointer array is written from
its end to its beginning: until its first chunk is there, which comes last, there are no samples.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import zarr

from zarrpipe.data.csr import AnyArray
from zarrpipe.data.fields import Level
from zarrpipe.data.schema import Schema
from zarrpipe.store.backend.location import Root
from zarrpipe.store.format.commit_log import RowCounts
from zarrpipe.store.format.config import ZarrArrayConfig, ZarrWriteConfig
from zarrpipe.store.format.layout import (
    ATOMS_PTR,
    EDGES_PTR,
    GROUPS,
    IDS,
    SAMPLES_MASK,
    ArraySpec,
    chunk_rows,
    create_array,
    field_path,
    field_spec,
    meta_specs,
    present_path,
    present_spec,
)
from zarrpipe.store.format.metadata import Attributes, new_generation
from zarrpipe.store.rewrite.merge_plan import Selection
from zarrpipe.store.statistics.label_rows import BUCKETS
from zarrpipe.store.statistics.stored_sums import write_sums
from zarrpipe.store.statistics.sums import LabelSums
from zarrpipe.store.statistics.updater import count_rows, sums_over
from zarrpipe.store.write.array_writer import ArrayWriter, PlainArrayWriter, open_array_writer

_LARGE, _ENCODED, _INNER = 1 << 26, 1 << 23, 1 << 20
_MOST_CHUNKS = 4_096


def write_store(
    selection: Selection,
    root: Root,
    config: ZarrWriteConfig,
    *,
    capacity: int | None = None,
    others: Mapping[str, Any] | None = None,
    done: Callable[[int], object] = int,
) -> None:
    """Write the samples of a selection where no sample is, and close the store.

    Parameters
    ----------
    selection
        What to write.
    root
        An empty place, or an empty store that zarrpipe made.
    config
        Chunks and codecs.
    capacity
        Samples that are expected at most, for the size of chunks; by default they are as large as
        suits what there is.
    others
        Further attributes of the root.
    done
        Called with the number of bytes after each block of a field.
    """
    root, schema = root.for_writing(), selection.schema.with_units(config.units)
    attributes = Attributes(0, nullable=frozenset(selection.present), generation=new_generation())
    group = _vacated(root, attributes)
    columns = _create(group, root, selection, config, capacity)
    group = group.update_attributes({**(others or {}), **attributes.to_dict(schema)})
    for item in selection.schema.values():
        _fill(columns[field_path(item)], selection, item.name, done)
    if selection.extent.samples:
        for name, has in selection.present.items():
            columns[present_path(name)].write(0, has)
        columns[IDS].write(0, selection.ids())
        columns[SAMPLES_MASK].write(0, np.ones(selection.extent.samples, dtype=bool))
        for source in selection.sources:
            source.check_unchanged()
        _write_backwards(columns[EDGES_PTR], selection.ptr(Level.EDGE))
        _write_backwards(columns[ATOMS_PTR], selection.ptr(Level.ATOM))
        written = _NewStore(group, schema, attributes, selection.extent, columns)
        write_sums(group, sums_over(written, _sums(selection, written)))
    for column in columns.values():
        column.close()
    complete = replace(attributes, num_samples=selection.extent.samples)
    group.update_attributes(complete.to_dict(schema))


@dataclass(frozen=True)
class _NewStore:
    """A store whose rows are written, to be counted."""

    group: zarr.Group
    schema: Schema
    attributes: Attributes
    counts: RowCounts
    arrays: Mapping[str, ArrayWriter]

    def array(self, path: str) -> ArrayWriter:
        """Rows of an array."""
        return self.arrays[path]


def _sums(selection: Selection, written: _NewStore) -> LabelSums:
    """Sums of the new store: those of its sources, or counted where one has none."""
    sums = LabelSums.empty(BUCKETS)
    sources = [source for source in selection.sources if len(source.samples)]
    kept = [found for source in sources if (found := source.sums()) is not None]
    if len(kept) == len(sources):
        for one in kept:
            sums.merge(one)
    else:
        count_rows(written, sums, 0)
    return sums


def field_bytes(selection: Selection) -> int:
    """Bytes of all fields of a selection."""
    fields = selection.schema.values()
    return sum(selection.extent.rows(item.level) * field_spec(item).row_bytes for item in fields)


def fitted(chosen: ZarrArrayConfig, spec: ArraySpec, rows: int) -> ZarrArrayConfig:
    """Config of an array of which all `rows` are known, with the sizes that it leaves open.

    Chunks that are mapped have up to 64 MiB, so that there are few files and the last of them is
    not much larger than what is in it. Chunks that are decoded have up to 8 MiB; in shards of up to
    64 MiB, 1 MiB.

    Examples
    --------
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
    """Least rows, doubled until they hold all `rows` or would pass a number of bytes."""
    grown = least
    while grown < rows and (2 * grown * spec.row_bytes <= limit or grown * _MOST_CHUNKS < rows):
        grown *= 2
    return grown


def _vacated(root: Root, attributes: Attributes) -> zarr.Group:
    """Root group without samples, fields and pointers."""
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


def _create(
    group: zarr.Group,
    root: Root,
    selection: Selection,
    config: ZarrWriteConfig,
    capacity: int | None,
) -> dict[str, ArrayWriter]:
    """Arrays of the new store, with their exact shapes, by path."""
    schema, extent = selection.schema, selection.extent
    specs = [*meta_specs(), *map(field_spec, schema.values())]
    specs += [present_spec(schema[name]) for name in selection.present]
    columns = {}
    for spec in specs:
        rows = extent.rows(spec.level) + (spec.path in (ATOMS_PTR, EDGES_PTR))
        chosen = config.for_array(*spec.path.split("/"))
        if capacity is None:
            chosen = fitted(chosen, spec, rows)
        alone = ZarrWriteConfig(meta=chosen, core=chosen, custom=chosen)
        array = create_array(group, spec, alone, capacity or 1)
        directory = None if root.directory is None else root.directory / spec.path
        columns[spec.path] = open_array_writer(array, directory)
        columns[spec.path].trim(rows)
    return columns


def _fill(
    column: ArrayWriter, selection: Selection, name: str, done: Callable[[int], object]
) -> None:
    """Write every row of a field."""
    item, row = selection.schema[name], 0
    unit = 1 if isinstance(column, PlainArrayWriter) else column.chunk_rows  # each is encoded once
    for values in selection.blocks(item, unit):
        column.write(row, values)
        row += len(values)
        done(values.nbytes)
    column.close()


def _write_backwards(column: ArrayWriter, values: AnyArray) -> None:
    """Write whole chunks from the last to the first."""
    unit = column.chunk_rows
    for start in reversed(range(0, len(values), unit)):
        column.write(start, values[start : start + unit])
