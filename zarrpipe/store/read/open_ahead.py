"""What a reader of a store in an object store fetches ahead: documents, and committed pointers."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from zarr.storage import ObjectStore, StorePath

from zarrpipe.data.levels import Level
from zarrpipe.store.backend.location import Root
from zarrpipe.store.backend.opening_objects import OpeningObjects
from zarrpipe.store.format.layout import ATOMS_PTR, IDS, SAMPLES_MASK
from zarrpipe.store.format.metadata import Attributes

_CHUNK_ROWS = 16_384  # of pointers in object stores, unless a config says otherwise
_MOST_CHUNKS = 512  # of an array that are held in memory before they are decoded


def for_reading(root: Root) -> Root:
    """The same place, as one reader opens it."""
    if type(root.path.store) is not ObjectStore:
        return root
    objects = OpeningObjects(root.path.store.store, read_only=root.path.store.read_only)
    return replace(root, path=StorePath(objects, root.path.path))


@contextmanager
def opening(root: Root) -> Iterator[None]:
    """Read each metadata document once in the block, if the place is an object store."""
    if isinstance(root.path.store, OpeningObjects):
        with root.path.store.opening():
            yield
    else:
        yield


def fetch_ahead(root: Root, attributes: Attributes, known: int) -> None:
    """Fetch concurrently what opening a store with these attributes reads.

    Pointers of the first `known` samples are left out.

    Pointers to atoms are the commit log, and the others are written before them. So of the others
    only those are kept that were committed when the attributes were read: a reader that finds later
    samples in the commit log reads their other pointers after it.
    """
    objects = root.path.store
    if not isinstance(objects, OpeningObjects):
        return
    levels = [Level.ATOM, Level.EDGE, *attributes.own_levels.values()]
    pointers = [level.pointers for level in levels if level.has_pointers]
    usual = [attributes.paths_of(name)[0] for name in attributes.levels]
    meta = [*pointers, IDS, *([SAMPLES_MASK] if attributes.deleted else [])]
    ahead = range(0)
    if attributes.ours and attributes.num_samples > known:
        first, end = known // _CHUNK_ROWS, -(-(attributes.num_samples + 1) // _CHUNK_ROWS)
        ahead = range(first, min(end, first + _MOST_CHUNKS))
    prefix = f"{root.path.path}/".lstrip("/")
    chunks = {path: [f"{prefix}{path}/c/{number}" for number in ahead] for path in pointers}
    documents = [f"{prefix}{path}/zarr.json" for path in (*meta, *usual)]
    objects.fetch([*documents, *(key for keys in chunks.values() for key in keys)])
    rows = attributes.num_samples + 1
    log = objects.grid(f"{prefix}{ATOMS_PTR}")
    if log is not None and log[0] == rows:
        return  # closed: no sample after those of the attributes
    for path in pointers:
        grid = objects.grid(f"{prefix}{path}")
        whole = 0 if grid is None else rows // grid[1]
        if path != ATOMS_PTR:
            objects.forget(chunks[path][max(0, whole - ahead.start) :])
