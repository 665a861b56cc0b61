"""A batch as one run of bytes and a small header, for the way between processes."""

from typing import NamedTuple

import numpy as np
import torch

from zarrpipe.data.batch import Batch
from zarrpipe.data.buffers import ALIGNMENT, Bytes
from zarrpipe.data.fields import Level


class Place(NamedTuple):
    """Where an array stands in the bytes.

    Parameters
    ----------
    name
        Of the field; "" for a pointer array.
    level
        Of the field; None for pointers and for presence.
    dtype
        NumPy dtype as a string.
    shape
        Of the array.
    offset
        In bytes.
    """

    name: str
    level: str | None
    dtype: str
    shape: tuple[int, ...]
    offset: int


class Header(NamedTuple):
    """What the bytes of a batch mean: plain types, which pickle small.

    Parameters
    ----------
    fields, present
        Places of fields and of the masks that say which systems have one.
    batch_ptr, edge_ptr
        Places of the pointers.
    nbytes
        Length of the bytes.
    """

    fields: tuple[Place, ...]
    present: tuple[Place, ...]
    batch_ptr: Place
    edge_ptr: Place
    nbytes: int


def pack(batch: Batch, out: Bytes | None = None) -> tuple[Header, Bytes]:
    """Bytes of a batch on the CPU, and what they mean.

    Parameters
    ----------
    batch
        On the CPU; gradient history is not kept.
    out : array [n] uint8, optional
        Where to copy the batch; by default its own buffer if it is views of one, else a new one.

    Returns
    -------
    Header
        For `unpack`.
    array [n] uint8
        `out`, or the buffer.

    Raises
    ------
    ValueError
        If `out` is too short; `packed_bytes` says how long it has to be.
    """
    header, arrays, whole = _laid_out(batch)
    if out is None:
        if whole is not None:
            return header, whole
        out = np.empty(header.nbytes, dtype=np.uint8)
    if len(out) < header.nbytes:
        raise ValueError(f"a batch of {header.nbytes} bytes does not fit into {len(out)}")
    if whole is not None:
        out[: header.nbytes] = whole
        return header, out
    places = (*header.fields, *header.present, header.batch_ptr, header.edge_ptr)
    for place, array in zip(places, arrays, strict=True):
        _view(out, place)[...] = array
    return header, out


def packed_bytes(batch: Batch) -> int:
    """Length of the bytes that `pack` makes."""
    return _laid_out(batch)[0].nbytes


def unpack(header: Header, buffer: Bytes) -> Batch:
    """Batch whose tensors are views of bytes that `pack` made; `buffer` must be writeable."""
    return Batch._trusted(
        {place.name: torch.from_numpy(_view(buffer, place)) for place in header.fields},
        {place.name: Level(place.level) for place in header.fields if place.level},
        torch.from_numpy(_view(buffer, header.batch_ptr)),
        torch.from_numpy(_view(buffer, header.edge_ptr)),
        {place.name: torch.from_numpy(_view(buffer, place)) for place in header.present},
        buffer=buffer[: header.nbytes],
    )


def _laid_out(batch: Batch) -> tuple[Header, list[np.ndarray], Bytes | None]:
    """Places of all arrays, the arrays, and the buffer of the batch if it has them all."""
    fields = [(name, batch.levels[name].value, value) for name, value in batch.fields.items()]
    masks = [(name, None, batch.present(name)) for name in sorted(batch.partly_present)]
    pointers = [("", None, batch.batch_ptr), ("", None, batch.edge_ptr)]
    listed = [
        (name, level, value.detach().numpy()) for name, level, value in (*fields, *masks, *pointers)
    ]
    whole = None if batch._buffer is None else np.asarray(batch._buffer)
    offsets = None if whole is None else _offsets_in(whole, [array for _, _, array in listed])
    nbytes = 0 if whole is None else len(whole)
    if offsets is None:
        whole, nbytes, offsets = None, 0, []
        for _, _, array in listed:
            offsets.append(nbytes)
            nbytes += -(-array.nbytes // ALIGNMENT) * ALIGNMENT
    places = [
        Place(name, level, array.dtype.str, array.shape, offset)
        for (name, level, array), offset in zip(listed, offsets, strict=True)
    ]
    count = len(fields)
    header = Header(tuple(places[:count]), tuple(places[count:-2]), places[-2], places[-1], nbytes)
    return header, [array for _, _, array in listed], whole


def _offsets_in(whole: Bytes, arrays: list[np.ndarray]) -> list[int] | None:
    """Where arrays begin in a buffer; None if one is no contiguous part of it."""
    first = whole.ctypes.data
    offsets = [array.ctypes.data - first if array.nbytes else 0 for array in arrays]
    for offset, array in zip(offsets, arrays, strict=True):
        if not 0 <= offset <= len(whole) - array.nbytes or not array.flags.c_contiguous:
            return None
    return offsets


def _view(buffer: Bytes, place: Place) -> np.ndarray:
    return np.ndarray(place.shape, place.dtype, buffer, place.offset)
