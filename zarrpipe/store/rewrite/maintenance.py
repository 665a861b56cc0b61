"""Upkeep of a store: taking samples out of sight, and writing a store anew without them."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from zarr.abc.codec import ArrayArrayCodec, ArrayBytesCodec, BytesBytesCodec
from zarr.storage import MemoryStore

from zarrpipe.compat import memory_content
from zarrpipe.data.csr import Int64Array, pointers, segment_rows
from zarrpipe.errors import StoreFormatError
from zarrpipe.store.backend.location import Root
from zarrpipe.store.backend.lock import WriterLock
from zarrpipe.store.backend.swap import discard, swap_into_place, temp_sibling
from zarrpipe.store.format.config import ZarrArrayConfig, ZarrWriteConfig
from zarrpipe.store.format.layout import (
    ATOMS_MASK,
    ATOMS_PTR,
    EDGES_MASK,
    EDGES_PTR,
    SAMPLES_MASK,
    SUMS,
    is_plain,
)
from zarrpipe.store.rewrite.merge_plan import Selection
from zarrpipe.store.rewrite.merge_source import MergeSource, other_attributes
from zarrpipe.store.rewrite.rewrite import write_store
from zarrpipe.store.write.plan import RowWrite
from zarrpipe.store.write.store_writer import StoreWriter


def delete_samples(appender: StoreWriter, samples: Int64Array) -> None:
    """Set the masks of samples to False; their rows stay where they are.

    The deletion is committed, all at once, when the number of deleted samples is published. What
    fails before that is taken back by the next writer, what fails later is completed by it.

    Parameters
    ----------
    appender
        Writer of the store.
    samples : array [K] int64
        Rows of samples in the store, each once, none deleted before.
    """
    if len(samples) == 0:
        return
    appender.check_usable()
    with appender.changing():
        _unmask(appender, SAMPLES_MASK, samples)
        appender.publish_deleted()
        for mask, path in ((ATOMS_MASK, ATOMS_PTR), (EDGES_MASK, EDGES_PTR)):
            stored = appender.array(path).read(0, appender.counts.samples + 1)
            starts = stored[samples]
            _unmask(appender, mask, segment_rows(starts, pointers(stored[samples + 1] - starts)))


def _unmask(appender: StoreWriter, path: str, rows: Int64Array) -> None:
    """Set rows of a mask to False, a chunk at a time.

    Whole chunks are written, since in a new chunk file the rows that are not would read False.
    """
    column = appender.array(path)
    for chunk in np.unique(rows // column.chunk_rows):
        start = int(chunk) * column.chunk_rows
        stop = start + column.chunk_rows
        column.reserve(stop)
        mask = column.read(start, stop)
        mask[rows[(rows >= start) & (rows < stop)] - start] = False
        appender.run([RowWrite(path, start, mask)])


def defragment(appender: StoreWriter, config: ZarrWriteConfig | None) -> StoreWriter:
    """Write the store anew without its deleted samples, and swap it in when it is complete.

    Parameters
    ----------
    appender
        Writer of the store; it is closed.
    config
        Chunks and codecs of the new arrays; those of the old ones by default.

    Returns
    -------
    StoreWriter
        Writer of the new store, at the same place.

    Raises
    ------
    StoreFormatError
        If the store is neither local nor in memory, where no swap is safe.
    """
    appender.check_usable()
    check_rewritable(appender.root)
    chosen = config or _as_stored(appender)
    appender.flush(every=True)
    selection = Selection([MergeSource(appender.root, scratch_of(appender.root))])
    durable, lock = appender.durable, None
    try:
        lock = rewrite_in_place(appender, selection, chosen, capacity=appender.capacity)
        return StoreWriter(appender.root, chosen, appender.capacity, lock, durable=durable)
    except BaseException:
        if lock is not None:
            lock.release()
        raise


def _as_stored(appender: StoreWriter) -> ZarrWriteConfig:
    """Config of a writer, with that of each array as it is stored."""
    stored = {
        path.split("/")[1]: _config_of(appender.group[path])
        for path in appender.paths
        if not path.startswith("present/")
    }
    mask = replace(stored["samples_mask"], chunk_size=None, shard_size=None)
    return replace(appender.config, meta=mask, field_overrides=stored)


def _config_of(array: Any) -> ZarrArrayConfig:
    """Chunks and codecs of an array."""
    if is_plain(array):
        return ZarrArrayConfig(chunk_size=array.chunks[0])
    codecs = array.metadata.codecs
    if array.shards is not None:
        codecs = codecs[0].codecs
    return ZarrArrayConfig(
        filters=tuple(codec for codec in codecs if isinstance(codec, ArrayArrayCodec)),
        serializer=next(codec for codec in codecs if isinstance(codec, ArrayBytesCodec)),
        compressors=tuple(codec for codec in codecs if isinstance(codec, BytesBytesCodec)),
        chunk_size=array.chunks[0],
        shard_size=None if array.shards is None else array.shards[0],
    )


def check_rewritable(root: Root) -> None:
    """Refuse a store that cannot be replaced by another in one step.

    Raises
    ------
    StoreFormatError
        If it is neither local nor in memory.
    """
    if root.directory is None and not isinstance(root.path.store, MemoryStore):
        raise StoreFormatError(
            f"{root} is not local, and a kill while it is rewritten would lose samples: copy it "
            "with zarrpipe.merge to another place instead"
        )


def scratch_of(root: Root) -> Path | None:
    """Directory for unnamed files of a rewrite to a place, on the same disk where there is one."""
    if root.directory is None:
        return None
    return next(folder for folder in root.directory.resolve().parents if folder.is_dir())


def rewrite_in_place(
    appender: StoreWriter,
    selection: Selection,
    config: ZarrWriteConfig,
    *,
    capacity: int | None = None,
    done: Callable[[int], object] = int,
) -> WriterLock | None:
    """Put a new store in the place of that of a writer, once it is complete.

    Parameters
    ----------
    appender
        Writer of the old store; it is closed.
    selection
        Samples of the new store.
    config, capacity, done
        See `zarrpipe.store.rewrite.rewrite.write_store`.

    Returns
    -------
    WriterLock or None
        Lock of the new store, for the caller to hand on or release; None where there are no locks.
    """
    others = other_attributes(appender.group) | selection.others
    if appender.root.directory is None:
        _rewrite_in_memory(appender, selection, config, capacity, done)
        return None
    place = appender.root.directory.resolve()
    with appender.changing(), temp_sibling(place) as (room, lock):
        fresh = Root.of(room)
        write_store(selection, fresh, config, capacity=capacity, others=others, done=done)
        swap_into_place(room, place, appender.paths | {SUMS})
        appender.abandon()
        discard(room)
        return lock


def _rewrite_in_memory(
    appender: StoreWriter,
    selection: Selection,
    config: ZarrWriteConfig,
    capacity: int | None,
    done: Callable[[int], object],
) -> None:
    """Write the new store elsewhere in memory, empty the old one and copy the new one there.

    If that is interrupted the old one is put back, whose objects are kept until then.
    """
    aside, root = Root.of(MemoryStore()), appender.root
    write_store(selection, aside, config, capacity=capacity, done=done)
    before = _objects(root)
    try:
        appender.zero()
        appender.close()
        write_store(Selection([MergeSource(aside)]), root, config, capacity=capacity)
    except BaseException:
        _put_back(root, before)
        raise


def _objects(root: Root) -> dict[str, Any]:
    """What a store in memory holds, by key."""
    content, prefix = memory_content(root.path.store), root.path.path
    return {key: content[key] for key in [*content] if not prefix or key.startswith(f"{prefix}/")}


def _put_back(root: Root, before: dict[str, Any]) -> None:
    """Let a store in memory hold again what it held."""
    content, extra = memory_content(root.path.store), _objects(root).keys() - before.keys()
    content.update(before)
    for key in extra:
        del content[key]
