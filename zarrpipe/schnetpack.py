"""SchNetPack: ``AtomisticTask`` and ``spktrain`` on stores.

Run with SchNetPack 2.2.0, which trains by the package ``pytorch_lightning``: classes of
``lightning`` are others to it, so that those of this module are of both.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytorch_lightning
import torch

from zarrpipe.adapters.trainers.schnetpack import KEYS, to_schnetpack
from zarrpipe.data.batch import Batch
from zarrpipe.errors import ArgumentError, FieldError
from zarrpipe.store.backend.location import StoreLike
from zarrpipe.training.data_module import ZarrDataModule as _ZarrDataModule
from zarrpipe.training.monitor import DataMonitor as _DataMonitor
from zarrpipe.transforms.compose import as_transform, joined
from zarrpipe.transforms.neighbors import NeighborList

__all__ = ["DataMonitor", "OnlyLabelled", "ZarrDataModule"]

_FIELDS = {key: name for name, key in KEYS.items()}
_ZMAX = 100
"""Rows of SchNetPack's tables by atomic number."""


class ZarrDataModule(_ZarrDataModule, pytorch_lightning.LightningDataModule):  # type: ignore[misc]
    """Stores as the data module of SchNetPack's ``AtomisticTask`` and of ``spktrain``.

    Neighbour lists are found by vesin when a batch is read, in the worker processes if there are
    any; `zarrpipe.adapters.to_schnetpack` then makes SchNetPack's dictionary, on the device of
    training. Growth, resume, workers and several devices are as in `zarrpipe.ZarrDataModule`.

    Parameters
    ----------
    store : StoreLike or sequence of StoreLike
        The stores to split.
    cutoff : float
        Cutoff of the model, Angstrom.
    remove_mean, remove_atomrefs : bool
        Whether the mean energy per atom and reference energies of the elements are taken from the
        energies, as SchNetPack's ``RemoveOffsets`` does; both follow from the training samples
        that are there when training begins, and a resumed run keeps them. The ``AddOffsets`` of a
        model, with ``estimate_atomref=True`` for the latter, finds the same numbers here.
    dtype : str or torch.dtype
        Of all floats of a batch.
    transform : callable or sequence of callable, optional
        As in `zarrpipe.ZarrDataModule`; neighbour lists are found behind it.
    train_sampler_cls : None
        ``spktrain`` hands it over; order and draws are those of `zarrpipe.ZarrDataModule`.
    **settings
        The other arguments of `zarrpipe.ZarrDataModule`, but for ``convert``.

    Raises
    ------
    ValueError
        If `cutoff` is not positive, `dtype` is no float, `train_sampler_cls` is given, or as
        `zarrpipe.ZarrDataModule`.
    FieldError
        Before training, if the stores lack a target of an output, or some samples do and the
        output has no `OnlyLabelled` among its constraints.
    MissingLibraryError
        If vesin is not installed.
    """

    def __init__(
        self,
        store: StoreLike | Sequence[StoreLike],
        *,
        cutoff: float,
        remove_mean: bool = False,
        remove_atomrefs: bool = False,
        dtype: str | torch.dtype = "float32",
        transform: Callable[..., Any] | Sequence[Callable[..., Any]] | None = None,
        train_sampler_cls: None = None,
        **settings: Any,
    ) -> None:
        if train_sampler_cls is not None:
            raise ArgumentError(
                f"train_sampler_cls is {train_sampler_cls!r}, expected None: give weights= or "
                "samples_per_epoch= for samples that are drawn"
            )
        kind = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
        if not isinstance(kind, torch.dtype) or not kind.is_floating_point:
            raise ArgumentError(f"dtype is {dtype!r}, expected 'float32' or 'float64'")
        self.dtype: torch.dtype = kind
        search = NeighborList(cutoff)
        self.cutoff = search.cutoff
        self.remove_mean, self.remove_atomrefs = remove_mean, remove_atomrefs
        self._offsets: torch.Tensor | None = None
        super().__init__(
            store,
            transform=joined(as_transform(transform), search),
            convert=self._converted_to_schnetpack,
            **settings,
        )

    def get_atomrefs(self, property: str, is_extensive: bool) -> dict[str, torch.Tensor]:  # noqa: A002
        """Reference energies by atomic number, [100] float64 in eV, for SchNetPack's transforms.

        Raises
        ------
        ValueError
            If `property` is not ``"energy"``, or it is not extensive.
        """
        if property != "energy" or not is_extensive:
            raise ArgumentError(
                f"reference values are asked for {property!r} with is_extensive={is_extensive}, "
                "and the store keeps those of 'energy', which is extensive: give atomrefs= to the "
                "transform"
            )
        return {property: self.statistics.reference_energy_table()[:_ZMAX]}

    def get_stats(
        self,
        property: str,  # noqa: A002  SchNetPack's word
        divide_by_atoms: bool,
        remove_atomref: bool,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and standard deviation of a number of each training sample that has it, float64.

        Parameters
        ----------
        property
            SchNetPack's key.
        divide_by_atoms
            Whether the number is divided by that of atoms before.
        remove_atomref
            Whether reference energies are taken from it before; for ``"energy"`` by atom only.

        Raises
        ------
        ValueError
            If other reference values are asked for.
        """
        if remove_atomref:
            if property != "energy" or not divide_by_atoms:
                raise ArgumentError(
                    f"reference values are to be taken from {property!r} with "
                    f"divide_by_atoms={divide_by_atoms}, and the store keeps those of 'energy' by "
                    "atom: give property_mean= to the transform"
                )
            facts = self.statistics
            spread = (facts.energy_per_atom_mean, facts.energy_per_atom_std)
            return torch.tensor(spread[0]).double(), torch.tensor(spread[1]).double()
        dataset, name = self.train_dataset, _FIELDS.get(property, property)
        has = dataset.present(name)
        values = torch.from_numpy(dataset.system_field(name)[has]).double().reshape(-1)
        if divide_by_atoms:
            values = values / torch.from_numpy(dataset.num_atoms[has])
        return values.mean(), values.std(correction=0)

    def state_dict(self) -> dict[str, Any]:
        """State of the training loader, and the energies that are taken off by element."""
        offsets = {} if self._offsets is None else {"offsets": self._offsets.tolist()}
        return {**super().state_dict(), **offsets}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Go on as the checkpoint's run would have."""
        state = dict(state_dict)
        offsets = state.pop("offsets", None)
        if offsets is not None:
            self._offsets = torch.tensor(offsets, dtype=torch.float64)
        super().load_state_dict(state)

    def _check(self, stage: str) -> None:
        super()._check(stage)
        if stage != "fit":
            return
        self._offsets = self._energy_offsets()
        if self.trainer is None:
            return
        for output in getattr(self.trainer.lightning_module, "outputs", ()):
            if hasattr(output, "target_property") and output.loss_fn is not None:
                for dataset in (self.train_dataset, self.val_dataset):
                    self._check_target(output, dataset)

    def _check_target(self, output: Any, dataset: Any) -> None:
        """Refuse samples without the target of an output whose loss would be NaN."""
        target = output.target_property
        names = {"stress", "virial"} if target == "stress" else {_FIELDS.get(target, target)}
        has = torch.zeros(len(dataset), dtype=torch.bool)
        for name in sorted(names & dataset.schema.keys()):
            has |= torch.from_numpy(dataset.present(name))
        lacks = int((~has).sum())
        masked = any(isinstance(one, OnlyLabelled) for one in output.constraints)
        if not lacks or (masked and bool(has.any())):
            return
        where = " or ".join(f"has({name})" for name in sorted(names))
        raise FieldError(
            f"{lacks} of {len(has)} samples have no {target!r}, and the loss of the output "
            f"{output.name!r} would be NaN: expected constraints=[zarrpipe.schnetpack."
            f"OnlyLabelled()] for the output, where='{where}', or no such output"
        )

    def _converted_to_schnetpack(self, batch: Batch) -> dict[str, torch.Tensor]:
        """SchNetPack's dictionary, with the energies that are left after the offsets."""
        if self._offsets is None:
            self._offsets = self._energy_offsets()
        return to_schnetpack(batch, dtype=self.dtype, atomrefs=self._offsets)

    def _energy_offsets(self) -> torch.Tensor | None:
        """Energy by atomic number [119] that is taken from each atom, eV."""
        if not (self.remove_mean or self.remove_atomrefs):
            return None
        table = self.statistics.reference_energy_table()
        if not self.remove_atomrefs:
            table = torch.zeros_like(table)
        if self.remove_mean:
            table = table + self.get_stats("energy", True, self.remove_atomrefs)[0]
        return table


class OnlyLabelled:
    """Constraint of a ``ModelOutput``: its loss and metrics leave out rows whose target is NaN.

    So a store trains in which samples lack labels. Of a batch without any target the loss of the
    output is 0.

    Examples
    --------
    >>> output = ModelOutput(
    ...     "forces", torch.nn.MSELoss(), metrics={}, constraints=[OnlyLabelled()]
    ... )  # doctest: +SKIP
    """

    def __call__(
        self, pred: dict[str, torch.Tensor], targets: dict[str, torch.Tensor], output: Any
    ) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
        """The predictions and targets that an output's loss is computed of."""
        made, wanted = pred[output.name], targets[output.target_property]
        known = ~wanted.isnan().reshape(len(wanted), -1).any(1)
        if bool(known.any()):
            made, wanted = made[known], wanted[known]
        else:
            wanted = made.detach()
        made, wanted = made.contiguous(), wanted.contiguous()  # torchmetrics flattens a view
        return {**pred, output.name: made}, {**targets, output.target_property: wanted}


class DataMonitor(_DataMonitor, pytorch_lightning.Callback):  # type: ignore[misc]
    """`zarrpipe.DataMonitor` for the Trainer of ``pytorch_lightning``, which SchNetPack uses."""
