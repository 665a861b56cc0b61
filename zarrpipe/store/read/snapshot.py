"""The state of a store in a reader: attributes, committed samples and open arrays."""

import os
import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

import numpy as np
import zarr

from zarrpipe.data.csr import AnyArray, Int64Array
from zarrpipe.data.schema import Schema
from zarrpipe.errors import StoreFormatError, StoreNotFoundError
from zarrpipe.store.backend.array_reader import ArrayReader
from zarrpipe.store.backend.local_store import open_regular
from zarrpipe.store.backend.location import Root
from zarrpipe.store.cache.array import CachedArray
from zarrpipe.store.cache.directory import CacheConfig
from zarrpipe.store.cache.row_cache import RowCache
from zarrpipe.store.format.commit_log import RowCounts
from zarrpipe.store.format.layout import ATOMS_PTR, IDS, find_array, is_empty, read_schema
from zarrpipe.store.format.metadata import Attributes
from zarrpipe.store.read.loaded import LoadedArray
from zarrpipe.store.read.mapped import MappedArray
from zarrpipe.store.read.open_ahead import fetch_ahead, for_reading, opening
from zarrpipe.store.read.store_arrays import StoreArrays

_ATTEMPTS = 100


@dataclass(frozen=True)
class SnapshotState:
    """Attributes, number of committed samples, and samples that are not deleted (None: all)."""

    attributes: Attributes
    samples: int
    active: Int64Array | None


class Snapshot:
    """The state of a store at one moment, which `refresh` updates.

    Hold `lock` while reading several values that must belong to one state. Raises
    StoreNotFoundError if there is no Zarr group, and StoreFormatError if it is not a store of
    atomic systems, damaged, or of a newer format.
    """

    attributes: Attributes
    schema: Schema

    def __init__(self, root: Root, cache_config: CacheConfig | None = None) -> None:
        self.root, self._cache_config = for_reading(root), cache_config or CacheConfig()
        this = weakref.ref(self)
        self._arrays = StoreArrays(self.root, self._cache_config, lambda: _still_current(this))
        self.extent = RowCounts()
        self.active: Int64Array | None = None
        self._deleted: int | None = None  # number of deleted samples at the time of `active`
        self.version = 0
        self.lock = threading.RLock()
        self._seen: object = None
        self._last_sample: dict[str, int] = {}
        self._load(None)

    @property
    def group(self) -> zarr.Group:
        """Root group."""
        return self._group

    @property
    def generation(self) -> str:
        """Name that changes when samples were deleted, removed or moved."""
        return f"{self.attributes.generation}-{self.attributes.deleted}"

    @property
    def count(self) -> int:
        """Number of samples, without deleted ones."""
        return self.extent.samples if self.active is None else len(self.active)

    def refresh(self) -> None:
        """Update the state from the store.

        Raises StoreNotFoundError if the store is gone; known samples can still be read then. Raises
        StoreFormatError if it is damaged, or replaced by another store of the same generation.
        """
        with self.lock:
            self.version += 1
            if root_fingerprint(self.root) == self._seen:
                try:
                    self._look()
                except StoreFormatError:
                    if root_fingerprint(self.root) == self._seen:
                        raise
            if root_fingerprint(self.root) != self._seen:
                self._load(self.attributes)

    def rows(self, path: str, rows: int) -> AnyArray:
        """First `rows` of an array as one NumPy array, which may be longer.

        Raises StoreFormatError if the rows are not in memory yet, and the store was emptied or
        rewritten meanwhile.
        """
        with detect_changes(self):
            reader = self.array(path, rows)
            if isinstance(reader, CachedArray):
                reader.ensure(rows)
        return reader.data

    def array(self, path: str, rows: int) -> ArrayReader:
        """Reader of an array, with its first `rows` in memory unless it is cached; see `rows`."""
        reader = self._arrays.open(path)
        if isinstance(reader, CachedArray):
            reader.commit(rows)
        elif len(reader.data) < rows:
            try:
                with detect_changes(self):
                    reader.ensure(rows)
                self.version += 1
                self.check_current()
            except StoreFormatError:
                self._arrays.drop(path)
                raise
        return reader

    def pointers(self, path: str) -> Int64Array:
        """Pointers, at least [samples + 1] int64; a single 0 if there are no samples."""
        if self.extent.samples == 0:
            return np.zeros(1, dtype=np.int64)
        return np.asarray(self.rows(path, self.extent.samples + 1), dtype=np.int64)

    def drop_pages(self, path: str) -> None:
        """Drop the pages of a mapped array from this process; the page cache keeps them."""
        reader = self._arrays.find(path)
        if isinstance(reader, MappedArray):
            reader.drop_pages()

    def unit_rows(self, path: str) -> int:
        """Rows of a shard of an array, or of a chunk if it has no shards."""
        array = self._arrays.zarr_array(path)
        return int((array.shards or array.chunks)[0])

    @property
    def limit(self) -> int | None:
        """Most bytes that the row cache may hold."""
        return self._cache_config.limit

    def has(self, path: str) -> bool:
        """Whether the store has an array at `path`."""
        return find_array(self._group, path) is not None

    def stored_ids(self) -> int:
        """How many of the first samples have stored ids; others were appended by another writer."""
        return self._with_ids(self._arrays.open(IDS)) if self.has(IDS) else 0

    @property
    def has_foreign_rows(self) -> bool:
        """Whether another writer wrote some of the samples, whose edges may be wrong."""
        ids = self._arrays.find(IDS)
        appended = ids is not None and self._with_ids(ids) < self.extent.samples
        return appended or not self.attributes.ours

    def _with_ids(self, ids: ArrayReader) -> int:
        samples = self.extent.samples
        return min(ids.stored, samples) if isinstance(ids, LoadedArray) else samples

    def release(self) -> None:
        """Drop all arrays."""
        with self.lock:
            self.version += 1
            self._arrays.release()

    def state(self) -> SnapshotState:
        """Present state, to be restored in another process."""
        return SnapshotState(self.attributes, self.extent.samples, self.active)

    def restore(self, state: SnapshotState) -> None:
        """Return to an earlier state, from which `refresh` continues.

        Raises StoreFormatError if the store was emptied or rewritten since.
        """
        same = self.attributes.generation == state.attributes.generation
        if not same or self.extent.samples < state.samples:
            raise StoreFormatError(f"{self.root} was rewritten since the reader was pickled")
        with self.lock:
            self.version += 1
            self.attributes, self.active = state.attributes, state.active
            self._deleted = state.attributes.deleted
            self.schema = read_schema(self._group, state.attributes)
            self._limit(state.samples)
            self._seen = None

    def _limit(self, samples: int) -> None:
        """Keep the first samples, whose pointers were checked."""
        before = RowCounts(samples, dict.fromkeys(self.schema.pointer_levels, 0))
        self.extent = self._arrays.row_counts(samples, before, self.schema.pointer_levels)
        self._last_sample = self._arrays.last_sample(samples)
        if self.active is not None:
            self.active = self.active[: np.searchsorted(self.active, samples)]

    def physical(self, index: Int64Array | None = None) -> Int64Array:
        """Rows [K] int64 in the store of samples [K], by default of all.

        Raises IndexError if a sample does not exist.
        """
        count = self.count
        if index is None:
            return np.arange(count) if self.active is None else self.active
        if len(index) and not 0 <= index.min() <= index.max() < count:
            raise IndexError(
                f"samples {index.min()} to {index.max()} of a store of {count}: {self.root}"
            )
        return index if self.active is None else self.active[index]

    @property
    def row_cache(self) -> RowCache:
        """Cache of the rows that cannot be mapped."""
        return self._arrays.row_cache

    def check_current(self) -> None:
        """Refuse a store that is gone, or was emptied, rewritten or replaced since `refresh`."""
        if root_fingerprint(self.root) != self._seen:
            group, known = self.root.open_group(), self.attributes
            now = None if group is None else Attributes.read(group)
            emptied = now is None or now.num_samples < known.num_samples
            if now is None or emptied or now.generation != known.generation:
                raise StoreFormatError(
                    f"{self.root} was emptied or rewritten since it was opened: open it again to "
                    "read what it has now"
                )
        self._check_place()

    def _check_place(self) -> None:
        """Refuse another store at the place of the open one."""
        if self.attributes.ours and self._first_chunk_replaced():
            raise StoreFormatError(
                f"{self.root} was replaced by another copy of the store, a backup for example, and "
                "this reader has mapped the files of the one before: open it again"
            )

    def _first_chunk_replaced(self) -> bool:
        """Whether the first chunk of pointers is another file than the mapped one.

        zarrpipe never replaces this file, and the system does not reuse the inode of a mapped file.
        """
        pointers, directory = self._arrays.find(ATOMS_PTR), self.root.directory
        if directory is None or not isinstance(pointers, MappedArray) or not pointers.first_file:
            return False
        try:
            found = os.stat(f"{directory}{os.sep}{ATOMS_PTR}{os.sep}c{os.sep}0")  # noqa: PTH116  in less time
        except OSError:
            return False  # the store is being emptied; known samples stay mapped
        return found.st_ino != pointers.first_file

    def _load(self, known: Attributes | None) -> None:
        """Read attributes and pointers until both belong to one state.

        A writer may add fields and strings faster than a reader opens the store. The samples that
        were committed between two readings of the attributes are described by the later ones,
        since nothing is taken from these within a generation.
        """
        between: tuple[str, int] | None = None
        for _ in range(_ATTEMPTS):
            with opening(self.root):
                seen, failure = root_fingerprint(self.root), None
                try:
                    known = self._read_root(known)
                except (StoreFormatError, FileNotFoundError, KeyError) as error:
                    failure = error
            if failure is not None:
                if root_fingerprint(self.root) == seen:
                    raise failure
                between = None
                continue
            settled = root_fingerprint(self.root) == seen
            if not settled and self.attributes.ours and between and between[0] == self.generation:
                self._limit(between[1])
                settled = True
            if settled:
                self._seen = seen
                return
            between = self.generation, self.extent.samples
        raise StoreFormatError(f"{self.root} kept changing while it was being opened")

    def _read_root(self, known: Attributes | None) -> Attributes:
        """Read attributes, schema and pointers."""
        group = self.root.open_group()
        if group is None:
            raise StoreNotFoundError.at(self.root)
        attributes = Attributes.read(group)
        same = known is not None and attributes.generation == known.generation
        fetch_ahead(self.root, attributes, self.extent.samples if same else 0)
        schema = read_schema(group, attributes)
        if not attributes.ours and find_array(group, ATOMS_PTR) is None:
            if is_empty(group):
                raise StoreNotFoundError(f"{self.root} is an empty Zarr group")
            raise StoreFormatError(
                f"{self.root} is a Zarr group without {ATOMS_PTR}: expected a store that "
                "zarrpipe or nvalchemi wrote"
            )
        if not same:
            self._arrays.release()
            self.extent, self.active, self._deleted = RowCounts(), None, None
            self._last_sample = {}
        self._group, self.attributes, self.schema = group, attributes, schema
        self._arrays.follow(group, attributes)
        self._look()
        if self._deleted != attributes.deleted:
            self.active = self._arrays.active_samples(self.extent.samples)
            self._deleted = attributes.deleted
        return attributes

    def _look(self) -> None:
        """Find the samples that are committed now."""
        if (
            self._arrays.find(ATOMS_PTR) is None
            and self.attributes.ours
            and not self.has(ATOMS_PTR)
        ):
            if self.attributes.num_samples:
                raise StoreFormatError(
                    f"{self.root} lacks the array {ATOMS_PTR}, which says where its "
                    f"{self.attributes.num_samples} samples are"
                )
            return  # the store is new; `_read_root` has refused a foreign one
        self._check_place()
        self._arrays.verify()
        before = self.extent.samples
        samples = self._arrays.committed_samples(before)
        if samples < before:
            raise StoreFormatError(
                f"{self.root} had {before} samples and now has {samples}: it is being emptied, or "
                "an older copy was put in its place; open it again"
            )
        known, now = self._last_sample, self._arrays.last_sample(before)
        if any(known.get(path, value) != value for path, value in now.items()):
            raise StoreFormatError(
                f"{self.root}: sample {before - 1} is another than it was: a copy of the store, a "
                "backup for example, was written over its files; open it again"
            )
        extent = self._arrays.row_counts(samples, self.extent, self.schema.pointer_levels)
        active = self.active
        last_sample = self._arrays.last_sample(samples)
        if before == 0:
            self._arrays.check_required(self.schema, extent)
        if active is not None:
            active = np.concatenate([active, np.arange(before, samples)])
        # Last and together, so that an interrupt before leaves the state unchanged.
        self.extent, self.active, self._last_sample = extent, active, last_sample


@contextmanager
def detect_changes(*snapshots: Snapshot) -> Iterator[None]:
    """Turn an error about damage into one about a store that was emptied, rewritten or replaced."""
    try:
        yield
    except StoreFormatError:
        for snapshot in snapshots:
            snapshot.check_current()
        raise


def root_fingerprint(root: Root) -> object:
    """Value that changes with the attributes of the root.

    Raises StoreNotFoundError if there is no store.
    """
    if root.directory is not None:
        with suppress(FileNotFoundError):
            return _document(f"{root.directory}{os.sep}zarr.json")
    group = root.open_group()  # raises for an array or other content at the place
    if group is None:
        raise StoreNotFoundError.at(root)
    return group.attrs.asdict()


def _document(path: str) -> object:
    """State of a metadata document, with its content, since inodes and times are reused."""
    descriptor = open_regular(path)
    try:
        found = os.fstat(descriptor)
        content = os.read(descriptor, found.st_size + 1)
        while len(content) < found.st_size:
            rest = os.read(descriptor, found.st_size)
            if not rest:
                break
            content += rest
    finally:
        os.close(descriptor)
    return found.st_ino, found.st_mtime_ns, content


def _still_current(this: "weakref.ref[Snapshot]") -> None:
    snapshot = this()
    if snapshot is not None:
        snapshot.check_current()
