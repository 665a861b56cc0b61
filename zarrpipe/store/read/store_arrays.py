"""The arrays of one store that a reader has opened, and the rows that their pointers commit."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import zarr

from zarrpipe.data.csr import AnyArray, Int64Array
from zarrpipe.data.fields import REQUIRED_FIELDS
from zarrpipe.data.levels import Level
from zarrpipe.data.schema import Schema
from zarrpipe.errors import StoreFormatError
from zarrpipe.store.backend.array_reader import ArrayReader, allowed_absent_chunks, check_rows
from zarrpipe.store.backend.location import Root, is_far
from zarrpipe.store.cache.directory import CacheConfig, cache_identity
from zarrpipe.store.cache.row_cache import RowCache
from zarrpipe.store.format.commit_log import (
    Indexable,
    RowCounts,
    check_pointers,
    new_samples,
    rising_samples,
)
from zarrpipe.store.format.layout import (
    ATOMS_PTR,
    EDGES_PTR,
    IDS,
    SAMPLES_MASK,
    find_array,
    is_dense,
    resized_by_another,
)
from zarrpipe.store.format.metadata import Attributes
from zarrpipe.store.read.loaded import LoadedArray
from zarrpipe.store.read.mapped import MappedArray, can_be_mapped


class StoreArrays:
    """Readers of arrays by path: mapped, loaded or cached.

    Files on a network file system are not mapped, since a mapped page may stay stale or vanish. See
    `RowCache` for `check`.
    """

    def __init__(self, root: Root, cache_config: CacheConfig, check: Callable[[], object]) -> None:
        self.root, self._cache_config, self._check = root, cache_config, check
        self._readers: dict[str, ArrayReader] = {}
        self._row_cache: RowCache | None = None
        self._group: zarr.Group
        self._attributes: Attributes
        self._ids_readable = True

    def follow(self, group: zarr.Group, attributes: Attributes) -> None:
        """Open arrays of this group from now on."""
        self._group, self._attributes = group, attributes
        self._ids_readable = True
        for path in filter(_only_ours, list(self._readers)):
            self.drop(path)  # another writer may have appended without it

    def find(self, path: str) -> ArrayReader | None:
        """Reader of an open array, or None."""
        return self._readers.get(path)

    def open(self, path: str) -> ArrayReader:
        """Reader of the array at a path, which must exist."""
        found = self._readers.get(path)
        if found is None:
            found = self._readers[path] = self._opened(path)
        return found

    def zarr_array(self, path: str) -> zarr.Array[Any]:
        """Zarr array at a path, which must exist, with its present shape."""
        return _required(self._group, path)

    def drop(self, path: str) -> None:
        """Drop a reader, so that the array is opened anew."""
        self._readers.pop(path, None)

    def verify(self) -> None:
        """Check mapped files again; see `MappedArray.verify`."""
        for path, reader in list(self._readers.items()):
            if isinstance(reader, MappedArray):
                try:
                    reader.verify()
                except StoreFormatError:
                    self.drop(path)
                    raise

    def release(self) -> None:
        """Drop all readers."""
        self._readers = {}
        if self._row_cache is not None:
            self._row_cache.close()
            self._row_cache = None

    @property
    def row_cache(self) -> RowCache:
        """The cache of rows that cannot be mapped."""
        if self._row_cache is None:
            identity = cache_identity(self.root.path, self._group, self._attributes)
            directory, limit = self._cache_config.directory, self._cache_config.limit
            self._row_cache = RowCache(identity, directory, limit, check=self._check)
        return self._row_cache

    def committed_samples(self, before: int) -> int:
        """Number of samples that the pointers to atoms commit; the first `before` were checked.

        Raises StoreFormatError if pointers do not increase, were lost since the store was closed,
        or differ from their map.
        """
        pointers = self.open(ATOMS_PTR)
        pointers.grow()
        with _in_files(pointers) as values:
            first, last = new_samples(values, before)
            if last and isinstance(pointers, MappedArray):  # chunks may exceed the shape
                last = pointers.within(last + 1) - 1
            samples = rising_samples(f"{self.root}: {ATOMS_PTR}", values, first, last)
        if samples > before and not pointers.data[samples]:
            raise StoreFormatError(
                f"{self.root}: {ATOMS_PTR} was written to, and what this process has mapped of it "
                "stays as it was, as where an overlay file system (the image of a container) has "
                "copied the file: open the store again"
            )
        if self._attributes.ours and samples < self._attributes.num_samples:
            raise StoreFormatError(
                f"{self.root} had {self._attributes.num_samples} samples when it was closed, and "
                f"{ATOMS_PTR} has {samples} of them: pointers were lost; `zarrpipe check` says more"
            )
        return samples

    def row_counts(self, samples: int, before: RowCounts, levels: Sequence[Level]) -> RowCounts:
        """Rows of the first `samples` at `levels`; the pointers of those `before` were checked.

        Raises StoreFormatError if pointers do not begin with zero, or those of a level other than
        atoms decrease.
        """
        if samples == 0:
            return RowCounts()
        counts = {}
        for level in levels:
            path, pointers = level.pointers, self.open(level.pointers)
            pointers.ensure(samples + 1)
            if pointers.data[0]:
                raise StoreFormatError(
                    f"{self.root}: {path} begins with {pointers.data[0]}, expected 0: it is damaged"
                )
            if level is not Level.ATOM:
                known = before.samples if level in before.by_level else 0
                with _in_files(pointers) as values:
                    check_pointers(f"{self.root}: {path}", values, samples, known)
            counts[level] = int(pointers.data[samples])
        return RowCounts(samples, counts)

    def active_samples(self, samples: int) -> Int64Array | None:
        """Samples among the first `samples` that are not deleted; None if none is deleted.

        Raises StoreFormatError if the mask and the attributes disagree.
        """
        deleted = self._attributes.deleted
        if samples == 0 or (self._attributes.ours and deleted == 0):
            return None
        self.drop(SAMPLES_MASK)
        mask = self.open(SAMPLES_MASK)
        mask.ensure(samples)
        active = np.flatnonzero(mask.data[:samples])
        if self._attributes.ours and samples - len(active) < deleted:
            raise StoreFormatError(
                f"{self.root}: {deleted} samples are said to be deleted, and "
                f"{SAMPLES_MASK} has {samples - len(active)} of them: it is damaged"
            )
        return None if len(active) == samples else active

    def check_required(self, schema: Schema, counts: RowCounts) -> None:
        """Refuse samples without a required field, or with too few rows of one."""
        for name in REQUIRED_FIELDS if counts.samples else ():
            item = schema.get(name)
            if item is None:
                raise StoreFormatError(f"{self.root} has samples and no field {name!r}")
            array = self.zarr_array(item.path)
            check_rows(array.store_path, array.shape[0], counts.atoms)

    def last_sample(self, samples: int) -> dict[str, int]:
        """End pointers and id of the last of `samples`, by path, of mapped arrays only.

        They differ if other samples took the place of the known ones.
        """
        found = {}
        for path in (ATOMS_PTR, EDGES_PTR) if samples else ():
            pointers = self.open(path)
            if isinstance(pointers, MappedArray):
                pointers.ensure(samples + 1)
                found[path] = int(pointers.data[samples])
        if samples and self._ids_readable:
            try:
                ids = self.open(IDS)
                if isinstance(ids, MappedArray) and ids.within(samples) == samples:
                    ids.ensure(samples)
                    found[IDS] = int(ids.data[samples - 1])
            except StoreFormatError:  # absent, or damaged, which `StoreView.ids` reports
                self._ids_readable = False
                self.drop(IDS)
        return found

    def _opened(self, path: str) -> ArrayReader:
        # `reopen` must not refer to self, which would make a reference cycle.
        directory, reopen = self.root.directory, partial(_required, self._group, path)
        absent_chunks = allowed_absent_chunks(self._attributes, path)
        mappable = directory is not None and not is_far(directory)
        if not mappable and not path.startswith(("meta/", "present/")):
            return self.row_cache.array(path, reopen, absent_chunks)
        array = reopen()
        if self._appended_without(path, array):
            return LoadedArray(reopen, array, absent_chunks, padded=True)
        if directory is not None and mappable and can_be_mapped(array, directory / path):
            allowed = absent_chunks if is_dense(array) else "any"
            return MappedArray(array, directory / path, reopen, absent_chunks=allowed)
        if path.startswith("meta/"):
            return LoadedArray(reopen, array, absent_chunks)
        return self.row_cache.array(path, reopen, absent_chunks)

    def _appended_without(self, path: str, array: zarr.Array[Any]) -> bool:
        """Whether another writer appended samples without ids or presence, which only we have.

        They have every field, and their ids follow from their structures.
        """
        short = array.shape[0] < self._attributes.num_samples
        ours = self._attributes.ours and _only_ours(path)
        return ours and short and not resized_by_another(array)


def _only_ours(path: str) -> bool:
    """Whether no other writer has the array."""
    return path == IDS or path.startswith("present/")


def _required(group: zarr.Group, path: str) -> zarr.Array[Any]:
    array = find_array(group, path)
    if array is None:
        raise StoreFormatError(f"{group.store_path} lacks the array {path}")
    return array


@contextmanager
def _in_files(pointers: ArrayReader) -> Iterator[AnyArray | Indexable]:
    """Read mapped pointers from their files, since accessed pages would take up memory."""
    if isinstance(pointers, MappedArray):
        with pointers.in_file().opened() as values:
            yield values
    else:
        yield pointers.data
