"""The object store as one writer sees it: it replaces only objects whose state it knows.

A put of a writer may arrive after another one has taken its lease. It is refused because of three
rules. It is on condition of the entity tag of the object that it replaces. That tag was read while
the lease was valid. And no two puts have equal tags, although tags are digests of the content:
documents end in random white space, and zstd frames begin with blocks that are empty repetitions of
random bytes. Where an array is not compressed by zstd, the third rule does not hold for its chunks.
"""

import asyncio
import json
import secrets
from collections.abc import Callable
from typing import Any

from zarr.abc.buffer import Buffer, BufferPrototype
from zarr.abc.store import ByteRequest
from zarr.storage import ObjectStore

from zarrpipe.errors import StoreLockedError

_TRIALS, _FIRST_PAUSE = 6, 0.1
_DOCUMENT, _RANDOM = "zarr.json", 16
_EMPTY_REPETITION = b"\2\0\0"  # header of a zstd block: not the last one, a byte, repeated 0 times


class WriterObjects(ObjectStore[Any]):
    """An object store whose objects are put on condition that no other writer has changed them.

    It remembers the entity tag of each object that it reads or puts. An object is put only if it
    still has that tag, or if it does not exist yet. The last chunk of each array that it read or
    put is kept in memory, so that an append need not fetch it.

    An answer that is lost looks like a conflict; then the object is read back and compared.

    Parameters
    ----------
    store
        The store of obstore.
    """

    def __init__(self, store: Any, *, read_only: bool = False) -> None:
        super().__init__(store, read_only=read_only)
        self.begin(None)
        self.conditional = True

    def begin(self, check: Callable[[], None] | None) -> None:
        """Begin to write with a lease, and forget what was read before.

        `check` raises if the lease is not valid any more. Without a lease, since the place ignores
        conditions, objects are put as they are.
        """
        self.conditional, self._check_lease = check is not None, check
        self._tags: dict[str, str | None] = {}
        self._documents: dict[str, Buffer] = {}
        self._compressed: set[str] = set()
        self._last_chunks: dict[str, tuple[str, Buffer]] = {}

    def with_read_only(self, read_only: bool = False) -> "WriterObjects":
        """The same store, read-only or not, which knows no object yet."""
        return type(self)(self.store, read_only=read_only)

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
        else:
            self._note(key, content)
        return content

    async def set(self, key: str, value: Buffer) -> None:
        """Put an object; raises StoreLockedError if another writer has changed it."""
        if not self.conditional:
            await super().set(key, value)
            return
        self._check_writable()
        array, chunk, _ = key.partition("/c/")
        self._last_chunks.pop(array, None)
        if key not in self._tags:
            self._tags[key] = await self._tag(key)
        self._check()  # after the tag was read, which is the writer's own then
        content = self._made_unique(key, value.to_bytes())
        self._tags[key] = await self._put(key, content, self._tags.pop(key))
        self._check()  # else a sample could be acknowledged that a successor does not know
        if chunk:
            self._last_chunks[array] = key, type(value).from_bytes(content)
        else:
            self._note(key, value)

    def _check(self) -> None:
        """Raise StoreLockedError if the lease is not valid."""
        if self._check_lease is not None:
            self._check_lease()

    def _note(self, key: str, document: Buffer) -> None:
        """Remember a document, and whether the chunks of its array are zstd frames."""
        if key.rpartition("/")[2] != _DOCUMENT:
            return
        self._documents[key] = document
        try:
            codecs = json.loads(document.to_bytes()).get("codecs") or [{}]
            last = codecs[-1].get("name")
        except (ValueError, AttributeError, TypeError):
            last = None
        (self._compressed.add if last == "zstd" else self._compressed.discard)(_folder(key))

    def _made_unique(self, key: str, content: bytes) -> bytes:
        """Equal content for readers, whose digest is like no other one."""
        if key.rpartition("/")[2] == _DOCUMENT:
            space = format(secrets.randbits(64), "064b").replace("0", " ").replace("1", "\t")
            return content.rstrip() + space.encode()
        if content and key.partition("/c/")[0] in self._compressed:
            blocks = [_EMPTY_REPETITION + bytes((one,)) for one in secrets.token_bytes(_RANDOM)]
            start = _frame_header(content)
            return b"".join((content[:start], *blocks, content[start:]))
        return content

    async def replace_documents(self) -> None:
        """Put all documents that are known again, so that late puts of them are refused."""
        await asyncio.gather(*[self.set(*item) for item in [*self._documents.items()]])

    async def set_if_not_exists(self, key: str, value: Buffer) -> None:
        """Put an object that does not exist; a place that ignores conditions is asked before."""
        self._tags.pop(key, None)
        if self.conditional:
            await super().set_if_not_exists(key, value)
        elif not await self.exists(key):
            await self.set(key, value)

    async def delete(self, key: str) -> None:
        """Remove an object."""
        self._check()
        self._last_chunks.pop(key.partition("/c/")[0], None)
        self._tags.pop(key, None)
        self._documents.pop(key, None)
        await super().delete(key)
        self._tags[key] = None

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


def _folder(key: str) -> str:
    return key.rpartition("/")[0]


def _frame_header(frame: bytes) -> int:
    """Length of the header of a zstd frame (RFC 8878, section 3.1.1.1)."""
    descriptor = frame[4]
    single_segment, size_flag = descriptor >> 5 & 1, descriptor >> 6
    size = (single_segment, 2, 4, 8)[size_flag]
    return 5 + (1 - single_segment) + (0, 1, 2, 4)[descriptor & 3] + size
