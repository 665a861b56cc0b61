"""A batch as contiguous bytes: its layout, and tensors as views of the bytes."""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from zarrpipe.data.batch import Batch
from zarrpipe.data.buffers import ALIGNMENT, Bytes
from zarrpipe.data.collate import Parts
from zarrpipe.data.csr import AnyArray, Int64Array
from zarrpipe.data.fields import LEVELS, SEGMENTED, Level

POINTER_ROWS = len(LEVELS)
"""Stands for the level of a pointer array, which has one row more than there are systems."""
FIELD, PRESENT, POINTERS = range(3)
"""Roles of an array: a field, its presence, and the pointers of a level."""


class ArraySpec(NamedTuple):
    """One array of a batch; `shape` is that of a row.

    `role` is `FIELD`, `PRESENT` or `POINTERS`; `level` is the number of a level, or `POINTER_ROWS`;
    `name` is "" for pointers.
    """

    role: int
    name: str
    level: int
    dtype: np.dtype[Any]
    shape: tuple[int, ...]


class BatchLayout(NamedTuple):
    """Layout of a batch's bytes: the fields, then presence, then the pointers of each level.

    `numbers` has the rows by level, the entries of a pointer array, the offset in bytes of each
    array, and the length of all in bytes.
    """

    arrays: tuple[ArraySpec, ...]
    numbers: Sequence[int]

    @property
    def nbytes(self) -> int:
        """Length of the bytes."""
        return self.numbers[-1]

    def views(self, buffer: Bytes) -> list[AnyArray]:
        """Every array as a view of the bytes."""
        numbers = self.numbers
        return [
            np.ndarray((numbers[level], *shape), dtype, buffer, offset)
            for (_, _, level, dtype, shape), offset in zip(
                self.arrays, numbers[POINTER_ROWS + 1 :], strict=False
            )
        ]

    def __reduce__(self) -> tuple[Callable[..., "BatchLayout"], tuple[object, ...]]:
        """Plain tuples, which pickle several times faster than named ones."""
        arrays = tuple((*spec[:3], spec.dtype.str, spec.shape) for spec in self.arrays)
        return _layout, (arrays, tuple(self.numbers))


class BatchBytes:
    """Bytes of a batch, on the CPU as an array or on any device as a tensor, and their layout.

    Its tensors are made at the first access, and `numbers` may be an array until then.
    """

    __slots__ = ("_arrays", "_numbers", "buffer")

    def __init__(
        self,
        arrays: tuple[ArraySpec, ...],
        numbers: Int64Array | Sequence[int],
        buffer: Bytes | torch.Tensor,
    ) -> None:
        self._arrays, self._numbers, self.buffer = arrays, numbers, buffer

    @property
    def layout(self) -> BatchLayout:
        """Layout of the bytes."""
        numbers = self._numbers
        if isinstance(numbers, np.ndarray):
            numbers = self._numbers = numbers.tolist()
        return BatchLayout(self._arrays, numbers)

    def parts(self) -> Parts:
        """Fields, levels, pointers and presence."""
        fields, levels, present, pointers = {}, {}, {}, []
        for (role, name, level, _, _), tensor in zip(self._arrays, self._tensors(), strict=True):
            if role == FIELD:
                fields[name], levels[name] = tensor, _BY_NUMBER[level]
            elif role == POINTERS:
                pointers.append(tensor)
            elif not bool(tensor.all()):
                present[name] = tensor
        return fields, levels, dict(zip(SEGMENTED, pointers, strict=True)), present

    def transferred(self, copy: Callable[[torch.Tensor], torch.Tensor]) -> "BatchBytes":
        """The same bytes, copied in one piece."""
        return BatchBytes(self._arrays, self._numbers, copy(torch.as_tensor(self.buffer)))

    def _tensors(self) -> list[torch.Tensor]:
        """Tensors of all arrays, none a view of another, as views share a version counter."""
        buffer = self.buffer
        if isinstance(buffer, np.ndarray):
            return [*map(torch.from_numpy, self.layout.views(buffer))]
        storage, first, tensors = buffer.untyped_storage(), buffer.storage_offset(), []
        numbers = self.layout.numbers
        for spec, offset in zip(self._arrays, numbers[POINTER_ROWS + 1 :], strict=False):
            shape, dtype = (numbers[spec.level], *spec.shape), spec.dtype
            tensor = torch.empty(0, dtype=_TORCH[dtype.str], device=buffer.device)
            tensor.set_(storage, (first + offset) // dtype.itemsize, shape, _strides(shape))
            tensors.append(tensor)
        return tensors


def _strides(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Strides of an array in C order."""
    return tuple(math.prod(shape[place + 1 :]) for place in range(len(shape)))


def pack(batch: Batch, out: Bytes | None = None) -> tuple[BatchLayout, Bytes]:
    """Pack a batch on the CPU, without gradient history, into `out` or by default its own buffer.

    A batch that is not a view of one buffer gets a new one. `out` shorter than `packed_bytes`
    raises ValueError.
    """
    layout, tensors, whole = _laid_out(batch)
    if out is None:
        if whole is not None:
            return layout, whole
        out = np.empty(layout.nbytes, dtype=np.uint8)
    if len(out) < layout.nbytes:
        raise ValueError(f"a batch of {layout.nbytes} bytes does not fit into {len(out)}")
    if whole is not None:
        out[: layout.nbytes] = whole
    else:
        for view, tensor in zip(layout.views(out), tensors, strict=True):
            view[...] = tensor.detach().numpy()
    return layout, out


def packed_bytes(batch: Batch) -> int:
    """Length of the bytes that `pack` makes."""
    return _laid_out(batch)[0].nbytes


def unpack(layout: BatchLayout, buffer: Bytes | torch.Tensor) -> Batch:
    """Batch of the bytes that `pack` made; its tensors share the memory, which is writeable."""
    return Batch._of_bytes(BatchBytes(layout.arrays, layout.numbers, buffer[: layout.nbytes]))


def _laid_out(batch: Batch) -> tuple[BatchLayout, list[torch.Tensor], Bytes | None]:
    """Layout of a batch, its tensors, and its buffer if that holds all of them."""
    if isinstance(batch._bytes, BatchBytes):
        return batch._bytes.layout, [], np.asarray(batch._bytes.buffer)
    levels, fields, masks = batch.levels, batch.fields, sorted(batch.partly_present)
    names = [(FIELD, name, LEVELS[levels[name]].number) for name in fields]
    names += [(PRESENT, name, LEVELS[Level.SYSTEM].number) for name in masks]
    names += [(POINTERS, "", POINTER_ROWS)] * len(SEGMENTED)
    tensors = [*fields.values(), *map(batch.present, masks), *map(batch.row_pointers, SEGMENTED)]
    specs = tuple(
        ArraySpec(*name, _dtype_of(name[1], tensor), tuple(tensor.shape[1:]))
        for name, tensor in zip(names, tensors, strict=True)
    )
    whole = None if batch._buffer is None else np.asarray(batch._buffer)
    offsets = None if whole is None else _offsets_in(whole, tensors)
    nbytes = 0 if whole is None else len(whole)
    if offsets is None:
        whole, nbytes, offsets = None, 0, []
        for tensor in tensors:
            offsets.append(nbytes)
            nbytes += -(-tensor.nbytes // ALIGNMENT) * ALIGNMENT
    rows = [batch.rows(level) for level in LEVELS]
    numbers = (*rows, batch.num_graphs + 1, *offsets, nbytes)
    return BatchLayout(specs, numbers), tensors, whole


def _dtype_of(name: str, tensor: torch.Tensor) -> np.dtype[Any]:
    if tensor.dtype not in _NUMPY:
        raise TypeError(
            f"field {name!r} has dtype {tensor.dtype}, which NumPy and so the way between "
            "processes does not have: cast it after the loader, or read with num_workers=0"
        )
    return _NUMPY[tensor.dtype]


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


def _layout(arrays: tuple[Any, ...], numbers: tuple[int, ...]) -> BatchLayout:
    """Layout from plain tuples."""
    specs = tuple(
        ArraySpec(role, name, level, np.dtype(dtype), shape)
        for role, name, level, dtype, shape in arrays
    )
    return BatchLayout(specs, numbers)


_BY_NUMBER = tuple(LEVELS)
_NAMES = "bool uint8 uint16 uint32 uint64 int8 int16 int32 int64 float16 float32 float64 complex64"
_NUMPY = {getattr(torch, name): np.dtype(name) for name in (*_NAMES.split(), "complex128")}
_TORCH = {dtype.str: name for name, dtype in _NUMPY.items()}
