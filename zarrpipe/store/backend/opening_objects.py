"""The object store as one reader sees it: what an opening reads is fetched at once, and once."""

import asyncio
import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from zarr.abc.buffer import Buffer, BufferPrototype
from zarr.abc.store import ByteRequest
from zarr.buffer import default_buffer_prototype
from zarr.storage import ObjectStore

from zarrpipe.compat import sync

_DOCUMENT = "zarr.json"
_CONCURRENT = 256


class OpeningObjects(ObjectStore[Any]):
    """An object store that remembers what it read, while a reader opens a Zarr store in it.

    Parameters
    ----------
    store
        The store of obstore.
    """

    def __init__(self, store: Any, *, read_only: bool = False) -> None:
        super().__init__(store, read_only=read_only)
        self._known: dict[str, Buffer | None] | None = None

    def with_read_only(self, read_only: bool = False) -> "OpeningObjects":
        """The same store, read-only or not."""
        return type(self)(self.store, read_only=read_only)

    @contextmanager
    def opening(self) -> Iterator[None]:
        """Remember each metadata document that is read in the block, and what is fetched ahead."""
        self._known = {}
        try:
            yield
        finally:
            self._known = None

    async def get(
        self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None
    ) -> Buffer | None:
        """Content of an object, from memory if this opening has read it."""
        known = self._known
        if known is None or byte_range is not None:
            return await super().get(key, prototype, byte_range)
        if key in known:
            return known[key]
        found = await super().get(key, prototype)
        if key.rpartition("/")[2] == _DOCUMENT:
            known[key] = found
        return found

    async def exists(self, key: str) -> bool:
        """Whether an object exists, which is known of one that this opening has read."""
        return (self._known or {}).get(key) is not None or await super().exists(key)

    def fetch(self, keys: Iterable[str]) -> None:
        """Fetch objects concurrently, except those that are known.

        A chunk that does not exist is asked for again when it is read.
        """
        if self._known is not None:
            sync(self._fetch([key for key in keys if key not in self._known], self._known))

    async def _fetch(self, keys: Iterable[str], known: dict[str, Buffer | None]) -> None:
        limit, prototype = asyncio.Semaphore(_CONCURRENT), default_buffer_prototype()

        async def fetch_one(key: str) -> None:
            async with limit:
                found = await super(OpeningObjects, self).get(key, prototype)
            if found is not None or key.rpartition("/")[2] == _DOCUMENT:
                known[key] = found

        await asyncio.gather(*map(fetch_one, keys))

    def forget(self, keys: Iterable[str]) -> None:
        """Read objects again that were fetched ahead."""
        for key in keys:
            if self._known is not None:
                self._known.pop(key, None)

    def grid(self, path: str) -> tuple[int, int] | None:
        """Rows of an array and of its chunks, by its document; None if that was not read."""
        document = (self._known or {}).get(f"{path}/{_DOCUMENT}")
        if document is None:
            return None
        try:
            content = json.loads(document.to_bytes())
            chunks = content["chunk_grid"]["configuration"]["chunk_shape"]
            return int(content["shape"][0]), int(chunks[0])
        except (ValueError, KeyError, TypeError, IndexError):
            return None
