"""Compare the stored sums of statistics with the samples that they sum."""

import numpy as np

from zarrpipe.data.levels import Level
from zarrpipe.errors import StoreFormatError
from zarrpipe.store.check.check_samples import SampleFindings
from zarrpipe.store.check.checked_store import CheckedStore, SampleBlock
from zarrpipe.store.check.damaged_rows import AddFinding
from zarrpipe.store.check.report import Finding, Severity
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

DISCARD = "remove the sums of statistics, which are counted again"


class StatisticsCheck:
    """Counts the samples of a store again, to compare them with the stored sums."""

    def __init__(self, store: CheckedStore) -> None:
        self._store, self._sums = store, LabelSums.empty(BUCKETS)
        stored = read_sums(store.group) if store.ours else None
        sound = "atomic_numbers" in store.paths and IDS in store.arrays
        self._stored: StoredSums | None = stored if sound else None
        self._torn = store.ours and stored is None and _has_sums(store)

    def count(self, block: SampleBlock) -> None:
        """Count the samples of a block."""
        if self._stored is None:
            return
        paths = self._store.paths
        numbers, good = block.rows(paths["atomic_numbers"])
        ids, readable = block.rows(IDS)
        good, labels = good & readable, {}
        for name in SUMMED_LABELS:
            if name in paths:
                values, readable = block.rows(paths[name])
                good, labels[name] = good & readable, Label(values, block.present(name))
        if not good.all():
            self._stored = None  # other findings report these rows
            return
        rows = LabelRows(
            numbers.astype(np.int64, copy=False),
            block.pointers[Level.ATOM] - block.pointers[Level.ATOM][0],
            buckets_of(ids),
            np.diff(block.pointers[Level.EDGE]),
            labels,
        )
        counted = block.numbers < self._stored.counts.samples
        self._sums.add(rows.take(np.flatnonzero(counted & block.active)))

    def report(self, samples: int, found: SampleFindings, add: AddFinding) -> None:
        """Report sums that are damaged or differ from those of the samples."""
        if self._torn:
            message = "is damaged or incomplete, and is ignored"
            add(Finding("sums", Severity.WARNING, SUMS, message, DISCARD))
        stored, store = self._stored, self._store
        damaged = len(found.of("unreadable", "missing-chunk", "ids", "ids-lacking", "edges"))
        if stored is None or damaged or stored.counts.samples > samples:
            return
        rows = stored.counts.samples
        ends = (store.arrays[path].value(rows) for path in (ATOMS_PTR, EDGES_PTR))
        active = int(self._sums.total("samples"))
        valid = stored.belongs(store.attributes, RowCounts.of(rows, *ends), active=active)
        if valid and not stored.sums.agrees(self._sums):
            message = (
                "the sums of statistics differ from those of the samples: another tool or damage "
                "changed values in place"
            )
            add(Finding("sums", Severity.WARNING, SUMS, message, DISCARD))


def _has_sums(store: CheckedStore) -> bool:
    try:
        return find_array(store.group, SUMS) is not None
    except StoreFormatError:
        return True
