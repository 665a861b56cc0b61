"""Upkeep of a store: taking samples out of sight, and writing a store anew without them."""

import ctypes
import os
import shutil
import uuid
from pathlib import Path

import numpy as np

from zarrpipe.data.csr import Int64Array, pointers, segment_rows
from zarrpipe.errors import StoreFormatError
from zarrpipe.store.appender import StoreAppender
from zarrpipe.store.config import ZarrWriteConfig
from zarrpipe.store.layout import ATOMS_MASK, ATOMS_PTR, EDGES_MASK, EDGES_PTR, GROUPS, SAMPLES_MASK
from zarrpipe.store.lock import WriterLock
from zarrpipe.store.root import Root
from zarrpipe.store.view import StoreView

_BLOCK = 4096
_RENAME_EXCHANGE = 2
_AT_FDCWD = -100


def delete_samples(appender: StoreAppender, samples: Int64Array) -> None:
    """Set the masks of samples to False; their rows stay where they are.

    Parameters
    ----------
    appender
        Writer of the store.
    samples : array [K] int64
        Rows of samples in the store, each once, none deleted before.
    """
    if len(samples) == 0:
        return
    _unmask(appender, SAMPLES_MASK, samples)
    for mask, path in ((ATOMS_MASK, ATOMS_PTR), (EDGES_MASK, EDGES_PTR)):
        stored = appender.column(path).read(0, appender.extent.samples + 1)
        starts = stored[samples]
        _unmask(appender, mask, segment_rows(starts, pointers(stored[samples + 1] - starts)))
    appender.count_deleted()


def _unmask(appender: StoreAppender, path: str, rows: Int64Array) -> None:
    """Set rows of a mask to False, a chunk at a time.

    Whole chunks are written, since in a new chunk file the rows that are not would read False.
    """
    column = appender.column(path)
    for chunk in np.unique(rows // column.chunk_rows):
        start = int(chunk) * column.chunk_rows
        stop = start + column.chunk_rows
        column.reserve(stop)
        mask = column.read(start, stop)
        mask[rows[(rows >= start) & (rows < stop)] - start] = False
        column.write(start, mask)


def defragment(appender: StoreAppender, config: ZarrWriteConfig | None) -> StoreAppender:
    """Write the store anew without its deleted samples, and swap it in when it is complete.

    Parameters
    ----------
    appender
        Writer of the store; it is closed.
    config
        Chunks and codecs of the new arrays; those of `appender` by default.

    Returns
    -------
    StoreAppender
        Writer of the new store, at the same place.

    Raises
    ------
    StoreFormatError
        If the store is neither local nor in memory, where no swap is safe.
    """
    root, chosen = appender.root, config or appender.config
    appender.flush()
    if root.directory is None:
        return _rewrite_in_memory(appender, chosen)
    folder = root.directory
    fresh = folder.with_name(f"{folder.name}.defragment-{uuid.uuid4().hex[:8]}")
    lock = None
    try:
        _copy(appender, StoreAppender(Root.of(fresh), chosen, appender.capacity))
        lock = WriterLock(fresh)
        _exchange(folder, fresh)
    except BaseException:
        if lock is not None:
            lock.release()
        shutil.rmtree(fresh, ignore_errors=True)
        raise
    _bring_back_others(fresh, folder, appender.paths)
    appender.abandon()
    shutil.rmtree(fresh)
    return StoreAppender(root, chosen, appender.capacity, lock)


def _copy(source: StoreAppender, target: StoreAppender) -> None:
    """Append every sample that was not deleted, in blocks, and close the target."""
    with_attributes = source.group.attrs.asdict()
    others = {
        name: value
        for name, value in with_attributes.items()
        if name not in ("num_samples", "fields", "zarrpipe")
    }
    view = StoreView(source.root.path)
    for start in range(0, view.num_samples, _BLOCK):
        target.append(view.gather(np.arange(start, min(start + _BLOCK, view.num_samples))))
    target.group.update_attributes(others)
    target.close()


def _rewrite_in_memory(appender: StoreAppender, config: ZarrWriteConfig) -> StoreAppender:
    from zarr.storage import MemoryStore  # noqa: PLC0415  beside its only use

    if not isinstance(appender.root.path.store, MemoryStore):
        raise StoreFormatError(
            f"{appender.root} is not local, and a kill while it is rewritten would lose samples: "
            "copy it with a ZarrDataset into a new store instead"
        )
    view = StoreView(appender.root.path)
    kept = view.gather(np.arange(view.num_samples)) if view.num_samples else None
    appender.zero()
    appender.close()
    fresh = StoreAppender(appender.root, config, appender.capacity)
    if kept is not None:
        fresh.append(kept)
    return fresh


def _exchange(first: Path, second: Path) -> None:
    """Swap two directories, at once where the system can."""
    libc = ctypes.CDLL(None, use_errno=True)
    if hasattr(libc, "renameat2"):
        names = os.fsencode(first), os.fsencode(second)
        if libc.renameat2(_AT_FDCWD, names[0], _AT_FDCWD, names[1], _RENAME_EXCHANGE) == 0:
            return
    aside = second.with_name(f"{second.name}.old")
    first.rename(aside)
    second.rename(first)
    aside.rename(second)


def _bring_back_others(source: Path, target: Path, ours: frozenset[str]) -> None:
    """Move what zarrpipe did not make into the directory that is now in its place."""
    for entry in source.iterdir():
        if entry.name not in (*GROUPS, "zarr.json"):
            entry.rename(target / entry.name)
    for group in GROUPS:
        for entry in (source / group).iterdir():
            if entry.name != "zarr.json" and f"{group}/{entry.name}" not in ours:
                entry.rename(target / group / entry.name)
