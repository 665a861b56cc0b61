"""ASE's calculator of force fields."""

from typing import TYPE_CHECKING, Any

from zarrpipe.adapters.ase import from_ase
from zarrpipe.libraries import require
from zarrpipe.ml.committee import as_committee

if TYPE_CHECKING:
    from ase import Atoms

_calculators = require("ase.calculators.calculator", "train")
_stress = require("ase.stress", "train")


class ForceFieldCalculator(_calculators.Calculator):  # type: ignore[misc, name-defined]
    """ASE calculator of a trained `ForceField`, or of a committee of several.

    ``results`` has energy (eV), forces (eV/Angstrom) and, with a cell, stress (eV/Angstrom^3, Voigt
    order); of a committee they are means, and ``energy_std`` (eV) and ``forces_std`` ([n],
    eV/Angstrom, the norm of the standard deviation of each force) say how far the members are from
    each other.

    Parameters
    ----------
    field : ForceField, Committee, path or sequence of paths
        What computes, or checkpoints of it.
    **kwargs
        Of ASE's ``Calculator``.

    Examples
    --------
    ``atoms.calc = ForceFieldCalculator("runs/ethanol/checkpoints/best.ckpt")``
    """

    implemented_properties = ["energy", "free_energy", "forces", "stress"]  # noqa: RUF012  (ASE's)

    def __init__(self, field: Any, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.committee = as_committee(field)

    def calculate(
        self,
        atoms: "Atoms | None" = None,
        properties: list[str] | None = None,
        system_changes: list[str] = _calculators.all_changes,
    ) -> None:
        """Compute what the class says."""
        super().calculate(atoms, properties, system_changes)
        batch = from_ase(self.atoms)
        batch = batch.to(next(self.committee.parameters()).device)
        in_cell = self.atoms.cell.rank == 3
        mean, spread = self.committee.predict(batch, stress=in_cell)
        energy = mean.energy.item()
        self.results = {
            "energy": energy,
            "free_energy": energy,
            "forces": mean.forces.double().numpy(force=True),
        }
        if mean.stress is not None:
            full = mean.stress[0].double().numpy(force=True)
            self.results["stress"] = _stress.full_3x3_to_voigt_6_stress(full)
        if len(self.committee.members) > 1:
            self.results["energy_std"] = spread.energy.item()
            self.results["forces_std"] = spread.forces.norm(dim=-1).double().numpy(force=True)
