"""Potentials from well-kept libraries behind one interface, and the module that trains them.

`ForceField` is the only thing that the other recipes know: its potential is chosen by name in a
config, Lightning trains it, `ForceField.load_from_checkpoint` loads it, and `ForceFieldCalculator`
hands it to ASE.

    field = ForceField("schnet", {"cutoff": 5.0})
    energy, forces = field.energy_and_forces(batch)  # zarrpipe.Batch; eV [B, 1], eV/Angstrom [V, 3]
"""

import math
import pydoc
from typing import Any, NamedTuple, cast

import lightning.pytorch as pl
import torch
from ase import Atoms
from ase.calculators.calculator import Calculator, all_changes
from torch import Tensor, nn

import zarrpipe as zp

# ruff: noqa: PLC0415  each potential imports its own library

MEV = 1000.0
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
    from e3nn.o3 import Irreps
    from mace.modules import ScaleShiftMACE, interaction_classes

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
        hidden_irreps=Irreps(irreps),
        MLP_irreps=Irreps("16x0e"),
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


class ForceField(pl.LightningModule):
    """A potential, its reference energies, and how it is trained on energies and forces.

    The loss is the mean length of a force's error plus `energy_weight` times the mean error of an
    energy. The learning rate rises over the first 5 % of ``trainer.max_steps`` and falls to 1 % of
    its peak along a cosine; without ``max_steps`` it is constant.

    Parameters
    ----------
    potential
        A name of `POTENTIALS` or an import path.
    options
        Arguments of the potential.
    lr
        Peak learning rate of AdamW.
    weight_decay
        Weight decay of AdamW.
    energy_weight
        Weight in 1/Angstrom of an energy's error beside a force's.
    seed
        Seed of the weights.
    """

    reference: Tensor

    def __init__(
        self,
        potential: str = "schnet",
        options: dict[str, Any] | None = None,
        lr: float = 1e-2,
        weight_decay: float = 1e-5,
        energy_weight: float = 0.02,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.lr, self.weight_decay, self.energy_weight = lr, weight_decay, energy_weight
        with torch.random.fork_rng(devices=[]):  # the libraries draw weights from the global state
            torch.manual_seed(seed)
            self.potential = build_potential(potential, options)
        self.register_buffer("reference", torch.full((119,), torch.nan, dtype=torch.float64))

    def setup(self, stage: str) -> None:
        """Take the reference energies of the elements from the training data, once."""
        if stage == "fit" and bool(self.reference.isnan().all()):
            self.set_reference(self.trainer.datamodule.statistics.reference_energies)

    def set_reference(self, energies: dict[int, float]) -> None:
        """Set the energy in eV that an atom of each element has by itself."""
        for number, energy in energies.items():
            self.reference[number] = energy

    def forward(self, batch: zp.Batch) -> tuple[Tensor, Tensor]:
        """Energies [B, 1] float64 in eV and forces [V, 3] in eV/Angstrom."""
        return self.energy_and_forces(batch)

    def energy_and_forces(
        self, batch: zp.Batch, edges: Edges | None = None, *, differentiable: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Energies [B, 1] float64 in eV and forces [V, 3] in eV/Angstrom.

        Parameters
        ----------
        batch
            Structures.
        edges
            Their neighbour list, if it is known already; see `neighbours`.
        differentiable
            Keep the graph, so that a loss of the forces can be differentiated.
        """
        with torch.inference_mode(False), torch.enable_grad():  # test and predict switch both off
            if batch.positions.is_inference():
                batch = batch.clone()
            dtype = next(self.potential.parameters()).dtype
            positions = batch.positions.detach().to(dtype).requires_grad_()
            if edges is None:
                edges = neighbours(batch, self.potential.cutoff)
            edges = Edges(edges.index, edges.shifts.to(dtype))
            interaction = self.potential(batch, positions, edges)
            (gradient,) = torch.autograd.grad(
                interaction.sum(), positions, create_graph=differentiable
            )
        if not differentiable:
            interaction = interaction.detach()
        return interaction.double() + self._isolated(batch), -gradient

    def _isolated(self, batch: zp.Batch) -> Tensor:
        """Sum of the reference energies of each system, [B, 1]; 0 before they are known."""
        energies = self.reference.nan_to_num(0.0)[batch.atomic_numbers]
        return energies.new_zeros(batch.num_graphs).index_add(0, batch.batch_idx, energies)[:, None]

    def training_step(self, batch: zp.Batch, batch_idx: int) -> Tensor:
        """Loss of one batch."""
        energy, forces = self.energy_and_forces(batch, differentiable=True)
        force_loss = (forces - batch.forces.to(forces)).norm(dim=-1).mean()
        energy_loss = (energy - batch.energy).abs().mean().to(forces)
        return force_loss + self.energy_weight * energy_loss

    def validation_step(self, batch: zp.Batch, batch_idx: int) -> None:
        """Log the errors of one batch as val/..."""
        self._log_errors(batch, "val")

    def test_step(self, batch: zp.Batch, batch_idx: int) -> None:
        """Log the errors of one batch as test/..."""
        self._log_errors(batch, "test")

    def predict_step(self, batch: zp.Batch, batch_idx: int) -> dict[str, Tensor]:
        """Energies, forces and the pointers that say whose forces they are."""
        energy, forces = self.energy_and_forces(batch)
        return {"energy": energy, "forces": forces, "batch_ptr": batch.batch_ptr}

    def _log_errors(self, batch: zp.Batch, part: str) -> None:
        energy, forces = self.energy_and_forces(batch)
        force_error = (forces - batch.forces.to(forces)).abs().mean() * MEV
        atoms = batch.num_nodes_per_graph[:, None]
        energy_error = ((energy - batch.energy).abs() / atoms).mean() * MEV
        errors = {
            f"{part}/force_mae_meV_A": (force_error, batch.num_nodes),
            f"{part}/energy_mae_meV_atom": (energy_error.float(), batch.num_graphs),
        }
        for name, (value, weight) in errors.items():
            self.log(name, value, batch_size=weight, on_epoch=True, prog_bar=True, sync_dist=True)

    def configure_optimizers(self) -> Any:
        """AdamW, with a learning rate that falls to almost nothing at the last step."""
        optimizer = torch.optim.AdamW(
            self.potential.parameters(), lr=self.lr, weight_decay=self.weight_decay, fused=True
        )
        total = self.trainer.max_steps
        if total <= 0:
            return optimizer
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _cosine(step / total))
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": schedule, "interval": "step"},
        }


def _cosine(progress: float, warm_up: float = 0.05, last: float = 0.01) -> float:
    """Factor of the learning rate after this share of the steps."""
    if progress < warm_up:
        return last + (1 - last) * progress / warm_up
    falling = (progress - warm_up) / (1 - warm_up)
    return last + (1 - last) * 0.5 * (1 + math.cos(math.pi * min(falling, 1.0)))


class ForceFieldCalculator(Calculator):
    """ASE calculator of a trained `ForceField`.

    Examples
    --------
    ``atoms.calc = ForceFieldCalculator(ForceField.load_from_checkpoint("last.ckpt"))``
    """

    implemented_properties = ["energy", "forces"]  # noqa: RUF012  (ASE's own convention)

    def __init__(self, field: ForceField, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.field = field.eval()

    def calculate(
        self,
        atoms: Atoms | None = None,
        properties: list[str] | None = None,
        system_changes: list[str] = all_changes,
    ) -> None:
        """Compute energy in eV and forces in eV/Angstrom."""
        super().calculate(atoms, properties, system_changes)
        energy, forces = self.field.energy_and_forces(batch_of([self.atoms]))
        self.results = {"energy": energy.item(), "forces": forces.double().numpy(force=True)}


def batch_of(systems: list[Atoms]) -> zp.Batch:
    """Batch of ASE's atoms, with a cell where they are periodic."""
    return zp.Batch.from_data_list([_data_of(atoms) for atoms in systems])


def _data_of(atoms: Atoms) -> zp.AtomicData:
    box = {}
    if atoms.pbc.any():
        box = {"cell": torch.tensor(atoms.cell.array)[None], "pbc": torch.tensor(atoms.pbc)[None]}
    return zp.AtomicData(
        positions=torch.tensor(atoms.positions),
        atomic_numbers=torch.tensor(atoms.numbers),
        **box,
    )
