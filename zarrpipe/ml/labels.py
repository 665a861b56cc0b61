"""The labels of a batch, and a loss and errors over those that are there."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import NamedTuple

import torch
from torch import Tensor

from zarrpipe.adapters.assemble import stresses
from zarrpipe.data.batch import Batch
from zarrpipe.data.levels import Level
from zarrpipe.errors import ArgumentError

SOURCES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {"energy": ("energy",), "forces": ("forces",), "stress": ("stress", "virial")}
)
"""Fields that give each label."""

LABELS = tuple(SOURCES)

KINDS = ("mae", "mse", "huber")


class Prediction(NamedTuple):
    """What a force field says of a batch; a committee adds an axis for its members in front.

    Attributes
    ----------
    energy : Tensor [B, 1] float64
        eV.
    forces : Tensor [V, 3]
        eV/Angstrom.
    stress : Tensor [B, 3, 3] or None
        eV/Angstrom^3, with the sign of ASE: the derivative of the energy by the strain over the
        volume. NaN for systems without a cell; None where it was not asked for.
    """

    energy: Tensor
    forces: Tensor
    stress: Tensor | None = None


def gives(fields: Collection[str], label: str) -> bool:
    """Whether one of the fields gives a label."""
    return any(name in fields for name in SOURCES[label])


def has_stress(batch: Batch) -> bool:
    """Whether some system of a batch has a stress, or a virial and a cell."""
    return "cell" in batch and gives(batch.fields, "stress")


def stress_of(batch: Batch) -> tuple[Tensor, Tensor]:
    """Stress [B, 3, 3] float64 in eV/Angstrom^3 and which systems have one, [B] bool.

    A system without a stress has the one of its virial, ``-virial / volume``.
    """
    known = (batch.has("stress") | batch.has("virial")) & (batch.cell.det() != 0)
    return stresses(batch), known


def pairs_of(prediction: Prediction, batch: Batch) -> dict[str, tuple[Tensor, Tensor]]:
    """Predictions and labels, a row for each label that is there.

    ``energy`` [n, 1] in eV per atom, ``forces`` [m, 3] in eV/Angstrom, ``stress`` [k, 3, 3] in
    eV/Angstrom^3. A label that the batch lacks is left out.
    """
    pairs = {}
    if "energy" in batch:
        atoms, rows = batch.num_nodes_per_graph[:, None], _rows(batch, "energy")
        pairs["energy"] = (prediction.energy / atoms)[rows], (batch.energy / atoms)[rows]
    if "forces" in batch:
        rows = _rows(batch, "forces")
        pairs["forces"] = prediction.forces[rows], batch.forces.to(prediction.forces)[rows]
    if prediction.stress is not None and has_stress(batch):
        stress, known = stress_of(batch)
        pairs["stress"] = prediction.stress[known], stress.to(prediction.stress)[known]
    return pairs


def errors_of(prediction: Prediction, batch: Batch) -> dict[str, Tensor]:
    """Prediction less label, with the rows of `pairs_of`."""
    pairs = pairs_of(prediction, batch)
    return {label: predicted - true for label, (predicted, true) in pairs.items()}


def _rows(batch: Batch, label: str) -> Tensor | slice:
    """Rows of a label that are there; NaN of the others would stay NaN times zero."""
    if label not in batch.partly_present:
        return slice(None)
    present = batch.present(label)
    return present[batch.batch_idx] if batch.levels[label] is Level.ATOM else present


@dataclass(frozen=True)
class Loss:
    """Weighted sum over labels of the mean size of an error.

    The size of an error is its norm: the length of a force's error, the Frobenius norm of a
    stress's. "mae" takes it as it is, "mse" squares it, and "huber" does the latter up to
    `huber_delta` and goes on in proportion. Each mean is over the labels that are there.

    Parameters
    ----------
    weights
        Weight of each label.
    kind
        "mae", "mse" or "huber".
    huber_delta
        In the unit of a label: eV per atom, eV/Angstrom, eV/Angstrom^3.
    """

    weights: Mapping[str, float]
    kind: str = "mae"
    huber_delta: float = 0.01

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ArgumentError(f"loss is {self.kind!r}, expected one of {', '.join(KINDS)}")
        if not self.huber_delta > 0:
            raise ArgumentError(f"huber_delta is {self.huber_delta}, expected more than 0")
        for label, weight in self.weights.items():
            if not weight >= 0:
                raise ArgumentError(f"{label}_weight is {weight}, expected 0 or more")
        if not any(self.weights.values()):
            raise ArgumentError("all weights of the loss are 0: give one of them a weight")

    def __call__(self, errors: Mapping[str, Tensor]) -> Tensor:
        """Loss of the errors of a batch; 0 without a gradient where it has no label to learn."""
        terms = [
            self.weights[label] * self._mean(error).float()
            for label, error in errors.items()
            if self.weights.get(label) and len(error)
        ]
        return torch.stack(terms).sum() if terms else torch.zeros(())

    def _mean(self, error: Tensor) -> Tensor:
        size: Tensor = torch.linalg.vector_norm(error.flatten(1), dim=1)
        if self.kind == "mse":
            size = size.square()
        if self.kind == "huber":
            zero = torch.zeros_like(size)
            size = torch.nn.functional.huber_loss(size, zero, "none", delta=self.huber_delta)
        return size.mean()
