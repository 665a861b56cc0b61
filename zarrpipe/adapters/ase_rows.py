"""Numbers of ASE as the rows of a field."""

from typing import Any

import numpy as np
import torch

from zarrpipe.adapters.parts import fit_rows
from zarrpipe.data.fields import Level
from zarrpipe.errors import FieldError

_VOIGT = ((0, 5, 4), (5, 1, 3), (4, 3, 2))
"""Position in ASE's order xx, yy, zz, yz, xz, xy of each entry of the matrix."""


def as_rows(
    name: str,
    value: Any,
    level: Level,
    num_atoms: int,
    *,
    dtype: torch.dtype,
    key: str | None = None,
) -> torch.Tensor:
    """Copy of a value as the rows of a field, of the kind and shape of the registry.

    Raises
    ------
    FieldError
        If it is not numeric; the message has the `key` under which it was found.
    """
    rows = as_tensor(name if key is None else key, value, dtype)
    if level is Level.SYSTEM and rows.ndim:
        rows = rows.unsqueeze(0)
    if name in ("stress", "virial") and rows.numel() == 6:
        rows = rows.reshape(-1)[torch.tensor(_VOIGT)]
    return fit_rows(name, rows, level, num_atoms if level is Level.ATOM else 1, dtype)


def as_tensor(name: str, value: Any, dtype: torch.dtype) -> torch.Tensor:
    """Copy of an array or a number as a tensor, floats in `dtype`.

    Raises
    ------
    FieldError
        If it is not numeric.
    """
    array = np.array(value)
    if array.dtype.kind not in "biuf":
        raise FieldError(
            f"{name!r} has dtype {array.dtype}, expected numbers: only numeric info and arrays "
            "can become fields"
        )
    tensor = torch.from_numpy(array)
    return tensor.to(dtype) if tensor.is_floating_point() else tensor
