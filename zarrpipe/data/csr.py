"""Segments (CSR): counts, pointers and rows, in NumPy and in torch; and indices of samples.

A *pointer* array of B + 1 entries starts at 0; segment b owns rows ``ptr[b]:ptr[b + 1]``.
"""

import operator
import reprlib
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from zarrpipe.errors import SampleIndexError, SampleIndexTypeError

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
    """Rows [ptr[-1]] of segments that begin at `starts` [B] and have the pointers `ptr` [B+1].

    Examples
    --------
    >>> segment_rows(np.array([10, 4]), np.array([0, 2, 5]))
    array([10, 11,  4,  5,  6])
    """
    rows = np.repeat(starts - ptr[:-1], np.diff(ptr))
    rows += np.arange(len(rows), dtype=np.int64)
    return rows


def positions_of(index: Any, count: int, one: str, whole: str) -> Int64Array:
    """Non-negative positions [K] of an index into `count` entries.

    The index is integers [K] counted from either end, one integer, a bool mask [count], or a slice.
    Errors say that `whole` ("a dataset") has no such `one` ("sample").

    Examples
    --------
    >>> positions_of([-1, 0], 3, "row", "an array"), positions_of([False, True], 2, "row", "it")
    (array([2, 0]), array([1]))
    """
    if isinstance(index, slice):
        return np.arange(count)[_checked_slice(index)]
    given = _array_of(index)
    kind = given.dtype.kind
    if kind == "b":
        if given.shape != (count,):
            raise SampleIndexError(
                f"a mask of shape {given.shape} for {whole} of {count}: expected one bool for "
                f"each {one}"
            )
        return np.flatnonzero(given)
    if given.ndim > 1 or (given.size and kind not in "iu"):
        raise _no_index(index, given, count, one, whole)
    rows = given.reshape(-1).astype(np.int64, copy=False)
    # As unsigned, a negative number is a large one: one comparison finds both kinds of misfit.
    if rows.size and rows.view(np.uint64).max() >= count:
        low, high = int(given.min()), int(given.max())
        if low < -count or high >= count:
            raise _outside(high if high >= count else low, count, one, whole)
        rows = np.where(rows < 0, rows + count, rows)
    return rows


def position_of(index: Any, count: int, one: str, whole: str) -> int:
    """As `positions_of`, for one integer."""
    try:
        wanted = None if isinstance(index, bool | np.bool_) else operator.index(index)
    except TypeError:
        wanted = None
    if wanted is None:
        raise SampleIndexTypeError(
            f"{reprlib.repr(index)} is a {type(index).__name__}, expected one integer, the "
            f"number of a {one} of {whole}"
        )
    if not -count <= wanted < count:
        raise _outside(wanted, count, one, whole)
    return wanted + count if wanted < 0 else wanted


def _checked_slice(index: slice) -> slice:
    """The slice, if its bounds are integers."""
    try:
        index.indices(0)
    except (TypeError, ValueError) as error:
        raise SampleIndexTypeError(f"{index} is no slice of samples: {error}") from error
    return index


def _array_of(index: Any) -> AnyArray:
    """Index as an array of its own dtype."""
    try:
        if isinstance(index, torch.Tensor):
            index = index.detach().cpu()
        return np.asarray(index)
    except (TypeError, ValueError, NotImplementedError) as error:
        raise SampleIndexTypeError(
            f"{reprlib.repr(index)} is no index, expected integers [K], a slice or a bool mask "
            f"({error})"
        ) from error


def _no_index(index: Any, given: AnyArray, count: int, one: str, whole: str) -> SampleIndexError:
    """Error for an index that is neither integers nor a mask."""
    if given.dtype.kind == "O" and given.size and all(type(item) is int for item in given.flat):
        furthest = max(given.flat, key=abs)
        if abs(furthest) > count:
            return _outside(furthest, count, one, whole)
    kind = f"dtype {given.dtype} and shape {given.shape}"
    if given.ndim == 0:
        kind = f"kind {type(index).__name__}"
    return SampleIndexTypeError(
        f"an index of {kind}: expected integers or bool [K] or a slice, for {whole} of {count}"
    )


def _outside(wanted: int, count: int, one: str, whole: str) -> SampleIndexError:
    expected = f"expected {-count} to {count - 1}" if count else "which is empty"
    return SampleIndexError(f"{one} {wanted} of {whole} of {count}, {expected}")


def tensor_pointers(counts: torch.Tensor) -> torch.Tensor:
    """`pointers` for a torch tensor, on its device."""
    ptr = torch.zeros(counts.shape[0] + 1, dtype=torch.int64, device=counts.device)
    torch.cumsum(counts, 0, out=ptr[1:])
    return ptr


def tensor_segment_rows(
    starts: torch.Tensor, ptr: torch.Tensor, total: int | None = None
) -> torch.Tensor:
    """`segment_rows` for torch tensors; a known `total` saves a wait for the GPU."""
    rows = torch.repeat_interleave(starts - ptr[:-1], ptr.diff(), output_size=total)
    return rows + torch.arange(rows.shape[0], device=rows.device)
