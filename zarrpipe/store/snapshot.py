"""What of a store a reader knows: its attributes, its committed samples, its flat arrays."""

import threading
import weakref
from dataclasses import dataclass
from typing import Any

import numpy as np
import zarr

from zarrpipe.data.csr import AnyArray, Int64Array
from zarrpipe.data.schema import Schema
from zarrpipe.errors import StoreFormatError, StoreNotFoundError
from zarrpipe.store.commit import Extent, committed_samples
from zarrpipe.store.flat import FlatArray, LoadedArray, MappedArray, can_be_mapped
from zarrpipe.store.layout import (
    ATOMS_PTR,
    EDGES_PTR,
    SAMPLES_MASK,
    Attributes,
    find_array,
    is_empty,
    read_schema,
)
from zarrpipe.store.root import Root
from zarrpipe.store.staging.array import StagedArray
from zarrpipe.store.staging.caching import Caching
from zarrpipe.store.staging.place import stage_identity
from zarrpipe.store.staging.stage import Stage

_ATTEMPTS = 100


@dataclass(frozen=True)
class Moment:
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
    caching
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

    def __init__(self, root: Root, caching: Caching | None = None) -> None:
        self.root, self._caching = root, caching or Caching()
        self._stage: Stage | None = None
        self.extent = Extent()
        self.active: Int64Array | None = None
        self.version = 0
        self.lock = threading.RLock()
        self._flat: dict[str, FlatArray] = {}
        self._seen: object = None
        self._load(None)

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
        """
        with self.lock:
            self.version += 1
            if self._stamp() == self._seen:
                self._look()
            if self._stamp() != self._seen:
                self._load(self.attributes)

    def rows(self, path: str, rows: int) -> AnyArray:
        """First `rows` of an array as one NumPy array, which may be longer.

        Raises
        ------
        StoreFormatError
            If the store was emptied or rewritten since it was looked at, and these rows were not
            at hand before.
        """
        flat = self.array(path, rows)
        if isinstance(flat, StagedArray):
            flat.ensure(rows)
        return flat.data

    def array(self, path: str, rows: int) -> FlatArray:
        """Array of which the first `rows` are committed; those of a staged one are yet to bring.

        Raises
        ------
        StoreFormatError
            As `rows`.
        """
        flat = self._flat.get(path)
        if flat is None:
            flat = self._flat[path] = self._opened(path)
        if isinstance(flat, StagedArray):
            flat.commit(rows)
        elif len(flat.data) < rows:
            flat.ensure(rows)
            self.version += 1
            try:
                self._check_generation()
            except StoreFormatError:
                del self._flat[path]
                raise
        return flat

    def pointers(self, path: str) -> Int64Array:
        """Pointer array [samples + 1] int64, which may be longer; none of it without samples."""
        if self.extent.samples == 0:
            return np.zeros(1, dtype=np.int64)
        return np.asarray(self.rows(path, self.extent.samples + 1), dtype=np.int64)

    def leave(self, path: str) -> None:
        """Let memory go that rows of a mapped array took in this process; they stay cached."""
        flat = self._flat.get(path)
        if isinstance(flat, MappedArray):
            flat.leave()

    def unit_rows(self, path: str) -> int:
        """Rows of a shard of an array, or of a chunk where there are no shards."""
        array = _required(self._group, path)
        return int((array.shards or array.chunks)[0])

    @property
    def limit(self) -> int | None:
        """Most bytes of rows that the cache may hold."""
        return self._caching.limit

    def has(self, path: str) -> bool:
        """Whether the store has an array at `path`."""
        return find_array(self._group, path) is not None

    def release(self) -> None:
        """Let go of the arrays."""
        with self.lock:
            self.version += 1
            self._forget()

    def _forget(self) -> None:
        self._flat = {}
        if self._stage is not None:
            self._stage.close()
            self._stage = None

    def moment(self) -> "Moment":
        """What is known now, for a snapshot in another process to know the same."""
        return Moment(self.attributes, self.extent.samples, self.active)

    def return_to(self, moment: "Moment") -> None:
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
            self.schema = read_schema(self._group, moment.attributes)
            self.extent = self._extent(moment.samples)
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

    def _opened(self, path: str) -> FlatArray:
        directory, group = self.root.directory, self._group
        if directory is None and not path.startswith("meta/"):
            return self.stage.array(path, lambda: _required(group, path))
        array = _required(group, path)
        own = None if directory is None else directory / path
        if own is not None and can_be_mapped(array, own):
            return MappedArray(array, own)
        if path.startswith("meta/"):
            return LoadedArray(lambda: _required(group, path), array)
        return self.stage.array(path, lambda: _required(group, path))

    @property
    def stage(self) -> Stage:
        """What fetches the rows of fields that cannot be mapped."""
        if self._stage is None:
            identity = stage_identity(self.root.path, self._group, self.attributes)
            caching, this = self._caching, weakref.ref(self)
            self._stage = Stage(
                identity, caching.directory, caching.limit, check=lambda: _still_current(this)
            )
        return self._stage

    def _check_generation(self) -> None:
        """Refuse rows that were brought to hand after the store was rewritten."""
        if self._stamp() == self._seen:
            return
        group = self.root.open_group()
        if group is None or Attributes.read(group).generation != self.attributes.generation:
            raise StoreFormatError(
                f"{self.root} was emptied or rewritten since it was opened: refresh to read "
                "what it has now"
            )

    def _stamp(self) -> object:
        """Something that changes whenever the root's attributes do."""
        directory = self.root.directory
        if directory is not None:
            try:
                found = (directory / "zarr.json").stat()
            except FileNotFoundError:
                raise StoreNotFoundError(f"there is no Zarr store at {self.root}") from None
            return found.st_ino, found.st_mtime_ns, found.st_size
        group = self.root.open_group()
        if group is None:
            raise StoreNotFoundError(f"there is no Zarr store at {self.root}")
        return group.attrs.asdict()

    def _load(self, known: Attributes | None) -> None:
        """Read attributes and pointers until both are of one moment."""
        for _ in range(_ATTEMPTS):
            seen = self._stamp()
            try:
                known = self._read_root(known)
            except (StoreFormatError, FileNotFoundError, KeyError):
                if self._stamp() == seen:
                    raise
                continue
            if self._stamp() == seen:
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
            self._forget()
            self.extent, self.active = Extent(), None
            known = None
        self._group, self.attributes, self.schema = group, attributes, schema
        self._look()
        if known is None or known.deleted != attributes.deleted:
            self.active = self._find_active()
        return attributes

    def _look(self) -> None:
        """Find the samples that are committed now."""
        if ATOMS_PTR not in self._flat:
            if self.attributes.ours and not self.has(ATOMS_PTR):
                return  # a foreign store was asked for it before
            self._flat[ATOMS_PTR] = self._opened(ATOMS_PTR)
        pointers = self._flat[ATOMS_PTR]
        pointers.grow()
        before = self.extent.samples
        samples = committed_samples(pointers.data, before)
        if samples < before:
            raise StoreFormatError(
                f"{self.root} had {before} samples and now has {samples}: it is being emptied"
            )
        self.extent = self._extent(samples)
        if self.active is not None:
            self.active = np.concatenate([self.active, np.arange(before, samples)])

    def _extent(self, samples: int) -> Extent:
        """Extent of the first samples."""
        if samples == 0:
            return Extent()
        ends = [self._end(path, samples) for path in (ATOMS_PTR, EDGES_PTR)]
        return Extent(samples, *ends)

    def _end(self, path: str, samples: int) -> int:
        flat = self._flat[path] = self._flat.get(path) or self._opened(path)
        flat.ensure(samples + 1)
        return int(flat.data[samples])

    def _find_active(self) -> Int64Array | None:
        """Samples that were not deleted; None where none was."""
        samples = self.extent.samples
        if samples == 0 or (self.attributes.ours and self.attributes.deleted == 0):
            return None
        mask = self._flat[SAMPLES_MASK] = self._opened(SAMPLES_MASK)
        mask.ensure(samples)
        kept = mask.data[:samples]
        return None if kept.all() else np.flatnonzero(kept)


def _still_current(this: "weakref.ref[Snapshot]") -> None:
    snapshot = this()
    if snapshot is not None:
        snapshot._check_generation()


def _required(group: zarr.Group, path: str) -> zarr.Array[Any]:
    """Array at `path` with its present shape.

    Raises
    ------
    StoreFormatError
        If there is none.
    """
    array = find_array(group, path)
    if array is None:
        raise StoreFormatError(f"{group.store_path} lacks the array {path}")
    return array
