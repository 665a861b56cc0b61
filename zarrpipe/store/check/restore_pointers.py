"""Broken pointers worked out again from the rest of the store, where that proves them.

An entry of the pointers to atoms is where a structure ends that has the stored id: 64 bits, so that
a wrong entry does not pass. An entry of the pointers to edges is where the atoms of another sample
begin in the neighbour list.
"""

from collections.abc import Callable, Iterator

import numpy as np

from zarrpipe.data.csr import AnyArray, Int64Array
from zarrpipe.data.fields import COMMIT_ORDER, LEVELS, SEGMENTED
from zarrpipe.data.ids import structure_ids, zero_missing
from zarrpipe.store.check.checked_store import POINTERS, CheckedStore
from zarrpipe.store.check.pointers import CheckedCounts
from zarrpipe.store.check.report import some
from zarrpipe.store.check.rows import runs
from zarrpipe.store.format.layout import ATOMS_PTR, EDGES_PTR, IDS, present_path

_MOST_ATOMS, _MOST_EDGES = 1 << 20, 1 << 22
_MOST_TRIALS = 4_096
Entries = dict[int, int]


def restored_atoms(store: CheckedStore, counts: CheckedCounts) -> Entries:
    """Broken entries of the pointers to atoms, by position, that the ids prove."""
    found: Entries = {}
    if not {"positions", "atomic_numbers"} <= store.paths.keys() or IDS not in store.arrays:
        return found
    for first, last, start, stop in gaps(store, counts, ATOMS_PTR):
        if stop - start > _MOST_ATOMS:
            continue
        final = min(last, counts.samples - 1)
        ends = _ends(store, first - 1, final, start, stop)
        if ends is not None and (last == counts.samples or ends[-1] == stop):
            found |= dict(zip(range(first, last + 1), ends, strict=False))
    if len(counts.broken[ATOMS_PTR]) and counts.broken[ATOMS_PTR][0] == 0:
        found[0] = 0
    return found


def restored_edges(store: CheckedStore, counts: CheckedCounts, atoms: Entries) -> Entries:
    """Broken entries of the pointers to edges, by position, that the neighbour list proves.

    `atoms` are the entries of the pointers to atoms that were worked out.
    """
    found: Entries = {}
    if "neighbor_list" not in store.paths:
        return found
    for first, last, start, stop in gaps(store, counts, EDGES_PTR):
        if stop - start > _MOST_EDGES:
            continue
        bounds = store.arrays[ATOMS_PTR].read(first - 1, min(last + 2, counts.samples + 1))[0]
        for position, value in atoms.items():
            if first - 1 <= position < first - 1 + len(bounds):
                bounds[position - first + 1] = value
        values, good = store.arrays[store.paths["neighbor_list"]].read(start, stop)
        owners = np.searchsorted(bounds, values, "right") - 1
        theirs = owners[:, 0]
        ascending = (np.diff(theirs) >= 0).all() and (owners == theirs[:, None]).all()
        inside = not len(theirs) or (theirs[0] >= 0 and values.max() < bounds[-1])
        if good.all() and ascending and inside and (np.diff(bounds) > 0).all():
            ends = start + np.searchsorted(theirs, np.arange(last - first + 1), "right")
            found |= dict(zip(range(first, last + 1), ends.tolist(), strict=True))
    if len(counts.broken[EDGES_PTR]) and counts.broken[EDGES_PTR][0] == 0:
        found[0] = 0
    return found


def gaps(
    store: CheckedStore, counts: CheckedCounts, path: str
) -> Iterator[tuple[int, int, int, int]]:
    """Runs of broken entries: first, last, and the sound values before and behind them.

    Behind the last entry of all, that is the number of rows there are.
    """
    broken = np.zeros(counts.samples + 1, dtype=bool)
    broken[counts.broken[path]] = True
    pointers = store.arrays[path]
    broken[0] = False  # it is zero in any case
    for first, stop in runs(broken):
        if stop > len(pointers):
            continue
        before = 0 if first == 1 else pointers.value(first - 1)
        behind = pointers.value(stop) if stop <= counts.samples else counts.limits[path]
        yield first, stop - 1, before, behind


def _ends(store: CheckedStore, first: int, last: int, start: int, stop: int) -> list[int] | None:
    """Where each of the samples ends whose atoms are rows start to stop; None if not proven."""
    arrays, paths = store.arrays, store.paths
    positions, good = arrays[paths["positions"]].read(start, stop)
    numbers, whole = arrays[paths["atomic_numbers"]].read(start, stop)
    stored, there = arrays[IDS].read(first, last + 1)
    if not (good.all() and whole.all() and there.all()):
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
    """Where the structure ends that begins at a row and has an id."""
    for end in range(at + 1, min(at + _MOST_TRIALS, len(positions)) + 1):
        ptr: Int64Array = np.array([0, end - at])
        if structure_ids(positions[at:end], numbers[at:end], ptr, *box)[0] == wanted:
            return end
    return None


def _box(store: CheckedStore, name: str, sample: int) -> AnyArray | None:
    """Cell or pbc [1, ...] of a sample, zero where it lacks it."""
    if name not in store.paths:
        return None
    values = store.arrays[store.paths[name]].read(sample, sample + 1)[0]
    presence = store.arrays.get(present_path(name))
    has = None if presence is None else presence.read(sample, sample + 1)[0]
    return values if has is None else zero_missing(values, has)


def mend_pointers(
    store: CheckedStore, counts: CheckedCounts, log: Callable[[str], object], *, drop: bool
) -> tuple[int | None, Int64Array]:
    """Write the broken entries of pointers that can be proven, and with `drop` all of them.

    Returns
    -------
    samples : int or None
        How many there are then; None if entries are still broken.
    lost : array [K] int64
        Samples whose borders are not known, which are to be deleted.
    """
    atoms = restored_atoms(store, counts)
    proven = {ATOMS_PTR: atoms, EDGES_PTR: restored_edges(store, counts, atoms)}
    samples, lost = counts.samples, np.zeros(0, dtype=np.int64)
    whole = True
    for path in (SEGMENTED[level] for level in COMMIT_ORDER):
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
    """Entries that keep all other samples where they are, and the first for which there is none.

    Between atoms each sample gets at least one; the samples beside such an entry are to be deleted.
    """
    found: Entries = {}
    step = LEVELS[POINTERS[path]].least
    for first, last, before, behind in gaps(store, counts, path):
        if not np.isin(np.arange(first, last + 1), unproven).any():
            continue
        if last == counts.samples or before + step * (last - first + 2) > behind:
            return found, first
        found |= {entry: before + step * (entry - first + 1) for entry in range(first, last + 1)}
    lacking = unproven[unproven >= len(store.arrays[path])]
    return found, int(lacking[0]) if len(lacking) else counts.samples + 1


def _write_entries(store: CheckedStore, path: str, entries: Entries) -> None:
    store.arrays[path].discard_broken()
    writer = store.arrays[path].open_writer()
    values = np.zeros(max(entries) + 1, dtype=np.int64)
    known = np.zeros(len(values), dtype=bool)
    values[[*entries]], known[[*entries]] = [*entries.values()], True
    for begin, end in runs(known):  # whole chunks, some of which cannot be read
        writer.write(begin, values[begin:end])
    writer.close()
