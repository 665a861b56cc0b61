"""Potentials of well-kept libraries behind one interface: a batch in, energies out.

`ForceField` chooses one by name, trains it and derives its forces and stress.
"""

import os
import pydoc
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from zarrpipe.data.batch import Batch
from zarrpipe.errors import ArgumentError
from zarrpipe.libraries import require
from zarrpipe.store.query.elements import SYMBOLS, atomic_number
from zarrpipe.transforms.neighbors import find


class Edges(NamedTuple):
    """Neighbour list of a batch.

    Attributes
    ----------
    pairs : Tensor [2, E] int64
        Receiver and sender of each edge, as atom indices of the batch.
    shifts : Tensor [E, 3]
        Lattice vector in Angstrom that takes the sender to its image; zero without a cell.
    """

    pairs: Tensor
    shifts: Tensor


def find_edges(batch: Batch, cutoff: float) -> Edges:
    """Both directions of all pairs nearer than `cutoff`, with shifts in numbers of cells."""
    found, like = find(batch, cutoff), batch.positions
    pairs = torch.from_numpy(found.edges).T.to(like.device)
    return Edges(pairs, torch.from_numpy(found.shifts).to(like.device, like.dtype))


class Potential(nn.Module):
    """What a potential is here: a module with a `cutoff` that maps a batch to energies.

    Arguments of a subclass named ``elements``, ``cutoff`` and ``mean_neighbors`` that are not given
    are taken from the training data: their atomic numbers, a cutoff that leaves an atom some sixty
    neighbours at most, and how many it has on average.

    Parameters
    ----------
    cutoff
        Radius in Angstrom of the neighbour list that `forward` is given.
    """

    def __init__(self, cutoff: float) -> None:
        super().__init__()
        if not cutoff > 0:
            raise ArgumentError(f"cutoff is {cutoff}, expected a positive number of Angstrom")
        self.cutoff = cutoff

    def forward(self, batch: Batch, positions: Tensor, edges: Edges) -> Tensor:
        """Energy of interaction, [B, 1] in eV, differentiable in `positions` [V, 3]."""
        raise NotImplementedError

    def atom_features(self, batch: Batch, positions: Tensor, edges: Edges) -> Tensor:
        """What the potential has learnt to see around each atom, [V, D]; a subclass may have it.

        Raises
        ------
        ArgumentError
            If it has not.
        """
        raise ArgumentError(
            f"{type(self).__name__} has no atom_features, by which structures are compared: define "
            "it, or select by rule='deviation' or 'random'"
        )


class SchNetPotential(Potential):
    """SchNet of PyTorch Geometric (Schuett et al., arXiv 1706.08566), molecules and crystals.

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
        self, cutoff: float, features: int = 64, interactions: int = 3, gaussians: int = 32
    ) -> None:
        schnet = require("torch_geometric.nn.models.schnet", "train")
        super().__init__(cutoff)
        self._graph: tuple[Tensor, Tensor] | None = None
        self.network = schnet.SchNet(
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

    def forward(self, batch: Batch, positions: Tensor, edges: Edges) -> Tensor:
        """Energy of interaction, [B, 1] in eV."""
        receiver, sender = edges.pairs
        vectors = positions[sender] + edges.shifts - positions[receiver]
        self._graph = edges.pairs, vectors.norm(dim=-1)
        try:
            return cast(Tensor, self.network(batch.atomic_numbers, positions, batch.batch_idx))
        finally:
            self._graph = None  # a module that is copied must not hold a graph of gradients

    def atom_features(self, batch: Batch, positions: Tensor, edges: Edges) -> Tensor:
        """Features of the atoms after the last interaction, [V, features]."""
        found: list[Tensor] = []
        hook = self.network.lin1.register_forward_pre_hook(lambda _, given: found.append(given[0]))
        try:
            self(batch, positions, edges)
        finally:
            hook.remove()
        return found[0]


class MACEPotential(Potential):
    """Small MACE of mace-torch (Batatia et al., arXiv 2206.07697), molecules and crystals.

    Parameters
    ----------
    elements
        Elements that the potential knows, as symbols or atomic numbers.
    cutoff
        Radius of each of the two interactions in Angstrom.
    mean_neighbors
        Mean number of neighbours of an atom, by which messages are divided.
    channels
        Number of channels of each irreducible representation.
    max_l
        Highest order of the messages; 0 makes them scalars.
    correlation
        Body order of the product basis, less one.
    """

    def __init__(
        self,
        elements: Sequence[int | str],
        cutoff: float,
        mean_neighbors: float,
        *,
        channels: int = 16,
        max_l: int = 1,
        correlation: int = 2,
    ) -> None:
        super().__init__(cutoff)
        numbers, self._channels = as_numbers(elements), channels
        shape = (channels, max_l, correlation)
        self.network = _scale_shift_mace(numbers, cutoff, mean_neighbors, shape)
        _undo_dilution(self.network, len(numbers))

    def forward(self, batch: Batch, positions: Tensor, edges: Edges) -> Tensor:
        """Energy of interaction, [B, 1] in eV."""
        energy = self._outputs(batch, positions, edges)["interaction_energy"]
        return cast(Tensor, energy).unsqueeze(-1)

    def atom_features(self, batch: Batch, positions: Tensor, edges: Edges) -> Tensor:
        """Invariant features of the atoms after each of both interactions, [V, 2 channels]."""
        found = cast(Tensor, self._outputs(batch, positions, edges)["node_feats"])
        return torch.cat([found[:, : self._channels], found[:, -self._channels :]], dim=1)

    def _outputs(self, batch: Batch, positions: Tensor, edges: Edges) -> Any:
        """What MACE computes without forces."""
        elements = self.network.atomic_numbers
        one_hot = (batch.atomic_numbers[:, None] == elements).to(positions.dtype)
        if not bool(one_hot.any(1).all()):
            unknown = sorted(set(batch.atomic_numbers.tolist()) - set(elements.tolist()))
            raise ArgumentError(
                f"elements {as_symbols(unknown)} are unknown to a MACE built for "
                f"{as_symbols(elements.tolist())}: name all in its option 'elements' and train "
                "again, or leave out structures that have them"
            )
        inputs = {
            "positions": positions,
            "node_attrs": one_hot,
            "edge_index": edges.pairs,  # both directions are there, so it may name the sender first
            "shifts": edges.shifts,
            "unit_shifts": edges.shifts,
            "cell": positions.new_zeros(3 * batch.num_graphs, 3),
            "batch": batch.batch_idx,
            "ptr": batch.batch_ptr,
        }
        return self.network(inputs, compute_force=False)


def _scale_shift_mace(
    elements: list[int], cutoff: float, mean_neighbors: float, shape: tuple[int, int, int]
) -> Any:
    """Build mace-torch's ScaleShiftMACE of these channels, order and correlation.

    Energies of isolated atoms are the caller's business.
    """
    channels, max_l, correlation = shape
    loads_safely = "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD" not in os.environ
    modules = require("mace.modules", "mace")
    o3 = require("mace.modules.models", "mace").o3  # e3nn does not load alone with torch 2.6
    if loads_safely:  # mace-torch lets every later torch.load of the process unpickle anything
        os.environ.pop("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", None)

    irreps = " + ".join(f"{channels}x{order}{'eo'[order % 2]}" for order in range(max_l + 1))
    blocks = modules.interaction_classes
    return modules.ScaleShiftMACE(
        r_max=cutoff,
        num_bessel=8,
        num_polynomial_cutoff=5,
        max_ell=2,
        interaction_cls=blocks["RealAgnosticResidualInteractionBlock"],
        interaction_cls_first=blocks["RealAgnosticInteractionBlock"],
        num_interactions=2,
        num_elements=len(elements),
        hidden_irreps=o3.Irreps(irreps),
        MLP_irreps=o3.Irreps("16x0e"),
        atomic_energies=torch.zeros(len(elements)).numpy(),
        avg_num_neighbors=mean_neighbors,
        atomic_numbers=elements,
        correlation=correlation,
        gate=nn.functional.silu,
        radial_MLP=[32, 32],
        atomic_inter_scale=1.0,
        atomic_inter_shift=0.0,
    )


def _undo_dilution(network: Any, elements: int) -> None:
    """Start as large as with one element.

    e3nn divides what it makes of an input by the root of its width, as if all entries were of
    size 1. Of a one-hot vector one is: with 85 elements a small MACE would predict zero at first,
    and for thousands of steps.
    """
    factor = elements**0.5
    with torch.no_grad():
        network.node_embedding.linear.weight.mul_(factor)
        for block in network.interactions:
            block.skip_tp.weight.mul_(factor)


def as_numbers(elements: Sequence[int | str]) -> list[int]:
    """Ascending atomic numbers of elements that are given as symbols or numbers."""
    return sorted({atomic_number(e) if isinstance(e, str) else int(e) for e in elements})


def as_symbols(numbers: Sequence[int]) -> str:
    """Symbols of atomic numbers, for messages."""
    return ", ".join(SYMBOLS[number] for number in numbers)


POTENTIALS: Mapping[str, type[Potential]] = {"schnet": SchNetPotential, "mace": MACEPotential}


def potential_class(name: str) -> type[Potential]:
    """Class of a potential by its short name, or by the import path of one of the user's own."""
    kind = POTENTIALS.get(name) or pydoc.locate(name)
    if not (isinstance(kind, type) and issubclass(kind, Potential)):
        raise ArgumentError(
            f"potential {name!r} is neither one of {', '.join(sorted(POTENTIALS))} nor the import "
            "path of a subclass of zarrpipe.ml.Potential"
        )
    return kind
