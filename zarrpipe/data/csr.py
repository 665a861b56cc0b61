"""CSR mathematics: from counts to pointers to rows, for NumPy on the way to disk and for torch.

A *pointer* array of B + 1 entries starts at 0; segment b owns rows ``ptr[b]:ptr[b + 1]``.
"""

from typing import Any

import numpy as np
import numpy.typing as npt
import torch

Int64Array = npt.NDArray[np.int64]
AnyArray = npt.NDArray[Any]


def pointers(counts: AnyArray) -> Int64Array:
    """Pointer array [B+1] int64 of segments with `counts` [B] rows.

    Examples
    --------
    >>> pointers(np.array([2, 0, 3]))
    array([0, 2, 2, 5])
    """
    ptr = np.zeros(len(counts) + 1, dtype=np.int64)
    np.cumsum(counts, out=ptr[1:])
    return ptr


def segment_rows(starts: Int64Array, ptr: Int64Array) -> Int64Array:
    """Rows [ptr[-1]] that segments beginning at `starts` [B] bring to a batch pointed by `ptr`.

    Examples
    --------
    >>> segment_rows(np.array([10, 4]), np.array([0, 2, 5]))
    array([10, 11,  4,  5,  6])
    """
    rows = np.repeat(starts - ptr[:-1], np.diff(ptr))
    rows += np.arange(len(rows), dtype=np.int64)
    return rows


def tensor_pointers(counts: torch.Tensor) -> torch.Tensor:
    """`pointers` for a torch tensor, on its device."""
    ptr = torch.zeros(counts.shape[0] + 1, dtype=torch.int64, device=counts.device)
    torch.cumsum(counts, 0, out=ptr[1:])
    return ptr


def tensor_segment_rows(starts: torch.Tensor, ptr: torch.Tensor) -> torch.Tensor:
    """`segment_rows` for torch tensors, on their device."""
    rows = torch.repeat_interleave(starts - ptr[:-1], ptr.diff())
    return rows + torch.arange(rows.shape[0], device=rows.device)
