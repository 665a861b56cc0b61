"""TorchMD-Net: its `LNNP` module trains from stores."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import torch

from zarrpipe.adapters.trainers.torchmd_net import to_torchmd_net
from zarrpipe.dataset.zarr_dataset import ZarrDataset
from zarrpipe.errors import ArgumentError, FieldError
from zarrpipe.store.backend.location import StoreLike
from zarrpipe.training import data_module
from zarrpipe.training.statistics import sample_blocks

__all__ = ["ZarrDataModule", "to_torchmd_net"]


class ZarrDataModule(data_module.ZarrDataModule):
    """Stores as the data module of TorchMD-Net's ``LNNP``, in place of its own ``DataModule``.

    Batches are those of `to_torchmd_net`. For TorchMD-Net's script the module is its own data set
    too: ``create_prior_models(hparams, data)`` takes reference energies and scales from it, and
    ``LNNP(hparams, prior_model=..., mean=data.mean, std=data.std)`` the rest. Its loss has no mask,
    so where some samples lack a label give ``where="has(energy) and has(forces)"``.

    LNNP's learning rate follows the loss of validation: leave a share of the samples for it. Give
    the Trainer ``inference_mode=False``, or forces cannot be validated. One validation loader is
    there: with ``test_interval`` TorchMD-Net's own module would give the test samples as a second.

    Parameters
    ----------
    store : StoreLike or sequence of StoreLike
        As for `zarrpipe.ZarrDataModule`.
    cutoff : float, optional
        ``cutoff_upper`` of the model, Angstrom: boxes of batches are then checked to be at least
        twice as wide; see `to_torchmd_net`.
    standardize : bool
        Whether `mean` and `std` are those of the training energies; TorchMD-Net calls the option
        of that name deprecated.
    prior_model : optional
        That of the hyperparameters: where it is ``"Atomref"``, `mean` and `std` are those of the
        energies that are left after the reference energies.
    **settings
        The other arguments of `zarrpipe.ZarrDataModule`, without ``convert``.

    Attributes
    ----------
    atomic_number : tuple of int
        Atomic number of each type of atom, for the priors ZBL and D2: types are atomic numbers.
    distance_scale, energy_scale : float
        Angstrom in metres and eV in joules, for the same.

    Raises
    ------
    ValueError
        If `cutoff` is not positive, or as `zarrpipe.ZarrDataModule`.

    Examples
    --------
    >>> import zarrpipe as zp
    >>> store = {}
    >>> with zp.ZarrData(store) as sink:
    ...     sink.write(zp.AtomicData([[0.0] * 3, [0.0, 0.0, 0.7]], [1, 1], energy=-31.6))
    >>> data = ZarrDataModule(store, batch_size=1, cutoff=5.0, split=(1.0, 0.0, 0.0))
    >>> data.setup("fit")
    >>> data.get_atomref()[1], len(data.train_dataloader())
    (tensor([-15.8000], dtype=torch.float64), 1)
    """

    atomic_number = tuple(range(119))
    distance_scale, energy_scale = 1e-10, 1.602176634e-19

    reads = ("cell", "pbc")

    def __init__(
        self,
        store: StoreLike | Sequence[StoreLike],
        *,
        cutoff: float | None = None,
        standardize: bool = False,
        prior_model: Any = None,
        **settings: Any,
    ) -> None:
        if cutoff is not None and not cutoff > 0:
            raise ArgumentError(f"cutoff is {cutoff!r}, expected a positive number of Angstrom")
        super().__init__(store, convert=partial(to_torchmd_net, cutoff=cutoff), **settings)
        self.cutoff, self.standardize, self.prior_model = cutoff, standardize, prior_model
        self._moments: _Moments | None = None

    @property
    def mean(self) -> torch.Tensor | None:
        """Mean of the training energies, eV; None unless `standardize`."""
        return self._energies().mean if self.standardize else None

    @property
    def std(self) -> torch.Tensor | None:
        """Standard deviation of the training energies, eV; None unless `standardize`."""
        return self._energies().std if self.standardize else None

    def get_atomref(self) -> torch.Tensor:
        """Reference energies [119, 1] of the training samples by atomic number, eV.

        They are the least-squares fit of `statistics`, and 0 for elements that are not there.
        """
        return self.statistics.reference_energy_table().unsqueeze(1)

    def setup(self, stage: str) -> None:
        """As `zarrpipe.ZarrDataModule.setup`."""
        super().setup(stage)
        self._moments = None

    def _energies(self) -> _Moments:
        """Moments of the training energies as they were when they were first asked for."""
        if self._moments is None:
            table = self.get_atomref() if self.prior_model == "Atomref" else None
            self._moments = _moments(self.train_dataset, table)
        return self._moments


class _Moments(NamedTuple):
    """Mean and standard deviation, both scalars in float64."""

    mean: torch.Tensor
    std: torch.Tensor


def _moments(dataset: ZarrDataset, table: torch.Tensor | None) -> _Moments:
    """Moments of the energies of a dataset, after reference energies [119, 1] where given."""
    if "energy" not in dataset.schema:
        raise FieldError("standardize=True needs energies, and no store has them: leave it out")
    left = []
    for chosen in sample_blocks(dataset.num_atoms):
        batch = dataset.gather(chosen, ["energy", "atomic_numbers"])
        energy = batch.energy.double()
        if table is not None:
            energy = energy.index_add(0, batch.batch_idx, -table[batch.atomic_numbers])
        left.append(energy[batch.present("energy")])
    energies = torch.cat(left)
    return _Moments(energies.mean(), energies.std())
