"""The way from sample indices to a batch: rows are looked up once and copied once for each field.

All fields of a batch, its pointers and what says which samples have a field go into one buffer.
With numba each segment is copied by memcpy, also from several stores straight to its place;
without, NumPy takes the rows of each field, with equal results.
"""

import contextlib
from collections.abc import Mapping, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
import torch

from zarrpipe.data.batch import Batch
from zarrpipe.data.buffers import ALIGNMENT, BufferPool, Bytes
from zarrpipe.data.csr import AnyArray, Int64Array
from zarrpipe.data.fields import REQUIRED_FIELDS, SEGMENTED, Level
from zarrpipe.data.schema import Field
from zarrpipe.errors import FieldError, StoreFormatError
from zarrpipe.store.read.kernels import Kernels, compiled_kernels, source_segments, target_rows
from zarrpipe.store.read.lookup import BatchArray, Lookup, Unit
from zarrpipe.store.read.snapshot import Snapshot

_POINTERS = 3  # the "level" of a row of pointers, of which there is one more than samples
_NONE = np.zeros(0, dtype=np.int64)
_INT64 = np.dtype("int64")


class Part(NamedTuple):
    """Samples of one store.

    Parameters
    ----------
    store
        Which of the gather's stores.
    samples : array [J] int64
        Samples, counted without the deleted.
    places : array [J] int64, optional
        Where in the batch they stand; by default they are the batch.
    """

    store: int
    samples: Int64Array
    places: Int64Array | None = None


class Gather:
    """Reads chosen fields out of stores, for as long as none of them changes.

    Parameters
    ----------
    snapshots : sequence of Snapshot
        The stores.
    fields : mapping of str to Field
        What to read, positions and atomic numbers included. A store that lacks a field gives its
        fill, and says that its samples lack it.
    pool : BufferPool
        Where batches get their memory.
    kernels : Kernels, optional
        The compiled steps, if there are.
    """

    def __init__(
        self,
        snapshots: Sequence[Snapshot],
        fields: Mapping[str, Field],
        pool: BufferPool,
        kernels: Kernels | None,
    ) -> None:
        self._pool, self._kernels = pool, kernels
        self._levels_of = {item.name: item.level for item in fields.values()}
        self._partly = [name for name in fields if any(_may_lack(one, name) for one in snapshots)]
        columns = [BatchArray.of(item) for item in fields.values()]
        columns += [BatchArray.of_presence(name) for name in self._partly]
        self._columns = columns
        self._levels = np.array([column.level for column in columns], dtype=np.int64)
        self._row_bytes = np.array([column.row_bytes for column in columns], dtype=np.int64)
        self._sizes = [(column.row_bytes, column.level) for column in columns]
        self._sizes += [(_INT64.itemsize, _POINTERS)] * 2
        # Level, row shape and dtype of each column and of the pointers, ready for every batch.
        self._makings = [(column.level, column.shape, column.dtype) for column in columns]
        self._makings += [(_POINTERS, (), _INT64)] * 2
        with_edges = Level.EDGE in self._levels_of.values()
        self._lookups = [Lookup(one, columns, with_edges=with_edges) for one in snapshots]
        self._edges = [*fields].index("neighbor_list") if "neighbor_list" in fields else -1
        words = self._edges >= 0 and fields["neighbor_list"].dtype == _INT64
        self._shifted = self._edges if words else -1
        self._foreign = not all(one.attributes.ours for one in snapshots)
        self._versions = [(one, one.version) for one in snapshots]

    @property
    def stale(self) -> bool:
        """Whether a store has changed since."""
        return any(one.version != version for one, version in self._versions)

    def units(self, snapshot: Snapshot) -> list[Unit]:
        """How the arrays of one of the stores are cut."""
        found = [column.unit(snapshot) for column in self._columns]
        return [unit for unit in found if unit is not None]

    def advise(self, parts: Sequence[Part]) -> None:
        """Say that samples will be read soon."""
        for part in parts:
            self._lookups[part.store].advise(part.samples)

    def __call__(self, count: int, parts: Sequence[Part]) -> Batch:
        """Batch of `count` samples, which are those of the parts; at least one part.

        Raises
        ------
        IndexError
            If there is no such sample.
        StoreFormatError
            If the pointers or the edges of a store are damaged.
        """
        try:
            return self._read(count, parts)
        except StoreFormatError:
            for snapshot, _ in self._versions:
                snapshot.check_current()
            raise

    def _read(self, count: int, parts: Sequence[Part]) -> Batch:
        if self._kernels is not None:
            return self._compiled(self._kernels, count, parts)
        batches = [self._taken(part) for part in parts]
        if len(batches) == 1:
            return batches[0]
        back = np.argsort(
            np.concatenate([part.places for part in parts if part.places is not None])
        )
        return _without_absent(Batch.concatenate(batches).index_select(torch.from_numpy(back)))

    def _taken(self, part: Part) -> Batch:
        """Batch of the samples of one store, column by column."""
        lookup = self._lookups[part.store]
        rows, atoms_ptr, edges_ptr = lookup.rows(part.samples)
        totals = (len(part.samples), int(atoms_ptr[-1]), int(edges_ptr[-1]), len(atoms_ptr))
        starts, end = [], 0
        for size, level in self._sizes:
            starts.append(end)
            end += -(-size * totals[level] // ALIGNMENT) * ALIGNMENT
        content, pinned = self._pool.take(end)
        views = self._views(starts, totals, content)

        def copy() -> None:
            for place, (view, (_, level)) in enumerate(zip(views[:-2], self._sizes, strict=False)):
                lookup.take(place, rows[level], view)

        lookup.read(partial(lookup.segments, part.samples), copy)
        views[-2][:], views[-1][:] = atoms_ptr, edges_ptr
        if self._edges >= 0:
            edges = views[self._edges]
            shift = np.repeat(lookup.shift(part.samples, atoms_ptr), np.diff(edges_ptr))
            edges += shift[:, None].astype(edges.dtype)
            if self._foreign:
                self._check_edges(edges, atoms_ptr, edges_ptr)
        return self._wrapped(views, content, pinned)

    def _compiled(self, kernels: Kernels, count: int, parts: Sequence[Part]) -> Batch:
        """Batch in one buffer."""
        table = np.empty((5, count + 1), dtype=np.int64)
        for store, samples, places in parts:
            where = _NONE if places is None else places
            self._lookups[store].locate(kernels, samples, where, table)
        offsets = np.empty(len(self._makings) + 1, dtype=np.int64)
        kernels.lay_out(table, self._levels, self._row_bytes, ALIGNMENT, offsets)
        starts = offsets.tolist()
        content, pinned = self._pool.take(starts[-1])
        self._copy(kernels, parts, table, offsets, content)
        rows = (count, int(table[2, count]), int(table[4, count]), count + 1)
        return self._wrapped(self._views(starts, rows, content), content, pinned)

    def _views(self, starts: list[int], rows: Sequence[int], content: Bytes) -> list[AnyArray]:
        """Arrays of the columns and the pointers in a buffer."""
        return [
            np.ndarray((rows[level], *shape), dtype, content, start)
            for (level, shape, dtype), start in zip(self._makings, starts, strict=False)
        ]

    def _copy(
        self,
        kernels: Kernels,
        parts: Sequence[Part],
        table: Int64Array,
        offsets: Int64Array,
        content: Bytes,
    ) -> None:
        """Copy the rows of all parts, and the pointers with the last."""
        words = content.view(np.int64)
        for part in parts:
            lookup, where = self._lookups[part.store], _NONE if part.places is None else part.places
            arguments = (
                table,
                where,
                lookup.addresses,
                self._levels,
                self._row_bytes,
                offsets,
                self._shifted,
                part is parts[-1],
                words,
            )
            lookup.read(partial(source_segments, table, where), partial(kernels.copy, *arguments))
            for column, fill in lookup.lacking:
                level = int(self._levels[column])
                view = self._view(column, table, offsets, content)
                view[target_rows(table, where, level)] = fill
        if self._edges >= 0 and (self._foreign or self._shifted < 0):
            edges = self._view(self._edges, table, offsets, content)
            if self._shifted < 0:
                shift = np.repeat(table[2, :-1] - table[1, :-1], np.diff(table[4]))
                edges += shift[:, None].astype(edges.dtype)
            if self._foreign:
                self._check_edges(edges, table[2], table[4])

    def _view(
        self, column: int, table: Int64Array, offsets: Int64Array, content: Bytes
    ) -> AnyArray:
        """Array of a column in the buffer."""
        level, shape, dtype = self._makings[column]
        rows = table.shape[1] - 1 if level == 0 else int(table[2 * level, -1])
        return np.ndarray((rows, *shape), dtype, content, int(offsets[column]))

    def _wrapped(self, views: list[AnyArray], content: Bytes, pinned: torch.Tensor | None) -> Batch:
        """Batch of the columns and the pointers in a buffer."""
        tensors = [torch.from_numpy(view) for view in views]
        count = len(self._levels_of)
        present = {
            name: tensors[count + place]
            for place, name in enumerate(self._partly)
            if not views[count + place].all()
        }
        fields = dict(zip(self._levels_of, tensors, strict=False))
        pointers = dict(zip(SEGMENTED, tensors[-len(SEGMENTED) :], strict=True))
        batch = Batch._trusted(fields, self._levels_of.copy(), pointers, present, buffer=content)
        if "neighbor_list" in present:
            _without_absent(batch)
        if pinned is None:
            return batch
        # Views of the page-locked tensor itself, so that torch knows when it is free again.
        batch._buffer = pinned
        return batch._transfer(lambda tensor: tensor)

    def _check_edges(self, edges: AnyArray, atom_ptr: Int64Array, edge_ptr: Int64Array) -> None:
        """Refuse edges that leave their system, as those that nvalchemi 0.2 appends do."""
        owner = np.repeat(np.arange(len(edge_ptr) - 1), np.diff(edge_ptr))[:, None]
        if ((edges < atom_ptr[owner]) | (edges >= atom_ptr[owner + 1])).any():
            names = ", ".join(str(one.root) for one, _ in self._versions)
            raise StoreFormatError(
                f"{names}: edges leave their system; nvalchemi 0.2 stores the neighbor_list "
                "of every write but the first relative to that write: `zarrpipe check --repair` on "
                "a copy of the store makes them count from its first atom, where that can be told"
            )


class Gathers:
    """The gathers that were used, one for each choice of fields, renewed when a store has changed.

    Parameters
    ----------
    snapshots : sequence of Snapshot
        The stores.
    fixed : bool
        Whether samples are to be those that the stores have now: once one was rewritten, nothing
        is read of it any more.
    """

    def __init__(self, snapshots: Sequence[Snapshot], *, fixed: bool = False) -> None:
        self._snapshots = snapshots
        self._generations = [one.generation for one in snapshots] if fixed else None
        self._pool = BufferPool()
        self._known: dict[tuple[str, ...] | None, Gather] = {}

    def of(self, names: Sequence[str] | None) -> Gather:
        """Gather of the named fields, of those that a batch needs, and by default of all.

        Raises
        ------
        FieldError
            If no store has a field.
        """
        key = None if names is None else tuple(names)
        known = self._known.get(key)
        if known is None or known.stale:
            kernels = compiled_kernels()
            with contextlib.ExitStack() as locks:  # else a refresh comes in between
                for snapshot in self._snapshots:
                    locks.enter_context(snapshot.lock)
                self._check_generations()
                try:
                    known = Gather(self._snapshots, self._chosen(key), self._pool, kernels)
                except StoreFormatError:
                    for snapshot in self._snapshots:
                        snapshot.check_current()
                    raise
            self._known[key] = known
        return known

    def _check_generations(self) -> None:
        for snapshot, generation in zip(self._snapshots, self._generations or (), strict=False):
            if snapshot.generation != generation:
                raise StoreFormatError(
                    f"{snapshot.root} was rewritten: samples were deleted or moved, so indices "
                    "mean others than before; open a new dataset"
                )

    def _chosen(self, names: tuple[str, ...] | None) -> dict[str, Field]:
        have: dict[str, Field] = {}
        for snapshot in self._snapshots:
            have = {**snapshot.schema, **have}
        if names is None:
            return have
        for name in names:
            if name not in have:
                stores = ", ".join(str(one.root) for one in self._snapshots)
                raise FieldError(f"{stores} has no field {name!r}; it has {list(have)}")
        return {name: have[name] for name in dict.fromkeys((*REQUIRED_FIELDS, *names))}

    def clear(self) -> None:
        """Let go of the arrays."""
        self._known.clear()


def _without_absent(batch: Batch) -> Batch:
    """The batch, with zeros for the edges of systems that have none to tell."""
    if "neighbor_list" in batch.partly_present:
        has = torch.repeat_interleave(batch.present("neighbor_list"), batch.num_edges_per_graph)
        batch.neighbor_list[~has] = 0
    return batch


def _may_lack(snapshot: Snapshot, name: str) -> bool:
    """Whether some sample of a store may lack the field."""
    return name not in snapshot.schema or name in snapshot.attributes.nullable
