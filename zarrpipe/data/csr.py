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


def positions_of(index: Any, count: int, what: str) -> Int64Array:
    """Non-negative positions [K] that an index means among `count`.

    Parameters
    ----------
    index : array_like
        Integers counted from either end, or a bool mask of `count` entries.
    count
        How many there are.
    what
        What is counted, for the error.

    Raises
    ------
    IndexError
        If an index is outside, a mask has another length, or the dtype is neither.

    Examples
    --------
    >>> positions_of([-1, 0], 3, "samples"), positions_of([False, True], 2, "samples")
    (array([2, 0]), array([1]))
    """
    given = np.asarray(index)
    if given.dtype == np.bool_:
        if given.shape != (count,):
            raise IndexError(f"a mask of shape {given.shape} for {count} {what}")
        return np.flatnonzero(given)
    if given.size and given.dtype.kind not in "iu":
        raise IndexError(f"an index of dtype {given.dtype} for {what}: expected integers or bool")
    wanted = given.reshape(-1).astype(np.int64)
    if len(wanted) and not -count <= wanted.min() <= wanted.max() < count:
        raise IndexError(f"{what} {wanted.min()} to {wanted.max()} of {count}")
    return np.where(wanted < 0, wanted + count, wanted)


def tensor_pointers(counts: torch.Tensor) -> torch.Tensor:
    """`pointers` for a torch tensor, on its device."""
    ptr = torch.zeros(counts.shape[0] + 1, dtype=torch.int64, device=counts.device)
    torch.cumsum(counts, 0, out=ptr[1:])
    return ptr


def tensor_segment_rows(
    starts: torch.Tensor, ptr: torch.Tensor, total: int | None = None
) -> torch.Tensor:
    """`segment_rows` for torch tensors, on their device, which `total` rows save a wait for."""
    rows = torch.repeat_interleave(starts - ptr[:-1], ptr.diff(), output_size=total)
    return rows + torch.arange(rows.shape[0], device=rows.device)
