"""What of a store a reader knows: its attributes, its committed samples, its flat arrays."""

import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import zarr

from zarrpipe.data.csr import AnyArray, Int64Array
from zarrpipe.data.schema import Schema
from zarrpipe.errors import StoreFormatError, StoreNotFoundError
from zarrpipe.store.backend.array_reader import ArrayReader
from zarrpipe.store.backend.location import Root
from zarrpipe.store.cache.array import CachedArray
from zarrpipe.store.cache.config import CacheConfig
from zarrpipe.store.cache.row_cache import RowCache
from zarrpipe.store.format.commit_log import RowCounts
from zarrpipe.store.format.layout import ATOMS_PTR, find_array, is_empty, read_schema
from zarrpipe.store.format.metadata import Attributes
from zarrpipe.store.read.committed import check_required, find_active, find_extent, find_samples
from zarrpipe.store.read.fingerprint import root_fingerprint, was_replaced
from zarrpipe.store.read.mapped import MappedArray
from zarrpipe.store.read.store_arrays import StoreArrays

_ATTEMPTS = 100


@dataclass(frozen=True)
class SnapshotState:
    """What a reader knew of a store.

    Parameters
    ----------
    attributes
        Of the root.
    samples
        How many were committed, the deleted included.
    active : array, optional
        Those that were not deleted; None where none was.
    """

    attributes: Attributes
    samples: int
    active: Int64Array | None


class Snapshot:
    """The state of a store at one moment, brought up to date by `refresh`.

    Who takes several things of it that have to be of one moment holds its `lock`.

    Parameters
    ----------
    root
        Place of the store.
    cache_config
        Where rows go that cannot be mapped where they are.

    Raises
    ------
    StoreNotFoundError
        If there is no Zarr group.
    StoreFormatError
        If it is not a store of atomic systems, damaged, or of a newer format.
    """

    attributes: Attributes
    schema: Schema

    def __init__(self, root: Root, cache_config: CacheConfig | None = None) -> None:
        self.root, self._cache_config = root, cache_config or CacheConfig()
        this = weakref.ref(self)
        self._flats = StoreArrays(root, self._cache_config, lambda: _still_current(this))
        self.extent = RowCounts()
        self.active: Int64Array | None = None
        self._deleted: int | None = None  # how many were when `active` was found
        self.version = 0
        self.lock = threading.RLock()
        self._seen: object = None
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
        """Number of samples, without the deleted."""
        return self.extent.samples if self.active is None else len(self.active)

    def refresh(self) -> None:
        """Look at the store again.

        Raises
        ------
        StoreNotFoundError
            If the store is gone; what was read before can still be read.
        StoreFormatError
            If it was damaged, or another was put in its place that claims to be the same.
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

        Raises
        ------
        StoreFormatError
            If the store was emptied or rewritten since it was looked at, and these rows were not
            at hand before.
        """
        with detect_changes(self):
            flat = self.array(path, rows)
            if isinstance(flat, CachedArray):
                flat.ensure(rows)
        return flat.data

    def array(self, path: str, rows: int) -> ArrayReader:
        """Array of which the first `rows` are committed; those of a cached one are yet to bring.

        Raises
        ------
        StoreFormatError
            As `rows`.
        """
        flat = self._flats.open(path)
        if isinstance(flat, CachedArray):
            flat.commit(rows)
        elif len(flat.data) < rows:
            try:
                with detect_changes(self):
                    flat.ensure(rows)
                self.version += 1
                self.check_current()
            except StoreFormatError:
                self._flats.drop(path)
                raise
        return flat

    def pointers(self, path: str) -> Int64Array:
        """Pointer array [samples + 1] int64, which may be longer; none of it without samples."""
        if self.extent.samples == 0:
            return np.zeros(1, dtype=np.int64)
        return np.asarray(self.rows(path, self.extent.samples + 1), dtype=np.int64)

    def drop_pages(self, path: str) -> None:
        """Let memory go that rows of a mapped array took in this process; they stay cached."""
        flat = self._flats.find(path)
        if isinstance(flat, MappedArray):
            flat.drop_pages()

    def unit_rows(self, path: str) -> int:
        """Rows of a shard of an array, or of a chunk where there are no shards."""
        array = self._flats.zarr_array(path)
        return int((array.shards or array.chunks)[0])

    @property
    def limit(self) -> int | None:
        """Most bytes of rows that the cache may hold."""
        return self._cache_config.limit

    def has(self, path: str) -> bool:
        """Whether the store has an array at `path`."""
        return find_array(self._group, path) is not None

    def release(self) -> None:
        """Let go of the arrays."""
        with self.lock:
            self.version += 1
            self._flats.release()

    def moment(self) -> "SnapshotState":
        """What is known now, for a snapshot in another process to know the same."""
        return SnapshotState(self.attributes, self.extent.samples, self.active)

    def restore(self, moment: "SnapshotState") -> None:
        """Know what was known at a moment before; `refresh` goes on from there.

        Raises
        ------
        StoreFormatError
            If the store was emptied or rewritten since.
        """
        same = self.attributes.generation == moment.attributes.generation
        if not same or self.extent.samples < moment.samples:
            raise StoreFormatError(f"{self.root} was rewritten since the reader was pickled")
        with self.lock:
            self.version += 1
            self.attributes, self.active = moment.attributes, moment.active
            self._deleted = moment.attributes.deleted
            self.schema = read_schema(self._group, moment.attributes)
            self.extent = find_extent(self._flats, moment.samples, moment.samples)
            self._seen = None

    def physical(self, index: Int64Array | None = None) -> Int64Array:
        """Rows of samples in the store; all of them by default."""
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
        """What fetches the rows of fields that cannot be mapped."""
        return self._flats.row_cache

    def check_current(self) -> None:
        """Refuse rows that were brought to hand after the store was rewritten.

        Called too where rows are not as they should be: that may be why.

        Raises
        ------
        StoreNotFoundError
            If the store is gone.
        StoreFormatError
            If it was emptied, rewritten or replaced.
        """
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
        """Refuse to go on with a store that was put in the place of the one that is open."""
        if self.attributes.ours and was_replaced(self.root, self._flats.find(ATOMS_PTR)):
            raise StoreFormatError(
                f"{self.root} was replaced by another copy of the store, a backup for example, and "
                "what is at hand is of the one before: open it again"
            )

    def _load(self, known: Attributes | None) -> None:
        """Read attributes and pointers until both are of one moment."""
        for _ in range(_ATTEMPTS):
            seen = root_fingerprint(self.root)
            try:
                known = self._read_root(known)
            except (StoreFormatError, FileNotFoundError, KeyError):
                if root_fingerprint(self.root) == seen:
                    raise
                continue
            if root_fingerprint(self.root) == seen:
                self._seen = seen
                return
        raise StoreFormatError(f"{self.root} kept changing while it was being opened")

    def _read_root(self, known: Attributes | None) -> Attributes:
        """Read attributes, schema and pointers."""
        group = self.root.open_group()
        if group is None:
            raise StoreNotFoundError(f"there is no Zarr store at {self.root}")
        attributes = Attributes.read(group)
        schema = read_schema(group, attributes)
        if not attributes.ours and find_array(group, ATOMS_PTR) is None:
            if is_empty(group):
                raise StoreNotFoundError(f"{self.root} is an empty Zarr group")
            raise StoreFormatError(
                f"{self.root} is a Zarr group without {ATOMS_PTR}: expected a store that "
                "zarrpipe or nvalchemi wrote"
            )
        if known is None or attributes.generation != known.generation:
            self._flats.release()
            self.extent, self.active, self._deleted = RowCounts(), None, None
        self._group, self.attributes, self.schema = group, attributes, schema
        self._flats.follow(group, attributes)
        self._look()
        if self._deleted != attributes.deleted:
            self.active = find_active(self._flats, attributes, self.extent.samples)
            self._deleted = attributes.deleted
        return attributes

    def _look(self) -> None:
        """Find the samples that are committed now."""
        if self._flats.find(ATOMS_PTR) is None and self.attributes.ours and not self.has(ATOMS_PTR):
            if self.attributes.num_samples:
                raise StoreFormatError(
                    f"{self.root} lacks the array {ATOMS_PTR}, which says where its "
                    f"{self.attributes.num_samples} samples are"
                )
            return  # it was only just made; a foreign store was asked for it before
        self._check_place()
        self._flats.verify()
        before = self.extent.samples
        samples = find_samples(self._flats, self.attributes, before)
        if samples < before:
            raise StoreFormatError(
                f"{self.root} had {before} samples and now has {samples}: it is being emptied"
            )
        self.extent = find_extent(self._flats, samples, before)
        if before == 0:
            check_required(self._flats, self.schema, self.extent)
        if self.active is not None:
            self.active = np.concatenate([self.active, np.arange(before, samples)])


@contextmanager
def detect_changes(*snapshots: Snapshot) -> Iterator[None]:
    """Raise that a store was emptied, rewritten or replaced, where that is why it looks damaged."""
    try:
        yield
    except StoreFormatError:
        for snapshot in snapshots:
            snapshot.check_current()
        raise


def _still_current(this: "weakref.ref[Snapshot]") -> None:
    snapshot = this()
    if snapshot is not None:
        snapshot.check_current()
