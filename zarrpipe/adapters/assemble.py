"""Shared by the adapters: foreign numbers as rows of fields, and batches assembled from them."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import islice
from types import MappingProxyType
from typing import Any

import numpy as np
import torch

from zarrpipe.data.batch import Batch
from zarrpipe.data.csr import tensor_pointers
from zarrpipe.data.fields import CORE_FIELDS, Kind
from zarrpipe.data.levels import Level
from zarrpipe.data.validate import plain_array
from zarrpipe.errors import FieldError

_VOIGT = ((0, 5, 4), (5, 1, 3), (4, 3, 2))
"""Position in ASE's order xx, yy, zz, yz, xz, xy of each entry of the matrix."""
_BLOCK_BYTES = 1 << 25


def fit_rows(
    name: str, value: torch.Tensor, level: Level, rows: int, dtype: torch.dtype
) -> torch.Tensor:
    """Give a tensor the registry's kind of dtype, and the shape ``(rows, *row)``.

    Integers of a float field take `dtype`, that of the positions; whole floats of an integer or
    bool field become integers; the ``[3 B, 3]`` cells of a PyG batch become ``[B, 3, 3]``, a scalar
    per system ``[B, 1]``. A tensor that does not fit, or whose values would change, is returned
    unchanged: `Batch` refuses it with a message.
    """
    value = _of_kind(name, value.detach(), dtype)
    spec = CORE_FIELDS.get(name)
    if spec is not None and spec.shape is not None:
        fits = value.numel() == rows * math.prod(spec.shape)
        return value.reshape(rows, *spec.shape) if fits else value
    if level is Level.SYSTEM and value.ndim < 2 and value.numel() == rows:
        return value.reshape(rows, 1)
    return value


def _of_kind(name: str, value: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Tensor as floats or as integers, as the registry has the field, if no value changes."""
    spec = CORE_FIELDS.get(name)
    if spec is None or spec.kind is Kind.NUMBER or value.dtype is torch.bool or value.is_complex():
        return value
    if value.is_floating_point() is (spec.kind is Kind.FLOAT):
        return value
    floats = dtype if dtype.is_floating_point else torch.get_default_dtype()
    cast = value.to(floats if spec.kind is Kind.FLOAT else torch.int64)
    return cast if torch.equal(cast.to(value.dtype), value) else value


def as_rows(
    name: str,
    value: Any,
    level: Level,
    num_atoms: int,
    *,
    dtype: torch.dtype,
    key: str | None = None,
) -> torch.Tensor:
    """Copy of ASE's numbers as the rows of a field; messages call it `key`, by default `name`."""
    rows = as_tensor(name if key is None else key, value, dtype)
    if level is Level.SYSTEM and rows.ndim:
        rows = rows.unsqueeze(0)
    if name in ("stress", "virial") and rows.numel() == 6:
        rows = rows.reshape(-1)[torch.tensor(_VOIGT)]
    return fit_rows(name, rows, level, num_atoms if level is Level.ATOM else 1, dtype)


def as_tensor(name: str, value: Any, dtype: torch.dtype) -> torch.Tensor:
    """Copy of an array or a number as a tensor, floats in `dtype`."""
    array = np.array(value, subok=True)
    if array.dtype.kind not in "biuf":
        raise FieldError(
            f"{name!r} has dtype {array.dtype}, expected numbers: only numeric info and arrays "
            "can become fields"
        )
    tensor = torch.from_numpy(plain_array(repr(name), array))
    return tensor.to(dtype) if tensor.is_floating_point() else tensor


def assemble(
    fields: Mapping[str, tuple[Level, torch.Tensor]],
    num_atoms: torch.Tensor,
    num_edges: torch.Tensor | None = None,
    present: Mapping[str, torch.Tensor] | None = None,
    *,
    level_ptrs: Mapping[Level, torch.Tensor] = MappingProxyType({}),
    index_of: Mapping[str, Level | str] = MappingProxyType({}),
) -> Batch:
    """Batch of named tensors with their levels, shaped by `fit_rows`.

    `num_atoms` and `num_edges` are [B], with no edges by default; `present`, `level_ptrs` and
    `index_of` are as in `Batch`.
    """
    counts = {Level.ATOM: num_atoms}
    counts[Level.EDGE] = torch.zeros_like(num_atoms) if num_edges is None else num_edges
    ptr = {level: tensor_pointers(count.to(torch.int64)) for level, count in counts.items()}
    rows = {level: int(ends[-1]) for level, ends in {**ptr, **level_ptrs}.items()}
    dtype = fields["positions"][1].dtype if "positions" in fields else torch.get_default_dtype()
    shaped = {
        name: fit_rows(name, value, level, rows.get(level, len(num_atoms)), dtype)
        for name, (level, value) in fields.items()
    }
    levels = {name: level for name, (level, _) in fields.items()}
    return Batch(
        shaped,
        ptr[Level.ATOM],
        ptr[Level.EDGE],
        levels=levels,
        level_ptrs=dict(level_ptrs.items()),
        index_of=index_of,
        present=present,
    )


def stresses(batch: Batch) -> torch.Tensor:
    """Stress of each system, [B, 3, 3] float64 in eV/Angstrom^3 and with ASE's sign.

    Where it is not there, ``-virial / volume``; NaN where a system has neither. The batch has one
    of both.
    """
    if "virial" not in batch or "cell" not in batch:
        given: torch.Tensor = batch.stress.to(torch.float64)
        return given
    volume = torch.linalg.det(batch.cell.to(torch.float64)).abs()
    derived: torch.Tensor = -batch.virial.to(torch.float64) / volume[:, None, None]
    if "stress" not in batch:
        return derived
    has = batch.present("stress")[:, None, None]
    return torch.where(has, batch.stress.to(torch.float64), derived)


def without_presence(batch: Batch) -> Batch:
    """Batch in which every system has every field, with fill values where it lacked one."""
    fields, roles, pointers, _ = batch._parts
    return Batch._trusted(dict(fields), dict(roles), pointers, {})


def has_positions(obj: Any) -> bool:
    """Whether an object is a dataset of samples, which are read by their positions."""
    return hasattr(obj, "__getitems__") and hasattr(obj, "__len__")


def position_blocks(dataset: Any, convert: Callable[[Any], Batch]) -> Iterator[Batch]:
    """Batches of about 32 MB with the samples of a dataset, in order; see `item_blocks`."""
    return item_blocks(
        range(len(dataset)), lambda chosen: convert(dataset.__getitems__(np.array(chosen)))
    )


def item_blocks(
    items: Iterable[Any], convert: Callable[[list[Any]], Batch | None]
) -> Iterator[Batch]:
    """Batches of about 32 MB of items, in order, by a function that gives None for no batch.

    The first batch has one item, so that large ones are not gathered.
    """
    left, count = iter(items), 1
    while chosen := list(islice(left, count)):
        batch = convert(chosen)
        if batch is None:
            continue
        yield batch
        nbytes = sum(value.nbytes for value in batch.fields.values())
        count = max(1, min(2 * count, _BLOCK_BYTES * len(chosen) // max(nbytes, 1)))
