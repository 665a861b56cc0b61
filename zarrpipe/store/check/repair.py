"""Putting a store right: what is not committed is cleared, metadata are written anew.

Every step is a change that a kill leaves done or undone, and that the next repair finds again. What
would give up a sample that was committed is done only where that is asked for.
"""

from collections.abc import Callable

import numpy as np

from zarrpipe.store.backend import files
from zarrpipe.store.backend.lock import WriterLock
from zarrpipe.store.backend.swap import remove_leftovers
from zarrpipe.store.check.check_statistics import DISCARD
from zarrpipe.store.check.checked_store import CheckedStore
from zarrpipe.store.check.counts import UNMASK, CheckedCounts
from zarrpipe.store.check.examine import Examination
from zarrpipe.store.check.fix_relative_edges import fix_relative_edges
from zarrpipe.store.check.mend import (
    complete_ids,
    fill_broken,
    mask_rows,
    mend_pointers,
    unmask,
)
from zarrpipe.store.check.neighbours import RELATIVE
from zarrpipe.store.check.report import Severity, some
from zarrpipe.store.check.samples import SampleFindings
from zarrpipe.store.check.surroundings import SWEEP, leftovers
from zarrpipe.store.format.config import ZarrWriteConfig
from zarrpipe.store.format.layout import ATOMS_PTR, EDGES_PTR, IDS, SAMPLES_MASK
from zarrpipe.store.rewrite.maintenance import delete_samples
from zarrpipe.store.statistics.stored_sums import remove_sums
from zarrpipe.store.write.foreign_files import unfinished_files
from zarrpipe.store.write.store_writer import StoreWriter

Say = Callable[[str], object]
_CAPACITY = 1_000_000
_LOST = ("unreadable", "missing-chunk", "ids", "edges")
_TOLD = (ATOMS_PTR, EDGES_PTR, IDS)
_FIRST = {
    "attributes",
    "dtype",
    "length",
    "level",
    "mask-lost",
    "metadata",
    "missing",
    "presence",
    "unit",
}


def repair(found: Examination, lock: WriterLock | None, say: Say, *, drop: bool) -> None:
    """Carry out what the report of an examination plans.

    Parameters
    ----------
    found
        What the examination has shown, made while `lock` was held.
    lock
        Lock of a local store, which is given up.
    say
        Called with what was done, after each step.
    drop
        Whether samples may be given up.

    Raises
    ------
    StoreFormatError
        If there is a link inside the store; nothing was changed.
    """
    subject, plan = found.subject, found.report.plan(drop=drop)
    try:
        if subject is None or found.extents is None or found.seen is None:
            return
        if plan and subject.root.directory is not None:
            unfinished_files(subject.root.directory, subject.arrays, whole=True)  # refuses links
        if SWEEP in plan:
            _sweep(subject, say)
        blocking = sorted(found.report.kinds(Severity.ERROR) & _FIRST) + _masks_lost(subject)
        if blocking == ["mask-lost"] and UNMASK in plan:
            unmask(subject, found.extents.samples, say)
            blocking = []
        if blocking:
            say(f"left all else as it is, since no repair knows the way: {', '.join(blocking)}")
            return
        if RELATIVE in plan and found.shifts is not None:
            fix_relative_edges(subject, found.shifts)
            moved = some(np.flatnonzero(found.shifts.by), "sample")
            say(f"made the edges of {moved} count from the store")
        if DISCARD in plan:
            remove_sums(subject.group)
            say(DISCARD.replace("remove", "removed"))
        if subject.ours and any(step not in (SWEEP, RELATIVE, DISCARD) for step in plan):
            _write_anew(subject, found.extents, found.seen, lock, say, drop=drop)
    finally:
        if lock is not None:
            lock.release()


def _masks_lost(subject: CheckedStore) -> list[str]:
    """Masks and presence of which chunks cannot be read, which nothing else tells."""
    return [
        path
        for path, rows in subject.arrays.items()
        if rows.broken and path.startswith(("meta/", "present/")) and path not in _TOLD
    ]


def _sweep(subject: CheckedStore, say: Say) -> None:
    """Remove what killed writers and repairs left."""
    if subject.root.directory is None:
        return
    place = subject.root.directory.resolve()
    remove_leftovers(place)
    for path in leftovers(place):
        if path.is_relative_to(place):
            (files.remove_tree if path.is_dir() else files.unlink)(path)
    say(SWEEP.replace("remove", "removed"))


def _write_anew(
    subject: CheckedStore,
    extents: CheckedCounts,
    seen: SampleFindings,
    lock: WriterLock | None,
    say: Say,
    *,
    drop: bool,
) -> None:
    """Mend pointers, masks, shapes and numbers of a store of ours."""
    remove_sums(subject.group)  # they may be of rows that change
    samples, lost = mend_pointers(subject, extents, say, drop=drop)
    if samples is None or (subject.attributes.num_samples > samples and not drop):
        say("left all else as it is, since it is not known how many samples there are")
        return
    if len(without := seen.of("ids-lacking")):
        complete_ids(subject, extents, without, say)
    if drop:
        lost = np.union1d(lost, seen.of(*_LOST))
        for path in subject.paths.values():
            fill_broken(subject, path, say)
        told = subject.group.attrs.asdict()
        if subject.attributes.num_samples > samples:
            subject.group.update_attributes({**told, "num_samples": samples})
            say(f"wrote num_samples, {samples:,}")
    appender = StoreWriter(subject.root, ZarrWriteConfig(), _CAPACITY, lock, damaged=True)
    try:
        lost = lost[lost < appender.counts.samples]
        kept = appender.array(SAMPLES_MASK).read(0, appender.counts.samples)
        if len(lost := lost[kept[lost]]):
            delete_samples(appender, lost)
            say(f"deleted {some(lost, 'sample')}")
        unlike = np.union1d(seen.of("row-masks"), lost)
        if len(unlike := unlike[unlike < appender.counts.samples]):
            mask_rows(appender, unlike)
            say("wrote atoms_mask and edges_mask from samples_mask")
        appender.close()
        say(f"made shapes, num_samples and deleted those of {appender.counts.samples:,} samples")
    finally:
        appender.abandon()
