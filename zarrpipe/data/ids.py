"""A 64-bit name for a structure that it keeps from candidate to labelled, through any merge.

The id hashes atomic numbers, positions, cell and pbc, in that order of atoms, and no label.
float32 values and the same values in float64 give the same id; so do -0.0 and 0.0, and a cell or
pbc that is zero or not given. It is no cryptographic hash: two of a billion structures share an
id with a chance of about three percent, which is harmless for splits.
"""

import numpy as np
import numpy.typing as npt

from zarrpipe.data.csr import AnyArray, Int64Array

UInt64Array = npt.NDArray[np.uint64]

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def mix(words: UInt64Array) -> UInt64Array:
    """Scramble 64-bit words one by one (the finaliser of splitmix64, Steele et al. 2014)."""
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return words ^ (words >> np.uint64(31))


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
    place = np.arange(len(positions)) - np.repeat(ptr[:-1], np.diff(ptr))
    words = np.empty((len(positions), 4), dtype=np.uint64)
    words[:, :3] = _bits(positions)
    words[:, 3] = np.asarray(atomic_numbers, dtype=np.int64).view(np.uint64)
    words += (place[:, None] * 4 + np.arange(1, 5)).view(np.uint64) * _GOLDEN
    atoms = mix(mix(words).sum(1, dtype=np.uint64))
    system = np.add.reduceat(atoms, ptr[:-1]) + np.diff(ptr).view(np.uint64)
    box = np.zeros((len(ptr) - 1, 12), dtype=np.uint64)
    if cell is not None:
        box[:, :9] = _bits(cell).reshape(-1, 9)
    if pbc is not None:
        box[:, 9:] = np.asarray(pbc, dtype=np.uint64).reshape(-1, 3)
    box += np.arange(1, 13, dtype=np.uint64) * _GOLDEN
    ids: UInt64Array = mix(mix(system) + mix(box).sum(1, dtype=np.uint64))
    return ids


def _bits(values: AnyArray) -> UInt64Array:
    """Bit patterns as float64, with one zero and one NaN."""
    wide = np.array(values, dtype=np.float64, order="C")
    wide += 0.0
    wide[np.isnan(wide)] = np.nan
    return wide.view(np.uint64)
