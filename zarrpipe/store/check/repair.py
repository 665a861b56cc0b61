"""Putting a store right: what is not committed is cleared, metadata are written anew.

Each step is a change that a kill leaves done or undone, and the next repair does the rest. Samples
that were committed are given up only with `drop`.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from zarrpipe.data.csr import Int64Array
from zarrpipe.data.fields import SEGMENTED
from zarrpipe.store.backend import files
from zarrpipe.store.backend.lock import WriterLock
from zarrpipe.store.backend.swap import remove_leftovers
from zarrpipe.store.check.check_statistics import DISCARD
from zarrpipe.store.check.checked_store import CheckedStore, sample_blocks
from zarrpipe.store.check.nvalchemi_edges import RELATIVE, EdgeShifts, fix_relative_edges
from zarrpipe.store.check.pointers import UNMASK, CheckedCounts
from zarrpipe.store.check.report import Report, Severity, some
from zarrpipe.store.check.restore_pointers import mend_pointers
from zarrpipe.store.check.rows import CheckedRows, runs
from zarrpipe.store.check.samples import SampleFindings, ids_of
from zarrpipe.store.check.surroundings import SWEEP, leftovers
from zarrpipe.store.format.config import ZarrWriteConfig
from zarrpipe.store.format.layout import IDS, SAMPLES_MASK
from zarrpipe.store.rewrite.delete_defragment import delete_samples
from zarrpipe.store.statistics.stored_sums import remove_sums
from zarrpipe.store.write.open_for_writing import unfinished_files
from zarrpipe.store.write.store_writer import StoreWriter

Log = Callable[[str], object]
_CAPACITY = 1_000_000
_LOST = ("unreadable", "missing-chunk", "ids", "edges")
_REPORTED = (*SEGMENTED.values(), IDS)
_NO_REPAIR = {
    *("attributes", "metadata", "missing", "level", "dtype", "unit"),
    *("length", "mask-lost", "presence"),
}


@dataclass(frozen=True)
class Examination:
    """The result of looking a store through, for a repair to go by.

    Parameters
    ----------
    report
        The report for people.
    store, counts, samples, shifts
        The same for programs; `counts` and `samples` are None where pointers are missing, `shifts`
        where neighbour lists need none.
    live
        Whether the store seems to be written meanwhile.
    """

    report: Report
    store: CheckedStore | None = None
    counts: CheckedCounts | None = None
    samples: SampleFindings | None = None
    shifts: EdgeShifts | None = None
    live: bool = False


def repair_store(found: Examination, lock: WriterLock | None, log: Log, *, drop: bool) -> None:
    """Carry out the plan of an examination that was made while `lock` was held.

    Parameters
    ----------
    found
        The examination.
    lock
        Lock of a local store, which is released.
    log
        Called with what was done, after each step.
    drop
        Whether samples may be given up.

    Raises
    ------
    StoreFormatError
        If there is a link inside the store; nothing was changed.
    """
    store, plan = found.store, found.report.plan(drop=drop)
    try:
        if store is None or found.counts is None or found.samples is None:
            return
        if plan and store.root.directory is not None:
            unfinished_files(store.root.directory, store.arrays, whole=True)  # refuses links
        if SWEEP in plan:
            _sweep(store, log)
        blocking = sorted(found.report.kinds(Severity.ERROR) & _NO_REPAIR) + _masks_lost(store)
        if blocking == ["mask-lost"] and UNMASK in plan:
            write_full_mask(store, found.counts.samples, log)
            blocking = []
        if blocking:
            log(f"left all else as it is, since no repair knows the way: {', '.join(blocking)}")
            return
        if RELATIVE in plan and found.shifts is not None:
            fix_relative_edges(store, found.shifts)
            moved = some(np.flatnonzero(found.shifts.by), "sample")
            log(f"made the edges of {moved} count from the store")
        if DISCARD in plan:
            remove_sums(store.group)
            log(DISCARD.replace("remove", "removed"))
        if store.ours and any(step not in (SWEEP, RELATIVE, DISCARD) for step in plan):
            _write_anew(store, found.counts, found.samples, lock, log, drop=drop)
    finally:
        if lock is not None:
            lock.release()


def _masks_lost(store: CheckedStore) -> list[str]:
    """Arrays of masks and presence with chunks that cannot be read."""
    return [
        path
        for path, rows in store.arrays.items()
        if rows.broken and path.startswith(("meta/", "present/")) and path not in _REPORTED
    ]


def _sweep(store: CheckedStore, log: Log) -> None:
    """Remove what killed writers and repairs left."""
    if store.root.directory is None:
        return
    place = store.root.directory.resolve()
    remove_leftovers(place)
    for path in leftovers(place):
        if path.is_relative_to(place):
            (files.remove_tree if path.is_dir() else files.unlink)(path)
    log(SWEEP.replace("remove", "removed"))


def _write_anew(
    store: CheckedStore,
    counts: CheckedCounts,
    found: SampleFindings,
    lock: WriterLock | None,
    log: Log,
    *,
    drop: bool,
) -> None:
    """Mend pointers, masks, shapes and numbers of a store of ours."""
    remove_sums(store.group)  # they may be of rows that change
    samples, lost = mend_pointers(store, counts, log, drop=drop)
    if samples is None or (store.attributes.num_samples > samples and not drop):
        log("left all else as it is, since it is not known how many samples there are")
        return
    if len(without := found.of("ids-lacking")):
        compute_ids(store, counts, without, log)
    if drop:
        lost = np.union1d(lost, found.of(*_LOST))
        for path in store.paths.values():
            fill_broken(store.arrays[path], log)
        if store.attributes.num_samples > samples:
            store.group.update_attributes({**store.group.attrs.asdict(), "num_samples": samples})
            log(f"wrote num_samples, {samples:,}")
    writer = StoreWriter(store.root, ZarrWriteConfig(), _CAPACITY, lock, damaged=True)
    try:
        lost = lost[lost < writer.counts.samples]
        kept = writer.array(SAMPLES_MASK).read(0, writer.counts.samples)
        if len(lost := lost[kept[lost]]):
            delete_samples(writer, lost)
            log(f"deleted {some(lost, 'sample')}")
        unlike = np.union1d(found.of("row-masks"), lost)
        if (unlike < writer.counts.samples).any():
            writer.mask_rows()
            log("wrote atoms_mask and edges_mask from samples_mask")
        writer.close()
        log(f"made shapes, num_samples and deleted those of {writer.counts.samples:,} samples")
    finally:
        writer.abandon()


def fill_broken(rows: CheckedRows, log: Log) -> None:
    """Fill lost and broken chunks of an array, so that the rest of it can be read."""
    unit, writer = rows.chunk_rows, rows.open_writer()
    lost = [index for index in rows.lost if index not in rows.broken]
    for index in lost:
        stop = max(index * unit, min((index + 1) * unit, len(rows)))
        shape = (stop - index * unit, *rows.array.shape[1:])
        writer.write(index * unit, np.full(shape, rows.array.fill_value, rows.array.dtype))
    writer.close()
    if lost:
        log(f"filled {some(lost, 'chunk')} of {rows.path}")
    if not rows.broken:
        return
    rows.discard_broken()
    if not rows.plain:
        array = rows.array.with_config({"write_empty_chunks": True})  # or readers miss the chunk
        for index in rows.broken:
            array[index * unit : min((index + 1) * unit, len(rows))] = array.fill_value
    log(f"filled {some(rows.broken, 'chunk')} of {rows.path}")


def compute_ids(store: CheckedStore, counts: CheckedCounts, samples: Int64Array, log: Log) -> None:
    """Compute the ids of samples that have none."""
    store.arrays[IDS].discard_broken()
    writer = store.arrays[IDS].open_writer()
    for block in sample_blocks(store, counts.broken, counts.limits):
        here = np.isin(np.arange(block.first, block.first + len(block)), samples)
        ids = ids_of(block) if here.any() else np.zeros(0)
        for begin, end in runs(here):
            writer.write(block.first + begin, ids[begin:end])
    writer.close()
    log(f"computed the ids of {some(samples, 'sample')}")


def write_full_mask(store: CheckedStore, samples: int, log: Log) -> None:
    """Write a mask of samples of which none was deleted."""
    writer = store.arrays[SAMPLES_MASK].open_writer()
    writer.write(0, np.ones(samples, dtype=bool))
    writer.close()
    log(UNMASK.replace("write", "wrote"))
