"""torch-sim's model of force fields."""

from typing import Any

import torch
from torch import Tensor
from torch_sim import SimState
from torch_sim.models.interface import ModelInterface

from zarrpipe.adapters.torch_sim import from_torch_sim
from zarrpipe.ml.committee import as_committee, force_deviation


class TorchSimModel(ModelInterface):  # type: ignore[misc]  # torch-sim is not followed
    """A trained `ForceField`, or a committee of several, as a model of torch-sim.

    Parameters
    ----------
    field : ForceField, Committee, path or sequence of paths
        What computes, or checkpoints of it.
    compute_stress : bool
        Whether a state with a cell gets its stress, [B, 3, 3] in eV/Angstrom^3.

    Attributes
    ----------
    deviation : Tensor [B]
        Largest deviation of the members' forces on an atom of each system of the last call,
        eV/Angstrom; 0 for a committee of one.
    """

    deviation: Tensor

    def __init__(self, field: Any, *, compute_stress: bool = False) -> None:
        super().__init__()
        self.committee = as_committee(field)
        like = next(self.committee.parameters(), torch.zeros(()))
        self._device, self._dtype = like.device, like.dtype
        self._compute_forces, self._compute_stress = True, compute_stress

    def forward(self, state: SimState, **_: Any) -> dict[str, Tensor]:
        """Mean energy [B] in eV and forces [V, 3] in eV/Angstrom, and stress if asked for."""
        batch = from_torch_sim(state, fields=())
        members = self.committee.predict_members(batch, stress=self._compute_stress)
        self.deviation = force_deviation(members.forces, batch)
        found = {
            "energy": members.energy.mean(0).squeeze(-1).to(self._dtype),
            "forces": members.forces.mean(0),
        }
        if members.stress is not None:
            found["stress"] = members.stress.mean(0)
        return found
