"""A store as a reader sees it: a committed prefix of samples, and one gather out of flat arrays."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from zarrpipe.data.batch import Batch
from zarrpipe.data.csr import AnyArray, Int64Array, pointers, segment_rows
from zarrpipe.data.fields import REQUIRED_FIELDS, Level
from zarrpipe.data.ids import UInt64Array
from zarrpipe.data.schema import Field, Schema
from zarrpipe.errors import (
    FieldError,
    StoreClosedError,
    StoreFormatError,
)
from zarrpipe.store.layout import (
    ATOMS_PTR,
    EDGES_PTR,
    IDS,
    field_path,
    present_path,
)
from zarrpipe.store.plan import batch_ids
from zarrpipe.store.root import Root, StoreLike
from zarrpipe.store.snapshot import Snapshot

_IDS_BLOCK = 4096


class StoreView:
    """The samples that a store had when it was last looked at.

    A writer may go on appending meanwhile; `refresh` looks again. Deleted samples are left out
    and the others counted through.

    Parameters
    ----------
    store : StoreLike
        The store to read.

    Raises
    ------
    StoreNotFoundError
        If there is no Zarr group.
    StoreFormatError
        If it is not a store of atomic systems, damaged, or of a newer format.
    """

    def __init__(self, store: StoreLike) -> None:
        self.store = store
        self._root = Root.of(store)
        self._closed = False
        self._snapshot = Snapshot(self._root)

    def __getstate__(self) -> dict[str, Any]:
        return {"store": self.store, "moment": self._snapshot.moment()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["store"])  # type: ignore[misc]
        self._snapshot.return_to(state["moment"])

    @property
    def num_samples(self) -> int:
        """Number of samples N, without the deleted."""
        return self._snapshot.count

    @property
    def schema(self) -> Schema:
        """Fields of the store."""
        return self._snapshot.schema

    @property
    def generation(self) -> str:
        """Name that changes when samples were deleted, removed or moved."""
        attributes = self._snapshot.attributes
        return f"{attributes.generation}-{attributes.deleted}"

    @property
    def num_atoms(self) -> Int64Array:
        """Number of atoms of each sample, [N] int64."""
        return self._counts(ATOMS_PTR)

    @property
    def num_edges(self) -> Int64Array:
        """Number of edges of each sample, [N] int64."""
        return self._counts(EDGES_PTR)

    @property
    def ids(self) -> UInt64Array:
        """Id of each sample's structure, [N] uint64; computed if the store has none."""
        if self._snapshot.has(IDS):
            stored: UInt64Array = self._rows_of(IDS, Level.SYSTEM, self._snapshot.physical())
            return stored
        wanted = [name for name in ("cell", "pbc") if name in self._snapshot.schema]
        blocks = [
            batch_ids(
                self.gather(np.arange(start, min(start + _IDS_BLOCK, self.num_samples)), wanted)
            )
            for start in range(0, self.num_samples, _IDS_BLOCK)
        ]
        return np.concatenate([np.zeros(0, dtype=np.uint64), *blocks])

    def stored_rows(self, index: AnyArray) -> Int64Array:
        """Rows of samples in the store, where the deleted count too, [K] int64."""
        return self._snapshot.physical(np.asarray(index, dtype=np.int64))

    def system_field(self, name: str) -> AnyArray:
        """Rows of a field at system level, ``[N, ...]``; fill where a sample lacks it.

        Raises
        ------
        FieldError
            If the store has no such field at system level.
        """
        item = self.schema.get(name)
        if item is None or item.level is not Level.SYSTEM:
            have = [item.name for item in self.schema.at(Level.SYSTEM)]
            raise FieldError(f"{self._root} has no field {name!r} at system level; it has {have}")
        return self._rows_of(field_path(item), item.level, self._snapshot.physical())

    def present(self, name: str) -> AnyArray:
        """Which samples have a field, [N] bool.

        Raises
        ------
        FieldError
            If the store has no such field.
        """
        self._fields((name,))
        if name not in self._snapshot.attributes.partly:
            return np.ones(self.num_samples, dtype=bool)
        return self._rows_of(present_path(name), Level.SYSTEM, self._snapshot.physical())

    def gather(self, index: AnyArray, fields: Sequence[str] | None = None) -> Batch:
        """Batch of the samples at `index`, copied out of the store.

        Parameters
        ----------
        index : array [K] int64
            Samples, from 0 to N - 1, in any order, repeats allowed.
        fields : sequence of str, optional
            Fields besides positions and atomic_numbers; all by default. With a field at edge
            level come the edges of each sample.

        Raises
        ------
        IndexError
            If there is no such sample.
        FieldError
            If the store has no such field.
        """
        self._check_open()
        chosen = self._fields(fields)
        samples = self._snapshot.physical(np.asarray(index, dtype=np.int64))
        atoms = self._segments(ATOMS_PTR, samples)
        edges = _Segments(np.zeros_like(samples), np.zeros_like(atoms.ptr))
        if any(item.level is Level.EDGE for item in chosen):
            edges = self._segments(EDGES_PTR, samples)
        rows = {Level.SYSTEM: as_slice(samples), Level.ATOM: atoms.rows(), Level.EDGE: edges.rows()}
        values = {
            item.name: self._rows_of(field_path(item), item.level, rows[item.level])
            for item in chosen
        }
        if "neighbor_list" in values:
            shift = np.repeat(atoms.ptr[:-1] - atoms.starts, np.diff(edges.ptr))
            values["neighbor_list"] += shift[:, None]
            if not self._snapshot.attributes.ours:
                self._check_edges(values["neighbor_list"], atoms.ptr, edges.ptr)
        present = {}
        for name in self._snapshot.attributes.partly.intersection(values):
            has = self._rows_of(present_path(name), Level.SYSTEM, rows[Level.SYSTEM])
            if not has.all():
                present[name] = torch.from_numpy(has)
        return Batch._trusted(
            {name: torch.from_numpy(value) for name, value in values.items()},
            {item.name: item.level for item in chosen},
            torch.from_numpy(atoms.ptr),
            torch.from_numpy(edges.ptr),
            present,
        )

    def refresh(self) -> int:
        """Look at the store again; the number of samples that are new.

        Where samples were deleted or the store was emptied the number may be negative.

        Raises
        ------
        StoreNotFoundError
            If the store is gone; what was read before can still be read.
        """
        self._check_open()
        before = self.num_samples
        self._snapshot.refresh()
        return self.num_samples - before

    def close(self) -> None:
        """Let go of the store; a second call does nothing."""
        self._closed = True
        self._snapshot.release()

    def _check_open(self) -> None:
        if self._closed:
            raise StoreClosedError(f"the reader of {self._root} was closed: open a new one")

    def _fields(self, names: Sequence[str] | None) -> list[Field]:
        """Fields of a gather: those asked for, and the ones that a batch needs."""
        if names is None:
            return list(self.schema.values())
        for name in names:
            if name not in self.schema:
                raise FieldError(f"{self._root} has no field {name!r}; it has {list(self.schema)}")
        return [self.schema[name] for name in dict.fromkeys((*REQUIRED_FIELDS, *names))]

    def _segments(self, path: str, samples: Int64Array) -> "_Segments":
        """Where the rows of samples begin, and the pointers of the batch that they make."""
        if len(samples) == 0:
            return _Segments(samples, pointers(samples))
        stored = self._snapshot.rows(path, self._snapshot.extent.samples + 1)
        starts = stored[samples]
        counts = stored[samples + 1] - starts
        least = 1 if path == ATOMS_PTR else 0
        if counts.min() < least or starts.min() < 0:
            raise StoreFormatError(f"{self._root}: {path} falls or is negative: it is damaged")
        return _Segments(starts, pointers(counts))

    def _check_edges(self, edges: Int64Array, atom_ptr: Int64Array, edge_ptr: Int64Array) -> None:
        """Refuse edges that leave their system, as those that nvalchemi 0.2 appends do."""
        owner = np.repeat(np.arange(len(edge_ptr) - 1), np.diff(edge_ptr))[:, None]
        if ((edges < atom_ptr[owner]) | (edges >= atom_ptr[owner + 1])).any():
            raise StoreFormatError(
                f"{self._root}: edges leave their system; nvalchemi 0.2 stores the neighbor_list "
                "of every write but the first relative to that write: read the other fields and "
                "find neighbours anew"
            )

    def _counts(self, path: str) -> Int64Array:
        return np.diff(self._segments(path, self._snapshot.physical()).ptr)

    def _rows_of(self, path: str, level: Level, rows: Int64Array | slice) -> AnyArray:
        """Copy of rows of an array."""
        stored = self._snapshot.rows(path, self._snapshot.extent.rows(level))
        return stored[rows].copy() if isinstance(rows, slice) else stored.take(rows, axis=0)


@dataclass(frozen=True)
class _Segments:
    """Rows that samples own: where each begins in the store, and the batch's pointers."""

    starts: Int64Array
    ptr: Int64Array

    def rows(self) -> Int64Array | slice:
        """Rows in the store, a slice where they follow each other."""
        total = int(self.ptr[-1])
        if total == 0:
            return slice(0, 0)
        first = int(self.starts[0])
        if np.array_equal(self.starts, self.ptr[:-1] + first):
            return slice(first, first + total)
        return segment_rows(self.starts, self.ptr)


def as_slice(rows: Int64Array) -> Int64Array | slice:
    """The same rows, as a slice where they follow each other.

    Examples
    --------
    >>> as_slice(np.array([4, 5, 6])), as_slice(np.array([4, 6]))
    (slice(4, 7, None), array([4, 6]))
    """
    if len(rows) == 0:
        return slice(0, 0)
    first, last = int(rows[0]), int(rows[-1])
    if last - first == len(rows) - 1 and bool((np.diff(rows) == 1).all()):
        return slice(first, last + 1)
    return rows
