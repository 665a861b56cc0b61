"""The sums of statistics in a store: `meta/sums`, a compressed array of one chunk.

The array is a cache. It is replaced as a whole and covers the first rows of the store. It is
ignored if it is damaged, of another generation, of other deletions, or of missing rows. A tool that
changes labels in place has to remove it.

Sums over many elements can take more space than the labels of few samples. Then only the sums that
detect changed samples are stored, and statistics read the samples.
"""

import hashlib
import math
import zlib
from dataclasses import dataclass
from typing import Any

import numpy as np
import zarr
from zarr.codecs import ZstdCodec

from zarrpipe.compat import sync
from zarrpipe.errors import StoreFormatError
from zarrpipe.store.format.commit_log import RowCounts
from zarrpipe.store.format.layout import (
    ATOMS_PTR,
    EDGES_PTR,
    MARK,
    SAMPLES_MASK,
    SUMS,
    find_array,
)
from zarrpipe.store.format.metadata import FORMAT, Attributes
from zarrpipe.store.format.validate import translate_zarr_errors
from zarrpipe.store.read.snapshot import Snapshot
from zarrpipe.store.statistics.label_rows import BUCKETS, NUM_ELEMENTS, CountedStore, active_rows
from zarrpipe.store.statistics.sums import COLUMNS, FloatArray, LabelSums

_MAGIC, _VERSION, _HEAD, _CHECKSUM = 1_398_099_283.0, 2.0, 18, 3
_DENSE_VERSION, _DENSE_COLUMNS = 1.0, 15
"""Version 1 of the array, which is not compressed and has three more columns, can be read."""

_LEAST_VALUES, _MOST_VALUES, _MOST_COUNT = 1 << 13, 1 << 22, 1 << 53
_SMALL_BYTES, _MOST_OF_LABELS = 1 << 16, 16
_ATOM_BYTES = 20
_DUE_SAMPLES, _DUE_ATOMS = 1 << 16, 1 << 21
_FREE_ATOMS, _FEW = 1 << 22, 8


@dataclass(frozen=True)
class StoredSums:
    """Sums by bucket over the first rows of a store, `counts` of them including deleted samples.

    `deleted` is the number of deleted samples of the whole store when the sums were stored, and
    `generation` the digest of its generation.
    """

    counts: RowCounts
    deleted: int
    generation: tuple[float, ...]
    sums: LabelSums

    @property
    def samples(self) -> int:
        """Number of summed samples, without deleted ones."""
        return int(self.sums.total("samples"))

    def belongs(self, attributes: Attributes, counts: RowCounts, *, active: int) -> bool:
        """Whether the sums are those of a store with these attributes.

        `counts` are the rows of equally many samples of the store, `active` of which are not
        deleted.
        """
        return (
            attributes.ours
            and self.generation == digest(attributes.generation)
            and self.deleted == attributes.deleted
            and self.counts.totals == counts.totals
            and self.samples == active
        )


def sums_over(store: CountedStore, sums: LabelSums) -> StoredSums:
    """Combine sums over all samples of a store with the facts that identify it."""
    attributes = store.attributes
    return StoredSums(store.counts, attributes.deleted, digest(attributes.generation), sums)


def digest(generation: str) -> tuple[float, ...]:
    """Hash of a generation, as four numbers."""
    hashed = hashlib.blake2b(generation.encode(), digest_size=16).digest()
    return tuple(np.frombuffer(hashed, "<u4").astype(np.float64).tolist())


def valid_sums(snapshot: Snapshot) -> StoredSums | None:
    """Read the stored sums that are valid for a snapshot and complete; None without any."""
    if not snapshot.attributes.ours or not snapshot.extent.samples:
        return None
    stored = read_sums(snapshot.group)
    if stored is None or stored.counts.samples > snapshot.extent.samples:
        return None
    rows, active = stored.counts.samples, snapshot.active
    ends = (int(snapshot.pointers(path)[rows]) for path in (ATOMS_PTR, EDGES_PTR))
    number = rows if active is None else int(np.searchsorted(active, rows))
    valid = stored.belongs(snapshot.attributes, RowCounts.of(rows, *ends), active=number)
    return stored if valid and stored.sums.complete else None


def read_sums(group: zarr.Group) -> StoredSums | None:
    """Read the stored sums; None if they are missing or damaged."""
    try:
        array = find_array(group, SUMS)
        if array is None or array.dtype != np.dtype("float64") or array.ndim != 1:
            return None
        if not _HEAD <= array.shape[0] <= _MOST_VALUES or array.chunks != array.shape:
            return None
        with translate_zarr_errors(array.store_path):
            return _decoded(np.asarray(array[:]))
    except StoreFormatError:
        return None


def write_sums(group: zarr.Group, stored: StoredSums) -> None:
    """Replace the stored sums, or remove them if they overflowed or are too large."""
    content = _encoded(stored)
    if content is None:
        remove_sums(group)
        return
    array = _array_for(group, len(content))
    array[:] = content


def remove_sums(group: zarr.Group) -> bool:
    """Remove the stored sums, readable or not, and return whether there were any."""
    place = group.store_path / SUMS
    if not sync((place / "zarr.json").exists()):
        return False
    sync(place.store.delete_dir(place.path))
    return True


def _array_for(group: zarr.Group, values: int) -> zarr.Array[Any]:
    try:
        array = find_array(group, SUMS)
    except StoreFormatError:
        array = None
    if array is not None and array.shape == array.chunks == (values,) and array.compressors:
        return array
    return group.create_array(
        SUMS,
        shape=(values,),
        chunks=(values,),
        dtype="float64",
        fill_value=0.0,
        compressors=ZstdCodec(level=1),
        filters=None,
        attributes={MARK: {"format": FORMAT, "dense": False}},
        overwrite=True,
    )


def _encoded(stored: StoredSums) -> FloatArray | None:
    """Values of the array, zero after the sums; None if they overflowed or are too large."""
    sums, counts = stored.sums, stored.counts
    if not sums.finite:
        return None
    most_bytes = max(_SMALL_BYTES, counts.atoms * _ATOM_BYTES // _MOST_OF_LABELS)
    if 8 * np.count_nonzero(sums.gram) > most_bytes:
        sums = sums.without_fit()
    by_bucket = (sums.table, sums.counts, sums.fraction, sums.moment, sums.gram)
    parts = [sums.elements, sums.origin, *map(np.ravel, by_bucket), sums.sizes, sums.size_counts]
    length = _HEAD + sum(map(len, parts))
    if length > _MOST_VALUES:
        return None
    content = np.zeros(max(_LEAST_VALUES, 1 << (length - 1).bit_length()))
    content[:_HEAD] = (
        *(_MAGIC, _VERSION, length, 0.0, *stored.generation),
        *(counts.samples, counts.atoms, counts.edges, stored.deleted),
        *(len(sums.table), len(COLUMNS), len(sums.elements), len(sums.sizes), sums.fitted),
        float(sums.complete),
    )
    content[_HEAD:length] = np.concatenate(parts)
    content[_CHECKSUM] = _checksum(content)
    return content


def _decoded(content: FloatArray) -> StoredSums | None:
    head, dense = content[:_HEAD], content[1] == _DENSE_VERSION
    if not _is_whole(content) or not (dense or head[1] == _VERSION):
        return None
    samples, atoms, edges, deleted, buckets, columns, size, sizes, fitted = map(int, head[8:17])
    known = (BUCKETS, _DENSE_COLUMNS if dense else len(COLUMNS))
    if (buckets, columns) != known or not 0 <= size <= NUM_ELEMENTS or sizes < 0:
        return None
    fits = size if dense or head[17] else 0
    shapes = [(size,), (size,), (buckets, columns), (buckets, size), (buckets, fits)]
    shapes += [(buckets, 2, fits), (buckets, 2, fits * (fits + 1) // 2), (sizes,), (sizes,)]
    ends = np.cumsum([_HEAD, *map(math.prod, shapes)])
    if ends[-1] != head[2]:
        return None
    parts = [content[ends[i] : ends[i + 1]].reshape(shape) for i, shape in enumerate(shapes)]
    elements, origin, table, counts, fraction, moment, gram, keys, number = parts
    sums = LabelSums(
        table[:, : len(COLUMNS)],
        elements.astype(np.int64),
        origin,
        counts,
        fraction,
        moment,
        gram,
        keys.astype(np.int64),
        number.astype(np.int64),
        fitted,
    ).copy()
    return StoredSums(RowCounts.of(samples, atoms, edges), deleted, tuple(head[4:8].tolist()), sums)


def _is_whole(content: FloatArray) -> bool:
    """Whether the values are finite and match their checksum."""
    head = content[:_HEAD]
    if head[0] != _MAGIC or not (np.abs(head) <= _MOST_COUNT).all():
        return False
    values = content.copy()
    values[_CHECKSUM] = 0.0
    whole = _checksum(values) == head[_CHECKSUM] and _HEAD <= head[2] <= len(content)
    return whole and bool(np.isfinite(values).all())


def _checksum(values: FloatArray) -> float:
    return float(zlib.crc32(np.ascontiguousarray(values, "<f8").data))


class StatisticsUpdater:
    """Keeps the stored sums up to date for the writer of a store.

    It reads rows back and counts them at a flush and every 65,536 samples, so that most appends
    cost nothing. Sums that do not match the store, because samples were deleted or the sums are
    damaged, are counted again at the next close. A large store without sums gets none.
    """

    def __init__(self) -> None:
        self._stored: StoredSums | None = None
        self._recount = False  # the store had sums and all samples have to be counted again
        self._overflown_at: int | None = None  # deleted samples when a sum overflowed
        self._opened = RowCounts()
        self._due = (_DUE_SAMPLES, _DUE_ATOMS)

    def open(self, store: CountedStore) -> None:
        """Continue from the stored sums, or remove them if they do not match the store."""
        self._opened = store.counts
        self._postpone(store.counts)
        if not store.counts.samples:
            return
        stored = read_sums(store.group)
        if stored is not None and _belongs(stored, store):
            self._stored = stored
        else:
            self._recount = remove_sums(store.group)

    def is_due(self, counts: RowCounts) -> bool:
        """Whether the rows since the last count should be counted before more are written."""
        return counts.samples >= self._due[0] or counts.atoms >= self._due[1]

    def update(self, store: CountedStore, *, every: bool = True) -> None:
        """Count new samples and write the sums; without `every`, skip this for few samples."""
        counts, deleted, stored = store.counts, store.attributes.deleted, self._stored
        if deleted == self._overflown_at:
            return
        if stored is not None and stored.deleted != deleted:
            self._stored, self._recount, stored = None, True, None
        if stored is not None and not every and not self.is_due(counts):
            known = stored.counts.samples
            if counts.samples - known < known // _FEW:
                return
        self._postpone(counts)
        if stored is not None and stored.counts.totals == counts.totals:
            return
        if stored is not None and not stored.sums.complete:
            self._stored, self._recount = None, True
        if self._is_worthwhile(counts, every=every):
            self._count(store)

    def forget(self, group: zarr.Group) -> None:
        """Remove the sums, before counted labels change."""
        self._stored, self._overflown_at = None, None
        self._recount |= remove_sums(group)

    def _postpone(self, counts: RowCounts) -> None:
        """Set the numbers of samples and atoms at which the next count is due."""
        self._due = (counts.samples + _DUE_SAMPLES, counts.atoms + _DUE_ATOMS)

    def _is_worthwhile(self, counts: RowCounts, *, every: bool) -> bool:
        """Whether to count new samples: any number of this writer, but only a few of others."""
        own = counts.atoms - self._opened.atoms
        if self._stored is not None:
            return counts.atoms - self._stored.counts.atoms <= max(_FREE_ATOMS, own)
        if self._recount and every:
            return True
        return (own > 0 or self._recount) and counts.atoms <= max(_FREE_ATOMS, own)

    def _count(self, store: CountedStore) -> None:
        stored, sums, start = self._stored, LabelSums.empty(BUCKETS), 0
        if stored is not None:
            sums, start = stored.sums, stored.counts.samples
        self._stored, self._recount = None, True  # until the sums are written
        for rows in active_rows(store, start):
            sums.add(rows)
        stored = sums_over(store, sums)
        write_sums(store.group, stored)
        if sums.finite:
            self._stored, self._recount = stored, False
        else:
            self._overflown_at = stored.deleted


def _belongs(stored: StoredSums, store: CountedStore) -> bool:
    rows = stored.counts.samples
    if rows > store.counts.samples:
        return False
    ends = (int(store.array(path).read(rows, rows + 1)[0]) for path in (ATOMS_PTR, EDGES_PTR))
    active = np.count_nonzero(store.array(SAMPLES_MASK).read(0, rows))
    return stored.belongs(store.attributes, RowCounts.of(rows, *ends), active=int(active))
