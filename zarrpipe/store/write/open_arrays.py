"""The arrays of a store as a writer has them open, by path."""

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, TypeVar

import zarr
from zarr.storage import MemoryStore

from zarrpipe.data.schema import Schema
from zarrpipe.errors import StoreFormatError
from zarrpipe.store.backend.location import Root
from zarrpipe.store.format.commit_log import RowCounts, committed_samples
from zarrpipe.store.format.config import ZarrWriteConfig
from zarrpipe.store.format.layout import (
    ATOMS_MASK,
    ATOMS_PTR,
    EDGES_MASK,
    EDGES_PTR,
    SAMPLES_MASK,
    ArraySpec,
    create_array,
    field_path,
    field_spec,
    find_array,
    meta_specs,
    present_spec,
)
from zarrpipe.store.write.array_writer import ArrayWriter, open_array_writer
from zarrpipe.store.write.concurrent import run_concurrently, write_in_stages
from zarrpipe.store.write.plan import RowWrite

_ENTRIES, _SYNCS = 1 << 20, 8

Result = TypeVar("Result")


class OpenArrays:
    """Columns of the arrays of one store.

    Parameters
    ----------
    root
        Place of the store.
    config
        Chunks and codecs of the arrays that are created.
    capacity
        Samples that are expected at most, for the size of chunks.
    durable
        Whether writes are on the disk when they are carried out, pointers after all others.
    """

    def __init__(
        self, root: Root, config: ZarrWriteConfig, capacity: int, *, durable: bool = False
    ) -> None:
        self._root, self._config, self._capacity = root, config, capacity
        self._durable = durable
        self._threads: ThreadPoolExecutor | None = None
        self._far = root.directory is None and not isinstance(root.path.store, MemoryStore)
        self._columns: dict[str, ArrayWriter] = {}

    @property
    def paths(self) -> frozenset[str]:
        """Places of the arrays that are open."""
        return frozenset(self._columns)

    def __getitem__(self, path: str) -> ArrayWriter:
        return self._columns[path]

    def open_stored(self, group: zarr.Group, schema: Schema, nullable: Iterable[str]) -> RowCounts:
        """Open all arrays of a store, and find what is committed in them.

        Raises
        ------
        StoreFormatError
            If there are samples and one is not there.
        """
        pointers, *others = [*meta_specs(), *map(field_spec, schema.values())]
        first = self.open(group, pointers)
        entries: int = group[ATOMS_PTR].shape[0]  # type: ignore[union-attr]
        stored = entries > 1 and bool(first.read(1, 2).any())
        others += [present_spec(schema[name]) for name in nullable]
        self._open_each(others, partial(self._found if stored else self.open, group))
        return self._committed(entries)

    def _found(self, group: zarr.Group, spec: ArraySpec) -> ArrayWriter:
        array = find_array(group, spec.path)
        if array is None:  # made anew it would say other things of the samples
            raise StoreFormatError(
                f"{self._root} has samples and lacks the array {spec.path}: see zarrpipe check"
            )
        return self._column(array, spec)

    def open(self, group: zarr.Group, spec: ArraySpec, *, fresh: bool = False) -> ArrayWriter:
        """Open an array, which is made if it is not there, or anew if it is to be `fresh`."""
        array = None if fresh else find_array(group, spec.path)
        if array is None:
            array = create_array(group, spec, self._config, self._capacity)
        return self._column(array, spec)

    def _column(self, array: zarr.Array[Any], spec: ArraySpec) -> ArrayWriter:
        directory = self._root.directory
        own = None if directory is None else directory / spec.path
        column = open_array_writer(array, own, durable=self._durable)
        self._columns[spec.path] = column
        return column

    def open_all(
        self, group: zarr.Group, specs: Iterable[ArraySpec], *, fresh: bool = False
    ) -> list[ArrayWriter]:
        """Open arrays as `open` does."""
        return self._open_each(specs, partial(self.open, group, fresh=fresh))

    def _open_each(
        self, specs: Iterable[ArraySpec], open_one: Callable[[ArraySpec], ArrayWriter]
    ) -> list[ArrayWriter]:
        return self._each([partial(open_one, spec) for spec in specs])

    def _each(self, tasks: Sequence[Callable[[], Result]]) -> list[Result]:
        """Results of tasks, which a far store has done at once."""
        return run_concurrently(tasks) if self._far else [task() for task in tasks]

    def forget(self, paths: Iterable[str]) -> None:
        """Let go of arrays that were not announced."""
        for path in paths:
            column = self._columns.pop(path, None)
            if column is not None:
                column.close()

    def carry_out(self, writes: Sequence[RowWrite]) -> None:
        """Carry out writes in commit order."""
        if self._far:
            write_in_stages(self._columns, writes)
            return
        if self._durable:
            last = [write for write in writes if write.path == ATOMS_PTR]
            self._write([write for write in writes if write.path != ATOMS_PTR])
            self._write(last)
            return
        for path, start, values in writes:
            self._columns[path].write(start, values)

    def _write(self, writes: Sequence[RowWrite]) -> None:
        """Carry out writes and bring them to the disk."""
        for path, start, values in writes:
            self._columns[path].write(start, values)
        columns = [self._columns[path] for path in dict.fromkeys(write.path for write in writes)]
        if len(columns) == 1:
            columns[0].sync()
        elif columns:  # the disk takes them together
            if self._threads is None:
                self._threads = ThreadPoolExecutor(_SYNCS, thread_name_prefix="zarrpipe-sync")
            run_concurrently([column.sync for column in columns], self._threads)

    def check_ends(self, schema: Schema, extent: RowCounts) -> None:
        """Refuse a store that has lost chunks which a writer would make anew.

        They are those that the next append goes on with, and those of masks: rows that were in
        them would be there again, as zeros, and nobody would miss them.

        Raises
        ------
        StoreFormatError
            If one is not there.
        """
        tasks = [
            partial(self[path].require, rows)
            for path, rows in self._rows(schema, extent).items()
            if rows % self[path].chunk_rows
        ]
        mask = self[SAMPLES_MASK]
        kept, unit = mask.read(0, extent.samples), mask.chunk_rows
        tasks += [
            partial(mask.require, min(start + unit, extent.samples))
            for start in range(0, extent.samples, unit)
            if not kept[start : start + unit].any()
        ]
        self._each(tasks)

    def trim(self, schema: Schema, extent: RowCounts) -> None:
        """Make every shape that of what is committed."""
        for path, rows in self._rows(schema, extent).items():
            self[path].trim(rows)

    def _rows(self, schema: Schema, extent: RowCounts) -> dict[str, int]:
        """Number of committed rows of each array."""
        exact = {ATOMS_PTR: extent.samples + 1, EDGES_PTR: extent.samples + 1}
        exact |= {ATOMS_MASK: extent.atoms, EDGES_MASK: extent.edges}
        exact |= {field_path(item): extent.rows(item.level) for item in schema.values()}
        return {path: exact.get(path, extent.samples) for path in self._columns}

    def release(self) -> None:
        """Close files and forget the arrays."""
        for column in self._columns.values():
            column.close()
        self._columns.clear()
        threads, self._threads = self._threads, None
        if threads is not None:
            threads.shutdown()

    def _committed(self, entries: int) -> RowCounts:
        """What is committed, according to pointers of which `entries` are allocated.

        All are looked at, and as many at a time as a far store gives in one answer.
        """
        pointers, samples = self[ATOMS_PTR], 0
        while samples + 1 < entries:
            stop = min(samples + _ENTRIES, entries)
            found = committed_samples(pointers.read(samples, stop))
            samples += found
            if samples + 1 < stop:
                break
        if samples == 0:
            return RowCounts()
        ends = [self[path].read(samples, samples + 1)[0] for path in (ATOMS_PTR, EDGES_PTR)]
        return RowCounts((samples, *map(int, ends)))
