"""Ids of structures in one pass, compiled by numba: see `zarrpipe.data.ids` for what they are."""

from collections.abc import Callable
from typing import Any

import numpy as np

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_FIRST, _SECOND = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
_ALL_BUT_SIGN, _INFINITE, _NAN = (
    np.uint64(bits) for bits in (0x7FFFFFFFFFFFFFFF, 0x7FF0000000000000, 0x7FF8000000000000)
)


def compiled() -> Callable[..., None]:
    """Function of (position bits [V, 3], numbers, ptr, cell bits [B, 9], pbc [B, 3], ids [B]).

    Bits are those of float64. It is compiled once for an installation and then loaded.

    Raises
    ------
    ImportError
        If numba is not installed.
    """
    from numba import njit, types  # noqa: PLC0415  optional, and half a second

    rows = types.Array(types.uint64, 2, "C", readonly=True)
    numbers = types.Array(types.int64, 1, "C", readonly=True)
    flags = types.Array(types.uint8, 2, "C", readonly=True)
    signature = types.void(rows, numbers, numbers, rows, flags, types.uint64[::1])
    return njit(signature, cache=True, nogil=True)(_ids)  # type: ignore[no-any-return]


def _ids(positions: Any, kinds: Any, ptr: Any, cell: Any, pbc: Any, out: Any) -> None:  # noqa: PLR0917
    def mix(bits: Any) -> Any:
        bits = (bits ^ (bits >> np.uint64(30))) * _FIRST
        bits = (bits ^ (bits >> np.uint64(27))) * _SECOND
        return bits ^ (bits >> np.uint64(31))

    def one(bits: Any) -> Any:
        """Bits with one zero and one NaN."""
        size = bits & _ALL_BUT_SIGN
        return np.uint64(0) if size == 0 else _NAN if size > _INFINITE else bits

    for b in range(len(out)):
        system, salt = np.uint64(ptr[b + 1] - ptr[b]), np.uint64(0)
        for atom in range(ptr[b], ptr[b + 1]):
            words = np.uint64(0)
            for axis in range(3):
                salt += _GOLDEN
                words += mix(one(positions[atom, axis]) + salt)
            salt += _GOLDEN
            system += mix(words + mix(np.uint64(kinds[atom]) + salt))
        box, salt = np.uint64(0), np.uint64(0)
        for entry in range(9):
            salt += _GOLDEN
            box += mix(one(cell[b, entry]) + salt)
        for axis in range(3):
            salt += _GOLDEN
            box += mix(np.uint64(pbc[b, axis]) + salt)
        out[b] = mix(mix(system) + box)
