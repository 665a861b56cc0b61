"""Pointers: how many samples they commit, which entries are broken, and what they disagree with.

An entry is broken if it was not read, is zero inside what was committed, lies outside the array,
or is not in a longest rising run: of a high and a low neighbour, the one goes that fewer other
entries support.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from zarrpipe.data.csr import Int64Array
from zarrpipe.data.fields import LEVELS, Level
from zarrpipe.store.check.checked_store import POINTERS, CheckedStore
from zarrpipe.store.check.report import Finding, Severity, some
from zarrpipe.store.check.rows import BLOCK_SAMPLES, AddFinding, BoolArray, CheckedRows
from zarrpipe.store.format.layout import ATOMS_PTR, IDS, SAMPLES_MASK

UNMASK = "write samples_mask anew, since none is said to be deleted"
CLOSE = "clear what is behind the last sample, make shapes exact, write num_samples and deleted"
RESTORE = "work the entries out again from meta/ids and core/neighbor_list, where that is proven"
DROP = "delete the samples beside them"
COUNT = "write the number that the pointers commit"
TRUNCATE = "end the store before the first of them"
_AHEAD = 64


@dataclass(frozen=True)
class CheckedCounts:
    """Rows that the pointers commit.

    Parameters
    ----------
    samples
        Committed samples, the deleted included.
    ends
        Committed rows of each level that has pointers.
    broken
        Broken entries of each array of pointers, ascending.
    limits
        Greatest entry that each array of pointers may have.
    """

    samples: int
    ends: dict[Level, int]
    broken: dict[str, Int64Array]
    limits: dict[str, int]

    def rows(self, level: Level) -> int:
        """Rows of a level."""
        return self.ends.get(level, self.samples)


def count_committed(store: CheckedStore) -> CheckedCounts | None:
    """Rows that the pointers of a store commit; None unless all arrays of them can be opened."""
    arrays = store.arrays
    if not POINTERS.keys() <= arrays.keys():
        return None
    limits = {path: _longest(store, level) for path, level in POINTERS.items()}
    broken, ends = {}, {}
    for path, level in POINTERS.items():
        strict = LEVELS[level].least > 0 and store.ours
        samples = min(store.samples, len(arrays[path]) - 1)
        entries = _broken_entries(arrays[path], samples, limits[path], strict=strict)
        missing = np.arange(len(arrays[path]), store.samples + 1)
        broken[path] = np.concatenate([entries, missing])
        ends[level] = _last_sound(arrays[path], samples, entries)
    return CheckedCounts(store.samples, ends, broken, limits)


def committed_samples(pointers: CheckedRows, closed: int) -> tuple[int, int]:
    """Samples that `pointers` commit, and entries behind them that are not zero.

    They end before the first zero. A zero among those that the store was `closed` with was not
    always there, and is broken, unless it is the first end: then the store was emptied.
    """
    first_zero, end, last = len(pointers), len(pointers), 0
    for start, filled in _filled(pointers, 0, closed):
        zeros = start + np.flatnonzero(~filled)
        if len(zeros):
            first_zero = min(first_zero, int(zeros[0]))
            end = min([end, *zeros[zeros > closed][:1].tolist()])
        if filled.any():
            last = start + int(np.flatnonzero(filled)[-1])
    samples = max(0, min(end - 1, last) if 1 < first_zero <= closed else first_zero - 1)
    behind = sum(int(there.sum()) for _, there in _filled(pointers, samples + 1, closed))
    return samples, behind


def _filled(pointers: CheckedRows, begin: int, closed: int) -> Iterator[tuple[int, BoolArray]]:
    """Which entries are not zero; those that could not be read are taken to be as when closed."""
    for start in range(begin, len(pointers), BLOCK_SAMPLES):
        stop = min(start + BLOCK_SAMPLES, len(pointers))
        values, good = pointers.read(start, stop)
        filled = (values != 0) | (~good & (np.arange(start, stop) <= closed))
        filled[: max(0, 1 - start)] = True
        yield start, filled


def _broken_entries(pointers: CheckedRows, samples: int, limit: int, *, strict: bool) -> Int64Array:
    """Broken entries up to that of the last sample; `strict` if each must exceed the one before."""
    found, low = [np.zeros(0, dtype=np.int64)], -1 if strict else 0
    for start in range(0, samples + 1, BLOCK_SAMPLES):
        size = min(BLOCK_SAMPLES, samples + 1 - start)
        values, good = pointers.read(start, min(start + size + _AHEAD, samples + 1))
        if start == 0:
            good[0] &= values[0] == 0
        kept = _longest_rise(values, good, low, limit, strict=strict)[:size]
        found.append(start + np.flatnonzero(~kept))
        if kept.any():
            low = int(values[:size][kept][-1])
    return np.concatenate(found)


def _longest_rise(
    values: Int64Array, good: BoolArray, low: int, limit: int, *, strict: bool
) -> BoolArray:
    """Which entries are in a longest rising run of those that are good and within the limits."""
    kept = good & (values > low if strict else values >= low) & (values <= limit)
    steps = np.diff(values)
    if kept.all() and (steps > 0 if strict else steps >= 0).all():
        return kept
    place = bisect_left if strict else bisect_right
    tails: list[int] = []  # least last value of a run of each length, and which entry it is
    ends: list[int] = []
    before = np.full(len(values), -1)
    for index in np.flatnonzero(kept).tolist():
        value = int(values[index])
        length = place(tails, value)
        before[index] = ends[length - 1] if length else -1
        tails[length : length + 1] = [value]
        ends[length : length + 1] = [index]
    rise = np.zeros(len(values), dtype=bool)
    index = ends[-1] if ends else -1
    while index >= 0:
        rise[index] = True
        index = int(before[index])
    return rise


def _longest(store: CheckedStore, level: Level) -> int:
    """Rows of the longest array of a level, which no pointer can pass."""
    lengths = [len(rows) for path, rows in store.arrays.items() if store.levels[path] is level]
    return max(lengths, default=0)


def _last_sound(pointers: CheckedRows, samples: int, entries: Int64Array) -> int:
    """Value of the last entry that is not broken."""
    broken, at = set(entries.tolist()), samples
    while at in broken:
        at -= 1
    return 0 if at < 0 else pointers.value(at)


def report_pointers(store: CheckedStore, counts: CheckedCounts, add: AddFinding) -> None:
    """Report broken pointers, and those of an append that was not acknowledged."""
    for path, entries in counts.broken.items():
        if not len(entries):
            continue
        tail = len(entries) == counts.samples + 1 - entries[0]
        repair, drop = (RESTORE, TRUNCATE if tail else DROP) if store.ours else ("", "")
        least = "greater than" if LEVELS[POINTERS[path]].least else "at least"
        message = (
            f"{some(entries, 'entry', 'entries')} cannot be right: the first must be 0, each "
            f"{least} the one before it and at most "
            f"{counts.limits[path]:,}, the rows there are; put the chunk back from a copy of the "
            "store"
        )
        add(Finding("pointers", Severity.ERROR, path, message, repair, drop))
    if store.behind:
        message = (
            f"{store.behind:,} entries behind that of the last sample are not zero: an append "
            "that was not acknowledged; the next writer clears them"
        )
        add(Finding("uncommitted", Severity.WARNING, ATOMS_PTR, message, CLOSE))


def report_lengths(store: CheckedStore, counts: CheckedCounts, add: AddFinding) -> None:
    """Report arrays that are shorter or longer than the pointers say."""
    ahead = []
    for path, rows in store.arrays.items():
        needed = counts.rows(store.levels[path]) + (path in POINTERS)
        if len(rows) < needed and not (path == IDS and store.ours):  # see "ids-lacking"
            message = (
                f"has {len(rows):,} rows, {needed:,} are expected from the pointers: which samples "
                "lack rows is not known; put the array back from a copy of the store, or read it "
                "without this field"
            )
            add(Finding("length", Severity.ERROR, path, message))
        elif len(rows) > needed and counts.samples:
            ahead.append(path)
    if ahead and store.ours:
        message = (
            f"{len(ahead)} arrays have room for more rows than are committed: the store was not "
            "closed, which readers do not mind"
        )
        add(Finding("not-closed", Severity.NOTE, "shapes", message, CLOSE))
    elif ahead:
        message = f"{', '.join(ahead)} have more rows than the pointers say"
        add(Finding("length", Severity.WARNING, "shapes", message))


def report_number(store: CheckedStore, samples: int, add: AddFinding) -> None:
    """Report a number of samples in the attributes that the pointers do not commit."""
    stated = store.attributes.num_samples
    if stated < samples:
        message = (
            f"num_samples is {stated:,}, the pointers commit {samples:,}: it was not closed; if "
            "this is a copy of a store that was being written, labels from sample "
            f"{stated:,} on may be older than their pointers, which no check sees: copy such a "
            "store with zarrpipe.merge"
        )
        severity = Severity.NOTE if store.ours else Severity.WARNING
        repair = CLOSE if store.ours else ""
        add(Finding("num-samples", severity, "zarr.json", message, repair))
    elif stated > samples == 0:
        message = (
            f"num_samples is {stated:,}, but the pointers begin with no sample: a writer was "
            "killed while it emptied the store, or their first chunk is lost"
        )
        add(Finding("num-samples", Severity.WARNING, "zarr.json", message, drop=COUNT))
    elif stated > samples:
        message = (
            f"num_samples is {stated:,}, the pointers commit only {samples:,}: samples that were "
            "there when the store was closed have lost their pointers; put meta/ back from a copy"
        )
        drop = COUNT if store.ours else ""
        add(Finding("num-samples", Severity.ERROR, "zarr.json", message, drop=drop))


def report_masks(store: CheckedStore, samples: int, deleted: int, add: AddFinding) -> None:
    """Report masks that differ from the attributes, or are set behind the samples."""
    stated, mask = store.attributes.deleted, store.arrays.get(SAMPLES_MASK)
    if not store.ours:
        return
    if stated < deleted and mask is not None and mask.absent(samples):
        message = (
            f"{some(mask.absent(samples), 'chunk')} of it are not there, so that samples "
            f"which were not deleted look so: the attributes count {stated:,}, the mask {deleted:,}"
        )
        message += "; put them back from a copy of the store" if stated else ""
        repair = "" if stated else UNMASK
        add(Finding("mask-lost", Severity.ERROR, SAMPLES_MASK, message, repair))
    elif stated != deleted:
        message = (
            f"the attributes count {stated:,} deleted samples, {SAMPLES_MASK} has {deleted:,}: a "
            "writer was killed while it deleted, and readers may still show them"
        )
        add(Finding("deleted", Severity.WARNING, SAMPLES_MASK, message, CLOSE))
    if mask is None:
        return
    behind = 0
    for start in range(samples, len(mask), BLOCK_SAMPLES):
        rows, _ = mask.read(start, min(start + BLOCK_SAMPLES, len(mask)))
        behind += int(np.count_nonzero(rows))
    if behind:
        message = (
            f"is set for {behind:,} rows behind the last sample, which a writer did not live to "
            "commit; nvalchemi would read them"
        )
        add(Finding("uncommitted", Severity.WARNING, SAMPLES_MASK, message, CLOSE))


def report_presence(store: CheckedStore, samples: int, add: AddFinding) -> None:
    """Report lost chunks that say which of the last samples have a field."""
    for path, rows in store.arrays.items():
        if not (store.ours and path.startswith("present/") and rows.dense):
            continue
        chunk, rest = divmod(samples, rows.object_rows)
        if rest and chunk in rows.absent(samples):
            message = (
                f"the chunk of the last {rest:,} samples is not there, so that it is not known "
                "which of them have the field; put it back from a copy of the store"
            )
            add(Finding("missing-chunk", Severity.ERROR, path, message))
