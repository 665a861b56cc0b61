"""Delete samples by their masks, and rewrite a store in place without them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from zarr.abc.codec import ArrayArrayCodec, ArrayBytesCodec, BytesBytesCodec
from zarr.codecs import BytesCodec
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
    MARK,
    ROW_MASKS,
    SAMPLES_MASK,
    SUMS,
    find_arrays,
    is_plain,
)
from zarrpipe.store.rewrite.merge_plan import MergePlan
from zarrpipe.store.rewrite.merge_source import MergeSource, other_attributes
from zarrpipe.store.rewrite.write_store import write_store
from zarrpipe.store.write.append_plan import RowWrite
from zarrpipe.store.write.store_writer import StoreWriter


def delete_samples(writer: StoreWriter, samples: Int64Array) -> None:
    """Set the masks of samples [K] to False, without changing their rows.

    The published number of deleted samples commits the whole deletion. The next writer undoes a
    deletion that failed before, and completes one that failed after.
    """
    if len(samples) == 0:
        return
    writer.check_usable()
    with writer.changing():
        _unmask(writer, SAMPLES_MASK, samples)
        writer.publish_deleted()
        for path, mask in ((ATOMS_PTR, ATOMS_MASK), (EDGES_PTR, EDGES_MASK)):
            stored = writer.array(path).read(0, writer.counts.samples + 1)
            starts = stored[samples]
            rows = segment_rows(starts, pointers(stored[samples + 1] - starts))
            _unmask(writer, mask, rows)


def _unmask(writer: StoreWriter, path: str, rows: Int64Array) -> None:
    """Set rows of a mask to False, in whole chunks, since unwritten rows of a chunk read False."""
    array = writer.array(path)
    for chunk in np.unique(rows // array.chunk_rows):
        start = int(chunk) * array.chunk_rows
        stop = start + array.chunk_rows
        array.reserve(stop)
        mask = array.read(start, stop)
        mask[rows[(rows >= start) & (rows < stop)] - start] = False
        writer.run([RowWrite(path, start, mask)])


def defragment(writer: StoreWriter, config: ZarrWriteConfig | None) -> StoreWriter:
    """Rewrite the store without its deleted samples, close the writer and return a new one.

    Without a config, chunks and codecs do not change. Raises StoreFormatError if the store is
    neither local nor in memory.
    """
    writer.check_usable()
    check_rewritable(writer.root)
    chosen = config or as_stored(writer.group, {path: path for path in writer.paths}, writer.config)
    writer.flush(every=True)
    plan = MergePlan([MergeSource(writer.root, scratch_of(writer.root))])
    plan.warn_of_lost_marks(stacklevel=5)
    durable, lock = writer.durable, None
    try:
        lock = rewrite_in_place(writer, plan, chosen, capacity=writer.capacity)
        return StoreWriter(writer.root, chosen, writer.capacity, lock, durable=durable)
    except BaseException:
        if lock is not None:
            lock.release()
        raise


@dataclass(frozen=True)
class StoredConfig(ZarrWriteConfig):
    """The chunks and codecs of stored arrays by path, beside those of new arrays by group."""

    stored: Mapping[str, ZarrArrayConfig] = field(default_factory=dict)

    def for_array(self, path: str) -> ZarrArrayConfig:
        """Config of the array at a path."""
        return self.stored[path] if path in self.stored else super().for_array(path)


def as_stored(
    group: zarr.Group, paths: Mapping[str, str], config: ZarrWriteConfig | None = None
) -> StoredConfig:
    """Config with the chunks and codecs of the arrays of a store, for others those of `config`.

    `paths` has the place in the group of the array that is to be at each path.
    """
    base, found = config or ZarrWriteConfig(), find_arrays(group, [*paths.values()])
    arrays = {path: found[place] for path, place in paths.items()}
    stored = {path: _config_of(array) for path, array in arrays.items() if array is not None}
    mask = replace(stored.get(SAMPLES_MASK, base.meta), chunk_size=None, shard_size=None)
    if isinstance(mask.serializer, BytesCodec):  # that of single bytes, which have no order
        mask = replace(mask, serializer=None)
    given = {item.name: getattr(base, item.name) for item in fields(ZarrWriteConfig)}
    return StoredConfig(**{**given, "meta": mask}, stored=stored)


def _config_of(array: Any) -> ZarrArrayConfig:
    """Chunks and codecs of an array."""
    if is_plain(array):
        return ZarrArrayConfig(chunk_size=array.chunks[0], write_empty_chunks=_is_full(array))
    codecs = array.metadata.codecs
    if array.shards is not None:
        codecs = codecs[0].codecs
    return ZarrArrayConfig(
        filters=tuple(codec for codec in codecs if isinstance(codec, ArrayArrayCodec)),
        serializer=next(codec for codec in codecs if isinstance(codec, ArrayBytesCodec)),
        compressors=tuple(codec for codec in codecs if isinstance(codec, BytesBytesCodec)),
        chunk_size=array.chunks[0],
        shard_size=None if array.shards is None else array.shards[0],
        write_empty_chunks=_is_full(array),
    )


def _is_full(array: zarr.Array[Any]) -> bool:
    """Whether chunks of fill values are to be stored as well."""
    mark = array.attrs.get(MARK)
    sparse = isinstance(mark, dict) and not mark.get("dense", True)
    return not sparse or array.path.endswith(ROW_MASKS)


def check_rewritable(root: Root) -> None:
    """Refuse a store that cannot be replaced in one step: neither local nor in memory."""
    if root.directory is None and not isinstance(root.path.store, MemoryStore):
        raise StoreFormatError(
            f"{root} is not local, and a kill during the rewrite would lose samples: write it to "
            "another place with zarrpipe.merge or zarrpipe.copy instead"
        )


def scratch_of(root: Root) -> Path | None:
    """Directory for unnamed files, on the disk of a local store."""
    if root.directory is None:
        return None
    return next(folder for folder in root.directory.resolve().parents if folder.is_dir())


def rewrite_in_place(
    writer: StoreWriter,
    plan: MergePlan,
    config: ZarrWriteConfig,
    *,
    capacity: int | None = None,
    done: Callable[[int], object] = int,
) -> WriterLock | None:
    """Replace the store of a writer by a complete new one, and close the writer.

    See `write_store` for the arguments. Returns the lock of the new store, which the caller owns;
    None where there are no locks. Raises StoreRenameError if the directory cannot be renamed; the
    store is unchanged then.
    """
    others = other_attributes(writer.group) | plan.others
    if writer.root.directory is None:
        _rewrite_in_memory(writer, plan, config, done, capacity=capacity, others=others)
        return None
    place = writer.root.directory.resolve()
    with writer.changing(), temp_sibling(place) as (sibling, lock):
        target = Root.of(sibling)
        write_store(plan, target, config, capacity=capacity, others=others, done=done)
        swap_into_place(sibling, place, writer.paths | {SUMS})
        writer.abandon()
        discard(sibling)
        return lock


def _rewrite_in_memory(
    writer: StoreWriter,
    plan: MergePlan,
    config: ZarrWriteConfig,
    done: Callable[[int], object],
    *,
    capacity: int | None,
    others: Mapping[str, Any],
) -> None:
    """Write the new store elsewhere in memory and copy it over the old one; undo on an error."""
    copy, root = Root.of(MemoryStore()), writer.root
    write_store(plan, copy, config, capacity=capacity, done=done)
    before = _objects(root)
    try:
        writer.zero()
        writer.close()
        written = MergePlan([MergeSource(copy)])
        write_store(written, root, config, capacity=capacity, others=others)
    except BaseException:
        _restore(root, before)
        raise


def _objects(root: Root) -> dict[str, Any]:
    """Objects of a store in memory, by key."""
    content, prefix = memory_content(root.path.store), root.path.path
    return {key: content[key] for key in [*content] if not prefix or key.startswith(f"{prefix}/")}


def _restore(root: Root, before: dict[str, Any]) -> None:
    """Restore the objects of a store in memory."""
    content, extra = memory_content(root.path.store), _objects(root).keys() - before.keys()
    content.update(before)
    for key in extra:
        del content[key]
