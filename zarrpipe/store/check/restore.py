"""Broken pointers worked out again from what else the store has, where that proves them.

An entry of the pointers to atoms is where a structure ends that has the id that is stored for it:
64 bits, so that a wrong one does not pass. An entry of the pointers to edges is where the atoms of
another sample begin in the neighbour list.
"""

from collections.abc import Iterator

import numpy as np

from zarrpipe.data.csr import AnyArray, Int64Array
from zarrpipe.data.ids import structure_ids
from zarrpipe.store.check.checked_store import CheckedStore
from zarrpipe.store.check.counts import CheckedCounts
from zarrpipe.store.check.pointers import runs
from zarrpipe.store.format.layout import ATOMS_PTR, EDGES_PTR, IDS, present_path

_MOST_ATOMS, _MOST_EDGES = 1 << 20, 1 << 22
_MOST_TRIALS = 4_096
Entries = dict[int, int]


def restored_atoms(subject: CheckedStore, extents: CheckedCounts) -> Entries:
    """Broken entries of the pointers to atoms, by position, that the ids prove."""
    found: Entries = {}
    if not {"positions", "atomic_numbers"} <= subject.paths.keys() or IDS not in subject.arrays:
        return found
    for first, last, start, stop in gaps(subject, extents, ATOMS_PTR):
        if stop - start > _MOST_ATOMS:
            continue
        final = min(last, extents.samples - 1)
        ends = _ends(subject, first - 1, final, start, stop)
        if ends is not None and (last == extents.samples or ends[-1] == stop):
            found |= dict(zip(range(first, last + 1), ends, strict=False))
    if len(extents.broken[ATOMS_PTR]) and extents.broken[ATOMS_PTR][0] == 0:
        found[0] = 0
    return found


def restored_edges(subject: CheckedStore, extents: CheckedCounts, atoms: Entries) -> Entries:
    """Broken entries of the pointers to edges, by position, that the neighbour list proves.

    Parameters
    ----------
    subject, extents
        The store.
    atoms
        Entries of the pointers to atoms that were worked out.
    """
    found: Entries = {}
    if "neighbor_list" not in subject.paths:
        return found
    for first, last, start, stop in gaps(subject, extents, EDGES_PTR):
        if stop - start > _MOST_EDGES:
            continue
        bounds = subject.arrays[ATOMS_PTR].read(first - 1, min(last + 2, extents.samples + 1))[0]
        for position, value in atoms.items():
            if first - 1 <= position < first - 1 + len(bounds):
                bounds[position - first + 1] = value
        values, good = subject.arrays[subject.paths["neighbor_list"]].read(start, stop)
        owners = np.searchsorted(bounds, values, "right") - 1
        theirs = owners[:, 0]
        ascending = (np.diff(theirs) >= 0).all() and (owners == theirs[:, None]).all()
        inside = not len(theirs) or (theirs[0] >= 0 and values.max() < bounds[-1])
        if good.all() and ascending and inside and (np.diff(bounds) > 0).all():
            ends = start + np.searchsorted(theirs, np.arange(last - first + 1), "right")
            found |= dict(zip(range(first, last + 1), ends.tolist(), strict=True))
    if len(extents.broken[EDGES_PTR]) and extents.broken[EDGES_PTR][0] == 0:
        found[0] = 0
    return found


def gaps(
    subject: CheckedStore, extents: CheckedCounts, path: str
) -> Iterator[tuple[int, int, int, int]]:
    """Runs of broken entries: first, last, and the sound values before and behind them.

    Behind the last entry of all, that is the number of rows there are.
    """
    broken = np.zeros(extents.samples + 1, dtype=bool)
    broken[extents.broken[path]] = True
    pointers = subject.arrays[path]
    broken[0] = False  # it is zero in any case
    for first, stop in runs(broken):
        if stop > len(pointers):
            continue
        before = 0 if first == 1 else int(pointers.read(first - 1, first)[0][0])
        behind = extents.limits[path]
        if stop <= extents.samples:
            behind = int(pointers.read(stop, stop + 1)[0][0])
        yield first, stop - 1, before, behind


def _ends(subject: CheckedStore, first: int, last: int, start: int, stop: int) -> list[int] | None:
    """Where each of the samples ends whose atoms are rows start to stop; None if not proven."""
    arrays, paths = subject.arrays, subject.paths
    positions, good = arrays[paths["positions"]].read(start, stop)
    numbers, whole = arrays[paths["atomic_numbers"]].read(start, stop)
    stored, there = arrays[IDS].read(first, last + 1)
    if not (good.all() and whole.all() and there.all()):
        return None
    ends, at = [], 0
    for index, wanted in enumerate(stored):
        box = [_box(subject, name, first + index) for name in ("cell", "pbc")]
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


def _box(subject: CheckedStore, name: str, sample: int) -> AnyArray | None:
    """Cell or pbc [1, ...] of a sample, zero where it lacks it."""
    if name not in subject.paths:
        return None
    values: AnyArray = subject.arrays[subject.paths[name]].read(sample, sample + 1)[0].copy()
    presence = subject.arrays.get(present_path(name))
    if presence is not None and not presence.read(sample, sample + 1)[0][0]:
        values[:] = 0
    return values
