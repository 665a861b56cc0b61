"""What of a store is committed, by the arrays that a reader has opened."""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from zarrpipe.data.csr import AnyArray, Int64Array
from zarrpipe.data.fields import REQUIRED_FIELDS, SEGMENTED
from zarrpipe.data.schema import Schema
from zarrpipe.errors import StoreFormatError
from zarrpipe.store.backend.array_reader import ArrayReader, check_rows
from zarrpipe.store.format.commit_log import (
    Indexable,
    RowCounts,
    check_pointers,
    new_samples,
    rising_samples,
)
from zarrpipe.store.format.layout import ATOMS_PTR, SAMPLES_MASK, field_path
from zarrpipe.store.format.metadata import Attributes
from zarrpipe.store.read.mapped import MappedArray
from zarrpipe.store.read.store_arrays import StoreArrays


def find_samples(flats: StoreArrays, attributes: Attributes, before: int) -> int:
    """Samples that the pointers to atoms say there are; those `before` were looked at.

    Raises
    ------
    StoreFormatError
        If pointers do not rise, there are fewer than when the store was closed, or the files have
        others than their maps.
    """
    pointers = flats.open(ATOMS_PTR)
    pointers.grow()
    with _looked_at(pointers) as entries:
        first, last = new_samples(entries, before)
        if last and isinstance(pointers, MappedArray):  # chunks are larger than shapes
            last = pointers.within(last + 1) - 1
        samples = rising_samples(f"{flats.root}: {ATOMS_PTR}", entries, first, last)
    if samples > before and not pointers.data[samples]:
        raise StoreFormatError(
            f"{flats.root}: {ATOMS_PTR} was written to, and what this process has mapped of it "
            "stays as it was, as where an overlay file system (the image of a container) has "
            "copied the file: open the store again"
        )
    if attributes.ours and samples < attributes.num_samples:
        raise StoreFormatError(
            f"{flats.root} had {attributes.num_samples} samples when it was closed, and "
            f"{ATOMS_PTR} has {samples} of them: pointers were lost; `zarrpipe check` says more"
        )
    return samples


def find_extent(flats: StoreArrays, samples: int, before: int) -> RowCounts:
    """Extent of the first samples, of which the pointers of those `before` were looked at.

    Raises
    ------
    StoreFormatError
        If pointers do not begin with zero, or those of another level fall.
    """
    if samples == 0:
        return RowCounts()
    opened = {path: flats.open(path) for path in SEGMENTED.values()}
    for path, flat in opened.items():
        flat.ensure(samples + 1)
        if flat.data[0]:
            raise StoreFormatError(
                f"{flats.root}: {path} begins with {flat.data[0]}, expected 0: it is damaged"
            )
    for path in opened.keys() - {ATOMS_PTR}:  # which find_samples has checked
        with _looked_at(opened[path]) as entries:
            check_pointers(f"{flats.root}: {path}", entries, samples, before)
    return RowCounts((samples, *(int(flat.data[samples]) for flat in opened.values())))


def find_active(flats: StoreArrays, attributes: Attributes, samples: int) -> Int64Array | None:
    """Those of the first samples that were not deleted; None where none was.

    Raises
    ------
    StoreFormatError
        If fewer are masked than were deleted.
    """
    if samples == 0 or (attributes.ours and attributes.deleted == 0):
        return None
    flats.drop(SAMPLES_MASK)
    mask = flats.open(SAMPLES_MASK)
    mask.ensure(samples)
    active = np.flatnonzero(mask.data[:samples])
    if attributes.ours and samples - len(active) < attributes.deleted:
        raise StoreFormatError(
            f"{flats.root}: {attributes.deleted} samples are said to be deleted, and "
            f"{SAMPLES_MASK} has {samples - len(active)} of them: it is damaged"
        )
    return None if len(active) == samples else active


def check_required(flats: StoreArrays, schema: Schema, extent: RowCounts) -> None:
    """Refuse samples without atoms, or with more than there are.

    Raises
    ------
    StoreFormatError
        If a field that every sample needs is not there, or shorter than the pointers say.
    """
    for name in REQUIRED_FIELDS if extent.samples else ():
        item = schema.get(name)
        if item is None:
            raise StoreFormatError(f"{flats.root} has samples and no field {name!r}")
        array = flats.zarr_array(field_path(item))
        check_rows(array.store_path, array.shape[0], extent.atoms)


@contextmanager
def _looked_at(pointers: ArrayReader) -> Iterator[AnyArray | Indexable]:
    """Pointers of which many are looked at once: in the files, as touched maps take up memory."""
    if isinstance(pointers, MappedArray):
        with pointers.entries().opened() as entries:
            yield entries
    else:
        yield pointers.data
