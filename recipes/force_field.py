"""The module that Lightning trains: a potential, its reference energies, its loss; and ASE's view.

`ForceField` is the only thing that the other recipes know: its potential is chosen by name in a
config, Lightning trains it, `ForceField.load_from_checkpoint` loads it, and `ForceFieldCalculator`
hands it to ASE.

    field = ForceField("schnet", {"cutoff": 5.0})
    energy, forces = field.energy_and_forces(batch)  # zarrpipe.Batch; eV [B, 1], eV/Angstrom [V, 3]
"""

import math
from typing import Any

import lightning.pytorch as pl
import torch
from ase import Atoms
from ase.calculators.calculator import Calculator, all_changes
from potentials import Edges, build_potential, neighbours
from torch import Tensor

import zarrpipe as zp
from zarrpipe.adapters import from_ase

MEV = 1000.0


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
        """Sum of the reference energies of each system, [B, 1]; 0 before any is known."""
        unknown = self.reference[batch.atomic_numbers].isnan()
        if bool(unknown.any()) and not bool(self.reference.isnan().all()):
            numbers = sorted(set(batch.atomic_numbers[unknown].tolist()))
            raise ValueError(
                f"elements {numbers} were not in the training data, so the potential knows nothing "
                "of them: label and train on systems that have them"
            )
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
        energy, forces = self.field.energy_and_forces(from_ase(self.atoms))
        self.results = {"energy": energy.item(), "forces": forces.double().numpy(force=True)}
