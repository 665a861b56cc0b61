"""64-bit ids of structures, which labelling and merging do not change.

An id hashes atomic numbers, positions, cell and pbc, in the order of the atoms, and no label.
float32 values and the same values in float64 give the same id; so do -0.0 and 0.0, and a cell or
pbc that is zero or not given. It is no cryptographic hash: two of a billion structures share an
id with a chance of about three percent, which is harmless for splits.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from zarrpipe.data.batch import Batch
from zarrpipe.data.csr import AnyArray, Int64Array

UInt64Array = npt.NDArray[np.uint64]

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_FIRST, _SECOND = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
_ALL_BUT_SIGN, _INFINITE, _NAN = (
    np.uint64(bits) for bits in (0x7FFFFFFFFFFFFFFF, 0x7FF0000000000000, 0x7FF8000000000000)
)


def mix(words: UInt64Array) -> UInt64Array:
    """Scramble 64-bit words one by one (the finaliser of splitmix64, Steele et al. 2014)."""
    mixed, scratch = words.copy(), np.empty_like(words)
    for shift, factor in ((30, _FIRST), (27, _SECOND), (31, None)):
        np.right_shift(mixed, np.uint64(shift), scratch)
        np.bitwise_xor(mixed, scratch, mixed)
        if factor is not None:
            np.multiply(mixed, factor, mixed)
    return mixed


def unit_places(keys: UInt64Array, salt: int = 0) -> npt.NDArray[np.float64]:
    """Place [N] of each key in [0, 1), evenly spread; splits cut this interval by their shares.

    Examples
    --------
    >>> unit_places(np.arange(3, dtype=np.uint64)).round(3).tolist()
    [0.282, 0.617, 0.242]
    """
    salted = mix(np.array([salt], dtype=np.int64).view(np.uint64) + _GOLDEN)
    scrambled = mix(np.asarray(keys, dtype=np.uint64) ^ salted) >> np.uint64(11)
    return scrambled * np.float64(2.0**-53)


def structure_ids(
    positions: AnyArray,
    atomic_numbers: AnyArray,
    ptr: Int64Array,
    cell: AnyArray | None = None,
    pbc: AnyArray | None = None,
) -> UInt64Array:
    """Ids [B] uint64 of the structures of a batch.

    `positions` [V, 3] and `cell` [B, 3, 3] are in Angstrom, `pbc` is [B, 3]. `ptr` [B+1] points to
    the atoms of each structure, and none is empty.

    Examples
    --------
    >>> one = structure_ids(np.zeros((2, 3)), np.array([1, 8]), np.array([0, 2]))
    >>> other = structure_ids(np.zeros((2, 3)), np.array([8, 1]), np.array([0, 2]))
    >>> bool(one[0] == other[0])
    False
    """
    systems = len(ptr) - 1
    box = np.zeros((systems, 9)) if cell is None else cell.reshape(systems, 9)
    flags = np.zeros((systems, 3), dtype=bool) if pbc is None else pbc.reshape(systems, 3)
    ids = np.empty(systems, dtype=np.uint64)
    compiled_ids()(
        np.ascontiguousarray(positions, dtype=np.float64).view(np.uint64),
        np.ascontiguousarray(atomic_numbers, dtype=np.int64),
        np.ascontiguousarray(ptr, dtype=np.int64),
        np.ascontiguousarray(box, dtype=np.float64).view(np.uint64),
        np.ascontiguousarray(flags, dtype=bool).view(np.uint8),
        ids,
    )
    return ids


@functools.cache
def compiled_ids() -> Callable[..., None]:
    """Compiled `_ids`, from numba's cache on disk where a directory for it can be written."""
    from numba import njit, types  # noqa: PLC0415  half a second

    rows = types.Array(types.uint64, 2, "C", readonly=True)
    numbers = types.Array(types.int64, 1, "C", readonly=True)
    flags = types.Array(types.uint8, 2, "C", readonly=True)
    signature = types.void(rows, numbers, numbers, rows, flags, types.uint64[::1])
    try:
        compiled: Callable[..., None] = njit(signature, nogil=True, cache=True)(_ids)
    except RuntimeError:  # neither the package nor a home directory can be written
        compiled = njit(signature, nogil=True)(_ids)
    return compiled


def _ids(positions: Any, kinds: Any, ptr: Any, cell: Any, pbc: Any, out: Any) -> None:  # noqa: PLR0917
    """Fill ids [B] from the bits of float64 positions [V, 3] and cells [B, 9], and pbc [B, 3]."""

    def mix(bits: Any) -> Any:
        bits = (bits ^ (bits >> np.uint64(30))) * _FIRST
        bits = (bits ^ (bits >> np.uint64(27))) * _SECOND
        return bits ^ (bits >> np.uint64(31))

    def one(bits: Any) -> Any:
        """Bits of a float, the same for both zeros and the same for all NaNs."""
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


def zero_missing(rows: AnyArray, has: AnyArray) -> AnyArray:
    """Rows [B, ...] of a cell or pbc, zero for the systems that do not have one."""
    return np.where(has.reshape(-1, *(1,) * (rows.ndim - 1)), rows, rows.dtype.type(0))


def batch_ids(batch: Batch, arrays: Mapping[str, AnyArray] | None = None) -> UInt64Array:
    """Ids [B] uint64 of the structures of a batch on the CPU.

    A cell or pbc that a system lacks counts as zero, so that its id does not depend on the others.
    `arrays` has the fields in NumPy, where the caller has converted them already.
    """
    if arrays is None:
        arrays = {name: value.numpy() for name, value in batch.fields.items()}
    box = {}
    for name in ("cell", "pbc"):
        rows = arrays.get(name)
        if rows is not None and name in batch.partly_present:
            rows = zero_missing(rows, batch.present(name).numpy())
        box[name] = rows
    ptr = batch.batch_ptr.numpy()
    return structure_ids(arrays["positions"], arrays["atomic_numbers"], ptr, **box)
