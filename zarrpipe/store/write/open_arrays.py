"""The open arrays of a store's writer, by path."""

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, TypeVar

import zarr
from zarr.storage import MemoryStore

from zarrpipe.compat import sync
from zarrpipe.data.schema import Schema
from zarrpipe.errors import StoreFormatError
from zarrpipe.store.backend.array_reader import check_rows
from zarrpipe.store.backend.location import Root
from zarrpipe.store.format.commit_log import RowCounts, committed_samples
from zarrpipe.store.format.config import ZarrWriteConfig
from zarrpipe.store.format.layout import (
    ATOMS_MASK,
    ATOMS_PTR,
    EDGES_MASK,
    SAMPLES_MASK,
    ArraySpec,
    create_array,
    find_array,
    present_spec,
    store_specs,
)
from zarrpipe.store.write.append_plan import RowWrite, in_stages
from zarrpipe.store.write.array_writer import ArrayWriter, open_array_writer
from zarrpipe.store.write.plain_array_writer import PlainArrayWriter
from zarrpipe.store.write.threads import run_concurrently

_ENTRIES, _SYNCS = 1 << 20, 8

Result = TypeVar("Result")


class OpenArrays:
    """Array writers of one store; see `StoreWriter` for the arguments.

    If `durable`, writes are synced before they return, pointers to atoms after all others.
    """

    def __init__(
        self, root: Root, config: ZarrWriteConfig, capacity: int, *, durable: bool = False
    ) -> None:
        self._root, self._config, self._capacity = root, config, capacity
        self._durable = durable
        self._threads: ThreadPoolExecutor | None = None
        self._far = root.directory is None and not isinstance(root.path.store, MemoryStore)
        self._writers: dict[str, ArrayWriter] = {}
        self._plain = True

    @property
    def in_place(self) -> bool:
        """Whether rows are written directly into local files, without Zarr and threads."""
        return self._plain and not self._durable

    @property
    def paths(self) -> frozenset[str]:
        """Paths of the open arrays."""
        return frozenset(self._writers)

    def __getitem__(self, path: str) -> ArrayWriter:
        return self._writers[path]

    def open_stored(self, group: zarr.Group, schema: Schema, nullable: Iterable[str]) -> RowCounts:
        """Open all arrays of a store, and return its committed rows.

        Raises StoreFormatError if a store with samples lacks an array.
        """
        pointers, *others = store_specs(schema)
        first = self.open(group, pointers)
        entries: int = group[ATOMS_PTR].shape[0]  # type: ignore[union-attr]
        stored = entries > 1 and bool(first.read(1, 2).any())
        others += [present_spec(schema[name]) for name in nullable]
        self._open_each(others, partial(self._found if stored else self.open, group))
        return self._committed(schema, entries)

    def _found(self, group: zarr.Group, spec: ArraySpec) -> ArrayWriter:
        array = find_array(group, spec.path)
        if array is None:  # a new array would change the samples
            raise StoreFormatError(
                f"{self._root} has samples and lacks the array {spec.path}: see zarrpipe check"
            )
        return self._add(array, spec)

    def open(self, group: zarr.Group, spec: ArraySpec, *, fresh: bool = False) -> ArrayWriter:
        """Open an array, and create it if it is missing, or in any case if `fresh`."""
        array = None if fresh else find_array(group, spec.path)
        if array is None:
            array = create_array(group, spec, self._config, self._capacity)
        return self._add(array, spec)

    def _add(self, array: zarr.Array[Any], spec: ArraySpec) -> ArrayWriter:
        directory = self._root.directory
        own = None if directory is None else directory / spec.path
        writer = open_array_writer(array, own, durable=self._durable)
        self._writers[spec.path] = writer
        self._plain &= isinstance(writer, PlainArrayWriter)
        return writer

    def open_all(
        self, group: zarr.Group, specs: Iterable[ArraySpec], *, fresh: bool = False
    ) -> list[ArrayWriter]:
        """Open arrays like `open`, concurrently in a remote store."""
        return self._open_each(specs, partial(self.open, group, fresh=fresh))

    def _open_each(
        self, specs: Iterable[ArraySpec], open_one: Callable[[ArraySpec], ArrayWriter]
    ) -> list[ArrayWriter]:
        return self._each([partial(open_one, spec) for spec in specs])

    def _each(self, tasks: Sequence[Callable[[], Result]]) -> list[Result]:
        """Run tasks, concurrently for a remote store."""
        return run_concurrently(tasks) if self._far else [task() for task in tasks]

    def carry_out(self, writes: Sequence[RowWrite]) -> None:
        """Carry out writes in commit order."""
        if self._far:
            write_in_stages(self._writers, writes)
        elif self._durable:
            self._write_durably([write for write in writes if write.path != ATOMS_PTR])
            self._write_durably([write for write in writes if write.path == ATOMS_PTR])
        else:
            for path, start, values in writes:
                if path == ATOMS_PTR:
                    self._writers[path].commit(start, values)
                else:
                    self._writers[path].write(start, values)

    def _write_durably(self, writes: Sequence[RowWrite]) -> None:
        """Carry out writes, and sync them."""
        for write in writes:
            _write(self._writers, write)
        written = [self._writers[path] for path in dict.fromkeys(write.path for write in writes)]
        if len(written) == 1:
            written[0].sync()
        elif written:  # the disk syncs them together
            if self._threads is None:
                self._threads = ThreadPoolExecutor(_SYNCS, thread_name_prefix="zarrpipe-sync")
            run_concurrently([writer.sync for writer in written], self._threads)

    def check_ends(self, schema: Schema, counts: RowCounts) -> None:
        """Raise StoreFormatError if the store has lost rows that a writer would create anew.

        It checks the rows of fields, the chunks that the next append continues, and those of
        masks, whose lost rows would reappear as zeros without notice.
        """
        committed = self._rows(schema, counts)
        for path in (item.path for item in schema.values()):
            check_rows(f"{self._root}: {path}", self[path].rows, committed[path])
        stored = {path: min(rows, self[path].rows) for path, rows in committed.items()}
        tasks = [
            partial(self[path].require, rows)
            for path, rows in stored.items()
            if rows % self[path].chunk_rows
        ]
        mask = self[SAMPLES_MASK]
        kept, unit = mask.read(0, counts.samples), mask.chunk_rows
        tasks += [
            partial(mask.require, min(start + unit, counts.samples))
            for start in range(0, counts.samples, unit)
            if not kept[start : start + unit].any()
        ]
        self._each(tasks)

    def take_over(self, schema: Schema, counts: RowCounts) -> None:
        """Store the chunks of fill that another writer, which resized arrays, left out."""
        for path, rows in self._rows(schema, counts).items():
            self[path].take_over(rows)

    def trim(self, schema: Schema, counts: RowCounts) -> None:
        """Set all shapes to the committed rows."""
        for path, rows in self._rows(schema, counts).items():
            self[path].trim(rows)

    def _rows(self, schema: Schema, counts: RowCounts) -> dict[str, int]:
        """Number of committed rows of each array."""
        exact = {level.pointers: counts.samples + 1 for level in schema.pointer_levels}
        exact |= {ATOMS_MASK: counts.atoms, EDGES_MASK: counts.edges}
        exact |= {item.path: counts.rows(item.level) for item in schema.values()}
        return {path: exact.get(path, counts.samples) for path in self._writers}

    def release(self) -> None:
        """Wait for threads, close files, and drop the arrays."""
        if self._threads is not None:
            self._threads.shutdown(cancel_futures=True)
            self._threads = None
        for writer in self._writers.values():
            writer.close()
        self._writers.clear()

    def _committed(self, schema: Schema, entries: int) -> RowCounts:
        """Find the committed rows, given the number of allocated pointers.

        It reads all pointers, in blocks of the size that a remote store returns at once.
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
        ends = {
            level: int(self[level.pointers].read(samples, samples + 1)[0])
            for level in schema.pointer_levels
        }
        return RowCounts(samples, ends)


def _write(writers: Mapping[str, ArrayWriter], write: RowWrite) -> None:
    """Write rows, but commit pointers to atoms, so that the samples appear all at once."""
    path, start, values = write
    if path == ATOMS_PTR:
        writers[path].commit(start, values)
    else:
        writers[path].write(start, values)


def write_in_stages(writers: Mapping[str, ArrayWriter], writes: Sequence[RowWrite]) -> None:
    """Carry out writes stage by stage in commit order, those of a stage concurrently.

    Raises the first error of a stage, and does not begin the next one.
    """
    for stage in in_stages(writes):
        run_concurrently(partial(_write, writers, write) for write in stage)


def wait_for_zarr() -> None:
    """Wait for requests of interrupted calls that Zarr's event loop still runs.

    An interrupt ends the call that waits for a request, but not the request.
    """

    async def settle() -> None:
        others = asyncio.all_tasks() - {asyncio.current_task()}
        if others:
            await asyncio.wait(others)

    sync(settle())
