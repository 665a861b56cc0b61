"""A batch as one run of bytes and a small header, for the way between processes."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch

from zarrpipe.data.batch import Batch
from zarrpipe.data.buffers import ALIGNMENT, Bytes
from zarrpipe.data.csr import AnyArray
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


class BatchLayout(NamedTuple):
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

    def __reduce__(self) -> tuple[Callable[..., "BatchLayout"], tuple[object, ...]]:
        """Plain tuples, which pickle several times faster than named ones."""
        return _header, (
            tuple(map(tuple, self.fields)),
            tuple(map(tuple, self.present)),
            tuple(self.batch_ptr),
            tuple(self.edge_ptr),
            self.nbytes,
        )


def pack(batch: Batch, out: Bytes | None = None) -> tuple[BatchLayout, Bytes]:
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
    header, tensors, whole = _laid_out(batch)
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
    for place, tensor in zip(places, tensors, strict=True):
        _view(out, place)[...] = tensor.detach().numpy()
    return header, out


def packed_bytes(batch: Batch) -> int:
    """Length of the bytes that `pack` makes."""
    return _laid_out(batch)[0].nbytes


def unpack(header: BatchLayout, buffer: Bytes) -> Batch:
    """Batch whose tensors are views of bytes that `pack` made; `buffer` must be writeable."""
    return Batch._trusted(
        {place.name: torch.from_numpy(_view(buffer, place)) for place in header.fields},
        {place.name: _LEVELS[place.level] for place in header.fields if place.level},
        {
            Level.ATOM: torch.from_numpy(_view(buffer, header.batch_ptr)),
            Level.EDGE: torch.from_numpy(_view(buffer, header.edge_ptr)),
        },
        {place.name: torch.from_numpy(_view(buffer, place)) for place in header.present},
        buffer=buffer[: header.nbytes],
    )


def _laid_out(batch: Batch) -> tuple[BatchLayout, list[torch.Tensor], Bytes | None]:
    """Places of all arrays, the arrays, and the buffer of the batch if it has them all."""
    levels, masks = batch.levels, sorted(batch.partly_present)
    names: list[tuple[str, str | None]] = [(name, levels[name].value) for name in batch.fields]
    unnamed: list[tuple[str, str | None]] = [(name, None) for name in (*masks, "", "")]
    tensors = [*batch.fields.values(), *(batch.present(name) for name in masks)]
    tensors += [batch.batch_ptr, batch.edge_ptr]
    whole = None if batch._buffer is None else np.asarray(batch._buffer)
    offsets = None if whole is None else _offsets_in(whole, tensors)
    nbytes = 0 if whole is None else len(whole)
    if offsets is None:
        whole, nbytes, offsets = None, 0, []
        for tensor in tensors:
            offsets.append(nbytes)
            nbytes += -(-tensor.nbytes // ALIGNMENT) * ALIGNMENT
    places = [
        Place(name, level, _dtype_of(name, tensor), tuple(tensor.shape), offset)
        for (name, level), tensor, offset in zip((*names, *unnamed), tensors, offsets, strict=True)
    ]
    count = len(names)
    header = BatchLayout(
        tuple(places[:count]), tuple(places[count:-2]), places[-2], places[-1], nbytes
    )
    return header, tensors, whole


def _dtype_of(name: str, tensor: torch.Tensor) -> str:
    if tensor.dtype not in _DTYPES:
        raise TypeError(
            f"field {name!r} has dtype {tensor.dtype}, which NumPy and so the way between "
            "processes does not have: cast it after the loader, or read with num_workers=0"
        )
    return _DTYPES[tensor.dtype]


def _offsets_in(whole: Bytes, tensors: list[torch.Tensor]) -> list[int] | None:
    """Where arrays begin in a buffer; None if one is no contiguous part of it."""
    first, size, offsets = whole.__array_interface__["data"][0], len(whole), []
    for tensor in tensors:
        nbytes = tensor.nbytes
        offset = tensor.data_ptr() - first if nbytes else 0
        if not 0 <= offset <= size - nbytes or not tensor.is_contiguous():
            return None
        offsets.append(offset)
    return offsets


def _header(
    fields: tuple[Any, ...],
    present: tuple[Any, ...],
    batch_ptr: tuple[Any, ...],
    edge_ptr: tuple[Any, ...],
    nbytes: int,
) -> BatchLayout:
    """Header of plain tuples."""
    make = Place._make
    places, masks = tuple(map(make, fields)), tuple(map(make, present))
    return BatchLayout(places, masks, make(batch_ptr), make(edge_ptr), nbytes)


def _view(buffer: Bytes, place: Place) -> AnyArray:
    return np.ndarray(place.shape, place.dtype, buffer, place.offset)


_LEVELS = {level.value: level for level in Level}
_NAMES = "bool uint8 uint16 uint32 uint64 int8 int16 int32 int64 float16 float32 float64 complex64"
_DTYPES = {getattr(torch, name): np.dtype(name).str for name in (*_NAMES.split(), "complex128")}
