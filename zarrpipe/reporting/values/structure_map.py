"""The structure-property map: principal components of radial histograms by element.

The descriptor of a structure is a histogram of the distances between neighbours for each pair of
elements, or for each element of the neighbour where there are many elements, weighted by a smooth
cutoff, averaged over the atoms, and scaled to length 1.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from zarrpipe.data.csr import AnyArray, Int64Array
from zarrpipe.reporting.contents import FloatArray
from zarrpipe.reporting.values.distances import neighbours, searchable
from zarrpipe.reporting.values.measured import Measured
from zarrpipe.reporting.values.scan import spread_rows
from zarrpipe.store.query.elements import SYMBOLS, as_elements

MOST_MAPPED = 2000
"""Structures of a data set whose descriptors are computed, at most."""
_MOST_ATOMS = 200_000
CUTOFF, _BINS = 5.0, 20
_MOST_PAIRED = 6
_COMPARED = 20
"""Principal components in which distances between structures are measured."""


@dataclass(frozen=True)
class StructureMap:
    """Places of structures in a plane: of the evenly spread ones of each data set, and of others.

    `places[s]` [J] are those of data set s among its scanned samples, with `points[s]` [J, C] in
    principal components, and `explained` [2] the shares of the variance of the first two.
    """

    places: tuple[Int64Array, ...]
    points: tuple[FloatArray, ...]
    explained: FloatArray
    _mean: FloatArray
    _axes: FloatArray
    _elements: Int64Array

    def of(self, one: Measured, places: Int64Array) -> FloatArray:
        """The first two components [K, 2] of samples at places among the scanned ones."""
        found = descriptors(one, places, self._elements)
        points: FloatArray = (found - self._mean) @ self._axes[:, :2]
        return points


def map_of(sides: Sequence[Measured], seed: int) -> StructureMap | None:
    """Map of evenly spread structures of all data sets; None where none has neighbours."""
    elements = np.flatnonzero(sum(one.values.of_element for one in sides))
    places, parts = [], []
    for one in sides:
        chosen = _spread(one, seed)
        found = descriptors(one, chosen, elements)
        known = np.isfinite(found).all(axis=1)
        places.append(chosen[known])
        parts.append(found[known])
    every = np.concatenate(parts)
    if len(every) < 3:
        return None
    mean = every.mean(axis=0)
    centred = every - mean
    scale, axes = np.linalg.eigh(centred.T @ centred)
    scale, axes = np.maximum(scale[::-1][:_COMPARED], 0.0), axes[:, ::-1][:, :_COMPARED]
    axes = axes * np.where(axes[np.abs(axes).argmax(axis=0), np.arange(axes.shape[1])] < 0, -1, 1)
    total = float((centred**2).sum())
    explained = scale[:2] / total if total > 0 else np.zeros(2)
    points = tuple((part - mean) @ axes for part in parts)
    return StructureMap(tuple(places), points, explained, mean, axes, elements)


def _spread(one: Measured, seed: int) -> Int64Array:
    """Evenly spread samples, of a bounded number of atoms."""
    count = len(one.values)
    mean = max(1.0, float(one.values.atoms.mean())) if count else 1.0
    most = max(3, min(MOST_MAPPED, int(_MOST_ATOMS / mean)))
    return spread_rows(count, most, np.random.default_rng([seed, 1]))


def descriptors(one: Measured, places: Int64Array, elements: Int64Array) -> FloatArray:
    """Descriptors [K, D] of samples at places among the scanned; NaN without neighbours."""
    channel = np.full(len(SYMBOLS), -1)
    channel[elements] = np.arange(len(elements))
    paired = len(elements) <= _MOST_PAIRED
    channels = len(elements) * (len(elements) + 1) // 2 if paired else len(elements)
    found = np.full((len(places), channels * _BINS), np.nan)
    good = np.flatnonzero(~one.values.not_finite["positions"][places])
    for here, batch in searchable(one.dataset, one.values.rows[places], good):
        edges, lengths = neighbours(batch, CUTOFF)
        ptr = batch.batch_ptr.numpy()
        system = np.repeat(np.arange(len(here)), np.diff(ptr))[edges[:, 0]]
        kinds = channel[as_elements(batch.atomic_numbers.numpy())][edges]
        which = _pair_channel(kinds, len(elements)) if paired else kinds[:, 1]
        sums = _histograms(system * channels + which, lengths, len(here) * channels)
        rows = sums.reshape(len(here), channels * _BINS) / np.diff(ptr)[:, None]
        size = np.linalg.norm(rows, axis=1, keepdims=True)
        found[here] = np.divide(rows, size, out=np.full_like(rows, np.nan), where=size > 0)
    return found


def _pair_channel(kinds: AnyArray, count: int) -> Int64Array:
    """Place of a pair of elements in the upper triangle."""
    first, second = kinds.min(axis=1), kinds.max(axis=1)
    pair: Int64Array = first * count - first * (first - 1) // 2 + second - first
    return pair


def _histograms(rows: Int64Array, lengths: FloatArray, count: int) -> FloatArray:
    """Sums [count, bins] of the weights of distances, shared by the two nearest bins."""
    weights = 0.5 * (1 + np.cos(np.pi * lengths / CUTOFF))
    place = np.clip(lengths / CUTOFF * _BINS - 0.5, 0, _BINS - 1)
    low = np.floor(place).astype(np.int64)
    high, share = np.minimum(low + 1, _BINS - 1), place - low
    size = count * _BINS
    sums = np.zeros(size)
    sums += np.bincount(rows * _BINS + low, weights * (1 - share), size)
    sums += np.bincount(rows * _BINS + high, weights * share, size)
    return sums.reshape(count, _BINS)
