"""Check the pointers: count committed samples, find broken entries, compare with the arrays.

An entry is broken if it cannot be read, is a zero between committed ones, exceeds the rows of the
array, or is not in a longest rising subsequence of all entries.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from zarrpipe.data.csr import Int64Array
from zarrpipe.data.levels import Level
from zarrpipe.store.check.checked_store import CheckedStore
from zarrpipe.store.check.damaged_rows import BLOCK_SAMPLES, AddFinding, BoolArray, CheckedRows
from zarrpipe.store.check.report import Finding, Severity, some
from zarrpipe.store.format.layout import ATOMS_PTR, EDGES_PTR, IDS, SAMPLES_MASK

UNMASK = "rewrite samples_mask, since the attributes count no deleted sample"
CLOSE = "clear rows after the last sample, make shapes exact, write num_samples and deleted"
RESTORE = "compute the entries again from meta/ids and core/neighbor_list, where these prove them"
DROP = "delete the samples next to these entries"
COUNT = "write the number of samples that the pointers commit"
TRUNCATE = "end the store before the first of these entries"
_AHEAD = 64
_NO_LIMIT = np.iinfo(np.int64).max


@dataclass(frozen=True)
class CheckedCounts:
    """Committed samples, including deleted ones, and committed rows of other levels in `ends`.

    `broken` has the ascending positions of broken entries of each array of pointers, `limits` its
    greatest valid entry.
    """

    samples: int
    ends: dict[Level, int]
    broken: dict[str, Int64Array]
    limits: dict[str, int]

    def rows(self, level: Level) -> int:
        """Committed rows of a level."""
        return self.ends.get(level, self.samples)


def count_committed(store: CheckedStore) -> CheckedCounts | None:
    """Count the rows that the pointers commit; None if an array of pointers cannot be opened."""
    arrays = store.arrays
    if not store.pointers.keys() <= arrays.keys():
        return None
    limits = {path: _longest(store, level) for path, level in store.pointers.items()}
    broken, ends = {}, {}
    for path, level in store.pointers.items():
        strict = level.least > 0 and store.ours
        samples = min(store.samples, len(arrays[path]) - 1)
        entries = _broken_entries(arrays[path], samples, limits[path], strict=strict)
        missing = np.arange(len(arrays[path]), store.samples + 1)
        broken[path] = np.concatenate([entries, missing])
        ends[level] = _last_sound(arrays[path], samples, entries)
    return CheckedCounts(store.samples, ends, broken, limits)


def committed_samples(pointers: CheckedRows, closed: int) -> tuple[int, int]:
    """Number of samples that `pointers` commit, and of non-zero entries after them.

    Committed samples end before the first zero. A zero among the samples that the store was
    `closed` with is damage, unless it is the first end: then the store was emptied.
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
    uncommitted = sum(int(there.sum()) for _, there in _filled(pointers, samples + 1, closed))
    return samples, uncommitted


def _filled(pointers: CheckedRows, begin: int, closed: int) -> Iterator[tuple[int, BoolArray]]:
    """First position of each block, and which of its entries are not zero.

    Unreadable entries count as not zero up to number `closed`.
    """
    for start in range(begin, len(pointers), BLOCK_SAMPLES):
        stop = min(start + BLOCK_SAMPLES, len(pointers))
        values, good = pointers.read(start, stop)
        filled = (values != 0) | (~good & (np.arange(start, stop) <= closed))
        filled[: max(0, 1 - start)] = True
        yield start, filled


def _broken_entries(pointers: CheckedRows, samples: int, limit: int, *, strict: bool) -> Int64Array:
    """Broken entries of the committed samples; `strict` pointers must increase."""
    found, low = [np.zeros(0, dtype=np.int64)], -1 if strict else 0
    for start in range(0, samples + 1, BLOCK_SAMPLES):
        size = min(BLOCK_SAMPLES, samples + 1 - start)
        values, good = pointers.read(start, min(start + size + _AHEAD, samples + 1))
        if start == 0:
            good[0] &= values[0] == 0
        sound = _longest_rise(values, good, low, limit, strict=strict)[:size]
        found.append(start + np.flatnonzero(~sound))
        if sound.any():
            low = int(values[:size][sound][-1])
    return np.concatenate(found)


def _longest_rise(
    values: Int64Array, good: BoolArray, low: int, limit: int, *, strict: bool
) -> BoolArray:
    """Which entries form a longest rising subsequence of the good ones within the limits."""
    valid = good & (values > low if strict else values >= low) & (values <= limit)
    steps = np.diff(values)
    if valid.all() and (steps > 0 if strict else steps >= 0).all():
        return valid
    place = bisect_left if strict else bisect_right
    tails: list[int] = []  # least last value of a subsequence of each length
    ends: list[int] = []  # positions of these values
    before = np.full(len(values), -1)
    for index in np.flatnonzero(valid).tolist():
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
    """Rows of the longest array of a level, which no pointer may exceed.

    A level that has no fields, but whose rows others count, has no such limit.
    """
    if not level.built_in and level not in store.attributes.levels.values():
        return _NO_LIMIT
    lengths = [len(rows) for path, rows in store.arrays.items() if store.levels[path] == level]
    return max(lengths, default=0)


def _last_sound(pointers: CheckedRows, samples: int, entries: Int64Array) -> int:
    """Value of the last sound entry."""
    broken, at = set(entries.tolist()), samples
    while at in broken:
        at -= 1
    return 0 if at < 0 else pointers.value(at)


def report_pointers(store: CheckedStore, counts: CheckedCounts, add: AddFinding) -> None:
    """Report broken pointers and pointers of an unfinished append."""
    for path, entries in counts.broken.items():
        if not len(entries):
            continue
        tail = len(entries) == counts.samples + 1 - entries[0]
        repair, drop = (RESTORE, TRUNCATE if tail else DROP) if store.ours else ("", "")
        if path not in (ATOMS_PTR, EDGES_PTR):
            repair = ""  # nothing else in the store proves them
        least = "greater than" if store.pointers[path].least else "at least"
        message = (
            f"{some(entries, 'entry', 'entries')} cannot be right: the first must be 0, each "
            f"{least} the one before it and at most {counts.limits[path]:,}, the number of rows; "
            "put the chunk back from a copy of the store"
        )
        add(Finding("pointers", Severity.ERROR, path, message, repair, drop))
    if store.uncommitted:
        message = (
            f"{store.uncommitted:,} entries after that of the last sample are not zero: an append "
            "did not finish; the next writer clears them"
        )
        add(Finding("uncommitted", Severity.WARNING, ATOMS_PTR, message, CLOSE))


def report_lengths(store: CheckedStore, counts: CheckedCounts, add: AddFinding) -> None:
    """Report arrays whose length differs from the committed rows."""
    ahead = []
    for path, rows in store.arrays.items():
        needed = counts.rows(store.levels[path]) + (path in store.pointers)
        if len(rows) < needed and not (path == IDS and store.ours):  # see "ids-lacking"
            message = (
                f"has {len(rows):,} rows, {needed:,} are expected from the pointers: it is unknown "
                "which samples lost rows; put the array back from a copy of the store, or read the "
                "store without this field"
            )
            add(Finding("length", Severity.ERROR, path, message))
        elif len(rows) > needed and counts.samples:
            ahead.append(path)
    if ahead and store.ours:
        message = (
            f"{len(ahead)} arrays are longer than their committed rows: the store was not closed, "
            "which does not affect readers"
        )
        add(Finding("not-closed", Severity.NOTE, "shapes", message, CLOSE))
    elif ahead:
        message = f"{', '.join(ahead)} have more rows than the pointers commit"
        add(Finding("length", Severity.WARNING, "shapes", message))


def report_number(store: CheckedStore, samples: int, add: AddFinding) -> None:
    """Report a `num_samples` of the attributes that differs from the committed samples."""
    stated = store.attributes.num_samples
    if stated < samples:
        message = (
            f"num_samples is {stated:,}, the pointers commit {samples:,}: the store was not "
            "closed; if this is a copy of a store that was being written, labels from sample "
            f"{stated:,} on may be older than their pointers, which no check detects: copy such a "
            "store with zarrpipe.merge"
        )
        severity = Severity.NOTE if store.ours else Severity.WARNING
        repair = CLOSE if store.ours else ""
        add(Finding("num-samples", severity, "zarr.json", message, repair))
    elif stated > samples == 0:
        message = (
            f"num_samples is {stated:,}, but the pointers commit no sample: a writer was killed "
            "while it emptied the store, or the first chunk of pointers is lost"
        )
        add(Finding("num-samples", Severity.WARNING, "zarr.json", message, drop=COUNT))
    elif stated > samples:
        message = (
            f"num_samples is {stated:,}, the pointers commit only {samples:,}: samples have lost "
            "their pointers since the store was closed; put meta/ back from a copy"
        )
        drop = COUNT if store.ours else ""
        add(Finding("num-samples", Severity.ERROR, "zarr.json", message, drop=drop))


def report_masks(store: CheckedStore, samples: int, deleted: int, add: AddFinding) -> None:
    """Report a mask that differs from the attributes or is set after the last sample."""
    stated, mask = store.attributes.deleted, store.arrays.get(SAMPLES_MASK)
    if not store.ours:
        return
    if stated < deleted and mask is not None and mask.absent(samples):
        message = (
            f"{some(mask.absent(samples), 'chunk')} of the mask are missing, so that samples look "
            f"deleted: the attributes count {stated:,} deleted samples, the mask {deleted:,}"
        )
        message += "; put them back from a copy of the store" if stated else ""
        repair = "" if stated else UNMASK
        add(Finding("mask-lost", Severity.ERROR, SAMPLES_MASK, message, repair))
    elif stated != deleted:
        message = (
            f"the attributes count {stated:,} deleted samples, {SAMPLES_MASK} has {deleted:,}: a "
            "writer was killed while it deleted samples, and readers may still return them"
        )
        add(Finding("deleted", Severity.WARNING, SAMPLES_MASK, message, CLOSE))
    if mask is None:
        return
    uncommitted = 0
    for start in range(samples, len(mask), BLOCK_SAMPLES):
        rows, _ = mask.read(start, min(start + BLOCK_SAMPLES, len(mask)))
        uncommitted += int(np.count_nonzero(rows))
    if uncommitted:
        message = (
            f"is set for {uncommitted:,} rows after the last sample: a writer was killed before it "
            "committed them; nvalchemi would read them"
        )
        add(Finding("uncommitted", Severity.WARNING, SAMPLES_MASK, message, CLOSE))


def report_presence(store: CheckedStore, samples: int, add: AddFinding) -> None:
    """Report a lost last chunk of an array that records which samples have a field."""
    for path, rows in store.arrays.items():
        if not (store.ours and path.startswith("present/") and rows.dense):
            continue
        chunk, rest = divmod(samples, rows.object_rows)
        if rest and chunk in rows.absent(samples):
            message = (
                f"the chunk of the last {rest:,} samples is missing, so that it is unknown which "
                "of them have the field; put it back from a copy of the store"
            )
            add(Finding("missing-chunk", Severity.ERROR, path, message))
