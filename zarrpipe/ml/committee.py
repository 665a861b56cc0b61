"""Several force fields as one: mean predictions and by how much the members deviate."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from zarrpipe.data.batch import Batch
from zarrpipe.errors import ArgumentError
from zarrpipe.ml.force_field import ForceField
from zarrpipe.ml.labels import Prediction
from zarrpipe.ml.potentials import find_edges


class Committee(nn.Module):
    """Force fields that predict together; a committee of one has no deviation.

    Parameters
    ----------
    members : sequence of ForceField
        Those of one cutoff share a neighbour list.
    """

    def __init__(self, members: Sequence[ForceField]) -> None:
        super().__init__()
        if not members:
            raise ArgumentError("members is empty, expected one force field or more")
        self.members = nn.ModuleList(member.eval() for member in members)

    def predict_members(self, batch: Batch, *, stress: bool = False) -> Prediction:
        """Predictions of each member: energy [M, B, 1], forces [M, V, 3], stress [M, B, 3, 3]."""
        members = [cast(ForceField, member) for member in self.members]
        cutoffs = {one.cutoff for one in members}
        with torch.inference_mode(False):  # edges that were made in it have no derivatives
            edges = {cutoff: find_edges(batch, cutoff) for cutoff in cutoffs}
        found = [one.predict(batch, stress=stress, edges=edges[one.cutoff]) for one in members]
        stresses = [one.stress for one in found if one.stress is not None]
        return Prediction(
            torch.stack([one.energy for one in found]),
            torch.stack([one.forces for one in found]),
            torch.stack(stresses) if stresses else None,
        )

    def predict(self, batch: Batch, *, stress: bool = False) -> tuple[Prediction, Prediction]:
        """Mean of the members, and their standard deviation (0 for a committee of one)."""
        energy, forces, stresses = self.predict_members(batch, stress=stress)
        mean = None if stresses is None else stresses.mean(0)
        spread = None if stresses is None else stresses.std(0, correction=0)
        return (
            Prediction(energy.mean(0), forces.mean(0), mean),
            Prediction(energy.std(0, correction=0), forces.std(0, correction=0), spread),
        )

    def deviation(self, batch: Batch) -> Tensor:
        """Largest deviation of the members' forces on an atom of each system, [B] eV/Angstrom."""
        return force_deviation(self.predict_members(batch).forces, batch)

    def features(self, batch: Batch) -> Tensor:
        """Features of each structure by all members, [B, D]; see `ForceField.features`."""
        return torch.cat([cast(ForceField, one).features(batch) for one in self.members], dim=1)

    def fingerprint(self) -> str:
        """Hash of all weights, 16 hexadecimal digits, by which a label's model is known again."""
        digest = hashlib.blake2b(digest_size=8)
        for name, value in self.state_dict().items():
            digest.update(name.encode())
            digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
        return digest.hexdigest()


def force_deviation(forces: Tensor, batch: Batch) -> Tensor:
    """Largest deviation of a committee's forces [M, V, 3] on an atom of each system.

    The deviation on an atom is the norm of the standard deviation of its force.

    Returns
    -------
    Tensor [B]
        eV/Angstrom.
    """
    spread = (forces - forces.mean(0)).square().mean(0).sum(-1).sqrt()
    return spread.new_zeros(batch.num_graphs).scatter_reduce(
        0, batch.batch_idx, spread, "amax", include_self=False
    )


def load(paths: str | Path | Sequence[str | Path], device: str | torch.device = "cpu") -> Committee:
    """Committee of the force fields in one checkpoint or several.

    Parameters
    ----------
    paths : path or sequence of path
        Checkpoints that were saved by a Lightning trainer, or directories of runs of the recipe,
        of which the best checkpoint is taken, or the last where there is no best.
    device : str or torch.device
        Where they compute.

    Raises
    ------
    FileNotFoundError
        If there is no such file, or a directory has no checkpoint.
    """
    several = [paths] if isinstance(paths, str | Path) else list(paths)
    several = [_checkpoint(Path(path)) for path in several]
    return Committee(
        [ForceField.load_from_checkpoint(path, map_location=device) for path in several]
    )


def as_committee(field: Any) -> Committee:
    """Committee of a force field, of checkpoints, or the one that is given."""
    if isinstance(field, ForceField):
        return Committee([field])
    return field if isinstance(field, Committee) else load(field)


def _checkpoint(path: Path) -> Path:
    """The checkpoint of a path, or of the directory of a run."""
    if path.is_file():
        return path
    inside = [path / "checkpoints" / f"{name}.ckpt" for name in ("best", "last")]
    for one in inside:
        if one.is_file():
            return one
    raise FileNotFoundError(
        f"{path} is neither a checkpoint nor the directory of a run with {inside[0].name} or "
        f"{inside[1].name} in its folder 'checkpoints'"
    )
