"""Potentials from well-kept libraries behind one interface: a batch in, energies out.

`ForceField` in ``force_field.py`` chooses one by name, trains it and derives its forces.
"""

import os
import pydoc
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

import zarrpipe as zp

# ruff: noqa: PLC0415  each potential imports its own library

LARGEST_EXTENT = 1e4  # vesin 0.6 crashes where its grid of cells overflows


class Edges(NamedTuple):
    """Neighbour list of a batch.

    Attributes
    ----------
    index : Tensor [2, E] int64
        Receiver and sender of each edge, as batch-global atom indices.
    shifts : Tensor [E, 3]
        Lattice vector in Angstrom that takes the sender to its image; zero without a cell.
    """

    index: Tensor
    shifts: Tensor


def neighbours(batch: zp.Batch, cutoff: float) -> Edges:
    """Both directions of all pairs nearer than `cutoff`, found by vesin.

    Molecules are set out in a row, further apart than `cutoff`, so that one call serves the whole
    batch: 0.1 ms for 20 molecules, where a call for each takes 1.5 ms.
    """
    if "pbc" in batch and bool(batch.pbc.any()):
        return _periodic_neighbours(batch, cutoff)
    positions = batch.positions.detach().double().cpu()
    low, high = positions.aminmax()
    extent = float(high - low)
    if not extent < LARGEST_EXTENT:
        raise ValueError(
            f"the molecules of a batch extend over {extent:.3g} Angstrom, expected less than "
            f"{LARGEST_EXTENT:.0f}: the dynamics has blown up"
        )
    row = positions.new_tensor([extent + 2 * cutoff, 0.0, 0.0])
    positions = positions + batch.batch_idx.cpu()[:, None] * row
    index, _ = _vesin(positions, torch.zeros(3, 3, dtype=torch.float64), False, cutoff)
    shifts = batch.positions.new_zeros(index.shape[1], 3)
    return Edges(index.to(batch.positions.device), shifts)


def _periodic_neighbours(batch: zp.Batch, cutoff: float) -> Edges:
    """Neighbour lists of crystals, one call of vesin for each."""
    like = batch.positions
    indices, shifts = [], []
    for system, start in enumerate(batch.batch_ptr[:-1].tolist()):
        stop = int(batch.batch_ptr[system + 1])
        cell = batch.cell[system].double().cpu()
        index, images = _vesin(
            like[start:stop].detach().double().cpu(), cell, batch.pbc[system].tolist(), cutoff
        )
        indices.append(index + start)
        shifts.append(images @ cell)
    return Edges(torch.cat(indices, 1).to(like.device), torch.cat(shifts).to(like))


def _vesin(
    positions: Tensor, cell: Tensor, periodic: bool | list[bool], cutoff: float
) -> tuple[Tensor, Tensor]:
    from vesin import NeighborList

    finder = NeighborList(cutoff=cutoff, full_list=True, n_threads=1)
    first, second, images = finder.compute(positions.numpy(), cell.numpy(), periodic, "ijS")
    index = torch.stack([torch.from_numpy(side.astype("int64")) for side in (first, second)])
    return index, torch.from_numpy(images.astype("float64"))


class Potential(nn.Module):
    """What a potential is here: a module with a `cutoff` that maps a batch to energies.

    Parameters
    ----------
    cutoff
        Radius in Angstrom of the neighbour list that `forward` is given.
    """

    def __init__(self, cutoff: float) -> None:
        super().__init__()
        self.cutoff = cutoff

    def forward(self, batch: zp.Batch, positions: Tensor, edges: Edges) -> Tensor:
        """Energy of interaction, [B, 1] in eV, differentiable in `positions` [V, 3]."""
        raise NotImplementedError


class SchNetPotential(Potential):
    """SchNet of PyTorch Geometric (Schütt et al., arXiv 1706.08566); for molecules.

    Parameters
    ----------
    cutoff
        Radius of the interactions in Angstrom.
    features
        Width of the atomic features and of the filters.
    interactions
        Number of interaction blocks.
    gaussians
        Number of Gaussians that expand a distance.
    """

    def __init__(
        self, cutoff: float = 5.0, features: int = 64, interactions: int = 3, gaussians: int = 32
    ) -> None:
        from torch_geometric.nn.models.schnet import SchNet

        super().__init__(cutoff)
        self._graph: tuple[Tensor, Tensor] | None = None
        self.network = SchNet(
            hidden_channels=features,
            num_filters=features,
            num_interactions=interactions,
            num_gaussians=gaussians,
            cutoff=cutoff,
            interaction_graph=self._known_graph,
        )

    def _known_graph(self, positions: Tensor, batch: Tensor) -> tuple[Tensor, Tensor] | None:
        """Edges and lengths of the batch at hand: SchNet asks for them by this hook."""
        return self._graph

    def forward(self, batch: zp.Batch, positions: Tensor, edges: Edges) -> Tensor:
        """Energy of interaction, [B, 1] in eV."""
        receiver, sender = edges.index
        vectors = positions[sender] + edges.shifts - positions[receiver]
        self._graph = edges.index, vectors.norm(dim=-1)
        return cast(Tensor, self.network(batch.atomic_numbers, positions, batch.batch_idx))


class MACEPotential(Potential):
    """Small MACE of mace-torch (Batatia et al., arXiv 2206.07697), for molecules and crystals.

    Parameters
    ----------
    elements
        Atomic numbers that the potential knows.
    cutoff
        Radius of each of the two interactions in Angstrom.
    channels
        Number of channels of each irreducible representation.
    max_l
        Highest order of the messages; 0 makes them scalars.
    correlation
        Body order of the product basis, less one.
    """

    def __init__(
        self,
        elements: list[int],
        cutoff: float = 4.0,
        channels: int = 16,
        max_l: int = 1,
        correlation: int = 2,
    ) -> None:
        super().__init__(cutoff)
        self.network = _scale_shift_mace(sorted(elements), cutoff, channels, max_l, correlation)

    def forward(self, batch: zp.Batch, positions: Tensor, edges: Edges) -> Tensor:
        """Energy of interaction, [B, 1] in eV."""
        elements = self.network.atomic_numbers
        one_hot = (batch.atomic_numbers[:, None] == elements).to(positions.dtype)
        if not bool(one_hot.any(1).all()):
            unknown = sorted(set(batch.atomic_numbers.tolist()) - set(elements.tolist()))
            raise ValueError(
                f"elements {unknown} are unknown to a MACE built for {elements.tolist()}: "
                "name them in its option 'elements'"
            )
        inputs = {
            "positions": positions,
            "node_attrs": one_hot,
            "edge_index": edges.index,  # both directions are there, so it may name the sender first
            "shifts": edges.shifts,
            "unit_shifts": edges.shifts,
            "cell": positions.new_zeros(3 * batch.num_graphs, 3),
            "batch": batch.batch_idx,
            "ptr": batch.batch_ptr,
        }
        energy = self.network(inputs, compute_force=False)["interaction_energy"]
        return cast(Tensor, energy).unsqueeze(-1)


def _scale_shift_mace(
    elements: list[int], cutoff: float, channels: int, max_l: int, correlation: int
) -> nn.Module:
    """Build mace-torch's ScaleShiftMACE; energies of isolated atoms are the caller's business."""
    import numpy as np

    loads_safely = "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD" not in os.environ
    from mace.modules import ScaleShiftMACE, interaction_classes
    from mace.modules.models import o3  # e3nn does not load alone with torch 2.6 and later

    if loads_safely:  # mace-torch lets every later torch.load of the process unpickle anything
        os.environ.pop("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", None)

    irreps = " + ".join(f"{channels}x{order}{'eo'[order % 2]}" for order in range(max_l + 1))
    network = ScaleShiftMACE(
        r_max=cutoff,
        num_bessel=8,
        num_polynomial_cutoff=5,
        max_ell=2,
        interaction_cls=interaction_classes["RealAgnosticResidualInteractionBlock"],
        interaction_cls_first=interaction_classes["RealAgnosticInteractionBlock"],
        num_interactions=2,
        num_elements=len(elements),
        hidden_irreps=o3.Irreps(irreps),
        MLP_irreps=o3.Irreps("16x0e"),
        atomic_energies=np.zeros(len(elements)),
        avg_num_neighbors=8.0,
        atomic_numbers=elements,
        correlation=correlation,
        gate=nn.functional.silu,
        radial_MLP=[32, 32],
        atomic_inter_scale=1.0,
        atomic_inter_shift=0.0,
    )
    return cast(nn.Module, network)


POTENTIALS: dict[str, type[Potential]] = {"schnet": SchNetPotential, "mace": MACEPotential}


def build_potential(name: str, options: dict[str, Any] | None = None) -> Potential:
    """Potential by its short name, or by the import path of a `Potential` of one's own."""
    kind = POTENTIALS.get(name) or pydoc.locate(name)
    if not (isinstance(kind, type) and issubclass(kind, Potential)):
        raise ValueError(  # noqa: TRY004  (the name is wrong, not its type)
            f"potential {name!r} is neither one of {sorted(POTENTIALS)} nor the import path of a "
            "subclass of Potential"
        )
    return kind(**(options or {}))
