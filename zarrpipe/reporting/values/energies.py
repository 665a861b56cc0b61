"""Energies after the reference energies of the elements, and how far each is from its like.

The fit minimises absolute deviations, so that a part of the samples in another unit, or a broken
frame, does not change it. Free atoms are left out of it, as their energies are not those of atoms
in matter.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np

from zarrpipe.data.csr import Int64Array
from zarrpipe.data.ids import UInt64Array
from zarrpipe.data.levels import Level
from zarrpipe.dataset.zarr_dataset import ZarrDataset
from zarrpipe.formats.read.labels import ISOLATED_ATOM
from zarrpipe.reporting.contents import FloatArray
from zarrpipe.reporting.values.scan import SampleValues, spread_rows
from zarrpipe.store.query.derived import BoolArray
from zarrpipe.store.query.elements import SYMBOLS, as_elements
from zarrpipe.training.statistics import sample_blocks

MOST_FITTED = 20_000
_ROUNDS = 40
LEAST_OF_A_COMPOSITION = 8
_TO_SIGMA = 1.4826
"""Standard deviation of a normal distribution by its median absolute deviation."""

_THINNEST = 0.005
"""Atoms for each Angstrom^3; a single atom in a thinner cell is a free one."""

LEAST_SPREAD = 1e-3
"""Smallest spread by which deviations are divided, eV for each atom."""


@dataclass(frozen=True)
class Energies:
    """Energies of the K samples of `SampleValues` by reference energies, eV.

    `references` [119] is NaN for elements without one, `free_atoms` has the energies of marked
    single atoms by symbol. `residual` [K] is the energy of an atom after the references, `off` [K]
    its distance from the median of its composition, and `deviation` [K] that distance in units of
    the spread of the composition. Where a composition has few samples, the median and the spread
    are those of all samples.
    """

    references: FloatArray
    free_atoms: Mapping[str, float]
    residual: FloatArray
    off: FloatArray
    deviation: FloatArray
    median: float
    spread: float
    free: BoolArray


def energies_of(dataset: ZarrDataset, values: SampleValues, seed: int) -> Energies:
    """Fit reference energies to some samples, and apply them to all."""
    free = _free_atoms(dataset, values)
    usable = np.flatnonzero(np.isfinite(values.energy) & ~free)
    chosen = usable[spread_rows(len(usable), MOST_FITTED, np.random.default_rng(seed))]
    counts = _counts(dataset, values, chosen)
    references = robust_fit(counts, values.energy[chosen])
    totals = _totals(dataset, values, references)
    residual = (values.energy - totals) / values.atoms
    known = residual[usable]
    median = float(np.median(known)) if len(known) else float("nan")
    spread = spread_about(known, median)
    off, deviation = _deviations(values.codes, np.where(free, np.nan, residual), median, spread)
    return Energies(
        references,
        _energies_of_free_atoms(dataset, values, free),
        residual,
        off,
        deviation,
        median,
        spread,
        free,
    )


def spread_about(values: FloatArray, median: float) -> float:
    """Median absolute deviation, as the standard deviation of a normal distribution."""
    if not len(values):
        return float("nan")
    return float(np.median(np.abs(values - median))) * _TO_SIGMA


def robust_fit(counts: FloatArray, energies: FloatArray) -> FloatArray:
    """Reference energies [119] from counts of atoms [K, 119] and energies [K], eV.

    Least absolute deviations of the energies per atom, by repeatedly weighted least squares;
    where compositions leave them open, those of smallest norm.
    """
    here = np.flatnonzero(counts.any(axis=0))
    fitted = np.full(counts.shape[1], np.nan)
    if not len(here):
        return fitted
    atoms = counts.sum(axis=1)
    shares, targets = counts[:, here] / atoms[:, None], energies / atoms
    weights, solution = np.ones(len(shares)), np.zeros(len(here))
    for _ in range(_ROUNDS):
        weighted = shares * weights[:, None]
        inverse = np.linalg.pinv(weighted.T @ shares, rcond=1e-10, hermitian=True)
        before, solution = solution, inverse @ (weighted.T @ targets)
        left = np.abs(targets - shares @ solution)
        if np.allclose(before, solution, rtol=0, atol=1e-6):
            break
        weights = 1 / np.maximum(left, max(1e-6, 1e-3 * float(np.median(left))))
        weights /= weights.max()
    fitted[here] = solution
    return fitted


def _counts(dataset: ZarrDataset, values: SampleValues, chosen: Int64Array) -> FloatArray:
    """Atoms of each element [K, 119] of some samples."""
    found = np.zeros((len(chosen), len(SYMBOLS)))
    for here in sample_blocks(values.atoms[chosen]):
        batch = dataset.gather(values.rows[chosen[here]], ())
        system = np.repeat(here, np.diff(batch.batch_ptr.numpy()))
        np.add.at(found, (system, as_elements(batch.atomic_numbers.numpy())), 1.0)
    return found


def _totals(dataset: ZarrDataset, values: SampleValues, references: FloatArray) -> FloatArray:
    """Sum of the reference energies [K] over the atoms of each sample, composition by composition.

    NaN where an element has none.
    """
    _, first, inverse = np.unique(values.codes, return_index=True, return_inverse=True)
    found = np.zeros(len(first))
    for here in sample_blocks(values.atoms[first]):
        batch = dataset.gather(values.rows[first[here]], ())
        own = references[as_elements(batch.atomic_numbers.numpy())]
        found[here] = np.add.reduceat(own, batch.batch_ptr.numpy()[:-1])
    return found[inverse.reshape(-1)]


def _deviations(
    codes: UInt64Array, residual: FloatArray, median: float, spread: float
) -> tuple[FloatArray, FloatArray]:
    """Distances from the median, in eV and in units of the spread; see `Energies`."""
    off = residual - median
    found = off / max(spread, LEAST_SPREAD)
    known = np.flatnonzero(np.isfinite(residual))
    order = known[np.lexsort((residual[known], codes[known]))]
    _, starts, lengths = np.unique(codes[order], return_index=True, return_counts=True)
    many = lengths >= LEAST_OF_A_COMPOSITION
    for start, length in zip(starts[many].tolist(), lengths[many].tolist(), strict=True):
        here = order[start : start + length]
        own = residual[here]  # ascending
        middle = float(own[length // 2])
        off[here] = own - middle
        found[here] = off[here] / max(spread_about(own, middle), LEAST_SPREAD)
    return off, found


def _free_atoms(dataset: ZarrDataset, values: SampleValues) -> BoolArray:
    """Which samples [K] are free atoms: single ones that are marked, or that no cell holds."""
    single = np.flatnonzero(values.atoms == 1)
    free = np.zeros(len(values), dtype=bool)
    if not len(single):
        return free
    rows, density = values.rows[single], values.atoms_per_volume[single]
    free[single] = ~(density > _THINNEST)  # NaN without a cell
    for name, item in dataset.schema.items():
        if item.categories is not None:
            free[single] |= [is_free_atom(text) for text in dataset.strings(name, rows)]
        elif name == ISOLATED_ATOM and item.level is Level.SYSTEM:
            has = dataset.present(name, rows)
            marks = dataset.system_field(name, rows[has]).reshape(int(has.sum()), -1)
            free[single[has]] |= marks.any(axis=1)
    return free


def is_free_atom(text: str | None) -> bool:
    """Whether a string says that a sample is a free atom, as ``IsolatedAtom`` does."""
    plain = (text or "").lower().replace("_", "").replace("-", "").replace(" ", "")
    return plain in {"isolatedatom", "isolatedatoms", "freeatom", "singleatom", "e0"}


def _energies_of_free_atoms(
    dataset: ZarrDataset, values: SampleValues, free: BoolArray
) -> Mapping[str, float]:
    """Median energy of the free atoms of each element, by symbol."""
    chosen = np.flatnonzero(free & np.isfinite(values.energy))[:MOST_FITTED]
    if not len(chosen):
        return MappingProxyType({})
    numbers = as_elements(dataset.gather(values.rows[chosen], ()).atomic_numbers.numpy())
    energies = values.energy[chosen]
    return MappingProxyType(
        {SYMBOLS[z]: float(np.median(energies[numbers == z])) for z in np.unique(numbers)}
    )
