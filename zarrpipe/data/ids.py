"""64-bit ids of structures, which labelling and merging do not change.

An id hashes atomic numbers, positions, cell and pbc, in the order of the atoms, and no label.
float32 values and the same values in float64 give the same id; so do -0.0 and 0.0, and a cell or
pbc that is zero or not given. It is no cryptographic hash: two of a billion structures share an
id with a chance of about three percent, which is harmless for splits.
"""

import functools
import sys
from collections.abc import Callable, Mapping

import numpy as np
import numpy.typing as npt

from zarrpipe.data.batch import Batch
from zarrpipe.data.csr import AnyArray, Int64Array

UInt64Array = npt.NDArray[np.uint64]

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_BOX_WORDS = 12
_STEPS = (np.arange(1, _BOX_WORDS + 1, dtype=np.uint64) * _GOLDEN)[:, None]
_SHIFTS = tuple(np.array(bits, dtype=np.uint64) for bits in (30, 27, 31))
_FACTORS = tuple(np.array(n, dtype=np.uint64) for n in (0xBF58476D1CE4E5B9, 0x94D049BB133111EB))
_FOUR_GOLDEN = np.array(4 * 0x9E3779B97F4A7C15 % 2**64, dtype=np.uint64)


def mix(words: UInt64Array) -> UInt64Array:
    """Scramble 64-bit words one by one (the finaliser of splitmix64, Steele et al. 2014)."""
    mixed = words.copy()
    _mix(mixed, np.empty_like(mixed))
    return mixed


def _mix(words: UInt64Array, scratch: UInt64Array) -> None:
    """Scramble words in place, with `scratch` of the same shape."""
    for shift, factor in zip(_SHIFTS, _FACTORS, strict=False):
        np.right_shift(words, shift, scratch)
        np.bitwise_xor(words, scratch, words)
        np.multiply(words, factor, words)
    np.right_shift(words, _SHIFTS[-1], scratch)
    np.bitwise_xor(words, scratch, words)


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

    Parameters
    ----------
    positions : array [V, 3]
        Angstrom.
    atomic_numbers : array [V]
    ptr : array [B+1]
        Pointers to the atoms of each structure; none is empty.
    cell : array [B, 3, 3], optional
        Angstrom.
    pbc : array [B, 3], optional

    Examples
    --------
    >>> one = structure_ids(np.zeros((2, 3)), np.array([1, 8]), np.array([0, 2]))
    >>> other = structure_ids(np.zeros((2, 3)), np.array([8, 1]), np.array([0, 2]))
    >>> bool(one[0] == other[0])
    False
    """
    if len(ptr) == 1:
        return np.zeros(0, dtype=np.uint64)
    kernel = _kernel() if "numba" in sys.modules else None  # not worth the time of importing it
    if kernel is None:
        return _by_numpy(positions, atomic_numbers, ptr, cell, pbc)
    systems = len(ptr) - 1
    box = np.zeros((systems, 9)) if cell is None else cell.reshape(systems, 9)
    flags = np.zeros((systems, 3), dtype=bool) if pbc is None else pbc.reshape(systems, 3)
    ids = np.empty(systems, dtype=np.uint64)
    kernel(
        np.ascontiguousarray(positions, dtype=np.float64).view(np.uint64),
        np.ascontiguousarray(atomic_numbers, dtype=np.int64),
        np.ascontiguousarray(ptr, dtype=np.int64),
        np.ascontiguousarray(box, dtype=np.float64).view(np.uint64),
        np.ascontiguousarray(flags, dtype=bool).view(np.uint8),
        ids,
    )
    return ids


@functools.cache
def _kernel() -> Callable[..., None] | None:
    """The compiled loop; None where it cannot be had."""
    try:
        from zarrpipe.data._ids_kernel import compiled  # noqa: PLC0415

        return compiled()
    except (ImportError, RuntimeError):  # the latter where numba finds no place for its cache
        return None


def _by_numpy(
    positions: AnyArray,
    atomic_numbers: AnyArray,
    ptr: Int64Array,
    cell: AnyArray | None = None,
    pbc: AnyArray | None = None,
) -> UInt64Array:
    """The ids that `structure_ids` documents, array by array."""
    systems, atoms = len(ptr) - 1, len(positions)
    counts = ptr[1:] - ptr[:-1]
    buffer, scratch = np.empty((2, 4 * atoms + _BOX_WORDS * systems), dtype=np.uint64)
    words = buffer[: 4 * atoms].reshape(4, atoms)  # a row for each coordinate and the number:
    box = buffer[4 * atoms :].reshape(_BOX_WORDS, systems)  # sums over rows are whole additions
    _put_bits(positions, words[:3])
    words[3] = atomic_numbers
    words += _first_words(ptr, counts, atoms)
    words += _STEPS[:4]
    if cell is None:
        box[:9] = 0
    else:
        _put_bits(cell.reshape(-1, 9), box[:9])
    box[9:] = 0 if pbc is None else np.asarray(pbc).reshape(-1, 3).T
    box += _STEPS
    _mix(buffer, scratch)
    of_atoms: UInt64Array = words.sum(0)
    _mix(of_atoms, scratch[:atoms])
    ids: UInt64Array = np.add.reduceat(of_atoms, ptr[:-1])
    ids += counts.view(np.uint64)
    _mix(ids, scratch[:systems])
    ids += box.sum(0)
    _mix(ids, scratch[:systems])
    return ids


def _first_words(ptr: Int64Array, counts: Int64Array, atoms: int) -> UInt64Array:
    """Multiples [V] that tell the atoms of a system apart."""
    place = np.arange(atoms)
    place -= np.repeat(ptr[:-1], counts)
    first = place.view(np.uint64)
    first *= _FOUR_GOLDEN
    return first


def _put_bits(rows: AnyArray, out: UInt64Array) -> None:
    """Write the bit patterns of `rows` [n, k] as float64, with one zero and one NaN, to [k, n]."""
    wide = out.view(np.float64)
    np.add(rows.T, 0.0, wide, dtype=np.float64)
    none = np.isnan(wide)
    if none.any():
        wide[none] = np.nan


def zero_missing(rows: AnyArray, has: AnyArray) -> AnyArray:
    """Rows [B, ...] of a cell or pbc, zero for the systems that do not have one."""
    return np.where(has.reshape(-1, *(1,) * (rows.ndim - 1)), rows, rows.dtype.type(0))


def batch_ids(batch: Batch, arrays: Mapping[str, AnyArray] | None = None) -> UInt64Array:
    """Ids [B] uint64 of the structures of a batch on the CPU.

    A cell or pbc that a system lacks counts as zero, so that its id does not depend on the others.
    A caller that has the fields as `arrays` already may give them.
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
