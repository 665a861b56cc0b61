"""MACE on a store: its batches for Lightning and its own loop, and what a model starts from."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from copy import deepcopy
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from zarrpipe.adapters.trainers.mace import to_mace
from zarrpipe.data.batch import Batch
from zarrpipe.errors import ArgumentError
from zarrpipe.ml.from_data import check_validation
from zarrpipe.ml.potentials import MACEPotential, as_numbers, as_symbols
from zarrpipe.store.backend.location import StoreLike
from zarrpipe.training.data_module import ZarrDataModule
from zarrpipe.training.epoch_loader import EpochLoader
from zarrpipe.training.statistics import mean_neighbors
from zarrpipe.transforms.compose import as_transform, joined
from zarrpipe.transforms.neighbors import NeighborList

if TYPE_CHECKING:
    from mace.modules import ScaleShiftMACE
    from mace.tools.torch_geometric.batch import Batch as MaceBatch

    from zarrpipe.ml.force_field import ForceField

__all__ = ["EpochLoader", "MACEDataModule", "mace_model"]


class MACEDataModule(ZarrDataModule):
    """Batches of MACE's own type out of stores, for Lightning or for ``mace.tools.train``.

    Neighbour lists are found by vesin when a batch is read, in the worker processes if there are
    any; `zarrpipe.adapters.to_mace` then makes MACE's batch, on the device of training, with
    floats in torch's default dtype. All other arguments are those of `zarrpipe.ZarrDataModule`.

    Parameters
    ----------
    store : StoreLike or sequence of StoreLike
        The stores to split.
    r_max : float
        Cutoff of the model in Angstrom.
    elements : sequence of int or str, optional
        Elements that the model knows, by atomic number or symbol; by default those of the training
        samples when they are first needed, and the same from then on. Give them where a store
        grows or a model exists already.
    atomic_energies : mapping of int or str to float, optional
        Energy of an isolated atom of each element in eV; by default the least-squares fit to the
        training energies (MACE's "average").
    heads : sequence of str
        Heads of the model; strings ``head`` of the samples choose among them.
    config_type_weights : mapping of str to float, optional
        Weights of the loss by the ``config_type`` of samples.
    embedded_fields : sequence of str
        Fields that the ``embedding_specs`` of a model name.
    transform : callable or sequence of callable, optional
        As in `zarrpipe.ZarrDataModule`; neighbour lists are found behind it.
    **settings : Any
        Further arguments of `zarrpipe.ZarrDataModule`. Without a Trainer ``device`` says where
        batches are made; by default on the CPU, and MACE's loop moves them.

    Raises
    ------
    ValueError
        If `r_max` is not positive, there is no such element, or `atomic_energies` lacks one of
        `elements`; or as `zarrpipe.ZarrDataModule`.
    MissingLibraryError
        If vesin is not installed.

    Examples
    --------
    >>> data = MACEDataModule("labelled.zarr", 5.0, elements=["H", "O"], batch_size=8)
    >>> data.z_table
    (1, 8)
    """

    def __init__(
        self,
        store: StoreLike | Sequence[StoreLike],
        r_max: float,
        *,
        elements: Sequence[int | str] | None = None,
        atomic_energies: Mapping[int, float] | Mapping[str, float] | None = None,
        heads: Sequence[str] = ("Default",),
        config_type_weights: Mapping[str, float] | None = None,
        embedded_fields: Sequence[str] = (),
        transform: Callable[..., Any] | Sequence[Callable[..., Any]] | None = None,
        **settings: Any,
    ) -> None:
        search = NeighborList(r_max)
        self.r_max, self.heads = search.cutoff, tuple(heads)
        self.config_type_weights = dict(config_type_weights or {})
        self.embedded_fields = tuple(embedded_fields)
        self._z_table = None if elements is None else tuple(as_numbers(elements))
        self.atomic_energies: dict[int, float] | None = None
        if atomic_energies is not None:
            self.atomic_energies = {as_numbers([one])[0]: e for one, e in atomic_energies.items()}
            self._check_energies(self._z_table or ())
        super().__init__(
            store,
            transform=joined(as_transform(transform), search),
            convert=self._converted_to_mace,
            **settings,
        )

    def setup(self, stage: str) -> None:
        """As `zarrpipe.ZarrDataModule.setup`; before a fit, validation is looked at too.

        Raises
        ------
        ValueError
            If validation has elements that are not in `z_table`, or `atomic_energies` lacks one.
        """
        super().setup(stage)
        if stage == "fit" and (self.trainer is None or self.trainer.enable_validation):
            check_validation(self.val_dataset, self.z_table)

    @property
    def z_table(self) -> tuple[int, ...]:
        """Atomic numbers of the model, ascending, as `to_mace` and MACE's models take them."""
        if self._z_table is None:
            found = tuple(sorted(self.statistics.element_counts))
            self._check_energies(found)
            self._z_table = found
        return self._z_table

    def _check_energies(self, elements: Iterable[int]) -> None:
        """Refuse given atomic energies that do not have all elements."""
        if self.atomic_energies is None:
            return
        missing = [number for number in elements if number not in self.atomic_energies]
        if missing:
            raise ArgumentError(
                f"atomic_energies has no energy of {as_symbols(missing)}: add it, or leave "
                "atomic_energies out for a fit to the training energies"
            )

    def model_arguments(self, *, neighbor_samples: int = 1024) -> dict[str, Any]:
        """Arguments of MACE's models that follow from the training samples.

        These are ``r_max``, ``atomic_numbers``, ``num_elements``, ``atomic_energies`` [elements]
        (0 for an element without a training energy), ``avg_num_neighbors`` (the mean of all atoms
        of at most `neighbor_samples` structures; MACE's own leaves out atoms without any
        neighbour), ``atomic_inter_scale`` (root mean square of the forces; 1 without any) and
        ``atomic_inter_shift`` (0), as ``mace_run_train`` chooses them by default. They are of what
        is stored, before any transform.

        Raises
        ------
        ValueError
            If there are several heads, whose levels of theory these figures would mix.

        Examples
        --------
        ``ScaleShiftMACE(**data.model_arguments(), num_interactions=2, hidden_irreps=...)``
        """
        if len(self.heads) > 1:
            raise ArgumentError(
                f"heads is {list(self.heads)}, and the statistics are of all heads together: call "
                "this for a data module of each head, with where=\"head == '...'\", and join them"
            )
        facts, elements = self.statistics, self.z_table
        energies = (
            facts.reference_energies if self.atomic_energies is None else self.atomic_energies
        )
        scale = facts.forces_rms
        return {
            "r_max": self.r_max,
            "atomic_numbers": list(elements),
            "num_elements": len(elements),
            "atomic_energies": np.array([energies.get(z, 0.0) for z in elements]),
            "avg_num_neighbors": mean_neighbors(
                self.train_dataset, self.r_max, samples=neighbor_samples
            ),
            "atomic_inter_scale": scale if scale > 0 else 1.0,
            "atomic_inter_shift": 0.0,
        }

    def loop_arguments(self) -> dict[str, Any]:
        """Loaders by the names of the arguments of ``mace.tools.train``.

        ``train_loader`` and ``train_sampler`` are an `EpochLoader`, ``valid_loaders`` has one
        loader, under the name of the last head. The last batch of an epoch is the rest of its
        samples, which MACE's own loader drops. With ``distributed=True`` each rank gets its share.

        Raises
        ------
        ValueError
            If there is no validation sample, by which MACE's loop chooses the model that it keeps.

        Examples
        --------
        ``mace.tools.train(model=model, **data.loop_arguments(), start_epoch=0, ...)``
        """
        if not len(self.val_dataset):
            raise ArgumentError(
                f"{self} has no validation sample, and MACE's loop keeps the model with the least "
                "validation loss: give validation a share with split=(0.9, 0.1, 0.0), or a "
                "val_store"
            )
        train = EpochLoader(self)
        valid = {self.heads[-1]: self.val_dataloader()}
        return {"train_loader": train, "train_sampler": train, "valid_loaders": valid}

    def _converted_to_mace(self, batch: Batch) -> "MaceBatch":
        return to_mace(
            batch,
            self.z_table,
            self.r_max,
            heads=self.heads,
            config_type_weights=self.config_type_weights,
            fields=self.embedded_fields,
        )


def mace_model(field: "ForceField") -> "ScaleShiftMACE":
    """MACE's own model of a force field that was trained here with ``potential="mace"``.

    It gives the same energies, forces and stress. ``torch.save(model, "my.model")`` makes a file
    for ``MACECalculator``, ``mace_run_train --foundation_model`` and all else of MACE.

    Parameters
    ----------
    field : zarrpipe.ml.ForceField
        Trained, or loaded from a checkpoint.

    Returns
    -------
    mace.modules.ScaleShiftMACE
        A copy in float64, on the CPU, with the reference energies and the scale. An element that
        no training sample had has the reference energy 0.

    Raises
    ------
    ValueError
        If the potential is another one, or was not trained.

    Examples
    --------
    ``model = mace_model(ForceField.load_from_checkpoint("runs/mace/last.ckpt"))``
    """
    if not isinstance(field.potential, MACEPotential):
        raise ArgumentError(
            f"the potential of this force field is {type(field.potential).__name__}, expected a "
            'MACEPotential: train with potential="mace", or load a checkpoint of such a training'
        )
    if bool(field.scale.isnan()):
        raise ArgumentError("the force field was not trained: fit it, or load a checkpoint")
    model: ScaleShiftMACE = deepcopy(field.potential.network).cpu().double()
    with torch.no_grad():
        model.scale_shift.scale.mul_(field.scale.cpu())
        reference = field.reference.cpu()[model.atomic_numbers].nan_to_num(0.0)
        model.atomic_energies_fn.atomic_energies.copy_(reference)
    return model
