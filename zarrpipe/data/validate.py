"""Checks of arguments, and of the pointers, presence and edges that a user gives for a batch."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from zarrpipe.data.csr import tensor_pointers
from zarrpipe.data.levels import Level, pointer_levels
from zarrpipe.errors import ArgumentError, ArgumentTypeError, FieldError


def check_count(
    name: str,
    value: object,
    least: int = 0,
    most: int | None = None,
    *,
    unit: str = "",
    error: type[Exception] | None = None,
) -> int:
    """Integer from `least` to `most`, given as argument `name`; messages name its `unit`.

    Raises `error`, by default `ArgumentTypeError` for a value that is not an integer and
    `ArgumentError` for one out of range.
    """
    kind: type[Exception] = ArgumentTypeError
    if isinstance(value, int | np.integer) and not isinstance(value, bool):
        number = int(value)
        if least <= number and (most is None or number <= most):
            return number
        kind = ArgumentError
    limits = f"of at least {least}" if most is None else f"from {least} to {most}"
    counted = f" ({unit})" if unit else ""
    raise (error or kind)(f"{name} is {value!r}, expected an integer {limits}{counted}")


def check_flag(name: str, value: object, *, error: type[Exception] = ArgumentTypeError) -> bool:
    """Bool given as argument `name`; others are refused, as the text "false" would be true."""
    if not isinstance(value, bool | np.bool_):
        raise error(f"{name} is {value!r}, expected True or False")
    return bool(value)


def plain_array(what: str, value: npt.NDArray[Any], way: str = "") -> npt.NDArray[Any]:
    """Array as torch takes it: bytes in native order, no negative strides, nothing masked.

    Masked entries are refused; `way` adds another way out to the message.
    """
    if isinstance(value, np.ma.MaskedArray):
        masked = int(np.count_nonzero(np.ma.getmaskarray(value)))
        if masked:
            raise FieldError(
                f"{what} is a masked array in which {masked} of {value.size} entries are masked "
                f"and have no value: give them one with .filled(value){way}"
            )
        value = np.asarray(value.data)
    if not value.dtype.isnative:
        value = value.astype(value.dtype.newbyteorder("="))
    return value.copy() if any(stride < 0 for stride in value.strides) else value


def checked_pointers(given: Mapping[Level, Any]) -> dict[Level, torch.Tensor]:
    """Pointer arrays [B+1] int64 of all levels that have them, those of `given` included.

    None stands for no rows, and for all pairs at a product level. Refuses pointers that fall, leave
    a system with too few rows, differ in length from those of atoms, or are those of a product
    and count other than all pairs or none.
    """
    pointers: dict[Level, torch.Tensor] = {}
    for level in pointer_levels(given):
        ptr: Any = given.get(level)
        if ptr is None and level.parents:
            ptr = tensor_pointers(_pairs(level, pointers))
        elif ptr is None and Level.ATOM in pointers:
            ptr = torch.zeros_like(pointers[Level.ATOM])
        _check_pointers(level, ptr)
        pointers[level] = ptr
        atoms = pointers[Level.ATOM]
        if ptr.shape != atoms.shape:
            raise FieldError(
                f"{level.batch_pointers} has {len(ptr)} entries and batch_ptr "
                f"{len(atoms)}; both need one more than there are systems"
            )
        if level.parents:
            _check_pairs(level, ptr, _pairs(level, pointers))
    return pointers


def _pairs(level: Level, pointers: Mapping[Level, torch.Tensor]) -> torch.Tensor:
    """Number of pairs [B] of rows of the parents of a product level in each system."""
    left, right = (pointers[parent].diff() for parent in level.parents)
    return left * right


def _check_pairs(level: Level, ptr: torch.Tensor, pairs: torch.Tensor) -> None:
    rows = ptr.diff()
    wrong = ((rows != pairs) & (rows != 0)).nonzero()
    if wrong.numel():
        system = int(wrong[0])
        names = " and ".join(f"{parent}s" for parent in level.parents)
        raise FieldError(
            f"{level.batch_pointers} gives system {system} {int(rows[system])} rows, expected "
            f"{int(pairs[system])}, one for each pair of {names}, or none"
        )


def _check_pointers(level: Level, ptr: Any) -> None:
    name, least = level.batch_pointers, level.least
    _check_tensor(name, ptr)
    if ptr.ndim != 1 or ptr.dtype is not torch.int64 or ptr.shape[0] < 1 or int(ptr[0]) != 0:
        raise FieldError(
            f"{name} has shape {tuple(ptr.shape)} and dtype {ptr.dtype}, expected (B + 1,) int64 "
            "beginning with 0"
        )
    short = (ptr.diff() < least).nonzero()
    if short.numel():
        system = int(short[0])
        raise FieldError(
            f"{name} goes from {int(ptr[system])} to {int(ptr[system + 1])} at system {system}, "
            f"expected at least {least} more: pointers never fall and no system is empty"
        )


def check_presence(name: str, mask: torch.Tensor, systems: int) -> None:
    """Refuse a presence mask that is not [B] bool."""
    _check_tensor(f"presence of {name!r}", mask)
    if mask.dtype is not torch.bool or mask.shape != (systems,):
        raise FieldError(
            f"presence of {name!r} has dtype {mask.dtype} and shape {tuple(mask.shape)}, "
            f"expected bool and ({systems},)"
        )


def check_indices(
    name: str,
    values: torch.Tensor,
    own: torch.Tensor,
    target: torch.Tensor,
    levels: tuple[Level, Level],
) -> None:
    """Refuse row numbers that leave their own system; other checks refuse a wrong shape.

    `values` [rows, ...] count the rows of the whole batch. `own` and `target` are the pointers
    [B+1] of the field's level and of the counted one, which `levels` names.
    """
    if values.ndim < 1 or values.shape[0] != int(own[-1]) or values.numel() == 0:
        return
    systems = torch.arange(len(own) - 1, device=values.device)
    owner = torch.repeat_interleave(systems, own.diff())
    rows = values.reshape(len(owner), -1)
    low, high = target[:-1][owner, None], target[1:][owner, None]
    bad = ((rows < low) | (rows >= high)).any(1).nonzero()
    if bad.numel():
        row, (level, counted) = int(bad[0]), levels
        raise FieldError(
            f"{level} {row} is {values[row].tolist()}, its system {int(owner[row])} has the "
            f"{counted}s {int(low[row])} to {int(high[row]) - 1}: in a batch {name!r} "
            f"counts the {counted}s of the whole batch"
        )


def _check_tensor(what: str, value: object) -> None:
    if not isinstance(value, torch.Tensor):
        raise FieldError(f"{what} is a {type(value).__name__}, expected a torch.Tensor")
