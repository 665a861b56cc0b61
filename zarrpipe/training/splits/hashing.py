"""Sides of a split by hash, so that a sample keeps its side while the store grows or is merged."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from zarrpipe.data.csr import AnyArray
from zarrpipe.data.ids import UInt64Array, mix, unit_places
from zarrpipe.errors import ArgumentError, ArgumentTypeError

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def check_fractions(fractions: Sequence[float]) -> tuple[float, ...]:
    """The fractions as a tuple of floats.

    Examples
    --------
    >>> check_fractions([0.75, 0.25])
    (0.75, 0.25)
    """
    try:
        parts = tuple(float(part) for part in fractions)
    except (TypeError, ValueError) as error:
        raise ArgumentTypeError(f"split fractions are {fractions!r}, expected numbers") from error
    if not parts or not min(parts) >= 0 or not abs(sum(parts) - 1.0) <= 1e-9:  # NaN too
        raise ArgumentError(
            f"split fractions are {parts}, expected parts of 0 or more that sum to 1"
        )
    return parts


def hash_split(
    keys: UInt64Array, fractions: Sequence[float], salt: int = 0
) -> npt.NDArray[np.int8]:
    """Side [N] int8 of each key: 0 for the first fraction, 1 for the second, and so on.

    It is a function of the key alone, so equal keys are on one side, whatever else there is.

    Parameters
    ----------
    keys : array [N] uint64
        Ids of the samples, or what `group_keys` gives.
    fractions : sequence of float
        Share of each side; they sum to 1.
    salt : int
        Another salt gives another split.

    Examples
    --------
    >>> sides = hash_split(np.arange(1000, dtype=np.uint64), (0.9, 0.05, 0.05))
    >>> np.bincount(sides).tolist()
    [906, 51, 43]
    """
    ends = np.cumsum(check_fractions(fractions))[:-1]
    return np.searchsorted(ends, unit_places(keys, salt), side="right").astype(np.int8)


def group_keys(values: AnyArray) -> UInt64Array:
    """Key [N] uint64 of each row [N, ...] of a field: equal rows have equal keys.

    Integers and bools count as int64 and floats as float64, so the width that a store keeps
    them in does not matter; -0.0 is 0.0 and any NaN is one group.

    Examples
    --------
    >>> keys = group_keys(np.array([[1, 2], [3, 4], [1, 2]]))
    >>> bool(keys[0] == keys[2]), bool(keys[0] == keys[1])
    (True, False)
    """
    rows = values.reshape(len(values), -1)
    if rows.dtype.kind == "f":
        wide = rows.astype(np.float64) + 0.0
        wide[np.isnan(wide)] = np.nan
    else:
        wide = rows.astype(np.int64)
    keys = np.zeros(len(values), dtype=np.uint64)
    for words in np.ascontiguousarray(wide.T).view(np.uint64):
        keys = mix((keys ^ words) + _GOLDEN)
    return keys
