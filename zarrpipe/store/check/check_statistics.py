"""Whether the sums that a store keeps are those of its samples."""

import numpy as np

from zarrpipe.errors import StoreFormatError
from zarrpipe.store.check.blocks import SampleBlock
from zarrpipe.store.check.checked_store import CheckedStore
from zarrpipe.store.check.counts import CheckedCounts
from zarrpipe.store.check.report import Finding, Severity
from zarrpipe.store.check.rows import Tell
from zarrpipe.store.check.samples import SampleFindings
from zarrpipe.store.format.commit_log import RowCounts
from zarrpipe.store.format.layout import ATOMS_PTR, EDGES_PTR, IDS, SUMS, find_array
from zarrpipe.store.statistics.label_rows import (
    BUCKETS,
    SUMMED_LABELS,
    Label,
    LabelRows,
    buckets_of,
)
from zarrpipe.store.statistics.stored_sums import StoredSums, read_sums
from zarrpipe.store.statistics.sums import LabelSums

DISCARD = "remove the sums of statistics, which are counted anew"


class Recount:
    """Counts samples again while a check goes through them, where the store keeps sums.

    Parameters
    ----------
    subject
        The store.
    """

    def __init__(self, subject: CheckedStore) -> None:
        self._subject, self._sums = subject, LabelSums.empty(BUCKETS)
        kept = read_sums(subject.group) if subject.ours else None
        sound = {"atomic_numbers"} <= subject.paths.keys() and IDS in subject.arrays
        self._kept: StoredSums | None = kept if sound else None
        self._torn = subject.ours and kept is None and _is_there(subject)

    def look(self, piece: SampleBlock) -> None:
        """Count the samples of a piece."""
        if self._kept is None:
            return
        paths = self._subject.paths
        numbers, good = piece.rows(paths["atomic_numbers"])
        ids, there = piece.rows(IDS)
        good, labels = good & there, {}
        for name in SUMMED_LABELS:
            if name in paths:
                values, there = piece.rows(paths[name])
                good, labels[name] = good & there, Label(values, piece.present(name))
        if not good.all():
            self._kept = None  # other findings are about these rows
            return
        rows = LabelRows(
            numbers.astype(np.int64, copy=False),
            piece.atoms - piece.atoms[0],
            buckets_of(ids),
            np.diff(piece.edges),
            labels,
        )
        counted = np.arange(len(piece)) + piece.first < self._kept.extent.samples
        self._sums.add(rows.take(np.flatnonzero(counted & piece.active)))

    def conclude(self, extents: CheckedCounts, seen: SampleFindings, tell: Tell) -> None:
        """Tell of sums that are torn, or that readers would believe and that are others.

        Of samples that are damaged it is told already.
        """
        if self._torn:
            message = "is damaged or was not finished: it is taken for absent"
            tell(Finding("sums", Severity.WARNING, SUMS, message, DISCARD))
        kept, subject = self._kept, self._subject
        damaged = len(seen.of("unreadable", "missing-chunk", "ids", "ids-lacking", "edges"))
        if kept is None or damaged or kept.extent.samples > extents.samples:
            return
        rows = kept.extent.samples
        ends = [subject.arrays[path].read(rows, rows + 1)[0] for path in (ATOMS_PTR, EDGES_PTR)]
        extent = RowCounts((rows, *(int(end[0]) for end in ends)))
        active = int(self._sums.total("samples"))
        if kept.belongs(subject.attributes, extent, active=active) and not kept.sums.agrees(
            self._sums
        ):
            message = (
                "the sums of statistics are not those of the samples: values were changed in "
                "place, by another tool or by damage"
            )
            tell(Finding("sums", Severity.WARNING, SUMS, message, DISCARD))


def _is_there(subject: CheckedStore) -> bool:
    try:
        return find_array(subject.group, SUMS) is not None
    except StoreFormatError:
        return True
