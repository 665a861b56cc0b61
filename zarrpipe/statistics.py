"""What a training set looks like, from sums that can be extended and merged.

Energies are summed as what is left after a first guess of the reference energies, since total
energies are thousands of times larger than what differs between samples.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import torch

from zarrpipe.data.batch import Batch
from zarrpipe.data.csr import Int64Array, pointers
from zarrpipe.dataset import ZarrDataset
from zarrpipe.errors import FieldError

FloatArray = npt.NDArray[np.float64]

NUM_ELEMENTS = 119
"""Atomic numbers 0 (a dummy) to 118."""

_BLOCK_SAMPLES, _BLOCK_ATOMS = 8192, 1 << 20
_RANK_TOLERANCE = 1e-10


@dataclass(frozen=True)
class Statistics:
    """Facts about a set of samples; what no sample has a label for is NaN, or empty.

    Parameters
    ----------
    num_samples, num_atoms : int
        Samples and their atoms, labelled or not.
    element_counts : mapping of int to int
        Number of atoms by atomic number.
    reference_energies : mapping of int to float
        Energy of an atom by atomic number, eV: the least-squares fit of the total energies by the
        composition. Where compositions leave it open (a single molecule), the smallest that fits.
    energy_per_atom_mean, energy_per_atom_std : float
        Of the energy per atom that is left after the reference energies, eV.
    forces_rms : float
        Root mean square of the force components, eV/Angstrom.
    """

    num_samples: int
    num_atoms: int
    element_counts: Mapping[int, int]
    reference_energies: Mapping[int, float]
    energy_per_atom_mean: float
    energy_per_atom_std: float
    forces_rms: float

    def reference_energy_table(self, dtype: torch.dtype = torch.float64) -> torch.Tensor:
        """Reference energies [119] to be indexed by atomic numbers, eV; 0 for the unknown.

        Examples
        --------
        >>> facts = Statistics(1, 2, {1: 2}, {1: -13.6}, 0.0, 0.0, float("nan"))
        >>> facts.reference_energy_table()[torch.tensor([1, 1])].sum()
        tensor(-27.2000, dtype=torch.float64)
        """
        table = torch.zeros(NUM_ELEMENTS, dtype=dtype)
        for number, energy in self.reference_energies.items():
            table[number] = energy
        return table


def _zeros(*shape: int) -> FloatArray:
    return np.zeros(shape, dtype=np.float64)


@dataclass
class StatisticsSums:
    """Sums, all float64 or int64, from which `Statistics` follow.

    With a sample's composition ``a`` [119], atoms ``n`` and energy ``r`` that is left after
    ``origin``, the weighted sums have 1 (total) and 1/n^2 (per atom) as weights.
    """

    num_samples: int = 0
    element_counts: Int64Array = field(
        default_factory=lambda: np.zeros(NUM_ELEMENTS, dtype=np.int64)
    )
    num_energies: int = 0
    origin: FloatArray = field(default_factory=lambda: _zeros(NUM_ELEMENTS))
    # Of a a^T, r a and r^2, for totals [0] and per atom [1].
    gram: FloatArray = field(default_factory=lambda: _zeros(2, NUM_ELEMENTS, NUM_ELEMENTS))
    moment: FloatArray = field(default_factory=lambda: _zeros(2, NUM_ELEMENTS))
    square: FloatArray = field(default_factory=lambda: _zeros(2))
    # Of a/n and r/n.
    fraction: FloatArray = field(default_factory=lambda: _zeros(NUM_ELEMENTS))
    per_atom: float = 0.0
    num_force_components: int = 0
    force_square: float = 0.0

    def add(self, batch: Batch) -> Self:
        """Count the samples of a batch and the labels that they have.

        Raises
        ------
        FieldError
            If an atomic number is not 0 to 118, or a label that is present is not finite.
        """
        composition = _composition(batch)
        self.num_samples += batch.num_graphs
        self.element_counts += composition.sum(0).astype(np.int64)
        if "energy" in batch:
            self._add_energies(batch, composition)
        if "forces" in batch:
            self._add_forces(batch)
        return self

    def _add_energies(self, batch: Batch, composition: FloatArray) -> None:
        has = batch.present("energy").numpy()
        energy = batch["energy"].numpy().astype(np.float64).reshape(-1)[has]
        composition, atoms = composition[has], batch.num_nodes_per_graph.numpy()[has]
        if not len(energy):
            return
        _check_finite("energy", energy)
        if self.num_energies == 0:
            gram = composition.T @ composition
            self.origin = _fit(gram, composition.T @ energy, self.origin)
        rest = energy - composition @ self.origin
        self.num_energies += len(energy)
        # A block has few of the 119 elements.
        here = np.flatnonzero(composition.any(0))
        composition = composition[:, here]
        for place, weight in enumerate((np.ones(len(energy)), 1.0 / atoms**2)):
            weighted = composition * weight[:, None]
            self.gram[place][np.ix_(here, here)] += weighted.T @ composition
            self.moment[place][here] += weighted.T @ rest
            self.square[place] += weight @ rest**2
        self.fraction[here] += (composition / atoms[:, None]).sum(0)
        self.per_atom += float((rest / atoms).sum())

    def _add_forces(self, batch: Batch) -> None:
        forces = batch["forces"].numpy()
        has = batch.present("forces").numpy()
        if not has.all():
            forces = forces[np.repeat(has, batch.num_nodes_per_graph.numpy())]
        _check_finite("forces", forces)
        self.num_force_components += forces.size
        self.force_square += float(np.square(forces, dtype=np.float64).sum())

    def merge(self, other: "StatisticsSums") -> Self:
        """Add the sums of other samples."""
        if self.num_energies == 0:
            self.origin = other.origin.copy()
        shift = other.origin - self.origin
        pull: FloatArray = other.gram @ shift
        self.square += other.square + 2 * other.moment @ shift + pull @ shift
        self.moment += other.moment + pull
        self.gram += other.gram
        self.per_atom += other.per_atom + float(other.fraction @ shift)
        self.fraction += other.fraction
        self.element_counts += other.element_counts
        for name in ("num_samples", "num_energies", "num_force_components", "force_square"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        return self

    def statistics(self) -> Statistics:
        """What the sums say."""
        present = np.flatnonzero(self.element_counts)
        labelled = np.flatnonzero(self.gram[0].diagonal())
        fitted = _fit(self.gram[0], self.moment[0], self.origin)
        change = fitted - self.origin
        mean = spread = float("nan")
        if self.num_energies:
            mean = (self.per_atom - float(self.fraction @ change)) / self.num_energies
            pull = self.gram[1] @ change - 2 * self.moment[1]
            left = float(self.square[1] + pull @ change)
            spread = max(left / self.num_energies - mean**2, 0.0) ** 0.5
        components = self.num_force_components
        return Statistics(
            num_samples=self.num_samples,
            num_atoms=int(self.element_counts.sum()),
            element_counts=_table(present, self.element_counts[present]),
            reference_energies=_table(labelled, fitted[labelled]),
            energy_per_atom_mean=mean,
            energy_per_atom_std=spread,
            forces_rms=(self.force_square / components) ** 0.5 if components else float("nan"),
        )


def measure(dataset: ZarrDataset) -> StatisticsSums:
    """Sums over all samples of a dataset, as stored, in blocks of bounded memory."""
    fields = [name for name in ("energy", "forces") if name in dataset.schema]
    sums = StatisticsSums()
    for block in _blocks(dataset.num_atoms):
        sums.add(dataset.gather(block, fields))
    return sums


def _blocks(num_atoms: Int64Array) -> Iterator[Int64Array]:
    """Runs of samples of at most so many samples and, but for a larger one, so many atoms."""
    ptr, start = pointers(num_atoms), 0
    while start < len(num_atoms):
        fits = int(np.searchsorted(ptr, ptr[start] + _BLOCK_ATOMS, side="right")) - 1
        stop = max(start + 1, min(fits, start + _BLOCK_SAMPLES))
        yield np.arange(start, stop)
        start = stop


def _composition(batch: Batch) -> FloatArray:
    """Number of atoms of each element in each system, [B, 119]."""
    numbers = batch["atomic_numbers"].numpy()
    if numbers.size and not 0 <= numbers.min() <= numbers.max() < NUM_ELEMENTS:
        raise FieldError(
            f"field 'atomic_numbers' goes from {numbers.min()} to {numbers.max()}, expected 0 to "
            f"{NUM_ELEMENTS - 1}: statistics by element need atomic numbers"
        )
    cell = batch.batch_idx.numpy() * NUM_ELEMENTS + numbers
    counts = np.bincount(cell, minlength=batch.num_graphs * NUM_ELEMENTS)
    return counts.reshape(batch.num_graphs, NUM_ELEMENTS).astype(np.float64)


def _fit(gram: FloatArray, moment: FloatArray, origin: FloatArray) -> FloatArray:
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


def _check_finite(name: str, values: npt.NDArray[np.floating]) -> None:
    bad = values.size - int(np.isfinite(values).sum())
    if bad:
        raise FieldError(
            f"field {name!r} has {bad} values that are NaN or infinite in samples that are said "
            "to have it: leave the field out of what is not labelled"
        )


def _table(keys: Int64Array, values: npt.NDArray[Any]) -> Mapping[int, Any]:
    return MappingProxyType(dict(zip(keys.tolist(), values.tolist(), strict=True)))
