"""The bytes of a store, for tests that nothing was changed."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from zarr.storage import LocalStore, MemoryStore

from zarrpipe.compat import memory_content
from zarrpipe.store.backend.location import Root, StoreLike


def stored_bytes(store: StoreLike) -> dict[str, bytes | None]:
    """Content of each file of a local store, or of each object of one in memory.

    Parameters
    ----------
    store : StoreLike
        A path, dict, LocalStore or MemoryStore, or a StorePath in one of these.

    Returns
    -------
    dict of str to bytes
        By place below the root of the store. A directory has None; the lock of a writer, which
        names its process, is left out.
    """
    path = Root.of(store).path
    if isinstance(path.store, MemoryStore):
        content = memory_content(path.store)
        return {key: bytes(value.to_bytes()) for key, value in content.items()}
    if not isinstance(path.store, LocalStore):
        raise TypeError(f"{store} is neither local nor in memory: its content cannot be compared")
    root = Path(path.store.root) / path.path
    found = {str(place.relative_to(root)): place for place in root.rglob("*")}
    return {
        name: place.read_bytes() if place.is_file() else None
        for name, place in found.items()
        if place.name != ".lock"
    }


@contextmanager
def unchanged(*stores: StoreLike) -> Iterator[None]:
    """Fail unless the block leaves every byte of the stores as it is.

    Raises
    ------
    AssertionError
        Naming the files that were made, removed or changed.
    """
    before = [stored_bytes(store) for store in stores]
    yield
    for store, old in zip(stores, before, strict=True):
        new = stored_bytes(store)
        differ = [name for name in old.keys() | new.keys() if old.get(name, 0) != new.get(name, 0)]
        if differ:
            raise AssertionError(f"{store} was changed in {sorted(differ)}")
