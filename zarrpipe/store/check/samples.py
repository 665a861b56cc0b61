"""What can be wrong with samples whose pointers are sound: values, edges, ids and masks."""

from collections import defaultdict
from dataclasses import dataclass, field

import numpy as np

from zarrpipe.data.csr import AnyArray, Int64Array
from zarrpipe.data.fields import Level
from zarrpipe.data.ids import structure_ids, zero_missing
from zarrpipe.store.check.checked_store import MASKS, POINTERS, SampleBlock, any_of
from zarrpipe.store.check.report import Finding, Severity, some
from zarrpipe.store.check.rows import AddFinding, BoolArray
from zarrpipe.store.format.layout import ATOMS_PTR, IDS

_GREATEST_NUMBER = 118
_MOST_IDS = 1 << 24
_STRUCTURE = ("positions", "atomic_numbers", "cell", "pbc")
WRITE_MASKS = "write atoms_mask and edges_mask anew from samples_mask"
DELETE = "delete these samples"
COMPUTE_IDS = "compute the ids that are lacking"
_PUT_BACK = "put the chunk back from a copy of the store, or give them up"


@dataclass(frozen=True)
class FindingText:
    """Severity, message and repairs of a kind of finding about samples."""

    severity: Severity
    text: str
    repair: str = ""
    drop: str = ""


_TEXTS = {
    "missing-chunk": FindingText(
        Severity.ERROR,
        "rows of {} stand in chunks that are not there, though the array leaves none out; put them "
        "back from a copy of the store (one made with Zarr needs write_empty_chunks=True), or give "
        "the samples up",
        drop=DELETE,
    ),
    "empty-chunk": FindingText(
        Severity.WARNING,
        "rows of {} read as the fill value, since their chunks are not there: whoever wrote or "
        "copied the array left out what is all fill, or they were lost, which cannot be known",
    ),
    "ids": FindingText(
        Severity.ERROR,
        "{} with another structure than when the id was stored: bytes of atomic_numbers, "
        f"positions, cell, pbc or of the id have changed; {_PUT_BACK}",
        drop=DELETE,
    ),
    "ids-lacking": FindingText(
        Severity.ERROR,
        "{} without an id, which splits go by: another library appended them, or a chunk of ids "
        "is lost",
        COMPUTE_IDS,
    ),
    "edges": FindingText(
        Severity.ERROR,
        f"{{}} with edges to atoms outside the sample; {_PUT_BACK}",
        drop=DELETE,
    ),
    "not-finite": FindingText(
        Severity.WARNING,
        "{} with NaN or infinity, not counting those that lack the field; leave them out of "
        "training, or delete them, if that is not meant",
    ),
    "atomic-numbers": FindingText(
        Severity.WARNING,
        f"{{}} with atomic numbers outside 1 to {_GREATEST_NUMBER}",
    ),
    "row-masks": FindingText(
        Severity.WARNING,
        "{} with rows that are not masked as meta/samples_mask has it, which is of interest to "
        "nvalchemi alone; a writer was killed while it deleted",
        WRITE_MASKS,
    ),
}


@dataclass
class SampleFindings:
    """Samples with something wrong, in the blocks so far.

    Parameters
    ----------
    samples
        Numbers of the samples, by kind of finding and path.
    present
        Samples that have each field, the deleted left out.
    deleted
        Samples whose mask is False.
    ids
        Ids of the first samples, to find duplicates.
    """

    samples: dict[tuple[str, str], list[Int64Array]] = field(
        default_factory=lambda: defaultdict(list)
    )
    present: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    deleted: int = 0
    ids: list[AnyArray] = field(default_factory=list)

    def check(self, block: SampleBlock) -> None:
        """Check the samples of a block."""
        store, active = block.store, block.active
        self.deleted += len(block) - int(np.count_nonzero(active))
        for name, path in store.paths.items():
            has = block.present(name) & active
            self.present[name] += int(np.count_nonzero(has))
            values, good = block.rows(path)
            self._add("unreadable", path, block, ~good & active)
            if values.dtype.kind == "f":
                infinite = any_of(_any_in_row(~np.isfinite(values)), block.ptr(store.levels[path]))
                self._add("not-finite", path, block, infinite & has & good)
            self._add_missing_chunks(block, path, has)
        for path in POINTERS.keys() - {ATOMS_PTR}:
            self._add_missing_chunks(block, path, ~block.none())
        self._add("atomic-numbers", "core/atomic_numbers", block, unknown_elements(block) & active)
        self._add("edges", store.paths.get("neighbor_list", ""), block, stray_edges(block) & active)
        self._add("ids", IDS, block, changed_structures(block) & active)
        self._add("ids-lacking", IDS, block, without_id(block))
        for path in MASKS:
            self._add("row-masks", path, block, unlike_mask(block, path))
        if IDS in store.arrays and sum(map(len, self.ids)) < _MOST_IDS:
            self.ids.append(block.rows(IDS)[0][active])

    def _add_missing_chunks(self, block: SampleBlock, path: str, has: BoolArray) -> None:
        if block.store.ours:
            kind = "missing-chunk" if block.store.arrays[path].dense else "empty-chunk"
            self._add(kind, path, block, block.missing(path) & has)

    def _add(self, kind: str, path: str, block: SampleBlock, which: BoolArray) -> None:
        if which.any():
            self.samples[kind, path].append(block.first + np.flatnonzero(which))

    def at(self, kind: str, path: str) -> Int64Array:
        """Numbers of the samples in a finding, ascending."""
        found = self.samples.get((kind, path))
        return np.concatenate(found) if found else np.zeros(0, dtype=np.int64)

    def of(self, *kinds: str) -> Int64Array:
        """Numbers of all samples in findings of some kinds, ascending."""
        found = [part for (one, _), parts in self.samples.items() if one in kinds for part in parts]
        return np.unique(np.concatenate(found)) if found else np.zeros(0, dtype=np.int64)

    def report(self, add: AddFinding, *, ours: bool) -> None:
        """Report what was found; only samples of stores that zarrpipe wrote can be deleted."""
        for (kind, path), parts in self.samples.items():
            if kind in _TEXTS:
                text = _TEXTS[kind]
                message = text.text.format(some(np.concatenate(parts), "sample"))
                drop = text.drop if ours else ""
                add(Finding(kind, text.severity, path, message, text.repair, drop))
        ids = np.concatenate(self.ids) if self.ids else np.zeros(0)
        more = len(ids) - len(np.unique(ids))
        if more:
            among = "" if len(ids) < _MOST_IDS else f" among the first {len(ids):,}"
            message = f"{more:,} samples{among} have a structure that an earlier one has too"
            add(Finding("duplicates", Severity.NOTE, IDS, message))


def _any_in_row(flags: BoolArray) -> BoolArray:
    row: BoolArray = np.asarray(flags.any(axis=tuple(range(1, flags.ndim))))
    return row


def stray_edges(block: SampleBlock) -> BoolArray:
    """Which samples [n] have an edge to an atom of another sample."""
    path = block.store.paths.get("neighbor_list")
    if path is None:
        return block.none()
    values, good = block.rows(path)
    atoms, edges = block.pointers[Level.ATOM], block.pointers[Level.EDGE]
    low, high = (np.repeat(ends, np.diff(edges))[:, None] for ends in (atoms[:-1], atoms[1:]))
    stray = _any_in_row((values < low) | (values >= high))
    return any_of(stray, edges) & block.present("neighbor_list") & good


def unknown_elements(block: SampleBlock) -> BoolArray:
    """Which samples [n] have an atom of no element."""
    path = block.store.paths.get("atomic_numbers")
    if path is None:
        return block.none()
    values, good = block.rows(path)
    unknown: BoolArray = (values < 1) | (values > _GREATEST_NUMBER)
    return any_of(unknown, block.pointers[Level.ATOM]) & good


def unlike_mask(block: SampleBlock, path: str) -> BoolArray:
    """Which samples [n] have atoms or edges that are not masked as the sample is."""
    if path not in block.store.arrays:
        return block.none()
    values, good = block.rows(path)
    ptr = block.pointers[MASKS[path]]
    unlike: BoolArray = values != np.repeat(block.active, np.diff(ptr))
    return any_of(unlike, ptr) & good


def without_id(block: SampleBlock) -> BoolArray:
    """Which samples [n] have no id: no id is zero, and what cannot be read is zero."""
    if not block.store.ours or IDS not in block.store.arrays:
        return block.none()
    values, _ = block.rows(IDS)
    rows = np.arange(block.first, block.first + len(block))
    none: BoolArray = (rows >= len(block.store.arrays[IDS])) | (values == 0)
    return none


def changed_structures(block: SampleBlock) -> BoolArray:
    """Which samples [n] have another structure than the one whose id was stored.

    A cell or pbc may have been added after the id was computed.
    """
    store = block.store
    known = {"positions", "atomic_numbers"} <= store.paths.keys() and IDS in store.arrays
    damaged = any(name in store.attributes.levels.keys() - store.paths for name in _STRUCTURE)
    if damaged or not (store.ours and known):
        return block.none()
    stored, good = block.rows(IDS)
    for name in _STRUCTURE:
        if name in store.paths:
            good = good & block.rows(store.paths[name])[1]
    differs: BoolArray = good & (stored != 0)
    for box in (("cell", "pbc"), ("pbc",), ("cell",), ()):
        if differs.any():
            differs &= ids_of(block, box) != stored
    return differs


def ids_of(block: SampleBlock, box: tuple[str, ...] = ("cell", "pbc")) -> AnyArray:
    """Ids [n] uint64 of the structures of samples, with the given fields of their box."""
    paths, atoms = block.store.paths, block.pointers[Level.ATOM]
    positions, numbers = (block.rows(paths[name])[0] for name in ("positions", "atomic_numbers"))
    rows = {
        name: zero_missing(block.rows(paths[name])[0], block.present(name))
        for name in box
        if name in paths
    }
    return structure_ids(positions, numbers, atoms - atoms[0], **rows)
