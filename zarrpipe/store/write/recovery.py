"""Settle the unfinished work of a writer that was killed or failed."""

from collections.abc import Collection, Iterable
from contextlib import suppress
from pathlib import Path

import numpy as np

from zarrpipe.compat import sync
from zarrpipe.data.csr import AnyArray
from zarrpipe.data.ids import structure_ids, zero_missing
from zarrpipe.data.levels import Level
from zarrpipe.data.schema import Field, Schema
from zarrpipe.errors import StoreFormatError
from zarrpipe.store.backend import files
from zarrpipe.store.backend.location import Root
from zarrpipe.store.backend.writer_objects import WriterObjects
from zarrpipe.store.format.commit_log import RowCounts
from zarrpipe.store.format.layout import (
    ATOMS_MASK,
    ATOMS_PTR,
    EDGES_PTR,
    IDS,
    ROW_MASKS,
    SAMPLES_MASK,
    present_path,
)
from zarrpipe.store.format.metadata import Attributes
from zarrpipe.store.write.append_plan import RowWrite
from zarrpipe.store.write.open_arrays import OpenArrays

_IDS_BLOCK = 4096


def check_whole(root: Root, attributes: Attributes, counts: RowCounts) -> None:
    """Raise StoreFormatError if the store has lost samples since it was last closed.

    This comes before the rest of them is cleared. A writer that empties a store publishes this
    first.
    """
    if counts.samples < attributes.num_samples:
        raise StoreFormatError(
            f"{root} was closed with {attributes.num_samples} samples and has pointers of "
            f"{counts.samples}: it is damaged; see zarrpipe check"
        )


def take_over(
    arrays: OpenArrays,
    schema: Schema,
    nullable: Collection[str],
    counts: RowCounts,
    *,
    damaged: bool,
) -> None:
    """Complete what another Zarr writer left behind: chunks of fill, presence, and ids last.

    Samples that it appended have every field. Raises StoreFormatError before any change if their
    row numbers (edges) count from their batch, as those that nvalchemi appends do, unless a
    `damaged` store is being repaired.
    """
    stored = arrays[IDS].rows
    if stored < counts.samples:
        for item in schema.values():
            if item.index_of is not None and not damaged:
                _check_row_numbers(arrays, item, item.index_of, range(stored, counts.samples))
        for name in sorted(nullable):
            present = np.ones(counts.samples - stored, dtype=bool)
            arrays.carry_out([RowWrite(present_path(name), stored, present)])
    arrays.take_over(schema, counts)
    for start in range(stored, counts.samples, _IDS_BLOCK):
        stop = min(start + _IDS_BLOCK, counts.samples)
        ids = _structure_ids(arrays, schema, nullable, start, stop)
        arrays.carry_out([RowWrite(IDS, start, ids)])


def _check_row_numbers(arrays: OpenArrays, item: Field, target: Level, samples: range) -> None:
    """Refuse row numbers outside of their samples."""
    for start in range(samples.start, samples.stop, _IDS_BLOCK):
        stop = min(start + _IDS_BLOCK, samples.stop)
        ends = arrays[target.pointers].read(start, stop + 1)
        ptr = np.arange(start, stop + 1)
        if item.level.has_pointers:
            ptr = arrays[item.level.pointers].read(start, stop + 1)
        values = arrays[item.path].read(int(ptr[0]), int(ptr[-1]))
        counts, shape = np.diff(ptr), (-1, *(1,) * len(item.shape))
        low, high = (np.repeat(one, counts).reshape(shape) for one in (ends[:-1], ends[1:]))
        if ((values < low) | (values >= high)).any():
            raise StoreFormatError(
                f"{item.path} of samples {start} to {stop}, which another writer appended, "
                "refers to rows outside their sample: nvalchemi stores it relative to the batch; "
                "run `zarrpipe check --repair`"
            )


def _structure_ids(
    arrays: OpenArrays, schema: Schema, nullable: Collection[str], start: int, stop: int
) -> AnyArray:
    """Ids [stop - start] uint64 of samples."""
    ptr = arrays[ATOMS_PTR].read(start, stop + 1)
    positions, numbers = (
        arrays[schema[name].path].read(int(ptr[0]), int(ptr[-1]))
        for name in ("positions", "atomic_numbers")
    )
    box = {}
    for name in ("cell", "pbc"):
        if name in schema:
            box[name] = arrays[schema[name].path].read(start, stop)
            if name in nullable:
                present = arrays[present_path(name)].read(start, stop)
                box[name] = zero_missing(box[name], present)
    return structure_ids(positions, numbers, ptr - ptr[0], **box)


def remove_unfinished(paths: Iterable[Path]) -> None:
    """Remove files that a killed writer had not yet renamed to their final names."""
    for path in paths:
        with suppress(FileNotFoundError):  # its writer was alive and has finished it
            files.unlink(path)


def clear_uncommitted(arrays: OpenArrays, counts: RowCounts) -> None:
    """Clear the pointers and masks of samples that are not committed.

    Their other rows stay until they are overwritten. The chunk files of a failed append stay, too:
    a reader may have mapped them, and the next append needs them.
    """
    arrays[ATOMS_PTR].clear_from(counts.samples + 1)
    arrays[SAMPLES_MASK].clear_from(counts.samples)
    if counts.samples == 0:  # the store is new, or a writer was killed while emptying it
        for path in ROW_MASKS:
            arrays[path].clear_all()


def keep_out(root: Root, arrays: OpenArrays, counts: RowCounts, fence: int) -> None:
    """Change documents and the object of the next pointers, so that late puts of them are refused.

    An earlier writer puts them only if they are as they were. The number goes to the last entry of
    the chunk of pointers, where it means nothing to readers: the entries before it are zero.
    """
    if isinstance(root.path.store, WriterObjects):
        sync(root.path.store.replace_documents())
    unit = arrays[ATOMS_PTR].chunk_rows
    last = (counts.samples + 1) // unit * unit + unit - 1
    number = -fence if last > counts.samples + 1 else 0  # else it would be the next end pointer
    arrays.carry_out([RowWrite(ATOMS_PTR, last, np.array([number], dtype=np.int64))])


def settle_deletion(arrays: OpenArrays, published: int, counts: RowCounts) -> None:
    """Undo a deletion that was not published, and complete one that was.

    A deletion masks samples, publishes their number, and masks their rows of other levels last.
    `published` is the number of deleted samples in the attributes.
    """
    samples, mask = arrays[SAMPLES_MASK], arrays[ATOMS_MASK]
    kept = samples.read(0, counts.samples)
    gone = np.flatnonzero(~kept)
    if len(gone) == 0:
        return
    if len(gone) > published:
        firsts = arrays[ATOMS_PTR].read(0, counts.samples)[gone]
        unpublished = gone[mask.read(0, counts.atoms)[firsts]]
        kept[unpublished] = True
        for index in np.unique(unpublished // samples.chunk_rows).tolist():
            start = index * samples.chunk_rows
            arrays.carry_out([RowWrite(SAMPLES_MASK, start, kept[start:][: samples.chunk_rows])])
    mask_rows(arrays, counts, kept)


def mask_rows(arrays: OpenArrays, counts: RowCounts, kept: AnyArray) -> None:
    """Apply the masks `kept` [N] of samples to their atoms and edges."""
    for path, ends in zip(ROW_MASKS, (ATOMS_PTR, EDGES_PTR), strict=True):
        wanted = np.repeat(kept, np.diff(arrays[ends].read(0, counts.samples + 1)))
        unit = arrays[path].chunk_rows
        for start in range(0, len(wanted), unit):
            block = wanted[start : start + unit]
            if not np.array_equal(arrays[path].read(start, start + len(block)), block):
                rows = np.ones(unit, dtype=bool)  # unwritten rows of a new chunk file read False
                rows[: len(block)] = block
                arrays.carry_out([RowWrite(path, start, rows)])
