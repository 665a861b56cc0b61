"""The object store as one writer sees it: it replaces only objects whose state it knows."""

import asyncio
from collections.abc import Iterable
from typing import Any

from zarr.abc.store import ByteRequest
from zarr.core.buffer import Buffer, BufferPrototype
from zarr.storage import ObjectStore

from zarrpipe.errors import StoreLockedError

_TRIALS, _FIRST_PAUSE = 6, 0.1


class WriterObjects(ObjectStore[Any]):
    """An object store whose objects are put on condition that no other writer has changed them.

    It remembers the entity tag of each object that it reads or puts. An object is put only if it
    still has that tag, or if it does not exist yet. A writer that has lost its lease without notice
    can therefore not overwrite what its successor wrote. The last chunk of each array that it read
    or put is kept in memory, so that an append need not fetch it.

    An answer that is lost looks like a conflict; then the object is read back and compared.

    Parameters
    ----------
    store
        The store of obstore.
    conditional
        Whether the place supports conditions; otherwise objects are put as they are.
    """

    def __init__(self, store: Any, *, read_only: bool = False, conditional: bool = True) -> None:
        super().__init__(store, read_only=read_only)
        self.conditional = conditional
        self._tags: dict[str, str | None] = {}
        self._last_chunks: dict[str, tuple[str, Buffer]] = {}

    def with_read_only(self, read_only: bool = False) -> "WriterObjects":
        """The same store, read-only or not, which knows no object yet."""
        return type(self)(self.store, read_only=read_only, conditional=self.conditional)

    async def get(
        self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None
    ) -> Buffer | None:
        """Content of an object, from memory if it is the last chunk of an array."""
        if byte_range is not None or not self.conditional:
            return await super().get(key, prototype, byte_range)
        array, chunk, _ = key.partition("/c/")
        known = self._last_chunks.get(array)
        if known is not None and known[0] == key:
            return known[1]
        found = await self._fetch(key)
        self._tags[key] = None if found is None else found[1]
        if found is None:
            return None
        content = prototype.buffer.from_bytes(found[0])
        if chunk:
            self._last_chunks[array] = key, content
        return content

    async def set(self, key: str, value: Buffer) -> None:
        """Put an object; raises StoreLockedError if another writer has changed it."""
        if not self.conditional:
            await super().set(key, value)
            return
        self._check_writable()
        array, chunk, _ = key.partition("/c/")
        self._last_chunks.pop(array, None)
        content = value.to_bytes()
        if key not in self._tags:
            self._tags[key] = await self._tag(key)
        self._tags[key] = await self._put(key, content, self._tags.pop(key))
        if chunk:
            self._last_chunks[array] = key, type(value).from_bytes(content)

    async def set_if_not_exists(self, key: str, value: Buffer) -> None:
        """Put an object that does not exist; a place that ignores conditions is asked before."""
        self._tags.pop(key, None)
        if self.conditional:
            await super().set_if_not_exists(key, value)
        elif not await self.exists(key):
            await self.set(key, value)

    async def delete(self, key: str) -> None:
        """Remove an object."""
        self._last_chunks.pop(key.partition("/c/")[0], None)
        self._tags.pop(key, None)
        await super().delete(key)
        self._tags[key] = None

    async def delete_dir(self, prefix: str) -> None:
        """Remove all objects below a prefix."""
        await super().delete_dir(prefix)
        self._forget(key for key in [*self._last_chunks] if key.startswith(prefix))

    def _forget(self, arrays: Iterable[str]) -> None:
        for array in arrays:
            self._last_chunks.pop(array, None)

    async def _put(self, key: str, content: bytes, tag: str | None) -> str:
        """Put an object that has this tag, or does not exist; its new tag."""
        from obstore import put_async  # noqa: PLC0415  an extra
        from obstore.exceptions import (  # noqa: PLC0415
            AlreadyExistsError,
            GenericError,
            NotFoundError,
            PreconditionError,
        )

        mode: Any = "create" if tag is None else {"e_tag": tag}
        pause = _FIRST_PAUSE
        for trial in range(_TRIALS):
            try:
                result = await put_async(self.store, key, content, mode=mode, use_multipart=False)
                return str(result["e_tag"])
            except (AlreadyExistsError, GenericError, NotFoundError, PreconditionError) as error:
                found = await self._fetch(key)
                if found is not None and found[0] == content:
                    return found[1]  # the answer was lost, not the object
                if (None if found is None else found[1]) != tag:
                    raise StoreLockedError(
                        f"{self}/{key} was changed by another writer since this one read it: one "
                        "writer at a time; close both and open a new one"
                    ) from error
                if trial == _TRIALS - 1:
                    raise
            await asyncio.sleep(pause)
            pause *= 2
        raise AssertionError  # the last trial has returned or raised

    async def _fetch(self, key: str) -> tuple[bytes, str] | None:
        """Content and tag of an object; None if it does not exist."""
        from obstore import get_async  # noqa: PLC0415  an extra

        try:
            answer = await get_async(self.store, key)
            return bytes(await answer.bytes_async()), str(answer.meta["e_tag"])
        except FileNotFoundError:
            return None

    async def _tag(self, key: str) -> str | None:
        """Tag of an object; None if it does not exist."""
        from obstore import head_async  # noqa: PLC0415  an extra

        try:
            return str((await head_async(self.store, key))["e_tag"])
        except FileNotFoundError:
            return None
