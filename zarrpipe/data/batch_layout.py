"""A batch as contiguous bytes: its layout, and tensors as views of the bytes."""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, cast

import numpy as np
import torch

from zarrpipe.data.batch import Batch
from zarrpipe.data.buffers import ALIGNMENT, Bytes
from zarrpipe.data.collate import Parts
from zarrpipe.data.csr import AnyArray, Int64Array
from zarrpipe.data.fields import CORE_FIELDS, Role
from zarrpipe.data.levels import BUILT_IN, Level

FIELD, PRESENT, POINTERS = range(3)
"""Purposes of an array: a field, its presence, and the pointers of a level."""


class ArraySpec(NamedTuple):
    """One array of a batch; `shape` is that of a row.

    `purpose` is `FIELD`, `PRESENT` or `POINTERS`, and `about` the role of a field, or the level of
    pointers. `rows` says what it has a row for: 0 for systems, 1 to L for the L levels that have
    pointers, in the order of their arrays, and L + 1 for the entries of pointers.
    """

    purpose: int
    name: str
    rows: int
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    about: Role | Level | None


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

    @property
    def offsets(self) -> Sequence[int]:
        """Where each array begins."""
        return self.numbers[-1 - len(self.arrays) : -1]

    def views(self, buffer: Bytes) -> list[AnyArray]:
        """Every array as a view of the bytes."""
        numbers = self.numbers
        return [
            np.ndarray((numbers[rows], *shape), dtype, buffer, offset)
            for (_, _, rows, dtype, shape, _), offset in zip(self.arrays, self.offsets, strict=True)
        ]

    def __reduce__(self) -> tuple[Callable[..., "BatchLayout"], tuple[object, ...]]:
        """Plain tuples, which pickle several times faster than named ones."""
        arrays = tuple(
            (*spec[:3], spec.dtype.str, spec.shape, _shortened(spec.name, spec.about))
            for spec in self.arrays
        )
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
        """Fields, their roles, pointers and presence."""
        fields, roles, present, pointers = {}, {}, {}, {}
        for (purpose, name, _, _, _, about), tensor in zip(
            self._arrays, self._tensors(), strict=True
        ):
            if purpose == FIELD:
                fields[name], roles[name] = tensor, cast("Role", about)
            elif purpose == POINTERS:
                pointers[cast("Level", about)] = tensor
            elif not bool(tensor.all()):
                present[name] = tensor
        return fields, roles, pointers, present

    def transferred(self, copy: Callable[[torch.Tensor], torch.Tensor]) -> "BatchBytes":
        """The same bytes, copied in one piece."""
        return BatchBytes(self._arrays, self._numbers, copy(torch.as_tensor(self.buffer)))

    def _tensors(self) -> list[torch.Tensor]:
        """Tensors of all arrays, none a view of another, as views share a version counter."""
        buffer = self.buffer
        if isinstance(buffer, np.ndarray):
            return [*map(torch.from_numpy, self.layout.views(buffer))]
        storage, first, tensors = buffer.untyped_storage(), buffer.storage_offset(), []
        layout = self.layout
        for spec, offset in zip(self._arrays, layout.offsets, strict=True):
            shape, dtype = (layout.numbers[spec.rows], *spec.shape), spec.dtype
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
    roles, fields, masks = batch.roles, batch.fields, sorted(batch.partly_present)
    levels = batch.pointer_levels
    numbered = {level: number for number, level in enumerate(levels, 1)}
    given = [
        *((FIELD, name, numbered.get(role.level, 0), role) for name, role in roles.items()),
        *((PRESENT, name, 0, None) for name in masks),
        *((POINTERS, "", len(levels) + 1, level) for level in levels),
    ]
    tensors = [*fields.values(), *map(batch.present, masks), *map(batch.level_ptr, levels)]
    specs = tuple(
        ArraySpec(purpose, name, rows, _dtype_of(name, tensor), tuple(tensor.shape[1:]), about)
        for (purpose, name, rows, about), tensor in zip(given, tensors, strict=True)
    )
    whole = None if batch._buffer is None else np.asarray(batch._buffer)
    offsets = None if whole is None else _offsets_in(whole, tensors)
    nbytes = 0 if whole is None else len(whole)
    if offsets is None:
        whole, nbytes, offsets = None, 0, []
        for tensor in tensors:
            offsets.append(nbytes)
            nbytes += -(-tensor.nbytes // ALIGNMENT) * ALIGNMENT
    rows = [batch.num_graphs, *map(batch.num_rows, levels)]
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


def _shortened(name: str, about: Role | Level | None) -> Role | Level | str | None:
    """Description of an array that pickles fast: None for what the registry says."""
    if isinstance(about, Level):
        return str(about) if about.built_in else about
    if about is None or (name in CORE_FIELDS and about == CORE_FIELDS[name].role):
        return None
    return str(about.level) if about == Role(about.level) and about.level.built_in else about


def _full(purpose: int, name: str, about: Role | Level | str | None) -> Role | Level | None:
    """Description of an array as it was before `_shortened`."""
    if about is None:
        return CORE_FIELDS[name].role if purpose == FIELD else None
    if not isinstance(about, str) or isinstance(about, Level):
        return about
    return BUILT_IN[about] if purpose == POINTERS else Role(BUILT_IN[about])


def _layout(arrays: tuple[Any, ...], numbers: tuple[int, ...]) -> BatchLayout:
    """Layout of plain tuples."""
    specs = tuple(
        ArraySpec(purpose, name, rows, np.dtype(dtype), shape, _full(purpose, name, about))
        for purpose, name, rows, dtype, shape, about in arrays
    )
    return BatchLayout(specs, numbers)


_NAMES = "bool uint8 uint16 uint32 uint64 int8 int16 int32 int64 float16 float32 float64 complex64"
_NUMPY = {getattr(torch, name): np.dtype(name) for name in (*_NAMES.split(), "complex128")}
_TORCH = {dtype.str: name for name, dtype in _NUMPY.items()}
