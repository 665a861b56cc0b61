"""The single changes of a repair: entries of pointers, lost rows, masks of rows."""

import os
from collections.abc import Callable

import numpy as np

from zarrpipe.compat import sync
from zarrpipe.data.csr import Int64Array, pointers, segment_rows
from zarrpipe.store.backend import files
from zarrpipe.store.check.blocks import pieces
from zarrpipe.store.check.checked_store import CheckedStore
from zarrpipe.store.check.counts import UNMASK, CheckedCounts
from zarrpipe.store.check.pointers import runs
from zarrpipe.store.check.report import some
from zarrpipe.store.check.restore import Entries, gaps, restored_atoms, restored_edges
from zarrpipe.store.check.rows import Rows
from zarrpipe.store.check.samples import ids_of
from zarrpipe.store.format.layout import (
    ATOMS_MASK,
    ATOMS_PTR,
    EDGES_MASK,
    EDGES_PTR,
    IDS,
    SAMPLES_MASK,
    chunk_file,
)
from zarrpipe.store.write.array_writer import ArrayWriter, open_array_writer
from zarrpipe.store.write.store_writer import StoreWriter

Say = Callable[[str], object]


def mend_pointers(
    subject: CheckedStore, extents: CheckedCounts, say: Say, *, drop: bool
) -> tuple[int | None, Int64Array]:
    """Write the broken entries of pointers that can be told, and with `drop` all of them.

    Returns
    -------
    samples : int or None
        How many there are then; None if entries are still broken.
    lost : array [K] int64
        Samples whose borders are not known, which are to be deleted.
    """
    atoms = restored_atoms(subject, extents)
    proven = {ATOMS_PTR: atoms, EDGES_PTR: restored_edges(subject, extents, atoms)}
    samples, lost = extents.samples, np.zeros(0, dtype=np.int64)
    whole = True
    for path in (EDGES_PTR, ATOMS_PTR):
        entries, unproven = proven[path], np.setdiff1d(extents.broken[path], [*proven[path]])
        if drop and len(unproven):
            invented, first = _invented(subject, extents, path, unproven)
            samples = min(samples, first - 1)
            touched = [s for entry in invented for s in (entry - 1, entry)]
            lost = np.union1d(lost, np.array(touched, dtype=np.int64))
            entries = invented | entries
        whole &= drop or not len(unproven)
        if entries:
            _write_entries(subject, path, entries)
            say(f"wrote {some(sorted(entries), 'entry', 'entries')} of {path}")
    if samples < extents.samples:
        column = _column(subject, ATOMS_PTR)
        column.clear_from(samples + 1)
        column.close()
        say(f"ended the store after {samples:,} of {extents.samples:,} samples")
    return samples if whole else None, lost[lost < samples]


def _invented(
    subject: CheckedStore, extents: CheckedCounts, path: str, unproven: Int64Array
) -> tuple[Entries, int]:
    """Entries that keep all other samples where they are, and the first for which there is none.

    Between atoms each sample gets at least one; the samples beside such an entry are to be deleted.
    """
    found: Entries = {}
    step = int(path == ATOMS_PTR)
    for first, last, before, behind in gaps(subject, extents, path):
        if not np.isin(np.arange(first, last + 1), unproven).any():
            continue
        if last == extents.samples or before + step * (last - first + 2) > behind:
            return found, first
        found |= {entry: before + step * (entry - first + 1) for entry in range(first, last + 1)}
    lacking = unproven[unproven >= len(subject.arrays[path])]
    return found, int(lacking[0]) if len(lacking) else extents.samples + 1


def _write_entries(subject: CheckedStore, path: str, entries: Entries) -> None:
    discard_broken(subject, path)
    column = _column(subject, path)
    values = np.zeros(max(entries) + 1, dtype=np.int64)
    known = np.zeros(len(values), dtype=bool)
    values[[*entries]], known[[*entries]] = [*entries.values()], True
    for begin, end in runs(known):  # whole chunks at once, of which some cannot be read
        column.write(begin, values[begin:end])
    column.close()


def _column(subject: CheckedStore, path: str) -> ArrayWriter:
    directory = subject.root.directory
    return open_array_writer(
        subject.arrays[path].array, None if directory is None else directory / path
    )


def discard_broken(subject: CheckedStore, path: str) -> None:
    """Let chunks that could not be read be written again.

    A plain chunk file gets its size. Of what is encoded, an object of which nothing could be read
    is removed, and then reads as the fill value.
    """
    rows, directory = subject.arrays[path], subject.root.directory
    if rows.plain and directory is not None:
        size = int(rows.array.chunks[0]) * rows.row_bytes
        for index in rows.broken:
            descriptor = files.reopen(chunk_file(directory / path, index, rows.array.ndim))
            try:
                files.resize(descriptor, size)
            finally:
                os.close(descriptor)
        return
    for units in _whole_objects(rows):
        grid = (units.start // len(units), *[0] * (rows.array.ndim - 1))
        key = rows.array.metadata.encode_chunk_key(grid)
        sync((rows.array.store_path / key).delete())


def _whole_objects(rows: Rows) -> list[range]:
    """Chunks of each stored object of which none could be read."""
    array, broken = rows.array, set(rows.broken)
    unit = int(array.chunks[0])
    each, last = int((array.shards or array.chunks)[0]) // unit, -(-len(rows) // unit)
    firsts = sorted({index - index % each for index in broken})
    return [
        range(first, first + each)
        for first in firsts
        if broken.issuperset(range(first, min(first + each, last)))
    ]


def fill_broken(subject: CheckedStore, path: str, say: Say) -> None:
    """Fill what is lost of an array, so that the rest of it can be read."""
    rows = subject.arrays[path]
    _fill_lost(subject, path, say)
    if not rows.broken:
        return
    discard_broken(subject, path)
    if not rows.plain:
        array = rows.array.with_config({"write_empty_chunks": True})  # or readers miss the chunk
        unit = int(array.chunks[0])
        for index in rows.broken:
            array[index * unit : min((index + 1) * unit, len(rows))] = array.fill_value
    say(f"filled {some(rows.broken, 'chunk')} of {path}")


def _fill_lost(subject: CheckedStore, path: str, say: Say) -> None:
    """Make chunks again that are not there, or readers miss them."""
    rows, last = subject.arrays[path], len(subject.arrays[path])
    lost = [index for index in rows.lost if index not in rows.broken]
    column, unit = _column(subject, path), int(rows.array.chunks[0])
    for begin, end in ((index * unit, min((index + 1) * unit, last)) for index in lost):
        shape = (max(0, end - begin), *rows.array.shape[1:])
        column.write(begin, np.full(shape, rows.array.fill_value, rows.array.dtype))
    column.close()
    if lost:
        say(f"filled {some(lost, 'chunk')} of {path}")


def complete_ids(
    subject: CheckedStore, extents: CheckedCounts, samples: Int64Array, say: Say
) -> None:
    """Compute the ids of samples that have none."""
    discard_broken(subject, IDS)
    column = _column(subject, IDS)
    for piece in pieces(subject, extents.samples, extents.broken, extents.limits):
        here = np.isin(np.arange(piece.first, piece.first + len(piece)), samples)
        ids = ids_of(piece) if here.any() else np.zeros(0)
        for begin, end in runs(here):
            column.write(piece.first + begin, ids[begin:end])
    column.close()
    say(f"computed the ids of {some(samples, 'sample')}")


def unmask(subject: CheckedStore, samples: int, say: Say) -> None:
    """Write a mask of samples of which none was deleted."""
    column = _column(subject, SAMPLES_MASK)
    column.write(0, np.ones(samples, dtype=bool))
    column.close()
    say(UNMASK.replace("write", "wrote"))


def mask_rows(appender: StoreWriter, samples: Int64Array) -> None:
    """Mask the rows of samples as the samples are masked."""
    kept = appender.array(SAMPLES_MASK).read(0, appender.counts.samples)[samples]
    for mask, path in ((ATOMS_MASK, ATOMS_PTR), (EDGES_MASK, EDGES_PTR)):
        stored = appender.array(path).read(0, appender.counts.samples + 1)
        for value in (True, False):
            chosen = samples[kept == value]
            starts = stored[chosen]
            rows = segment_rows(starts, pointers(stored[chosen + 1] - starts))
            _set(appender.array(mask), rows, value=value)


def _set(column: ArrayWriter, rows: Int64Array, *, value: bool) -> None:
    """Set rows of a mask; whole chunks, since in a new chunk file the others would read False."""
    unit = column.chunk_rows
    for chunk in np.unique(rows // unit).tolist():
        start, stop = chunk * unit, (chunk + 1) * unit
        column.reserve(stop)
        mask = column.read(start, stop)
        mask[rows[(rows >= start) & (rows < stop)] - start] = value
        column.write(start, mask)
