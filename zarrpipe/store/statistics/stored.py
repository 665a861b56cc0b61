"""Sums for statistics as a store keeps them: one array of one chunk, which says itself what of.

The array `meta/sums` is a cache. It is replaced as a whole, counts the first rows of the store, and
is taken for absent where it is torn, of another generation, of other deletions, or of rows that are
not there. Whoever changes labels in place with other tools has to remove it.
"""

import hashlib
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import zarr

from zarrpipe.compat import sync
from zarrpipe.errors import StoreFormatError
from zarrpipe.store.format.commit_log import RowCounts
from zarrpipe.store.format.layout import ATOMS_PTR, EDGES_PTR, MARK, SUMS, find_array
from zarrpipe.store.format.metadata import FORMAT, Attributes
from zarrpipe.store.format.validate import translate_zarr_errors
from zarrpipe.store.read.snapshot import Snapshot
from zarrpipe.store.statistics.label_rows import BUCKETS, NUM_ELEMENTS
from zarrpipe.store.statistics.sums import COLUMNS, LabelSums
from zarrpipe.store.statistics.triangles import FloatArray

_MAGIC, _VERSION, _HEAD, _CHECKSUM = 1_398_099_283.0, 1.0, 18, 3
_LEAST_VALUES, _MOST_VALUES, _MOST_COUNT = 1 << 13, 1 << 22, 1 << 53


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
            Of its root.
        extent
            What its pointers say of as many samples.
        active
            How many of these were not deleted.
        """
        return (
            attributes.ours
            and self.generation == digest(attributes.generation)
            and self.deleted == attributes.deleted
            and self.extent == extent
            and self.samples == active
        )


def digest(generation: str) -> tuple[float, ...]:
    """Four numbers that stand for the name of a generation."""
    hashed = hashlib.blake2b(generation.encode(), digest_size=16).digest()
    return tuple(np.frombuffer(hashed, "<u4").astype(np.float64).tolist())


def kept_sums(snapshot: Snapshot) -> StoredSums | None:
    """Sums that a store keeps of samples that a snapshot of it has; None without any."""
    if not snapshot.attributes.ours or not snapshot.extent.samples:
        return None
    kept = read_sums(snapshot.group)
    if kept is None or kept.extent.samples > snapshot.extent.samples:
        return None
    rows, active = kept.extent.samples, snapshot.active
    ends = (int(snapshot.pointers(path)[rows]) for path in (ATOMS_PTR, EDGES_PTR))
    number = rows if active is None else int(np.searchsorted(active, rows))
    return (
        kept if kept.belongs(snapshot.attributes, RowCounts((rows, *ends)), active=number) else None
    )


def read_sums(group: zarr.Group) -> StoredSums | None:
    """What a store's array of sums holds; None where there is none that can be believed."""
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


def write_sums(group: zarr.Group, kept: StoredSums) -> bool:
    """Replace a store's sums, at once; False, and they are removed, where they cannot be kept.

    They cannot be if a sum has overflown, or if there are too many different sizes.
    """
    content = _encoded(kept)
    if content is None:
        remove_sums(group)
        return False
    array = _array_for(group, len(content))
    array[:] = content
    return True


def remove_sums(group: zarr.Group) -> bool:
    """Remove a store's array of sums; whether there was one."""
    place = group.store_path / SUMS
    if not sync((place / "zarr.json").exists()):  # which may not be readable
        return False
    sync(place.store.delete_dir(place.path))
    return True


def _array_for(group: zarr.Group, values: int) -> zarr.Array[Any]:
    try:
        array = find_array(group, SUMS)
    except StoreFormatError:
        array = None
    if array is not None and array.shape == array.chunks == (values,):
        return array
    return group.create_array(
        SUMS,
        shape=(values,),
        chunks=(values,),
        dtype="float64",
        fill_value=0.0,
        compressors=None,
        filters=None,
        attributes={MARK: {"format": FORMAT, "dense": False}},
        overwrite=True,
    )


def _parts(sums: LabelSums) -> Iterator[FloatArray]:
    """Arrays of sums in the order in which they are stored."""
    yield sums.elements.astype(np.float64)
    yield sums.origin
    for values in (sums.table, sums.counts, sums.fraction, sums.moment, sums.gram):
        yield values.reshape(-1)
    yield sums.sizes.astype(np.float64)
    yield sums.size_counts.astype(np.float64)


def _encoded(kept: StoredSums) -> FloatArray | None:
    """Values of the array, with zeros behind them."""
    sums, extent = kept.sums, kept.extent
    parts = list(_parts(sums))
    length = _HEAD + sum(map(len, parts))
    if length > _MOST_VALUES or not sums.finite:
        return None
    content = np.zeros(max(_LEAST_VALUES, 1 << (length - 1).bit_length()))
    content[:_HEAD] = (
        *(_MAGIC, _VERSION, length, 0.0, *kept.generation),
        *(extent.samples, extent.atoms, extent.edges, kept.deleted),
        *(len(sums.table), len(COLUMNS), len(sums.elements), len(sums.sizes), sums.fitted, 0.0),
    )
    content[_HEAD:length] = np.concatenate(parts)
    content[_CHECKSUM] = _checksum(content)
    return content


def _decoded(content: FloatArray) -> StoredSums | None:
    head = content[:_HEAD]
    if tuple(head[:2]) != (_MAGIC, _VERSION) or not (np.abs(head) <= _MOST_COUNT).all():
        return None
    length = int(head[2])
    if not _HEAD <= length <= len(content):
        return None
    values = content.copy()
    values[_CHECKSUM] = 0.0
    if _checksum(values) != head[_CHECKSUM]:
        return None
    samples, atoms, edges, deleted, buckets, columns, size, sizes, fitted = map(int, head[8:17])
    if (buckets, columns) != (BUCKETS, len(COLUMNS)) or not 0 <= size <= NUM_ELEMENTS:
        return None
    pairs = size * (size + 1) // 2
    shapes = [(size,), (size,), (buckets, columns), (buckets, size), (buckets, size)]
    shapes += [(buckets, 2, size), (buckets, 2, pairs), (sizes,), (sizes,)]
    ends = np.cumsum([_HEAD, *(int(np.prod(shape)) for shape in shapes)])
    if sizes < 0 or ends[-1] != length or not np.isfinite(values).all():
        return None
    parts = [values[ends[i] : ends[i + 1]].reshape(shape) for i, shape in enumerate(shapes)]
    elements, origin, table, counts, fraction, moment, gram, keys, number = parts
    sums = LabelSums(
        table,
        elements.astype(np.int64),
        origin,
        counts,
        fraction,
        moment,
        gram,
        keys.astype(np.int64),
        number.astype(np.int64),
        fitted,
    )
    return StoredSums(RowCounts((samples, atoms, edges)), deleted, tuple(head[4:8].tolist()), sums)


def _checksum(values: FloatArray) -> float:
    return float(zlib.crc32(np.ascontiguousarray(values, "<f8").data))
