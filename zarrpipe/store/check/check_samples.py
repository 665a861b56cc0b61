"""Check samples whose pointers are sound: values, edges, ids and masks."""

from collections import defaultdict
from dataclasses import dataclass, field

import numpy as np

from zarrpipe.data.csr import AnyArray, Int64Array
from zarrpipe.data.ids import structure_ids, zero_missing
from zarrpipe.data.levels import Level
from zarrpipe.store.check.checked_store import (
    MASKS,
    SampleBlock,
    any_of,
)
from zarrpipe.store.check.damaged_rows import AddFinding, BoolArray
from zarrpipe.store.check.report import Finding, Severity, some
from zarrpipe.store.format.layout import ATOMS_PTR, IDS

_GREATEST_NUMBER = 118
_MOST_IDS = 1 << 24
_STRUCTURE = ("positions", "atomic_numbers", "cell", "pbc")
WRITE_MASKS = "rewrite atoms_mask and edges_mask from samples_mask"
DELETE = "delete these samples"
COMPUTE_IDS = "compute the missing ids"
STORE_FILL = "write chunks of fill values that another Zarr writer left out"
_PUT_BACK = "put the chunk back from a copy of the store, or delete the samples"


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
        "rows of {} are in missing chunks, though the array stores every chunk; put them back from "
        "a copy of the store (one made with Zarr needs write_empty_chunks=True), or delete the "
        "samples",
        drop=DELETE,
    ),
    "empty-chunk": FindingText(
        Severity.WARNING,
        "rows of {} read as the fill value, since their chunks are missing: the writer or a copy "
        "left out chunks of fill values, or the chunks were lost, which cannot be known",
    ),
    "fill-chunk": FindingText(
        Severity.NOTE,
        "rows of {} read as the fill value, since their chunks are missing: another Zarr writer "
        "has changed the number of rows since zarrpipe last did, and left them out",
        STORE_FILL,
    ),
    "ids": FindingText(
        Severity.ERROR,
        "{} with another structure than when the id was stored: bytes of atomic_numbers, "
        f"positions, cell, pbc or the id have changed; {_PUT_BACK}",
        drop=DELETE,
    ),
    "ids-lacking": FindingText(
        Severity.ERROR,
        "{} without an id, by which splits assign samples: a chunk of ids is lost, or a writer "
        "was killed while it completed what another library appended",
        COMPUTE_IDS,
    ),
    "appended": FindingText(
        Severity.NOTE,
        "{} were appended by another Zarr writer, which stores no ids: readers compute them, and "
        "the next writer of zarrpipe stores them",
        COMPUTE_IDS,
    ),
    "edges": FindingText(
        Severity.ERROR,
        f"{{}} with edges to atoms outside the sample; {_PUT_BACK}",
        drop=DELETE,
    ),
    "row-numbers": FindingText(
        Severity.ERROR,
        f"{{}} with row numbers outside the sample; {_PUT_BACK}",
        drop=DELETE,
    ),
    "codes": FindingText(
        Severity.ERROR,
        f"{{}} with codes that are no places in the categories of the field; {_PUT_BACK}",
        drop=DELETE,
    ),
    "pairs": FindingText(
        Severity.ERROR,
        "{} with another number of rows than one for each pair of rows of the two levels, or none; "
        f"{_PUT_BACK}",
        drop=DELETE,
    ),
    "not-finite": FindingText(
        Severity.WARNING,
        "{} with NaN or infinity among those that have the field; if that is not intended, leave "
        "them out of training or delete them",
    ),
    "atomic-numbers": FindingText(
        Severity.WARNING,
        f"{{}} with atomic numbers outside 1 to {_GREATEST_NUMBER}",
    ),
    "row-masks": FindingText(
        Severity.WARNING,
        "{} with rows whose masks differ from meta/samples_mask, which only nvalchemi reads; a "
        "writer was killed while it deleted samples",
        WRITE_MASKS,
    ),
}

GIVEN_UP = ("unreadable", *(kind for kind, text in _TEXTS.items() if text.drop == DELETE))
"""Kinds of findings whose samples a repair deletes where it may drop samples."""


@dataclass
class SampleFindings:
    """Samples with findings, in the blocks checked so far, by kind and path.

    `present` counts the samples that have each field and are not deleted; `ids` of the first
    samples serve to find duplicates.
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
        for path in store.pointers.keys() - {ATOMS_PTR}:
            self._add_missing_chunks(block, path, ~block.none())
        self._add("atomic-numbers", "core/atomic_numbers", block, unknown_elements(block) & active)
        for name, counted in store.index_of.items():
            kind = "edges" if name == "neighbor_list" else "row-numbers"
            self._add(kind, store.paths[name], block, stray_rows(block, name, counted) & active)
        for name, strings in store.attributes.categories.items():
            if name in store.paths:
                self._add("codes", store.paths[name], block, no_strings(block, name, len(strings)))
        for path, level in store.pointers.items():
            if level.parents:
                self._add("pairs", path, block, unlike_pairs(block, level))
        self._add("ids", IDS, block, changed_structures(block) & active)
        appended = appended_without_id(block)
        self._add("appended", IDS, block, appended)
        self._add("ids-lacking", IDS, block, without_id(block) & ~appended)
        for path in MASKS:
            self._add("row-masks", path, block, unlike_mask(block, path))
        if IDS in store.arrays and sum(map(len, self.ids)) < _MOST_IDS:
            self.ids.append(block.rows(IDS)[0][active])

    def _add_missing_chunks(self, block: SampleBlock, path: str, has: BoolArray) -> None:
        if block.store.ours:
            rows = block.store.arrays[path]
            kind = "fill-chunk" if rows.resized else "empty-chunk"
            kind = "missing-chunk" if rows.dense else kind
            self._add(kind, path, block, block.missing(path) & has)

    def _add(self, kind: str, path: str, block: SampleBlock, which: BoolArray) -> None:
        if which.any():
            self.samples[kind, path].append(block.first + np.flatnonzero(which))

    def at(self, kind: str, path: str) -> Int64Array:
        """Numbers of the samples with a finding, ascending."""
        found = self.samples.get((kind, path))
        return np.concatenate(found) if found else np.zeros(0, dtype=np.int64)

    def of(self, *kinds: str) -> Int64Array:
        """Numbers of the samples with findings of some kinds, ascending."""
        found = [part for (one, _), parts in self.samples.items() if one in kinds for part in parts]
        return np.unique(np.concatenate(found)) if found else np.zeros(0, dtype=np.int64)

    def report(self, add: AddFinding, *, ours: bool) -> None:
        """Report the findings; a repair deletes only samples of stores that zarrpipe wrote."""
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
            message = f"{more:,} samples{among} have the same structure as an earlier sample"
            add(Finding("duplicates", Severity.NOTE, IDS, message))


def _any_in_row(flags: BoolArray) -> BoolArray:
    row: BoolArray = np.asarray(flags.any(axis=tuple(range(1, flags.ndim))))
    return row


def stray_rows(block: SampleBlock, name: str, counted: Level) -> BoolArray:
    """Which samples [n] have a row number, as of an atom in an edge, outside the sample."""
    path = block.store.paths[name]
    values, good = block.rows(path)
    own, target = block.ptr(block.store.levels[path]), block.ptr(counted)
    shape = (-1, *(1,) * (values.ndim - 1))
    low, high = (np.repeat(ends, np.diff(own)).reshape(shape) for ends in (target[:-1], target[1:]))
    stray = _any_in_row((values < low) | (values >= high))
    return any_of(stray, own) & block.present(name) & good


def no_strings(block: SampleBlock, name: str, categories: int) -> BoolArray:
    """Which samples [n] have a code that is no place in the vocabulary of a field of strings."""
    values, good = block.rows(block.store.paths[name])
    strange: BoolArray = (values < 0) | (values >= categories)
    return strange & block.present(name) & block.active & good


def unlike_pairs(block: SampleBlock, level: Level) -> BoolArray:
    """Which samples [n] have rows of a product level other than all pairs or none."""
    rows, (left, right) = np.diff(block.ptr(level)), map(block.ptr, level.parents)
    unlike: BoolArray = (rows != np.diff(left) * np.diff(right)) & (rows != 0)
    return unlike


def unknown_elements(block: SampleBlock) -> BoolArray:
    """Which samples [n] have an atomic number of no element."""
    path = block.store.paths.get("atomic_numbers")
    if path is None:
        return block.none()
    values, good = block.rows(path)
    unknown: BoolArray = (values < 1) | (values > _GREATEST_NUMBER)
    return any_of(unknown, block.pointers[Level.ATOM]) & good


def unlike_mask(block: SampleBlock, path: str) -> BoolArray:
    """Which samples [n] have atoms or edges whose mask differs from that of the sample."""
    if path not in block.store.arrays:
        return block.none()
    values, good = block.rows(path)
    ptr = block.pointers[MASKS[path]]
    unlike: BoolArray = values != np.repeat(block.active, np.diff(ptr))
    return any_of(unlike, ptr) & good


def without_id(block: SampleBlock) -> BoolArray:
    """Which samples [n] have no id: the id is zero, as are ids that cannot be read."""
    if not block.store.ours or IDS not in block.store.arrays:
        return block.none()
    values, _ = block.rows(IDS)
    none: BoolArray = (block.numbers >= len(block.store.arrays[IDS])) | (values == 0)
    return none


def appended_without_id(block: SampleBlock) -> BoolArray:
    """Which samples [n] another writer appended, after the ids that zarrpipe stored."""
    ids = block.store.arrays.get(IDS)
    if ids is None or ids.resized or not block.store.ours:
        return block.none()
    appended: BoolArray = block.numbers >= len(ids)
    return appended


def changed_structures(block: SampleBlock) -> BoolArray:
    """Which samples [n] have a structure that differs from their stored id.

    The id may have been computed before the sample got a cell or pbc.
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
            differs &= compute_ids(block, box) != stored
    return differs


def compute_ids(block: SampleBlock, box: tuple[str, ...] = ("cell", "pbc")) -> AnyArray:
    """Compute the id [n] uint64 of each structure, with the given fields of its box."""
    paths, atoms = block.store.paths, block.pointers[Level.ATOM]
    positions, numbers = (block.rows(paths[name])[0] for name in ("positions", "atomic_numbers"))
    rows = {
        name: zero_missing(block.rows(paths[name])[0], block.present(name))
        for name in box
        if name in paths
    }
    return structure_ids(positions, numbers, atoms - atoms[0], **rows)
