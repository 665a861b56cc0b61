"""Whether attributes, lengths and masks agree with the samples that the pointers commit."""

from dataclasses import dataclass

import numpy as np

from zarrpipe.data.csr import Int64Array
from zarrpipe.data.fields import Level
from zarrpipe.store.check.checked_store import CheckedStore
from zarrpipe.store.check.pointers import BLOCK, Committed, broken_entries
from zarrpipe.store.check.report import Finding, Severity, some
from zarrpipe.store.check.rows import Rows, Tell
from zarrpipe.store.format.layout import ATOMS_PTR, EDGES_PTR, IDS, SAMPLES_MASK

UNMASK = "write samples_mask anew, since none is said to be deleted"
CLOSE = "clear what is behind the last sample, make shapes exact, write num_samples and deleted"
POINTERS = "work the entries out again from meta/ids and core/neighbor_list, where that is proven"
DROP = "delete the samples beside them"
COUNT = "write the number that the pointers commit"
TRUNCATE = "end the store before the first of them"


@dataclass(frozen=True)
class CheckedCounts:
    """What the pointers commit.

    Parameters
    ----------
    committed
        Samples and what is behind them.
    broken
        Broken entries of each array of pointers, ascending.
    limits
        Greatest entry that each array of pointers may have.
    atoms, edges
        Rows of the committed samples.
    """

    committed: Committed
    broken: dict[str, Int64Array]
    limits: dict[str, int]
    atoms: int
    edges: int

    @property
    def samples(self) -> int:
        """Number of samples, the deleted included."""
        return self.committed.samples

    def rows(self, level: Level) -> int:
        """Rows of a level."""
        if level is Level.SYSTEM:
            return self.samples
        return self.atoms if level is Level.ATOM else self.edges


def measure(subject: CheckedStore) -> CheckedCounts | None:
    """What the pointers of a store commit; None if there are not both arrays of them."""
    arrays = subject.arrays
    if ATOMS_PTR not in arrays or EDGES_PTR not in arrays:
        return None
    found = subject.committed
    limits = {path: _longest(subject, level) for path, level in _OF.items()}
    broken, ends = {}, {}
    for path, level in _OF.items():
        strict = level is Level.ATOM and subject.ours
        length, limit = len(arrays[path]), limits[path]
        samples = min(found.samples, length - 1)
        entries = broken_entries(arrays[path], samples, limit, strict=strict)
        lacking = np.arange(max(length, 0), found.samples + 1)
        broken[path] = np.concatenate([entries, lacking])
        ends[path] = _last_sound(arrays[path], samples, entries)
    return CheckedCounts(found, broken, limits, ends[ATOMS_PTR], ends[EDGES_PTR])


def tell_extents(subject: CheckedStore, extents: CheckedCounts, tell: Tell) -> None:
    """Tell about pointers, lengths and the number of samples."""
    _tell_pointers(subject, extents, tell)
    _tell_lengths(subject, extents, tell)
    _tell_count(subject, extents, tell)


def tell_masks(subject: CheckedStore, extents: CheckedCounts, deleted: int, tell: Tell) -> None:
    """Tell about masks that say otherwise than the attributes, or are set behind the samples."""
    told, mask = subject.attributes.deleted, subject.arrays.get(SAMPLES_MASK)
    if subject.ours and told < deleted and mask is not None and mask.absent(extents.samples):
        message = (
            f"{some(mask.absent(extents.samples), 'chunk')} of it are not there, so that samples "
            f"which were not deleted look so: the attributes count {told:,}, the mask {deleted:,}"
        )
        message += "; put them back from a copy of the store" if told else ""
        tell(Finding("mask-lost", Severity.ERROR, SAMPLES_MASK, message, "" if told else UNMASK))
    elif subject.ours and told != deleted:
        message = (
            f"the attributes count {told:,} deleted samples, {SAMPLES_MASK} has {deleted:,}: a "
            "writer was killed while it deleted, and readers may still show them"
        )
        tell(Finding("deleted", Severity.WARNING, SAMPLES_MASK, message, CLOSE))
    if mask is None or not subject.ours:
        return
    behind = 0
    for start in range(extents.samples, len(mask), BLOCK):
        behind += int(np.count_nonzero(mask.read(start, min(start + BLOCK, len(mask)))[0]))
    if behind:
        message = (
            f"is set for {behind:,} rows behind the last sample, which a writer did not live to "
            "commit; nvalchemi would read them"
        )
        tell(Finding("uncommitted", Severity.WARNING, SAMPLES_MASK, message, CLOSE))


def tell_presence(subject: CheckedStore, samples: int, tell: Tell) -> None:
    """Tell about what no longer says which of the last samples have a field."""
    for path, rows in subject.arrays.items():
        if not (subject.ours and path.startswith("present/") and rows.dense):
            continue
        unit = int((rows.array.shards or rows.array.chunks)[0])
        if samples % unit and samples // unit in rows.absent(samples):
            message = (
                f"the chunk of the last {samples % unit:,} samples is not there, so that it is not "
                "known which of them have the field; put it back from a copy of the store"
            )
            tell(Finding("missing-chunk", Severity.ERROR, path, message))


_OF = {ATOMS_PTR: Level.ATOM, EDGES_PTR: Level.EDGE}


def _longest(subject: CheckedStore, level: Level) -> int:
    """Rows of the longest array of a level, none of which pointers can pass."""
    lengths = [len(r) for path, r in subject.arrays.items() if subject.levels[path] is level]
    return max(lengths, default=0)


def _last_sound(pointers: Rows, samples: int, entries: Int64Array) -> int:
    """Value of the last entry that is not broken."""
    broken, at = set(entries.tolist()), samples
    while at in broken:
        at -= 1
    return 0 if at < 0 else int(pointers.read(at, at + 1)[0][0])


def _tell_pointers(subject: CheckedStore, extents: CheckedCounts, tell: Tell) -> None:
    for path, entries in extents.broken.items():
        if not len(entries):
            continue
        tail = len(entries) == extents.samples + 1 - entries[0]
        repair, drop = (POINTERS, TRUNCATE if tail else DROP) if subject.ours else ("", "")
        message = (
            f"{some(entries, 'entry', 'entries')} cannot be right: the first must be 0, each "
            f"{'greater than' if path == ATOMS_PTR else 'at least'} the one before it and at most "
            f"{extents.limits[path]:,}, the rows there are; put the chunk back from a copy of the "
            "store"
        )
        tell(Finding("pointers", Severity.ERROR, path, message, repair, drop))
    if extents.committed.behind:
        message = (
            f"{extents.committed.behind:,} entries behind that of the last sample are not zero: an "
            "append that was not acknowledged; the next writer clears them"
        )
        tell(Finding("uncommitted", Severity.WARNING, ATOMS_PTR, message, CLOSE))


def _tell_lengths(subject: CheckedStore, extents: CheckedCounts, tell: Tell) -> None:
    ahead = []
    for path, rows in subject.arrays.items():
        needed = extents.rows(subject.levels[path]) + (path in _OF)
        if len(rows) < needed and not (path == IDS and subject.ours):  # told of the samples
            message = (
                f"has {len(rows):,} rows, {needed:,} are expected from the pointers: which samples "
                "lack rows is not known; put the array back from a copy of the store, or read it "
                "without this field"
            )
            tell(Finding("length", Severity.ERROR, path, message))
        elif len(rows) > needed and extents.samples:
            ahead.append(path)
    if ahead and subject.ours:
        message = (
            f"{len(ahead)} arrays have room for more rows than are committed: the store was not "
            "closed, which readers do not mind"
        )
        tell(Finding("not-closed", Severity.NOTE, "shapes", message, CLOSE))
    elif ahead:
        message = f"{', '.join(ahead)} have more rows than the pointers say"
        tell(Finding("length", Severity.WARNING, "shapes", message))


def _tell_count(subject: CheckedStore, extents: CheckedCounts, tell: Tell) -> None:
    told, samples = subject.attributes.num_samples, extents.samples
    if told == samples or (told == 0 and samples == 0):
        return
    if told < samples:
        message = f"num_samples is {told:,}, the pointers commit {samples:,}: it was not closed"
        severity = Severity.NOTE if subject.ours else Severity.WARNING
        tell(Finding("num-samples", severity, "zarr.json", message, CLOSE if subject.ours else ""))
        return
    if samples == 0:
        message = (
            f"num_samples is {told:,}, but the pointers begin with no sample: a writer was killed "
            "while it emptied the store, or their first chunk is lost"
        )
        tell(Finding("num-samples", Severity.WARNING, "zarr.json", message, drop=COUNT))
        return
    message = (
        f"num_samples is {told:,}, the pointers commit only {samples:,}: samples that were there "
        "when the store was closed have lost their pointers; put meta/ back from a copy"
    )
    drop = COUNT if subject.ours else ""
    tell(Finding("num-samples", Severity.ERROR, "zarr.json", message, drop=drop))
