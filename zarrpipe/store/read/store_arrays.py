"""The arrays of one store that a reader has opened, each flat in the way that suits it."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import zarr

from zarrpipe.errors import StoreFormatError
from zarrpipe.store.backend.array_reader import ArrayReader, allowed_absent_chunks
from zarrpipe.store.backend.location import Root, is_far
from zarrpipe.store.cache.config import CacheConfig
from zarrpipe.store.cache.directory import cache_identity
from zarrpipe.store.cache.row_cache import RowCache
from zarrpipe.store.format.layout import find_array, is_dense
from zarrpipe.store.format.metadata import Attributes
from zarrpipe.store.read.loaded import LoadedArray
from zarrpipe.store.read.mapped import MappedArray, can_be_mapped


class StoreArrays:
    """Arrays by path: mapped, loaded or cached.

    Local chunk files are not mapped where the file system is one of a network: a page there may
    stay as it was, or be taken away.

    Parameters
    ----------
    root
        Place of the store.
    cache_config
        Where rows go that cannot be mapped where they are.
    check
        See `RowCache`.
    """

    def __init__(self, root: Root, cache_config: CacheConfig, check: Callable[[], object]) -> None:
        self.root, self._cache_config, self._check = root, cache_config, check
        self._flat: dict[str, ArrayReader] = {}
        self._row_cache: RowCache | None = None
        self._group: zarr.Group
        self._attributes: Attributes

    def follow(self, group: zarr.Group, attributes: Attributes) -> None:
        """Open arrays out of this group from now on."""
        self._group, self._attributes = group, attributes

    def find(self, path: str) -> ArrayReader | None:
        """Array that was opened, or None."""
        return self._flat.get(path)

    def open(self, path: str) -> ArrayReader:
        """Array at a path.

        Raises
        ------
        StoreFormatError
            If there is none, or none that can be read.
        """
        found = self._flat.get(path)
        if found is None:
            found = self._flat[path] = self._opened(path)
        return found

    def zarr_array(self, path: str) -> zarr.Array[Any]:
        """Array at a path as Zarr has it, with its present shape.

        Raises
        ------
        StoreFormatError
            If there is none.
        """
        return _required(self._group, path)

    def drop(self, path: str) -> None:
        """Let go of an array; it is opened anew when it is asked for."""
        self._flat.pop(path, None)

    def verify(self) -> None:
        """Look at mapped files again; see `MappedArray.verify`."""
        for path, flat in list(self._flat.items()):
            if isinstance(flat, MappedArray):
                try:
                    flat.verify()
                except StoreFormatError:
                    self.drop(path)
                    raise

    def release(self) -> None:
        """Let go of all arrays."""
        self._flat = {}
        if self._row_cache is not None:
            self._row_cache.close()
            self._row_cache = None

    @property
    def row_cache(self) -> RowCache:
        """What fetches the rows of fields that cannot be mapped."""
        if self._row_cache is None:
            identity = cache_identity(self.root.path, self._group, self._attributes)
            directory, limit = self._cache_config.directory, self._cache_config.limit
            self._row_cache = RowCache(identity, directory, limit, check=self._check)
        return self._row_cache

    def _opened(self, path: str) -> ArrayReader:
        # What opens an array again keeps no reference to self, which would be a cycle.
        directory, reopen = self._mappable, partial(_required, self._group, path)
        if directory is None and not path.startswith("meta/"):
            return self.row_cache.array(path, reopen, allowed_absent_chunks(self._attributes, path))
        array, absent_chunks = reopen(), allowed_absent_chunks(self._attributes, path)
        own = None if directory is None else directory / path
        if own is not None and can_be_mapped(array, own):
            return MappedArray(
                array, own, reopen, absent_chunks=absent_chunks if is_dense(array) else "any"
            )
        if path.startswith("meta/"):
            return LoadedArray(reopen, array, absent_chunks)
        return self.row_cache.array(path, reopen, absent_chunks)

    @property
    def _mappable(self) -> Path | None:
        directory = self.root.directory
        return None if directory is None or is_far(directory) else directory


def _required(group: zarr.Group, path: str) -> zarr.Array[Any]:
    array = find_array(group, path)
    if array is None:
        raise StoreFormatError(f"{group.store_path} lacks the array {path}")
    return array
