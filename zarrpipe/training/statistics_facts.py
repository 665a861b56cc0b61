"""Statistics of a training set, as data and as tables."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

import torch

from zarrpipe.data.tables import Table, html_tables
from zarrpipe.dataset.store_info import number_text
from zarrpipe.store.query.elements import SYMBOLS
from zarrpipe.store.statistics.label_rows import NUM_ELEMENTS


@dataclass(frozen=True)
class Statistics:
    """Facts about a set of samples; a figure without any label is NaN, or empty.

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
    size_histogram : mapping of int to int
        Number of samples by their number of atoms.
    edges_per_atom : float
        Mean number of neighbours that are stored with an atom; see `mean_neighbors` for any cutoff.
    """

    num_samples: int
    num_atoms: int
    element_counts: Mapping[int, int]
    reference_energies: Mapping[int, float]
    energy_per_atom_mean: float
    energy_per_atom_std: float
    forces_rms: float
    size_histogram: Mapping[int, int] = field(default_factory=lambda: MappingProxyType({}))
    edges_per_atom: float = float("nan")

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

    def tables(self) -> list[Table]:
        """Two tables of text: figures of all atoms, and by element."""
        sizes = [*self.size_histogram] or [0]
        per_sample = f", {min(sizes):,} to {max(sizes):,} a sample" if self.num_samples else ""
        lines = (
            ("samples", f"{self.num_samples:,}"),
            ("atoms", f"{self.num_atoms:,}{per_sample}"),
            ("edges per atom", _text(self.edges_per_atom)),
            (
                "energy per atom without reference energies, mean (eV)",
                _text(self.energy_per_atom_mean),
            ),
            (
                "energy per atom without reference energies, spread (eV)",
                _text(self.energy_per_atom_std),
            ),
            ("forces, root mean square (eV/Angstrom)", _text(self.forces_rms)),
        )
        rows = tuple(
            (
                SYMBOLS[number],
                f"{count:,}",
                _text(self.reference_energies.get(number, float("nan"))),
            )
            for number, count in self.element_counts.items()
        )
        return [
            Table((), lines, title="statistics:"),
            Table(("element", "atoms", "reference energy (eV)"), rows, (1, 2), "elements:"),
        ]

    def _repr_html_(self) -> str:
        """The same tables for notebooks."""
        return html_tables(self.tables())


def _text(value: float) -> str:
    """Figure for people; "-" for one without any label."""
    return "-" if value != value else number_text(value)  # noqa: PLR0124  NaN
