"""A store as a merge reads it: a snapshot of its samples, each array as one NumPy array.

A plain local array is mapped. Any other array is decoded once into an unnamed file, which is mapped
as well, so that a merge needs memory for a few blocks instead of an array.
"""

import tempfile
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import zarr

from zarrpipe.data.categories import Int32Array, looked_up, translation
from zarrpipe.data.csr import AnyArray, Int64Array, pointers, segment_rows
from zarrpipe.data.ids import UInt64Array, structure_ids, zero_missing
from zarrpipe.data.levels import Level
from zarrpipe.data.schema import Field, Schema
from zarrpipe.errors import FieldError, StoreFormatError, StoreNotFoundError
from zarrpipe.store.backend.array_reader import MissingChunks, allowed_absent_chunks, check_rows
from zarrpipe.store.backend.location import Root
from zarrpipe.store.cache.directory import CacheConfig
from zarrpipe.store.format.layout import (
    IDS,
    find_array,
    is_dense,
    is_plain,
    present_path,
)
from zarrpipe.store.format.validate import translate_zarr_errors
from zarrpipe.store.query.conditions import Condition
from zarrpipe.store.query.evaluation import which_meet
from zarrpipe.store.read.mapped import MappedArray
from zarrpipe.store.read.snapshot import Snapshot
from zarrpipe.store.read.view import StoreView
from zarrpipe.store.statistics.stored_sums import valid_sums
from zarrpipe.store.statistics.sums import LabelSums

_DECODED = 1 << 26
_IDS_BLOCK = 1 << 14
_CACHED = CacheConfig(limit=1 << 30)
"""Rows of fields that a condition needs and that cannot be mapped."""


class MergeSource:
    """The present samples of a store, without deleted ones; a writer may go on appending.

    Unnamed files are created in `scratch`, by default in the directory of temporary files.
    """

    def __init__(self, root: Root, scratch: Path | None = None) -> None:
        self.root = root
        self._scratch = scratch
        self._snapshot = Snapshot(root)
        self.attributes = self._snapshot.attributes
        self.schema = self._snapshot.schema
        self.samples = self._snapshot.physical()
        self.has_foreign_rows = self._snapshot.has_foreign_rows
        self.group = _open_group(root)
        self.others = other_attributes(self.group)
        self._mapped: dict[str, AnyArray] = {}
        self._decoded: dict[str, AnyArray] = {}
        self._codes: dict[str, AnyArray] = {}
        self._is_whole = True
        self.is_selected = False
        self._dropped: frozenset[Level] = frozenset()

    def select_samples(self, condition: Condition, schema: Mapping[str, Field]) -> None:
        """Keep the samples that meet a condition on the fields of a schema."""
        if not len(self.samples):
            return
        view = StoreView(self.root.path, _CACHED)
        try:
            same = view.generation == self._snapshot.generation
            if not same or view.num_samples < len(self.samples):
                raise self._changed()
            self.samples = self.samples[which_meet(condition, view, schema, len(self.samples))]
        finally:
            view.close()
        self._is_whole, self.is_selected = False, True

    def select_fields(self, names: Collection[str]) -> None:
        """Keep the fields of some names; a level that loses all its fields has no rows any more."""
        before = self.schema
        self.schema = Schema({name: item for name, item in before.items() if name in names})
        lost = {i.level for i in before.values()} - {i.level for i in self.schema.values()}
        self._dropped = frozenset(lost)
        self._is_whole = False

    def segments(self, level: Level) -> tuple[Int64Array, Int64Array]:
        """First row [N] and number of rows [N] of each sample at a level that has pointers."""
        if len(self.samples) == 0:
            return self.samples, self.samples
        if level in self._dropped or level not in self.schema.pointer_levels:
            return np.zeros_like(self.samples), np.zeros_like(self.samples)
        path = level.pointers
        stored = self._snapshot.rows(path, self._snapshot.extent.samples + 1)
        starts = stored[self.samples]
        counts = stored[self.samples + 1] - starts
        falls = counts.min() < level.least or starts.min() < 0
        if falls or (starts + counts).max() > self._snapshot.extent.rows(level):
            raise StoreFormatError(
                f"{self.root}: {path} is damaged: it falls, is negative or exceeds the rows of its "
                "level; `zarrpipe check` lists the entries"
            )
        return starts, counts

    def field(self, item: Field) -> AnyArray:
        """Every row of a field, including those of deleted samples, with the dtype of `item`."""
        rows = self._flat(self.schema[item.name].path, item.level, item.dtype)
        if rows.shape[1:] != item.shape:  # compiled kernels would write out of bounds
            raise self._changed()
        if item.categories is None:
            return rows
        if item.name not in self._codes:
            table = translation(self.schema[item.name].categories or (), item.categories)
            self._codes[item.name] = rows if table is None else self._translated(item, rows, table)
        return self._codes[item.name]

    def _translated(self, item: Field, rows: AnyArray, table: Int32Array) -> Int32Array:
        """Codes of the committed samples in the vocabulary of `item`.

        Rows after them may have codes of strings that a writer has added since.
        """
        try:
            return looked_up(item.name, rows[: self._snapshot.extent.samples], table)
        except FieldError as error:
            raise StoreFormatError(f"{self.root}: {error}; see `zarrpipe check`") from error

    def present(self, name: str) -> AnyArray:
        """Which samples [N] have a field."""
        if name not in self.schema:
            return np.zeros(len(self.samples), dtype=bool)
        if name not in self.attributes.nullable:
            return np.ones(len(self.samples), dtype=bool)
        return self._flat(present_path(name), Level.SYSTEM)[self.samples]

    def imports(self) -> list[dict[str, Any]]:
        """Records of imports, without the places of their samples, which others have now."""
        places = ("first", "failed")
        return [
            {name: value for name, value in record.items() if name not in places}
            for record in self.attributes.imports
        ]

    def ids(self) -> UInt64Array:
        """Ids [N] uint64 of the samples' structures, computed if the store has none."""
        if len(self.samples) == 0:
            return np.zeros(0, dtype=np.uint64)
        stored = self._snapshot.stored_ids()
        if not stored:
            return self._computed_ids(np.arange(len(self.samples)))
        ids: UInt64Array = self._flat(IDS, Level.SYSTEM)[self.samples]
        lacking = np.flatnonzero(self.samples >= stored)  # appended by another writer
        if len(lacking):
            ids[lacking] = self._computed_ids(lacking)
        return ids

    def _computed_ids(self, places: Int64Array) -> UInt64Array:
        """Ids of the samples at `places` [K] among those of the source."""
        starts, counts = self.segments(Level.ATOM)
        box = [self._box(name) for name in ("cell", "pbc")]
        positions, numbers = (self.field(self.schema[n]) for n in ("positions", "atomic_numbers"))
        blocks = []
        for first in range(0, len(places), _IDS_BLOCK):
            block = places[first : first + _IDS_BLOCK]
            ptr = pointers(counts[block])
            rows = segment_rows(starts[block], ptr)
            here = (None if values is None else values[block] for values in box)
            blocks.append(structure_ids(positions[rows], numbers[rows], ptr, *here))
        return np.concatenate(blocks)

    def sums(self) -> LabelSums | None:
        """Stored sums of statistics over all samples, or None."""
        if not self._is_whole:
            return None
        stored = valid_sums(self._snapshot)
        return stored.sums if stored is not None and stored.samples == len(self.samples) else None

    def check_unchanged(self) -> None:
        """Raise StoreFormatError if the store was emptied, rewritten or replaced meanwhile."""
        try:
            self._snapshot.check_current()
            samples = Snapshot(self.root).extent.samples
        except (StoreFormatError, StoreNotFoundError) as error:
            raise self._changed() from error
        if samples < self._snapshot.extent.samples:
            raise self._changed()

    def _changed(self) -> StoreFormatError:
        return StoreFormatError(
            f"{self.root} was emptied or rewritten while it was being copied: try again"
        )

    def _box(self, name: str) -> AnyArray | None:
        """Rows [N, ...] of cell or pbc, zero where missing."""
        if name not in self.schema:
            return None
        return zero_missing(self.field(self.schema[name])[self.samples], self.present(name))

    def _flat(self, path: str, level: Level, dtype: np.dtype[Any] | None = None) -> AnyArray:
        """Rows of an array, and possibly further ones, as one NumPy array in C order."""
        for known in (self._mapped, self._decoded):
            if path in known:
                return known[path]
        array, rows = find_array(self.group, path), self._snapshot.extent.rows(level)
        if array is None:
            raise StoreFormatError(
                f"{self.root} has no array {path}: put it back from a copy of the store"
            )
        if array.shape[0] < rows and (path == IDS or path.startswith("present/")):
            # another writer appended without it
            return self._mapped.setdefault(path, self._snapshot.rows(path, rows))
        directory, wanted = self.root.directory, dtype in (None, array.dtype)
        absent_chunks = allowed_absent_chunks(self.attributes, path)
        if directory is not None and wanted and is_plain(array) and MappedArray.fits(array):
            mapped = MappedArray(
                array, directory / path, absent_chunks=absent_chunks if is_dense(array) else "any"
            )
            mapped.ensure(rows)
            return self._mapped.setdefault(path, mapped.data)
        self._decoded = {}  # free the file of the previous array first
        chosen = dtype or array.dtype
        self._decoded = {
            path: _decoded(array, rows, chosen, self._scratch, MissingChunks(absent_chunks))
        }
        return self._decoded[path]


def other_attributes(group: zarr.Group) -> dict[str, Any]:
    """Attributes of a root group that neither zarrpipe nor nvalchemi wrote."""
    ours = ("num_samples", "fields", "levels", "zarrpipe")
    return {name: value for name, value in group.attrs.asdict().items() if name not in ours}


def _open_group(root: Root) -> zarr.Group:
    group = root.open_group()
    if group is None:
        raise StoreNotFoundError.at(root)
    return group


def _decoded(
    array: zarr.Array[Any],
    rows: int,
    dtype: np.dtype[Any],
    folder: Path | None,
    absences: MissingChunks,
) -> AnyArray:
    """Decode the first rows of an array into memory, or into an unnamed file if they are many."""
    check_rows(array.store_path, array.shape[0], rows)
    shape = (rows, *array.shape[1:])
    row_bytes = max(1, dtype.itemsize * int(np.prod(shape[1:], dtype=np.int64)))
    unit = int((array.shards or array.chunks)[0])
    step = unit * max(1, _DECODED // (unit * row_bytes))
    if rows <= step:
        return _read(array, 0, rows, dtype, absences)
    with tempfile.TemporaryFile(dir=folder) as file:
        for start in range(0, rows, step):  # writing to a map would raise SIGBUS on a full disk
            block = _read(array, start, min(start + step, rows), dtype, absences)
            file.write(block.reshape(-1).view(np.uint8).data)
        file.flush()
        values: AnyArray = np.memmap(file, dtype, "r", shape=shape)
        return values


def _read(
    array: zarr.Array[Any], start: int, stop: int, dtype: np.dtype[Any], absences: MissingChunks
) -> AnyArray:
    """Rows from the start of a chunk on; raises if a chunk is missing."""
    with translate_zarr_errors(array.store_path):
        values = np.ascontiguousarray(array[start:stop], dtype)
    absences.refuse(array, start, values)
    return values
