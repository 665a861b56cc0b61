"""Small mathematics of sums by bucket: tallies, triangles of symmetric matrices, and the fit."""

import numpy as np
import numpy.typing as npt

from zarrpipe.data.csr import Int64Array

FloatArray = npt.NDArray[np.float64]

_RANK_TOLERANCE = 1e-10


def packed(square: FloatArray) -> FloatArray:
    """Upper triangle [..., E (E + 1) / 2] of symmetric matrices [..., E, E]."""
    rows, columns = np.triu_indices(square.shape[-1])
    upper: FloatArray = square[..., rows, columns]
    return upper


def unpacked(upper: FloatArray, size: int) -> FloatArray:
    """Symmetric matrices [..., E, E] of upper triangles."""
    rows, columns = np.triu_indices(size)
    square = np.zeros((*upper.shape[:-1], size, size))
    square[..., rows, columns] = square[..., columns, rows] = upper
    return square


def tallied(keys: Int64Array, counts: Int64Array) -> tuple[Int64Array, Int64Array]:
    """Keys, ascending and each once, with the sum of their counts, where that is not zero."""
    order = np.argsort(keys, kind="stable")
    keys, counts = keys[order], counts[order]
    if not len(keys):
        return keys, counts
    starts = np.flatnonzero(np.diff(keys, prepend=keys[0] - 1))
    summed = np.add.reduceat(counts, starts)
    return keys[starts][summed != 0], summed[summed != 0]


def fit(gram: FloatArray, moment: FloatArray, origin: FloatArray) -> FloatArray:
    """Least-squares solution of smallest norm, where `moment` is of what `origin` leaves over."""
    here = np.flatnonzero(gram.diagonal())
    solution = np.zeros_like(origin)
    if not len(here):
        return solution
    scale, axes = np.linalg.eigh(gram[np.ix_(here, here)])
    seen = scale > scale[-1] * _RANK_TOLERANCE
    axes = axes[:, seen]
    solution[here] = axes @ (axes.T @ origin[here] + (axes.T @ moment[here]) / scale[seen])
    return solution
