"""Repair a store: clear uncommitted rows, restore broken pointers, rewrite metadata.

A kill leaves each step done or undone, and the next repair does the rest. Only with `drop` are
committed samples deleted.

Broken pointers are restored where other arrays prove them. An entry of the pointers to atoms is
where a structure with the stored 64-bit id ends. An entry of the pointers to edges is where the
atoms of the next sample begin in the neighbour list.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from zarrpipe.data.csr import AnyArray, Int64Array
from zarrpipe.data.ids import structure_ids, zero_missing
from zarrpipe.store.backend import files
from zarrpipe.store.backend.location import StoreLock
from zarrpipe.store.backend.swap import remove_leftovers
from zarrpipe.store.check.check_samples import GIVEN_UP, SampleFindings, compute_ids
from zarrpipe.store.check.check_statistics import DISCARD
from zarrpipe.store.check.checked_store import CheckedStore, sample_blocks
from zarrpipe.store.check.damaged_rows import CheckedRows, runs
from zarrpipe.store.check.nvalchemi_edges import RELATIVE, EdgeShifts, fix_relative_edges
from zarrpipe.store.check.pointers import UNMASK, CheckedCounts
from zarrpipe.store.check.report import Report, Severity, some
from zarrpipe.store.check.stray_files import SWEEP, leftovers
from zarrpipe.store.format.config import ZarrWriteConfig
from zarrpipe.store.format.layout import ATOMS_PTR, EDGES_PTR, IDS, SAMPLES_MASK, present_path
from zarrpipe.store.rewrite.delete_defragment import delete_samples
from zarrpipe.store.statistics.stored_sums import remove_sums
from zarrpipe.store.write.open_for_writing import unfinished_files
from zarrpipe.store.write.store_writer import StoreWriter

Log = Callable[[str], object]
"""Called with a description of each step when it is done."""

Entries = dict[int, int]
"""Values of pointers by position."""

_CAPACITY = 1_000_000
_MOST_ATOMS, _MOST_EDGES = 1 << 20, 1 << 22
_MOST_TRIALS = 4_096
_REPORTED = (ATOMS_PTR, EDGES_PTR, IDS)
_NO_REPAIR = {
    *("attributes", "metadata", "missing", "level", "dtype", "unit"),
    *("length", "mask-lost", "presence"),
}


@dataclass(frozen=True)
class Examination:
    """The report of a check, and its results for a repair.

    `counts` and `samples` are None if pointers are missing, `shifts` if edges need none. A `live`
    store seems to be written meanwhile.
    """

    report: Report
    store: CheckedStore | None = None
    counts: CheckedCounts | None = None
    samples: SampleFindings | None = None
    shifts: EdgeShifts | None = None
    live: bool = False


def repair_store(found: Examination, lock: StoreLock | None, log: Log, *, drop: bool) -> None:
    """Carry out the plan of an examination, and release the lock under which it was made.

    Raises StoreFormatError before any change if there is a link inside the store.
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
            _write_full_mask(store, found.counts.samples, log)
            blocking = []
        if blocking:
            log(f"left all else as it is, since these cannot be repaired: {', '.join(blocking)}")
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
        if rows.broken
        and path.startswith(("meta/", "present/"))
        and path not in (*store.pointers, IDS)
    ]


def _sweep(store: CheckedStore, log: Log) -> None:
    """Remove leftovers of killed writers and repairs."""
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
    lock: StoreLock | None,
    log: Log,
    *,
    drop: bool,
) -> None:
    """Repair pointers, masks, shapes and numbers of a store that zarrpipe wrote."""
    remove_sums(store.group)  # the rows that they sum may change
    samples, lost = _restore_pointers(store, counts, log, drop=drop)
    if samples is None or (store.attributes.num_samples > samples and not drop):
        log("left all else as it is, since the number of samples is unknown")
        return
    if len(without := found.of("ids-lacking")):
        _write_ids(store, counts, without, log)
    if drop:
        lost = np.union1d(lost, found.of(*GIVEN_UP))
        for path in store.paths.values():
            _fill_broken(store.arrays[path], log)
        if store.attributes.num_samples > samples:
            store.group.update_attributes({**store.group.attrs.asdict(), "num_samples": samples})
            log(f"wrote num_samples, {samples:,}")
    writer = StoreWriter(store.root, ZarrWriteConfig(), _CAPACITY, lock, damaged=True)
    try:
        lost = lost[lost < writer.counts.samples]
        active = writer.array(SAMPLES_MASK).read(0, writer.counts.samples)
        if len(lost := lost[active[lost]]):
            delete_samples(writer, lost)
            log(f"deleted {some(lost, 'sample')}")
        unlike = np.union1d(found.of("row-masks"), lost)
        if (unlike < writer.counts.samples).any():
            writer.mask_rows()
            log("wrote atoms_mask and edges_mask from samples_mask")
        writer.close()
        log(f"set shapes, num_samples and deleted to those of {writer.counts.samples:,} samples")
    finally:
        writer.abandon()


def _fill_broken(rows: CheckedRows, log: Log) -> None:
    """Fill lost and broken chunks of an array, so that its other rows can be read."""
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
        array = rows.array.with_config({"write_empty_chunks": True})  # readers miss absent chunks
        for index in rows.broken:
            array[index * unit : min((index + 1) * unit, len(rows))] = array.fill_value
    log(f"filled {some(rows.broken, 'chunk')} of {rows.path}")


def _write_ids(store: CheckedStore, counts: CheckedCounts, samples: Int64Array, log: Log) -> None:
    """Compute and write the missing ids of samples."""
    store.arrays[IDS].discard_broken()
    writer = store.arrays[IDS].open_writer()
    for block in sample_blocks(store, counts.broken, counts.limits):
        here = np.isin(block.numbers, samples)
        ids = compute_ids(block) if here.any() else np.zeros(0)
        for begin, end in runs(here):
            writer.write(block.first + begin, ids[begin:end])
    writer.close()
    log(f"computed the ids of {some(samples, 'sample')}")


def _write_full_mask(store: CheckedStore, samples: int, log: Log) -> None:
    """Write a mask without deleted samples."""
    writer = store.arrays[SAMPLES_MASK].open_writer()
    writer.write(0, np.ones(samples, dtype=bool))
    writer.close()
    log(UNMASK.replace("rewrite", "rewrote"))


def _restored_atoms(store: CheckedStore, counts: CheckedCounts) -> Entries:
    """Broken pointers to atoms that the ids prove."""
    found: Entries = {}
    if not {"positions", "atomic_numbers"} <= store.paths.keys() or IDS not in store.arrays:
        return found
    for first, last, start, stop in _gaps(store, counts, ATOMS_PTR):
        if stop - start > _MOST_ATOMS:
            continue
        final = min(last, counts.samples - 1)
        ends = _ends(store, first - 1, final, start, stop)
        if ends is not None and (last == counts.samples or ends[-1] == stop):
            found |= dict(zip(range(first, last + 1), ends, strict=False))
    if len(counts.broken[ATOMS_PTR]) and counts.broken[ATOMS_PTR][0] == 0:
        found[0] = 0
    return found


def _restored_edges(store: CheckedStore, counts: CheckedCounts, atoms: Entries) -> Entries:
    """Broken pointers to edges that the neighbour list proves, given restored pointers to atoms."""
    found: Entries = {}
    if "neighbor_list" not in store.paths:
        return found
    for first, last, start, stop in _gaps(store, counts, EDGES_PTR):
        if stop - start > _MOST_EDGES:
            continue
        bounds = store.arrays[ATOMS_PTR].read(first - 1, min(last + 2, counts.samples + 1))[0]
        for position, value in atoms.items():
            if first - 1 <= position < first - 1 + len(bounds):
                bounds[position - first + 1] = value
        values, good = store.arrays[store.paths["neighbor_list"]].read(start, stop)
        owners = np.searchsorted(bounds, values, "right") - 1
        owner = owners[:, 0]
        ascending = (np.diff(owner) >= 0).all() and (owners == owner[:, None]).all()
        inside = not len(owner) or (owner[0] >= 0 and values.max() < bounds[-1])
        if good.all() and ascending and inside and (np.diff(bounds) > 0).all():
            ends = start + np.searchsorted(owner, np.arange(last - first + 1), "right")
            found |= dict(zip(range(first, last + 1), ends.tolist(), strict=True))
    if len(counts.broken[EDGES_PTR]) and counts.broken[EDGES_PTR][0] == 0:
        found[0] = 0
    return found


def _gaps(
    store: CheckedStore, counts: CheckedCounts, path: str
) -> Iterator[tuple[int, int, int, int]]:
    """Runs of broken entries: first, last, and the sound values before and after them.

    After the last entry of the array, this value is the number of rows.
    """
    broken = np.zeros(counts.samples + 1, dtype=bool)
    broken[counts.broken[path]] = True
    pointers = store.arrays[path]
    broken[0] = False  # it is zero in any case
    for first, stop in runs(broken):
        if stop > len(pointers):
            continue
        before = 0 if first == 1 else pointers.value(first - 1)
        after = pointers.value(stop) if stop <= counts.samples else counts.limits[path]
        yield first, stop - 1, before, after


def _ends(store: CheckedStore, first: int, last: int, start: int, stop: int) -> list[int] | None:
    """End of each sample that has atoms in rows `start` to `stop`; None if not proven."""
    arrays, paths = store.arrays, store.paths
    positions, has_positions = arrays[paths["positions"]].read(start, stop)
    numbers, has_numbers = arrays[paths["atomic_numbers"]].read(start, stop)
    stored, has_ids = arrays[IDS].read(first, last + 1)
    if not (has_positions.all() and has_numbers.all() and has_ids.all()):
        return None
    ends, at = [], 0
    for index, wanted in enumerate(stored):
        box = [_box(store, name, first + index) for name in ("cell", "pbc")]
        end = _end(positions, numbers, at, wanted, box)
        if end is None:
            return None
        ends.append(start + end)
        at = end
    return ends


def _end(
    positions: AnyArray, numbers: AnyArray, at: int, wanted: int, box: list[AnyArray | None]
) -> int | None:
    """End of the structure that begins at row `at` and has the id `wanted`."""
    for end in range(at + 1, min(at + _MOST_TRIALS, len(positions)) + 1):
        ptr: Int64Array = np.array([0, end - at])
        if structure_ids(positions[at:end], numbers[at:end], ptr, *box)[0] == wanted:
            return end
    return None


def _box(store: CheckedStore, name: str, sample: int) -> AnyArray | None:
    """Cell or pbc [1, ...] of a sample, zero if the sample has none."""
    if name not in store.paths:
        return None
    values = store.arrays[store.paths[name]].read(sample, sample + 1)[0]
    presence = store.arrays.get(present_path(name))
    has = None if presence is None else presence.read(sample, sample + 1)[0]
    return values if has is None else zero_missing(values, has)


def _restore_pointers(
    store: CheckedStore, counts: CheckedCounts, log: Log, *, drop: bool
) -> tuple[int | None, Int64Array]:
    """Write the broken pointers that are proven, and with `drop` all of them.

    Returns the number of samples, None if entries are still broken, and the samples [K] to delete
    because their borders are unknown.
    """
    atoms = _restored_atoms(store, counts)
    proven = {ATOMS_PTR: atoms, EDGES_PTR: _restored_edges(store, counts, atoms)}
    samples, lost = counts.samples, np.zeros(0, dtype=np.int64)
    whole = True
    for path in reversed(store.pointers):
        entries: Entries = proven.get(path, {})
        unproven = np.setdiff1d(counts.broken[path], [*entries])
        if drop and len(unproven):
            invented, first = _invented(store, counts, path, unproven)
            samples = min(samples, first - 1)
            touched = [s for entry in invented for s in (entry - 1, entry)]
            lost = np.union1d(lost, np.array(touched, dtype=np.int64))
            entries = invented | entries
        whole &= drop or not len(unproven)
        if entries:
            _write_entries(store, path, entries)
            log(f"wrote {some(sorted(entries), 'entry', 'entries')} of {path}")
    if samples < counts.samples:
        writer = store.arrays[ATOMS_PTR].open_writer()
        writer.clear_from(samples + 1)
        writer.close()
        log(f"ended the store after {samples:,} of {counts.samples:,} samples")
    return samples if whole else None, lost[lost < samples]


def _invented(
    store: CheckedStore, counts: CheckedCounts, path: str, unproven: Int64Array
) -> tuple[Entries, int]:
    """Entries that leave all sound samples in place, and the first position without such an entry.

    Each sample gets at least one atom. The samples next to such an entry have to be deleted.
    """
    found: Entries = {}
    step = store.pointers[path].least
    for first, last, before, after in _gaps(store, counts, path):
        if not np.isin(np.arange(first, last + 1), unproven).any():
            continue
        if last == counts.samples or before + step * (last - first + 2) > after:
            return found, first
        found |= {entry: before + step * (entry - first + 1) for entry in range(first, last + 1)}
    missing = unproven[unproven >= len(store.arrays[path])]
    return found, int(missing[0]) if len(missing) else counts.samples + 1


def _write_entries(store: CheckedStore, path: str, entries: Entries) -> None:
    store.arrays[path].discard_broken()
    writer = store.arrays[path].open_writer()
    values = np.zeros(max(entries) + 1, dtype=np.int64)
    known = np.zeros(len(values), dtype=bool)
    values[[*entries]], known[[*entries]] = [*entries.values()], True
    for begin, end in runs(known):
        writer.write(begin, values[begin:end])
    writer.close()
