"""The module that Lightning trains: a potential, its reference energies, its loss, its errors."""

import math
from collections.abc import Mapping
from typing import Any, cast

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from zarrpipe.data.batch import Batch
from zarrpipe.errors import ArgumentError, NonFiniteLossError
from zarrpipe.ml.derivatives import interaction, mean_features
from zarrpipe.ml.from_data import (
    check_data,
    check_validation,
    complete_options,
    finds_edges,
    missing_options,
)
from zarrpipe.ml.labels import LABELS, Loss, Prediction, errors_of, gives, has_stress
from zarrpipe.ml.metrics import LabelErrors
from zarrpipe.ml.non_finite import reason
from zarrpipe.ml.potentials import Edges, Potential, as_symbols, find_edges, potential_class
from zarrpipe.store.query.elements import SYMBOLS, atomic_number
from zarrpipe.training.data_module import ZarrDataModule
from zarrpipe.training.loader import GraphLoader

_ROUNDED = ("bf16-true", "16-true", "transformer-engine", "transformer-engine-float16")
_SHOWN = 8
_WARM_UP, _LAST = 0.05, 0.01
"""Share of the steps in which the learning rate rises, and its last value relative to its peak."""


class ForceField(pl.LightningModule):  # type: ignore[misc]  # lightning is not followed
    """A potential, its reference energies, and how it is trained on energies, forces and stress.

    The energy of a system is the sum of its atoms' reference energies plus `scale` times the
    output of the potential; forces and stress are its derivatives. What depends on data (elements,
    cutoff, mean number of neighbours, scale, reference energies) is taken from the training samples
    of the trainer's `ZarrDataModule` when a fit begins, unless it is given, and is kept in
    checkpoints.

    The loss is a weighted sum over the labels that are there; a sample that lacks one counts in the
    others. A virial is a stress times minus the volume, and counts as a stress. The learning rate
    rises over the first 5 % of the steps and falls to 1 % of its peak along a cosine; without a
    limit of steps or epochs it is constant.

    Neighbour lists are found where the potential is, unless the data module's `transform` has
    ``NeighborList(cutoff)`` with the cutoff of the potential: workers find them then.

    Logged, for train, val and test: mean absolute, root mean square and largest error of each label
    that the store has, as ``val/forces_mae_meV_A``, ``val/energy_rmse_meV_atom``,
    ``val/stress_max_meV_A3`` and so on, and ``train/loss``.

    Parameters
    ----------
    potential : str
        "schnet", "mace", or the import path of a `Potential`.
    options : dict, optional
        Arguments of the potential.
    lr : float
        Peak learning rate of AdamW.
    weight_decay : float
        Weight decay of AdamW.
    energy_weight, forces_weight, stress_weight : float
        Weights in the loss of the mean error of an energy per atom (eV), of a force (eV/Angstrom)
        and of a stress (eV/Angstrom^3).
    loss : str
        "mae", "mse" or "huber"; see `zarrpipe.ml.labels.Loss`.
    huber_delta : float
        Where "huber" changes from a square to a line.
    reference : dict of str to float, optional
        Energy of an atom in eV by symbol; by default the least-squares fit to the training samples.
    scale : float, optional
        eV; by default the root mean square of the training forces times an Angstrom.
    seed : int
        Seed of the weights.

    Raises
    ------
    ValueError
        If an argument is not as above. When a fit begins, if validation samples have elements that
        no training sample has, or no sample has a label.
    NonFiniteLossError
        In training, if a loss is not finite; it names the samples.
    """

    reference: Tensor
    scale: Tensor

    def __init__(
        self,
        potential: str = "schnet",
        options: dict[str, Any] | None = None,
        *,
        lr: float = 1e-2,
        weight_decay: float = 1e-5,
        energy_weight: float = 1.0,
        forces_weight: float = 1.0,
        stress_weight: float = 10.0,
        loss: str = "mae",
        huber_delta: float = 0.01,
        reference: dict[str, float] | None = None,
        scale: float | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        options, reference = _plain(options), _plain(reference)  # what weights_only loads
        self.save_hyperparameters()
        self.lr, self.weight_decay, self.seed = lr, weight_decay, seed
        weights = {"energy": energy_weight, "forces": forces_weight, "stress": stress_weight}
        self.loss = Loss(weights, loss, huber_delta)
        self.register_buffer("reference", torch.full((len(SYMBOLS),), torch.nan).double())
        self.register_buffer("scale", torch.tensor(torch.nan if scale is None else scale).double())
        self.errors = torch.nn.ModuleDict(
            {
                f"{part}_{label}": LabelErrors()
                for part in ("train", "val", "test")
                for label in LABELS
            }
        )
        self.set_reference({atomic_number(symbol): e for symbol, e in (reference or {}).items()})
        self.potential: Potential | None = None
        kind = potential_class(potential)
        if not missing_options(kind, options or {}):
            self._build(options or {})

    @property
    def cutoff(self) -> float:
        """Cutoff of the potential, Angstrom."""
        return self._built().cutoff

    def _built(self) -> Potential:
        """The potential; refuses if it depends on data and no fit has begun."""
        if self.potential is None:
            name, options = self.hparams["potential"], self.hparams["options"] or {}
            missing = missing_options(potential_class(name), options)
            raise ArgumentError(
                f"the {name} potential has no {', '.join(missing)} yet, which a fit takes from its "
                "training data: load a checkpoint, or give them in options"
            )
        return self.potential

    def _build(self, options: Mapping[str, Any]) -> None:
        """Make the potential, with weights that follow from the seed."""
        self.hparams["options"] = dict(options)
        with torch.random.fork_rng(devices=[]):  # the libraries draw weights from the global state
            torch.manual_seed(self.seed)
            self.potential = potential_class(self.hparams["potential"])(**options)

    def configure_model(self) -> None:
        """Take what is missing from the training data; an average of weights calls it too."""
        if self._trainer is None or self.trainer.state.fn != "fit":
            return
        if self.trainer.precision in _ROUNDED:
            raise ArgumentError(
                f"trainer.precision is {self.trainer.precision!r}, which rounds reference energies "
                "to a hundredth: expected '32-true', '64-true' or a mixed one"
            )
        data = self._datamodule()
        facts = check_data(data, self.loss.weights)
        if self.potential is None:
            kind, given = potential_class(self.hparams["potential"]), self.hparams["options"] or {}
            self._build(complete_options(kind, given, data.train_dataset, facts))
        if bool(self.reference.isnan().all()):
            self.set_reference(dict.fromkeys(facts.element_counts, 0.0))
            self.set_reference(facts.reference_energies)
        if bool(self.scale.isnan()):
            scale = facts.forces_rms if facts.forces_rms > 0 else facts.energy_per_atom_std
            self.scale.fill_(scale if scale > 0 else 1.0)

    def on_fit_start(self) -> None:
        """Say what the force field knows, and refuse data with other elements."""
        data = self.trainer.datamodule
        known = torch.nonzero(~self.reference.isnan()).flatten().tolist()
        missing = sorted(data.statistics.element_counts.keys() - set(known))
        if missing:
            raise ArgumentError(
                f"there is no reference energy of {as_symbols(missing)}, which training samples "
                f"have, but of {as_symbols(known)}: add it to reference, or leave reference out "
                "for a fit to the training energies; a checkpoint keeps to the elements that it has"
            )
        rank_zero_info(
            f"elements {as_symbols(known)}; cutoff {self.cutoff:g} Angstrom; scale "
            f"{float(self.scale):.3g} eV; reference energies in eV: "
            + ", ".join(f"{SYMBOLS[z]} {float(self.reference[z]):.6g}" for z in known[:_SHOWN])
            + (", ..." if len(known) > _SHOWN else "")
        )
        if self.trainer.enable_validation:
            check_validation(data.val_dataset, known)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Make the potential of the checkpoint, whose elements the data may not decide any more."""
        options = checkpoint["hyper_parameters"]["options"]
        if self.potential is None or options != self.hparams["options"]:
            self._build(options)

    def set_reference(self, energies: Mapping[int, float]) -> None:
        """Set the energy in eV that an atom of each element has by itself, by atomic number."""
        for number, energy in energies.items():
            self.reference[number] = energy

    def forward(self, batch: Batch) -> Prediction:
        """Energies, forces, and stress where systems have a cell."""
        return self.predict(batch, stress="cell" in batch, edges=self._edges_of(batch))

    def predict(
        self,
        batch: Batch,
        *,
        stress: bool = False,
        edges: Edges | None = None,
        differentiable: bool = False,
    ) -> Prediction:
        """Energies [B, 1] float64 in eV, forces [V, 3] in eV/Angstrom, stress [B, 3, 3].

        Parameters
        ----------
        batch : Batch
            Structures.
        stress : bool
            Whether stress is asked for, in eV/Angstrom^3; the batch needs a cell.
        edges : Edges, optional
            Their neighbour list, if it is known already, with shifts in numbers of cells.
        differentiable : bool
            Keep the graph, so that a loss of the derivatives can be differentiated.

        Raises
        ------
        ValueError
            If a structure has elements that the training data did not have.
        """
        with torch.inference_mode(False), torch.enable_grad():  # test and predict switch both off
            if batch.positions.is_inference():
                batch = batch.clone()
            if edges is None:
                edges = find_edges(batch, self.cutoff)
            elif edges.pairs.is_inference():
                edges = Edges(*(one.clone() for one in edges))
            isolated = self._isolated(batch)
            scale = self.scale.nan_to_num(1.0)
            found = interaction(
                self._built(), batch, edges, scale, stress=stress, differentiable=differentiable
            )
        return found._replace(energy=found.energy.double() + isolated)

    @torch.no_grad()
    def features(self, batch: Batch) -> Tensor:
        """What the potential sees in each structure: the mean features of its atoms, [B, D].

        They do not change when a structure is turned or its atoms are numbered otherwise.

        Raises
        ------
        ArgumentError
            If the potential has no `Potential.atom_features`.
        """
        return mean_features(self._built(), batch, find_edges(batch, self.cutoff))

    def _isolated(self, batch: Batch) -> Tensor:
        """Sum of the reference energies of each system, [B, 1]; 0 before any is known."""
        unknown = self.reference[batch.atomic_numbers].isnan()
        if bool(unknown.any()) and not bool(self.reference.isnan().all()):
            numbers = sorted(set(batch.atomic_numbers[unknown].tolist()))
            raise ArgumentError(
                f"elements {as_symbols(numbers)} were not in the training data, so the potential "
                "knows nothing of them: label and train on systems that have them"
            )
        energies = self.reference.nan_to_num(0.0)[batch.atomic_numbers]
        return energies.new_zeros(batch.num_graphs).index_add(0, batch.batch_idx, energies)[:, None]

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Loss of one batch."""
        wanted = self.loss.weights["stress"] > 0 and has_stress(batch)
        found = self.predict(batch, stress=wanted, edges=self._edges_of(batch), differentiable=True)
        errors = errors_of(found, batch)
        # Every weight gets a gradient, whichever labels the batch has: DDP waits for all.
        loss = 0.0 * found.energy.sum().float() + self.loss(errors)
        if not bool(loss.isfinite()):
            samples = self._samples_of_last_batch()
            labels = [label for label, weight in self.loss.weights.items() if weight > 0]
            raise NonFiniteLossError(reason(batch, found, labels, samples, self.global_step))
        if not self.trainer.barebones:
            self.log("train/loss", loss.detach(), batch_size=batch.num_graphs)
            self._count("train", errors)
        return loss

    def on_train_epoch_end(self) -> None:
        """Log the errors of the epoch's batches, each before its step."""
        if not self.trainer.barebones:
            self._log_errors("train")

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Count the errors of one batch as val/..."""
        self._evaluate("val", batch)

    def on_validation_epoch_end(self) -> None:
        """Log them."""
        self._log_errors("val")

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Count the errors of one batch as test/..."""
        self._evaluate("test", batch)

    def on_test_epoch_end(self) -> None:
        """Log them."""
        self._log_errors("test")

    def predict_step(self, batch: Batch, batch_idx: int) -> Prediction:
        """Energies, forces, and stress where systems have a cell."""
        return self.forward(batch)

    def _evaluate(self, part: str, batch: Batch) -> None:
        found = self.predict(batch, stress=has_stress(batch), edges=self._edges_of(batch))
        self._count(part, errors_of(found, batch))

    def _edges_of(self, batch: Batch) -> Edges | None:
        """Neighbour list that the data module's transform has found."""
        data = self._datamodule()
        if data is None or not finds_edges(getattr(data, "transform", None), self.cutoff):
            return None
        return Edges(batch.neighbor_list.T, batch.neighbor_list_shifts)

    def _count(self, part: str, errors: Mapping[str, Tensor]) -> None:
        for label in LABELS:  # without rows too, so that a label that is nowhere is NaN
            self._errors(part, label).update(errors.get(label, torch.zeros(0)))

    def _errors(self, part: str, label: str) -> LabelErrors:
        return cast(LabelErrors, self.errors[f"{part}_{label}"])

    def _log_errors(self, part: str) -> None:
        """Log the errors of the labels that the data have, the same ones on every rank."""
        data = self._datamodule()
        for label in LABELS:
            errors = self._errors(part, label)
            if isinstance(data, ZarrDataModule):
                known = gives(data.dataset.schema, label)
            else:
                known = self.trainer.world_size > 1 or bool(errors.count > 0)
            if known:
                named = errors.named(part, label)
                mean = {name: value for name, value in named.items() if "_mae_" in name}
                self.log_dict(mean, prog_bar=part == "val")
                self.log_dict({name: named[name] for name in named.keys() - mean.keys()})
            errors.reset()

    def configure_optimizers(self) -> Any:
        """AdamW, with a learning rate that falls to almost nothing at the last step."""
        optimizer = torch.optim.AdamW(
            self._built().parameters(), lr=self.lr, weight_decay=self.weight_decay, fused=True
        )
        total: float = self.trainer.max_steps
        if total <= 0 and (self.trainer.max_epochs or -1) > 0:
            total = self.trainer.estimated_stepping_batches
        if not 0 < total < math.inf:
            return optimizer
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _cosine(step / total))
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": schedule, "interval": "step"},
        }

    def _datamodule(self) -> Any:
        """The data module of a trainer, None without one."""
        return getattr(self._trainer, "datamodule", None)

    def _samples_of_last_batch(self) -> list[int]:
        """Places of the samples of the last training batch in the data module's dataset."""
        loader = self.trainer.train_dataloader
        return loader.sampler.last_batch().tolist() if isinstance(loader, GraphLoader) else []


def _plain(values: Any) -> Any:
    """Mappings, lists and NumPy's values as Python's own, all the way down."""
    if isinstance(values, Mapping):
        return {key: _plain(value) for key, value in values.items()}
    if isinstance(values, np.ndarray | np.generic | Tensor):
        return values.tolist()
    return [_plain(value) for value in values] if isinstance(values, list | tuple) else values


def _cosine(progress: float) -> float:
    """Factor of the learning rate after this share of the steps."""
    if progress < _WARM_UP:
        return _LAST + (1 - _LAST) * progress / _WARM_UP
    falling = (progress - _WARM_UP) / (1 - _WARM_UP)
    return _LAST + (1 - _LAST) * 0.5 * (1 + math.cos(math.pi * min(falling, 1.0)))
