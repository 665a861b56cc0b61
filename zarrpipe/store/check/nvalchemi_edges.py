"""Neighbour lists whose indices count from their batch, as nvalchemi 0.2 writes them.

Sample s of a batch that begins with sample b has ``raw = local + A[s] - A[b]``, where A are the
pointers to atoms and ``0 <= local < A[s + 1] - A[s]``. So ``A[b]`` lies in
``[A[s] - min(raw), A[s + 1] - 1 - max(raw)]``. Since batches are consecutive and b is the first
sample of its batch, these intervals often leave one batch for each sample, found in linear time.
"""

import uuid
from bisect import bisect_left
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from zarr.storage import LocalStore, MemoryStore

from zarrpipe.data.csr import AnyArray, Int64Array
from zarrpipe.data.levels import Level
from zarrpipe.errors import StoreFormatError
from zarrpipe.store.backend import files
from zarrpipe.store.backend.swap import swap_directories
from zarrpipe.store.check.checked_store import CheckedStore, SampleBlock
from zarrpipe.store.check.damaged_rows import BoolArray
from zarrpipe.store.check.report import Finding, Severity, some

RELATIVE = "shift the indices of each sample so that they count from the store"
_NONE = np.iinfo(np.int64).max
_BYTES = 1 << 24


@dataclass(frozen=True)
class EdgeShifts:
    """Shifts `by` [N] that make the indices of each sample count from the store.

    `unknown` [K] are the samples whose shift is unknown, `edges` [N+1] the pointers to edges.
    """

    by: Int64Array
    unknown: Int64Array
    edges: Int64Array


def find_edge_shifts(blocks: Iterable[SampleBlock], samples: int) -> EdgeShifts | None:
    """Find the shifts of all samples, in 40 bytes of memory each; None without all pointers."""
    atoms, edges = np.zeros((2, samples + 1), dtype=np.int64)
    least, greatest = np.full(samples, _NONE), np.full(samples, -1, dtype=np.int64)
    counted = 0
    for block in blocks:
        ends = slice(block.first, block.first + len(block) + 1)
        atoms[ends], edges[ends] = block.pointers[Level.ATOM], block.pointers[Level.EDGE]
        least[block.numbers], greatest[block.numbers] = _ranges(block)
        counted += len(block)
    if counted < samples:
        return None
    least[greatest < 0] = _NONE // 2  # no edges; differences do not overflow
    by, known = edge_shifts(atoms, least, greatest)
    return EdgeShifts(np.where(known, by, 0), np.flatnonzero(~known), edges)


def _ranges(block: SampleBlock) -> tuple[Int64Array, Int64Array]:
    """Least and greatest index of each sample [n]; without edges, the least is greater."""
    least, greatest = np.full(len(block), _NONE), np.full(len(block), -1, dtype=np.int64)
    values, good = block.rows(block.store.paths["neighbor_list"])
    ptr = block.pointers[Level.EDGE]
    has = np.diff(ptr) > 0
    if has.any():
        starts = (ptr[:-1] - ptr[0])[has]
        least[has] = np.minimum.reduceat(values.min(axis=1), starts)
        greatest[has] = np.maximum.reduceat(values.max(axis=1), starts)
    none = ~(has & good & block.active & block.present("neighbor_list"))
    least[none], greatest[none] = _NONE, -1
    return least, greatest


def describe_relative_edges(finding: Finding, shifts: EdgeShifts) -> Finding:
    """Replace a finding about edges outside their samples by one about relative edges."""
    if len(shifts.unknown):
        text = (
            "indices count from their batch instead of from the store, as nvalchemi writes them, "
            f"and the batch cannot be derived for {some(shifts.unknown, 'sample')}: compute "
            "the neighbours again"
        )
        return Finding("relative-edges", Severity.ERROR, finding.place, text)
    text = (
        f"{some(np.flatnonzero(shifts.by), 'sample')} with indices that count from their batch "
        "instead of from the store, as nvalchemi writes them: readers return wrong neighbours"
    )
    return Finding("relative-edges", Severity.ERROR, finding.place, text, RELATIVE)


def edge_shifts(
    ptr: Int64Array, least: Int64Array, greatest: Int64Array
) -> tuple[Int64Array, BoolArray]:
    """Shift [N] of each sample for its indices to count from the store, and whether it is known.

    A shift is unknown where none or several are possible. It follows directly for a sample whose
    edges reach its first and its last atom, also in a store that nvalchemi defragmented. A sample
    without edges, for which `least` [N] exceeds `greatest` [N], needs no shift.

    Samples of 2 atoms, in batches of 2 and 1, each with an edge between its atoms:

    >>> ptr = np.array([0, 2, 4, 6])
    >>> shifts, known = edge_shifts(ptr, np.array([0, 2, 0]), np.array([1, 3, 1]))
    >>> shifts.tolist(), known.tolist()
    ([0, 0, 4], [True, True, True])
    """
    low, high = ptr[:-1] - least, ptr[1:] - 1 - greatest
    has = least <= greatest
    begins = _unique_begins(ptr, low, high, has)
    known = begins >= 0
    shifts = ptr[np.maximum(begins, 0)]
    spanned = has & (low == high) & (least >= 0)
    shifts[spanned] = low[spanned]
    shifts[~has] = 0
    return shifts, known | spanned | ~has


def _unique_begins(
    ptr: Int64Array, low: Int64Array, high: Int64Array, has: BoolArray
) -> Int64Array:
    """First sample [N] of the batch of each sample; -1 where it is not unique."""
    count = len(low)
    first = np.where(has, np.searchsorted(ptr[:-1], low, "left"), 0)
    last = np.where(has, np.searchsorted(ptr[:-1], high, "right") - 1, count)
    until = _divisible(_survival(first, last))
    starts = np.flatnonzero(until > np.arange(count))
    batches, begins = np.zeros((2, count + 1), dtype=np.int64)
    np.add.at(batches, starts, 1)
    np.add.at(batches, until[starts], -1)
    np.add.at(begins, starts, starts)
    np.add.at(begins, until[starts], -starts)
    single = np.cumsum(batches)[:count] == 1
    return np.where(single, np.cumsum(begins)[:count], -1)


def _survival(first: Int64Array, last: Int64Array) -> Int64Array:
    """First sample [N] that cannot belong to a batch that begins with each sample.

    This is the sample itself where no batch can begin. Sample s can belong to batches that begin
    with a sample from ``first[s]`` to ``last[s]``.
    """
    count = len(first)
    ends = np.arange(count)
    alive: deque[int] = deque()
    for sample, (least, most) in enumerate(zip(first.tolist(), last.tolist(), strict=True)):
        if sample == 0 or alive:
            alive.append(sample)
        while alive and alive[0] < least:
            ends[alive.popleft()] = sample
        while alive and alive[-1] > most:
            ends[alive.pop()] = sample
    ends[list(alive)] = count
    return ends


def _divisible(ends: Int64Array) -> Int64Array:
    """The same [N], if all samples after the batch can be divided into batches, too."""
    count = len(ends)
    until = np.arange(count)
    borders = [-count]  # where a batch can end, negative so that they ascend
    for begin in range(count - 1, -1, -1):
        place = bisect_left(borders, -int(ends[begin]))
        if place < len(borders) and -borders[place] > begin:
            until[begin] = -borders[place]
            borders.append(-begin)
    return until


def fix_relative_edges(store: CheckedStore, shifts: EdgeShifts) -> None:
    """Rewrite the neighbour list so that its indices count from the store.

    A local array is written to a sibling directory and swapped with the old one, so that a kill
    leaves one of the two complete. Raises StoreFormatError if the store is neither local nor in
    memory, since a kill would leave both kinds of indices mixed.
    """
    path = store.paths["neighbor_list"]
    if store.root.directory is not None:
        _swap(store, (store.root.directory / path).resolve(), path, shifts)
        return
    if not isinstance(store.root.path.store, MemoryStore):
        raise StoreFormatError(
            f"{store.root} is not local, and a kill while its edges are rewritten would leave both "
            "kinds of indices mixed: copy the store to a local disk and repair it there"
        )
    array = store.group[path]
    if isinstance(array, zarr.Array):
        _write(store, path, array, shifts)


def _swap(store: CheckedStore, place: Path, path: str, shifts: EdgeShifts) -> None:
    sibling = place.with_name(f".{place.name}.repair-{uuid.uuid4().hex[:8]}")
    files.make_folder(sibling)
    try:
        files.replace(sibling / "zarr.json", (place / "zarr.json").read_bytes())
        _write(store, path, zarr.open_array(LocalStore(sibling), mode="r+"), shifts)
        files.sync_tree(sibling)
        swap_directories(place, sibling)
    finally:
        files.remove_tree(sibling)


def _write(store: CheckedStore, path: str, target: zarr.Array[Any], shifts: EdgeShifts) -> None:
    rows, unit = store.arrays[path], int((target.shards or target.chunks)[0])
    written = target.with_config({"write_empty_chunks": True})  # readers miss absent chunks
    step = unit * max(1, _BYTES // max(1, unit * rows.row_bytes))
    for start in range(0, len(rows), step):
        values, good = rows.read(start, min(start + step, len(rows)))
        if not good.all():
            raise StoreFormatError(
                f"{store.root}: {path} has chunks that cannot be read: put them back from a copy"
            )
        written[start : start + len(values)] = values + _added(shifts, start, values)


def _added(shifts: EdgeShifts, start: int, values: AnyArray) -> AnyArray:
    """Shift [n, 1] of each row, 0 for rows of no sample."""
    owner = np.searchsorted(shifts.edges, np.arange(start, start + len(values)), "right") - 1
    inside = owner < len(shifts.by)
    added = np.where(inside, shifts.by[np.minimum(owner, len(shifts.by) - 1)], 0)
    return added.astype(values.dtype)[:, None]
