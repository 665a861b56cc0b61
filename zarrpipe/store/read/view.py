"""A store as a reader sees it: the committed samples of one moment, and batches of them."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from zarrpipe.data.batch import Batch
from zarrpipe.data.csr import AnyArray, Int64Array
from zarrpipe.data.ids import UInt64Array, batch_ids
from zarrpipe.data.levels import Level
from zarrpipe.data.schema import Schema
from zarrpipe.errors import ArgumentError, FieldError, StoreClosedError, StoreFormatError
from zarrpipe.store.backend.location import Root, StoreLike
from zarrpipe.store.cache.directory import CacheConfig
from zarrpipe.store.format.layout import (
    IDS,
    present_path,
)
from zarrpipe.store.format.metadata import Mark
from zarrpipe.store.read.gather import Gather, Part
from zarrpipe.store.read.snapshot import Snapshot
from zarrpipe.store.read.source import Unit

_IDS_BLOCK = 4096
_MANY = 1 << 16


class StoreView:
    """The samples of a store at the last refresh, without deleted ones.

    A writer may go on appending. `cache_config` is that of rows that cannot be mapped, by default
    in memory. Raises StoreNotFoundError if there is no Zarr group, and StoreFormatError if it is
    not a store of atomic systems, damaged, or of a newer format.
    """

    def __init__(self, store: StoreLike, cache_config: CacheConfig | None = None) -> None:
        self.store, self._cache_config = store, cache_config
        self._root = Root.of(store)
        self._closed = False
        self._snapshot = Snapshot(self._root, cache_config)
        self.rows = Gather([self._snapshot])
        """Reads batches; it does not check whether the view is closed."""
        self._stored_ids: tuple[int, int] = (-1, 0)

    def __getstate__(self) -> dict[str, Any]:
        state = self._snapshot.state()
        return {"store": self.store, "cache_config": self._cache_config, "state": state}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["store"], state["cache_config"])  # type: ignore[misc]
        self._snapshot.restore(state["state"])

    @property
    def snapshot(self) -> Snapshot:
        """State of the store, for a gather over several."""
        return self._snapshot

    @property
    def num_samples(self) -> int:
        """Number of samples N, without deleted ones."""
        return self._snapshot.count

    @property
    def schema(self) -> Schema:
        """Fields of the store."""
        return self._snapshot.schema

    @property
    def generation(self) -> str:
        """Name that changes when samples were deleted, removed or moved."""
        return self._snapshot.generation

    @property
    def marks(self) -> Mapping[str, Mark]:
        """Marks of the store, by name."""
        return self._snapshot.attributes.marks

    def marked(self, name: str) -> int:
        """Number of samples that a mark names.

        Raises ArgumentError if there is no such mark, and StoreFormatError if samples were deleted
        since it was made.
        """
        mark = self.marks.get(name)
        if mark is None:
            known = f"it has {', '.join(self.marks)}" if self.marks else "it has none"
            raise ArgumentError(
                f"{self._root} has no mark {name!r}, {known}: make one with ZarrData.mark"
            )
        deleted = self._snapshot.attributes.deleted
        if mark.deleted != deleted:
            raise StoreFormatError(
                f"{deleted - mark.deleted} samples of {self._root} were deleted since the mark "
                f"{name!r} was made, so the samples that it named are not all there: take another "
                "mark, or a copy of the store from before"
            )
        if mark.samples > self._snapshot.extent.samples:
            raise StoreFormatError(
                f"{self._root} has a mark {name!r} that names {mark.samples} samples, and has "
                f"{self._snapshot.extent.samples}: samples were lost; see zarrpipe check"
            )
        return mark.count

    @property
    def num_atoms(self) -> Int64Array:
        """Number of atoms of each sample, [N] int64."""
        return self.num_rows(Level.ATOM)

    @property
    def num_edges(self) -> Int64Array:
        """Number of edges of each sample, [N] int64."""
        return self.num_rows(Level.EDGE)

    def num_rows(self, level: Level) -> Int64Array:
        """Number of rows of each sample at a level that has pointers, [N] int64."""
        samples = self._snapshot.extent.samples
        counts = np.diff(self._pointers(level)[: samples + 1])
        active = self._snapshot.active
        return counts if active is None else counts[active]

    def counts_of(self, level: Level, samples: Int64Array) -> Int64Array:
        """Number of rows of the samples [K] int64 at a level that has pointers."""
        ptr, rows = self._pointers(level), self._snapshot.physical(samples)
        return ptr[rows + 1] - ptr[rows]

    def _pointers(self, level: Level) -> Int64Array:
        """Pointers of a level, [N+1] or longer, where deleted samples count; zeros without it."""
        if level in self.schema.pointer_levels:
            return self._snapshot.pointers(level.pointers)
        return np.zeros(self._snapshot.extent.samples + 1, dtype=np.int64)

    @property
    def ids(self) -> UInt64Array:
        """Id of each sample's structure, [N] uint64; computed if the store has none."""
        return self.ids_of(np.arange(self.num_samples))

    def ids_of(self, samples: Int64Array) -> UInt64Array:
        """Ids [K] uint64 of the structures of samples [K] int64; see `ids`."""
        if self._stored_ids[0] != self._snapshot.version:  # the look-up takes longer than the read
            self._stored_ids = (self._snapshot.version, self._snapshot.stored_ids())
        rows = self._stored_ids[1]
        if not rows:
            return self._computed_ids(samples)
        ids: UInt64Array = self._of_samples(IDS, samples)
        if rows < self._snapshot.extent.samples:
            lacking = np.flatnonzero(self._snapshot.physical(samples) >= rows)
            ids[lacking] = self._computed_ids(samples[lacking])
        return ids

    def _computed_ids(self, samples: Int64Array) -> UInt64Array:
        wanted = [name for name in ("cell", "pbc") if name in self._snapshot.schema]
        blocks = [
            batch_ids(self.gather(samples[start : start + _IDS_BLOCK], wanted))
            for start in range(0, len(samples), _IDS_BLOCK)
        ]
        return np.concatenate([np.zeros(0, dtype=np.uint64), *blocks])

    def stored_rows(self, index: AnyArray) -> Int64Array:
        """Rows [K] int64 of samples in the store, counting deleted samples."""
        return self._snapshot.physical(np.asarray(index, dtype=np.int64))

    def system_field(self, name: str, samples: Int64Array | None = None) -> AnyArray:
        """Rows [N, ...] of a field at system level, or of `samples` [K] int64; fill where absent.

        Raises FieldError if the store has no such field at system level.
        """
        item = self.schema.get(name)
        if item is None or item.level is not Level.SYSTEM:
            have = [item.name for item in self.schema.at(Level.SYSTEM)]
            raise FieldError(f"{self._root} has no field {name!r} at system level; it has {have}")
        return self._of_samples(item.path, samples)

    def present(self, name: str, samples: Int64Array | None = None) -> AnyArray:
        """Whether each sample has a field, [N] bool, or each of `samples` [K] int64.

        Raises FieldError if the store has no such field.
        """
        if name not in self.schema:
            raise FieldError(f"{self._root} has no field {name!r}; it has {list(self.schema)}")
        if name not in self._snapshot.attributes.nullable:
            return np.ones(self.num_samples if samples is None else len(samples), dtype=bool)
        return self._of_samples(present_path(name), samples)

    def gather(self, index: AnyArray, fields: Sequence[str] | None = None) -> Batch:
        """Copy the samples at `index` [K] int64, in any order and with repeats, into a batch.

        `fields` are read besides positions and atomic_numbers; None for all. A field at edge level
        brings the edges of each sample. Raises IndexError if a sample does not exist, and
        FieldError if the store has no such field.
        """
        self._check_open()
        wanted = np.ascontiguousarray(index, dtype=np.int64)
        return self.rows.read(wanted, None if fields is None else tuple(fields))

    def drop_pages(self, fields: Sequence[str]) -> None:
        """Release the memory of this process that mapped fields take; the page cache keeps it."""
        for name in fields:
            self._snapshot.drop_pages(self.schema[name].path)

    def row_starts(self, level: Level) -> Int64Array | None:
        """First row of each sample at a level, and the end, [N+1] int64; None for systems."""
        if not level.has_pointers:
            return None
        samples, active = self._snapshot.extent.samples, self._snapshot.active
        ptr = self._pointers(level)[: samples + 1]
        return ptr if active is None else np.append(ptr[active], ptr[-1])

    def units(self, fields: Sequence[str] | None = None) -> list[Unit]:
        """Units in which the arrays of a gather are fetched; see `gather` for `fields`."""
        self._check_open()
        return self.rows.units(self._snapshot, None if fields is None else tuple(fields))

    def prefetch(self, index: AnyArray, fields: Sequence[str] | None = None) -> None:
        """Load the samples at `index` in the background, at little cost if they are in memory."""
        self._check_open()
        wanted = np.ascontiguousarray(index, dtype=np.int64)
        self.rows.prefetch([Part(0, wanted)], None if fields is None else tuple(fields))

    def refresh(self) -> int:
        """Update the view, and return the number of new samples.

        It may be negative if samples were deleted or the store was emptied. Raises
        StoreNotFoundError if the store is gone; known samples can still be read.
        """
        self._check_open()
        before = self.num_samples
        self._snapshot.refresh()
        return self.num_samples - before

    def close(self) -> None:
        """Drop all arrays; a second call does nothing."""
        self._closed = True
        self.rows.clear()
        self._snapshot.release()

    def _check_open(self) -> None:
        if self._closed:
            raise StoreClosedError(f"the reader of {self._root} was closed: open a new one")

    def _of_samples(self, path: str, samples: Int64Array | None = None) -> AnyArray:
        """Copy the rows of samples, by default all, from an array at system level."""
        stored = self._snapshot.rows(path, self._snapshot.extent.samples)
        if samples is None and self._snapshot.active is None:
            return stored[: self._snapshot.extent.samples].copy()
        values = stored.take(self._snapshot.physical(samples), axis=0)
        if samples is not None and len(samples) >= _MANY:  # accesses most pages, once
            self._snapshot.drop_pages(path)
        return values
