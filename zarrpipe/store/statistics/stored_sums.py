"""Sums as a store keeps them: `meta/sums`, one compressed array of one chunk that describes itself.

The array is a cache. It is replaced as a whole and covers the first rows of the store. It counts as
absent if it is torn, of another generation, of other deletions, or of rows that are not there.
Whoever changes labels in place with other tools has to remove it.

Sums over many elements can take more room than the labels of few samples. Then only those are
stored that tell whether samples changed, and statistics read the samples.
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
from zarrpipe.store.format.layout import ATOMS_PTR, EDGES_PTR, MARK, SUMS, find_array
from zarrpipe.store.format.metadata import FORMAT, Attributes
from zarrpipe.store.format.validate import translate_zarr_errors
from zarrpipe.store.read.snapshot import Snapshot
from zarrpipe.store.statistics.label_rows import BUCKETS, NUM_ELEMENTS
from zarrpipe.store.statistics.sums import COLUMNS, FloatArray, LabelSums

_MAGIC, _VERSION, _HEAD, _CHECKSUM = 1_398_099_283.0, 2.0, 18, 3
_DENSE_VERSION, _DENSE_COLUMNS = 1.0, 15
"""Version 1 of the array, which is not compressed and has three more columns, is still read."""

_LEAST_VALUES, _MOST_VALUES, _MOST_COUNT = 1 << 13, 1 << 22, 1 << 53
_SMALL_BYTES, _MOST_OF_LABELS = 1 << 16, 16
_ATOM_BYTES = 20


@dataclass(frozen=True)
class StoredSums:
    """Sums over the first rows of a store.

    Parameters
    ----------
    extent
        The rows, those of deleted samples included, which are not summed.
    deleted
        Samples that the store said to be deleted, in these rows or behind them.
    generation
        Digest of the store's generation.
    sums
        By bucket.
    """

    extent: RowCounts
    deleted: int
    generation: tuple[float, ...]
    sums: LabelSums

    @property
    def samples(self) -> int:
        """Samples that are summed."""
        return int(self.sums.total("samples"))

    def belongs(self, attributes: Attributes, extent: RowCounts, *, active: int) -> bool:
        """Whether the sums are those of a store.

        Parameters
        ----------
        attributes
            Attributes of the store's root.
        extent
            Rows of as many samples of the store.
        active
            How many of these samples are not deleted.
        """
        return (
            attributes.ours
            and self.generation == digest(attributes.generation)
            and self.deleted == attributes.deleted
            and self.extent == extent
            and self.samples == active
        )


def digest(generation: str) -> tuple[float, ...]:
    """Hash of the name of a generation, as four numbers."""
    hashed = hashlib.blake2b(generation.encode(), digest_size=16).digest()
    return tuple(np.frombuffer(hashed, "<u4").astype(np.float64).tolist())


def valid_sums(snapshot: Snapshot) -> StoredSums | None:
    """Read the sums of a store from which statistics of a snapshot follow; None without any."""
    if not snapshot.attributes.ours or not snapshot.extent.samples:
        return None
    stored = read_sums(snapshot.group)
    if stored is None or stored.extent.samples > snapshot.extent.samples:
        return None
    rows, active = stored.extent.samples, snapshot.active
    ends = (int(snapshot.pointers(path)[rows]) for path in (ATOMS_PTR, EDGES_PTR))
    number = rows if active is None else int(np.searchsorted(active, rows))
    valid = stored.belongs(snapshot.attributes, RowCounts((rows, *ends)), active=number)
    return stored if valid and stored.sums.complete else None


def read_sums(group: zarr.Group) -> StoredSums | None:
    """Read the array of sums of a store; None if it is missing or damaged."""
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
    """Replace the sums of a store, or remove them if one has overflown or they are too many."""
    content = _encoded(stored)
    if content is None:
        remove_sums(group)
        return
    array = _array_for(group, len(content))
    array[:] = content


def remove_sums(group: zarr.Group) -> bool:
    """Remove a store's array of sums, readable or not; whether there was one."""
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
    """Values of the array, zero behind the sums."""
    sums, extent = stored.sums, stored.extent
    if not sums.finite:
        return None
    room = max(_SMALL_BYTES, extent.atoms * _ATOM_BYTES // _MOST_OF_LABELS)
    if 8 * np.count_nonzero(sums.gram) > room:
        sums = sums.without_fit()
    by_bucket = (sums.table, sums.counts, sums.fraction, sums.moment, sums.gram)
    parts = [sums.elements, sums.origin, *map(np.ravel, by_bucket), sums.sizes, sums.size_counts]
    length = _HEAD + sum(map(len, parts))
    if length > _MOST_VALUES:
        return None
    content = np.zeros(max(_LEAST_VALUES, 1 << (length - 1).bit_length()))
    content[:_HEAD] = (
        *(_MAGIC, _VERSION, length, 0.0, *stored.generation),
        *(extent.samples, extent.atoms, extent.edges, stored.deleted),
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
    return StoredSums(RowCounts((samples, atoms, edges)), deleted, tuple(head[4:8].tolist()), sums)


def _is_whole(content: FloatArray) -> bool:
    """Whether an array of sums has its checksum and finite values."""
    head = content[:_HEAD]
    if head[0] != _MAGIC or not (np.abs(head) <= _MOST_COUNT).all():
        return False
    values = content.copy()
    values[_CHECKSUM] = 0.0
    whole = _checksum(values) == head[_CHECKSUM] and _HEAD <= head[2] <= len(content)
    return whole and bool(np.isfinite(values).all())


def _checksum(values: FloatArray) -> float:
    return float(zlib.crc32(np.ascontiguousarray(values, "<f8").data))
