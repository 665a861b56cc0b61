"""What can be wrong with samples whose rows can be found: their values, edges, ids and masks."""

from collections import defaultdict
from dataclasses import dataclass, field

import numpy as np

from zarrpipe.data.csr import AnyArray, Int64Array
from zarrpipe.data.fields import Level
from zarrpipe.data.ids import structure_ids
from zarrpipe.store.check.blocks import SampleBlock, any_of
from zarrpipe.store.check.report import Finding, Severity, some
from zarrpipe.store.check.rows import BoolArray, Tell
from zarrpipe.store.format.layout import (
    ATOMS_MASK,
    EDGES_MASK,
    EDGES_PTR,
    IDS,
)

_GREATEST_NUMBER = 118
_MOST_IDS = 1 << 24
MASKS = "write atoms_mask and edges_mask anew from samples_mask"
DELETE = "delete these samples"
IDS_ANEW = "compute the ids that are lacking"
_RESTORE = "put the chunk back from a copy of the store, or give them up"


@dataclass(frozen=True)
class FindingText:
    """How a kind of finding is told."""

    severity: Severity
    text: str
    repair: str = ""
    drop: str = ""


_SAID = {
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
        "copied the array left out what is all fill, or they were lost, which nothing tells",
    ),
    "ids": FindingText(
        Severity.ERROR,
        "{} with another structure than when the id was stored: bytes of atomic_numbers, "
        f"positions, cell, pbc or of the id have changed; {_RESTORE}",
        drop=DELETE,
    ),
    "ids-lacking": FindingText(
        Severity.ERROR,
        "{} without an id, which splits go by: another library appended them, or a chunk of ids "
        "is lost",
        IDS_ANEW,
    ),
    "edges": FindingText(
        Severity.ERROR,
        f"{{}} with edges to atoms outside the sample; {_RESTORE}",
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
        MASKS,
    ),
}


@dataclass
class SampleFindings:
    """What the pieces so far have shown.

    Parameters
    ----------
    samples
        Numbers of the samples that are in a finding, by its kind and place.
    present
        Samples that have each field, the deleted left out.
    deleted
        Samples whose mask is False.
    ids
        Ids of the first samples.
    """

    samples: dict[tuple[str, str], list[Int64Array]] = field(
        default_factory=lambda: defaultdict(list)
    )
    present: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    deleted: int = 0
    ids: list[AnyArray] = field(default_factory=list)

    def look(self, piece: SampleBlock) -> None:
        """Take a piece in."""
        subject, active = piece.subject, piece.active
        self.deleted += len(piece) - int(np.count_nonzero(active))
        for name, path in subject.paths.items():
            has = piece.present(name) & active
            self.present[name] += int(np.count_nonzero(has))
            values, good = piece.rows(path)
            self._add("unreadable", path, piece, ~good & active)
            if values.dtype.kind == "f":
                odd = _any_in_row(~np.isfinite(values))
                of_samples = any_of(odd, piece.ptr(subject.levels[path]))
                self._add("not-finite", path, piece, of_samples & has & good)
            self._look_for_chunks(piece, path, has)
        self._look_for_chunks(piece, EDGES_PTR, np.ones(len(piece), dtype=bool))
        self._add("atomic-numbers", "core/atomic_numbers", piece, odd_numbers(piece) & active)
        self._add("edges", subject.paths.get("neighbor_list", ""), piece, outside(piece) & active)
        self._add("ids", IDS, piece, changed(piece) & active)
        self._add("ids-lacking", IDS, piece, lacking_id(piece))
        for path, level in ((ATOMS_MASK, Level.ATOM), (EDGES_MASK, Level.EDGE)):
            self._add("row-masks", path, piece, unlike_mask(piece, path, level))
        if IDS in subject.arrays and sum(map(len, self.ids)) < _MOST_IDS:
            self.ids.append(piece.rows(IDS)[0][active])

    def _look_for_chunks(self, piece: SampleBlock, path: str, has: BoolArray) -> None:
        """Note samples with rows in chunks that are not there."""
        if piece.subject.ours:
            kind = "missing-chunk" if piece.subject.arrays[path].dense else "empty-chunk"
            self._add(kind, path, piece, piece.missing(path) & has)

    def at(self, kind: str, place: str) -> Int64Array:
        """Numbers of the samples in a finding, ascending."""
        found = self.samples.get((kind, place))
        return np.concatenate(found) if found else np.zeros(0, dtype=np.int64)

    def of(self, *kinds: str) -> Int64Array:
        """Numbers of all samples in findings of some kinds, ascending."""
        found = [part for (one, _), parts in self.samples.items() if one in kinds for part in parts]
        return np.unique(np.concatenate(found)) if found else np.zeros(0, dtype=np.int64)

    def conclude(self, tell: Tell, *, ours: bool) -> None:
        """Tell what was found; only samples of stores that zarrpipe wrote can be deleted."""
        for (kind, place), parts in self.samples.items():
            if kind not in _SAID:
                continue
            said = _SAID[kind]
            message = said.text.format(some(np.concatenate(parts), "sample"))
            ours_alone = said.drop if ours else ""
            tell(Finding(kind, said.severity, place, message, said.repair, ours_alone))
        self._tell_duplicates(tell)

    def _add(self, kind: str, place: str, piece: SampleBlock, which: BoolArray) -> None:
        if which.any():
            self.samples[kind, place].append(piece.first + np.flatnonzero(which))

    def _tell_duplicates(self, tell: Tell) -> None:
        ids = np.concatenate(self.ids) if self.ids else np.zeros(0)
        more = len(ids) - len(np.unique(ids))
        if more:
            among = "" if len(ids) < _MOST_IDS else f" among the first {len(ids):,}"
            message = f"{more:,} samples{among} have a structure that an earlier one has too"
            tell(Finding("duplicates", Severity.NOTE, IDS, message))


def outside(piece: SampleBlock) -> BoolArray:
    """Which samples [n] have an edge to an atom that is not theirs."""
    path = piece.subject.paths.get("neighbor_list")
    if path is None:
        return np.zeros(len(piece), dtype=bool)
    values, good = piece.rows(path)
    counts = np.diff(piece.edges)
    low, high = (np.repeat(ends, counts)[:, None] for ends in (piece.atoms[:-1], piece.atoms[1:]))
    stray = _any_in_row((values < low) | (values >= high))
    return any_of(stray, piece.edges) & piece.present("neighbor_list") & good


def _any_in_row(flags: BoolArray) -> BoolArray:
    row: BoolArray = np.asarray(flags.any(axis=tuple(range(1, flags.ndim))))
    return row


def odd_numbers(piece: SampleBlock) -> BoolArray:
    """Which samples [n] have an atom of no element."""
    path = piece.subject.paths.get("atomic_numbers")
    if path is None:
        return np.zeros(len(piece), dtype=bool)
    values, good = piece.rows(path)
    odd: BoolArray = (values < 1) | (values > _GREATEST_NUMBER)
    return any_of(odd, piece.atoms) & good


def unlike_mask(piece: SampleBlock, path: str, level: Level) -> BoolArray:
    """Which samples [n] have rows that are masked otherwise than the sample."""
    if path not in piece.subject.arrays:
        return np.zeros(len(piece), dtype=bool)
    values, good = piece.rows(path)
    ptr = piece.ptr(level)
    unlike: BoolArray = values != np.repeat(piece.active, np.diff(ptr))
    return any_of(unlike, ptr) & good


def lacking_id(piece: SampleBlock) -> BoolArray:
    """Which samples [n] have no id: none is zero."""
    if not piece.subject.ours or IDS not in piece.subject.arrays:
        return np.zeros(len(piece), dtype=bool)
    values, _ = piece.rows(IDS)  # what cannot be read is zero
    rows = np.arange(piece.first, piece.first + len(piece))
    none: BoolArray = (rows >= len(piece.subject.arrays[IDS])) | (values == 0)
    return none


def ids_of(piece: SampleBlock) -> AnyArray:
    """Ids [n] uint64 of the structures of samples."""
    return _ids(piece, _box(piece, "cell"), _box(piece, "pbc"))


def changed(piece: SampleBlock) -> BoolArray:
    """Which samples [n] have another structure than that of which the id was stored.

    The cell or pbc may have been added later, when the id was there already.
    """
    paths, arrays = piece.subject.paths, piece.subject.arrays
    none = np.zeros(len(piece), dtype=bool)
    structure = {"positions", "atomic_numbers"}
    if not (piece.subject.ours and IDS in arrays and structure <= paths.keys()):
        return none
    stored, good = piece.rows(IDS)
    differs: BoolArray
    box: dict[str, AnyArray | None] = {}
    for name in ("positions", "atomic_numbers", "cell", "pbc"):
        if name in paths:
            good = good & piece.rows(paths[name])[1]
        elif name in piece.subject.attributes.levels:  # its array is damaged, so no id can be told
            return none
    for name in ("cell", "pbc"):
        box[name] = _box(piece, name)
    good = good & (stored != 0)
    differs = good & (_ids(piece, box["cell"], box["pbc"]) != stored)
    for cell, pbc in ((None, box["pbc"]), (box["cell"], None), (None, None)):
        if differs.any():
            differs &= _ids(piece, cell, pbc) != stored
    return differs


def _ids(piece: SampleBlock, cell: AnyArray | None, pbc: AnyArray | None) -> AnyArray:
    paths = piece.subject.paths
    positions, numbers = (piece.rows(paths[name])[0] for name in ("positions", "atomic_numbers"))
    return structure_ids(positions, numbers, piece.atoms - piece.atoms[0], cell, pbc)


def _box(piece: SampleBlock, name: str) -> AnyArray | None:
    """Rows of cell or pbc, zero where a sample lacks it."""
    if name not in piece.subject.paths:
        return None
    values = piece.rows(piece.subject.paths[name])[0].copy()
    values[~piece.present(name)] = 0
    return values
