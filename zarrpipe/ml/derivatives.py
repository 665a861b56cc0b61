"""Forces and stress as derivatives of the energy of a potential, and its features."""

import torch
from torch import Tensor

from zarrpipe.data.batch import Batch
from zarrpipe.ml.labels import Prediction
from zarrpipe.ml.potentials import Edges, Potential


def interaction(
    potential: Potential,
    batch: Batch,
    edges: Edges,
    scale: Tensor,
    *,
    stress: bool,
    differentiable: bool,
) -> Prediction:
    """Energy of interaction, `scale` times that of a potential, and its derivatives.

    `edges` has shifts in numbers of cells. With `differentiable` the graph is kept, so that a loss
    of the derivatives can be differentiated.
    """
    dtype = next(potential.parameters()).dtype
    positions = batch.positions.detach().to(dtype).requires_grad_()
    strain = None
    moved, shifts = positions, edges.shifts.to(dtype)
    if "cell" in batch:
        cell = batch.cell.detach().to(dtype).nan_to_num(0.0)  # NaN where a system has none
        if stress:
            strain = torch.zeros_like(cell).requires_grad_()
            both = 0.5 * (strain + strain.mT)  # a rotation is no strain
            moved = positions + _times(positions, both[batch.batch_idx])
            cell = cell + cell @ both
        shifts = _times(shifts, cell[batch.batch_idx[edges.pairs[0]]])
    energy = scale.to(dtype) * potential(batch, moved, Edges(edges.pairs, shifts))
    wanted = [positions] if strain is None else [positions, strain]
    slopes = torch.autograd.grad(energy.sum(), wanted, create_graph=differentiable)
    found = None
    if strain is not None:
        volume = batch.cell.detach().det().abs().to(dtype)[:, None, None]
        found = torch.where(volume > 0, slopes[1] / volume, torch.nan)
    return Prediction(energy if differentiable else energy.detach(), -slopes[0], found)


def mean_features(potential: Potential, batch: Batch, edges: Edges) -> Tensor:
    """Mean of the features of the atoms of each system, [B, D]; shifts are numbers of cells."""
    dtype = next(potential.parameters()).dtype
    positions, shifts = batch.positions.to(dtype), edges.shifts.to(dtype)
    if "cell" in batch:
        cell = batch.cell.to(dtype).nan_to_num(0.0)
        shifts = _times(shifts, cell[batch.batch_idx[edges.pairs[0]]])
    of_atoms = potential.atom_features(batch, positions, Edges(edges.pairs, shifts))
    sums = of_atoms.new_zeros(batch.num_graphs, of_atoms.shape[1])
    sums.index_add_(0, batch.batch_idx, of_atoms)
    return sums / batch.num_nodes_per_graph[:, None]


def _times(rows: Tensor, matrices: Tensor) -> Tensor:
    """Product of each row [N, 3] with its matrix [N, 3, 3]."""
    return (rows[:, None, :] @ matrices)[:, 0]
