"""Distances between neighbouring atoms, in units of the sum of their covalent radii."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from zarrpipe.data.batch import Batch
from zarrpipe.data.csr import Int64Array
from zarrpipe.dataset.zarr_dataset import ZarrDataset
from zarrpipe.errors import FieldError
from zarrpipe.reporting.contents import FloatArray
from zarrpipe.store.query.derived import BoolArray
from zarrpipe.store.query.elements import SYMBOLS, as_elements
from zarrpipe.transforms.neighbors import find

CUTOFF = 5.0
"""Angstrom within which neighbours are searched."""

_BLOCK, _BLOCK_ATOMS = 256, 1 << 13
"""Samples and atoms whose neighbours are searched at once; 8,192 atoms of water have 400,000."""
_DENSEST = 2.0
"""Atoms for each Angstrom^3 of cells that are searched; denser ones have too many neighbours."""
LARGEST = 1e5
"""Coordinate, Angstrom, up to which neighbours are searched."""

# fmt: off
RADII = np.array([
    np.nan, 0.31, 0.28, 1.28, 0.96, 0.84, 0.76, 0.71, 0.66, 0.57, 0.58, 1.66, 1.41, 1.21, 1.11,
    1.07, 1.05, 1.02, 1.06, 2.03, 1.76, 1.70, 1.60, 1.53, 1.39, 1.39, 1.32, 1.26, 1.24, 1.32, 1.22,
    1.22, 1.20, 1.19, 1.20, 1.20, 1.16, 2.20, 1.95, 1.90, 1.75, 1.64, 1.54, 1.47, 1.46, 1.42, 1.39,
    1.45, 1.44, 1.42, 1.39, 1.39, 1.38, 1.39, 1.40, 2.44, 2.15, 2.07, 2.04, 2.03, 2.01, 1.99, 1.98,
    1.98, 1.96, 1.94, 1.92, 1.92, 1.89, 1.90, 1.87, 1.87, 1.75, 1.70, 1.62, 1.51, 1.44, 1.41, 1.36,
    1.36, 1.32, 1.45, 1.46, 1.48, 1.40, 1.50, 1.50, 2.60, 2.21, 2.15, 2.06, 2.00, 1.96, 1.90, 1.87,
    1.80, 1.69, *[np.nan] * 22,
])
# fmt: on
"""Covalent radius by atomic number, Angstrom (Cordero et al. 2008); NaN where there is none."""


@dataclass(frozen=True)
class Distances:
    """Nearest neighbours of the samples at places `chosen` [J] among those that were scanned.

    `shortest` [J] is the shortest distance and `ratio` [J] the smallest one by the sum of the
    covalent radii, with its atoms `pair` [J, 2] by number; infinite without a neighbour in
    `CUTOFF`, NaN where neighbours cannot be searched. `lonely` [J] counts atoms without a
    neighbour. `by_pair` has, by ascending atomic numbers, the nearest distance of each atom.
    """

    chosen: Int64Array
    shortest: FloatArray
    ratio: FloatArray
    pair: Int64Array
    lonely: Int64Array
    by_pair: dict[tuple[int, int], FloatArray]


def distances_of(
    dataset: ZarrDataset, rows: Int64Array, chosen: Int64Array, good: Int64Array
) -> Distances:
    """Search the neighbours of the samples at rows [J]; only the places `good` can be searched."""
    count = len(rows)
    shortest, ratio = np.full((2, count), np.nan)
    pair, lonely = np.zeros((count, 2), dtype=np.int64), np.zeros(count, dtype=np.int64)
    parts: dict[tuple[int, int], list[FloatArray]] = {}
    for here, batch in searchable(dataset, rows, good):
        edges, lengths = neighbours(batch, CUTOFF)
        numbers, ptr = as_elements(batch.atomic_numbers.numpy()), batch.batch_ptr.numpy()
        system = np.repeat(np.arange(len(here)), np.diff(ptr))
        kinds = np.sort(numbers[edges], axis=1)
        _nearest(shortest, here, system[edges[:, 0]], lengths)
        sums = RADII[kinds].sum(axis=1)
        least = _nearest(ratio, here, system[edges[:, 0]], lengths / sums)
        pair[here[least[0]]] = kinds[least[1]]
        has = np.zeros(len(numbers), dtype=bool)
        has[edges[:, 0]] = True
        lonely[here] = np.bincount(system[~has], minlength=len(here))
        for key, nearest in _by_pair(edges, lengths, kinds):
            parts.setdefault(key, []).append(nearest)
    return Distances(
        chosen,
        shortest,
        ratio,
        pair,
        lonely,
        {key: np.concatenate(own) for key, own in parts.items()},
    )


def searchable(
    dataset: ZarrDataset, rows: Int64Array, good: Int64Array
) -> Iterator[tuple[Int64Array, Batch]]:
    """Batches of some of the samples at rows [J], with their places among the J."""
    box = [name for name in ("cell", "pbc") if name in dataset.schema]
    atoms = np.cumsum(dataset.num_atoms[rows[good]])
    begins = np.diff(atoms // _BLOCK_ATOMS) + np.diff(np.arange(len(good)) // _BLOCK)
    for block in np.split(good, np.flatnonzero(begins) + 1):
        if not len(block):
            continue
        here, batch = block, dataset.gather(rows[block], box)
        kept = _searchable(batch)
        if not kept.all():
            here = here[kept]
            if not len(here):
                continue
            batch = dataset.gather(rows[here], box)
        yield here, batch


def _searchable(batch: Batch) -> BoolArray:
    """Which systems [B] have finite positions of a usual extent, and a cell if they need one."""
    positions, ptr = batch.positions.numpy().astype(np.float64), batch.batch_ptr.numpy()
    extent = np.maximum.reduceat(np.abs(positions).max(axis=1), ptr[:-1])
    kept: BoolArray = extent < LARGEST  # False for NaN
    if "pbc" not in batch:
        return kept
    periodic = batch.pbc.numpy() & batch.present("pbc").numpy()[:, None]
    if "cell" not in batch:
        kept &= ~periodic.any(axis=1)
        return kept
    cell = batch.cell.numpy().astype(np.float64)
    with np.errstate(all="ignore"):
        lengths = np.linalg.norm(cell, axis=2)
        volume = np.abs(np.linalg.det(np.where(np.isfinite(cell), cell, 0.0)))
        dense = np.diff(ptr) / volume > _DENSEST
    wrong = ~(np.isfinite(lengths) & (lengths > 0)) & periodic
    unfit = wrong.any(axis=1) | (periodic.all(axis=1) & ((volume == 0) | dense))
    unfit |= ~np.isfinite(cell).all(axis=(1, 2)) & periodic.any(axis=1)
    kept &= ~unfit
    return kept


def neighbours(batch: Batch, cutoff: float) -> tuple[Int64Array, FloatArray]:
    """Atoms [E, 2] of the pairs of a batch, both directions, and their distances [E]."""
    try:
        found = find(batch, cutoff)
    except FieldError:  # a cell that vesin does not take, which `_searchable` did not foresee
        if batch.num_graphs == 1:
            return np.zeros((0, 2), dtype=np.int64), np.zeros(0)
        parts, start = [], 0
        for place in range(batch.num_graphs):
            one = batch.index_select([place])
            edges, lengths = neighbours(one, cutoff)
            parts.append((edges + start, lengths))
            start += one.num_nodes
        return np.concatenate([e for e, _ in parts]), np.concatenate([d for _, d in parts])
    positions = batch.positions.numpy().astype(np.float64)
    vectors = positions[found.edges[:, 1]] - positions[found.edges[:, 0]]
    if found.shifts.any():
        cells = np.nan_to_num(batch.cell.numpy().astype(np.float64))  # some have no cell
        own = cells[np.repeat(np.arange(batch.num_graphs), found.counts)]
        vectors = vectors + np.einsum("ei,eij->ej", found.shifts, own)
    return found.edges, np.sqrt(np.einsum("ei,ei->e", vectors, vectors))


def _nearest(
    target: FloatArray, here: Int64Array, system: Int64Array, values: FloatArray
) -> tuple[Int64Array, Int64Array]:
    """Set the least value of each system; gives the systems that have one, and its edge."""
    target[here] = np.inf
    known = np.flatnonzero(~np.isnan(values))
    order = known[np.lexsort((values[known], system[known]))]
    systems, first = np.unique(system[order], return_index=True)
    target[here[systems]] = values[order[first]]
    return systems, order[first]


def _by_pair(
    edges: Int64Array, lengths: FloatArray, kinds: Int64Array
) -> Iterator[tuple[tuple[int, int], FloatArray]]:
    """Distance from each atom to its nearest neighbour of each element, by pair of elements."""
    codes = kinds[:, 0] * len(SYMBOLS) + kinds[:, 1]
    keys = edges[:, 0] * len(SYMBOLS) ** 2 + codes
    order = np.lexsort((lengths, keys))
    first = order[np.unique(keys[order], return_index=True)[1]]
    for code in np.unique(codes[first]):
        key = divmod(int(code), len(SYMBOLS))
        yield key, lengths[first[codes[first] == code]]
