"""Arguments of samplers that are integers, or arrays of them."""

from collections.abc import Sized
from typing import Any

import numpy as np

from zarrpipe.errors import ArgumentError, ArgumentTypeError
from zarrpipe.training.epoch.plans import IndexArray, compact_index


def checked_integer(name: str, value: Any, least: int) -> int:
    """An integer that is not less than another.

    Raises
    ------
    ArgumentTypeError, ArgumentError
        If it is none, or less.
    """
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise ArgumentTypeError(f"{name} is {value!r}, expected an integer of at least {least}")
    if value < least:
        raise ArgumentError(f"{name} is {value}, expected at least {least}")
    return int(value)


def checked_bool(name: str, value: Any) -> bool:
    """A bool: any text would count as true.

    Raises
    ------
    ArgumentTypeError
        If it is none.
    """
    if not isinstance(value, bool | np.bool_):
        raise ArgumentTypeError(f"{name} is {value!r}, expected True or False")
    return bool(value)


def checked_index(index: Any, data: Sized) -> IndexArray:
    """Indices [n] of samples of data.

    Raises
    ------
    ArgumentTypeError, ArgumentError
        If they are no integers, or there are no such samples.
    """
    values = np.asarray(index)
    if values.ndim != 1 or (values.size and values.dtype.kind not in "iu"):
        way_out = "; np.flatnonzero(mask) has those of a mask" if values.dtype == np.bool_ else ""
        raise ArgumentTypeError(
            f"index has shape {values.shape} and dtype {values.dtype}, expected [n] int{way_out}"
        )
    if values.size and not 0 <= values.min() <= values.max() < len(data):
        raise ArgumentError(
            f"index has {values.min()} to {values.max()}, expected indices of {len(data)} samples, "
            f"0 to {len(data) - 1}"
        )
    return compact_index(values)
