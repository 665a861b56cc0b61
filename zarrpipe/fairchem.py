"""fairchem: stores as a data set of its configuration, and as batches for a loop."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property, partial
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import torch

from zarrpipe.adapters.trainers.fairchem import to_fairchem
from zarrpipe.data.csr import AnyArray, Int64Array
from zarrpipe.dataset.zarr_dataset import ZarrDataset, check_reads
from zarrpipe.errors import ArgumentError
from zarrpipe.libraries import require
from zarrpipe.store.backend.location import StoreLike
from zarrpipe.training import data_module
from zarrpipe.training.loader import GraphLoader
from zarrpipe.training.splits.assignment import SPLITS

if TYPE_CHECKING:
    from fairchem.core.datasets.atomic_data import AtomicData

__all__ = ["RunnerLoader", "StoreDataset", "ZarrDataModule", "dataloader", "to_fairchem"]

_ARGUMENTS = frozenset({"task_name", "molecule_cell_size", "target_dtype"})
_IMPLIED = frozenset({"r_energy", "r_forces", "r_stress", "r_data_keys"})
"""Arguments of fairchem's conversion that choose labels; what a store has is there."""


class StoreDataset(torch.utils.data.Dataset["AtomicData"]):
    """Stores as a data set of fairchem, in the place of its ``ase_db``.

    Its configuration names it by ``format: zarrpipe.fairchem.StoreDataset``. Samples go the usual
    way from there: transforms, new names of labels, ``ConcatDataset``, the sampler by atoms (sizes
    come from the store; no ``metadata.npz`` is needed), ``MTCollater``. Samples are those that
    were committed when it was opened. `ZarrDataModule` gives whole batches and takes less time.

    Parameters
    ----------
    config : mapping
        ``src``: a store or a list of them. ``where``: condition that samples meet, as in
        `ZarrDataset.where`. ``fields``: those to read, by default all. ``a2g_args``:
        ``task_name``, ``molecule_cell_size`` and ``target_dtype``; those that choose labels change
        nothing, since the labels of a store are there. ``transforms`` and ``key_mapping`` as
        fairchem has them.

    Raises
    ------
    ArgumentError
        If ``src`` is missing, or ``a2g_args`` has others, as ``r_edges``: edges are found by the
        models (``otf_graph``).
    StoreNotFoundError
        If there is no such store.

    Examples
    --------
    A data set of a training configuration::

        omat:
          format: zarrpipe.fairchem.StoreDataset
          splits: {train: {src: labelled.zarr}, val: {src: validation.zarr}}
          transforms: {common_transform: {dataset_name: omat}}
          key_mapping: {energy: omat_energy, forces: omat_forces, stress: omat_stress}
    """

    def __init__(self, config: Mapping[str, Any]) -> None:
        if "src" not in config:
            raise ArgumentError(f"the configuration has no 'src', expected a store: {dict(config)}")
        given = {name: v for name, v in (config.get("a2g_args") or {}).items() if v is not None}
        refused = sorted(name for name in set(given) - _ARGUMENTS - _IMPLIED if given[name])
        if refused:
            raise ArgumentError(
                f"a2g_args has {refused}, expected {sorted(_ARGUMENTS | _IMPLIED)}: fairchem's "
                "models find edges themselves with otf_graph: true"
            )
        self.config = dict(config)
        self._dataset = ZarrDataset(config["src"], config.get("fields"))
        check_reads(ZarrDataModule, config.get("fields"), self._dataset.schema)
        if config.get("where"):
            self._dataset = self._dataset.index_select(self._dataset.where(config["where"]))
        self._convert = partial(
            to_fairchem,
            dataset=given.get("task_name"),
            molecule_cell_size=given.get("molecule_cell_size"),
            dtype=given.get("target_dtype", torch.float32),
        )
        transforms = require("fairchem.core.modules.transforms", "fairchem").DataTransforms
        self._transforms = transforms(config.get("transforms") or {})
        self._rename = require("fairchem.core.datasets._utils", "fairchem").rename_data_object_keys

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, index: int) -> AtomicData:
        """A sample as its ``AtomicData``, with transforms and new names."""
        data = self._transforms(self._convert(self._dataset.read([index])))
        return self._rename(data, self.config.get("key_mapping") or {})

    @cached_property
    def indices(self) -> Int64Array:
        """Positions of all samples, from which fairchem makes subsets."""
        return np.arange(len(self))

    @cached_property
    def _metadata(self) -> dict[str, AnyArray]:
        """Number of atoms of each sample; fairchem's ``Subset`` reads it by this name."""
        return {"natoms": self._dataset.num_atoms}

    def metadata_hasattr(self, attr: str) -> bool:
        """Whether a property of all samples is known; ``natoms`` is."""
        return attr in self._metadata

    def get_metadata(self, attr: str, idx: Any) -> Any:
        """Property of samples, None if it is not known."""
        return self._metadata[attr][idx] if attr in self._metadata else None


class ZarrDataModule(data_module.ZarrDataModule):
    """Batches of fairchem's ``AtomicData`` out of stores, for a training loop.

    They are those of `to_fairchem` with ``flat_stress``, made on the device of training without a
    loop over systems. Growth, resume, budgets of atoms and workers are those of
    `zarrpipe.ZarrDataModule`.

    Parameters
    ----------
    store : StoreLike or sequence of StoreLike
        As for `zarrpipe.ZarrDataModule`.
    dataset, dataset_name, key_mapping, molecule_cell_size, dtype : optional
        As for `to_fairchem`.
    **settings
        The other arguments of `zarrpipe.ZarrDataModule`, without ``convert``.

    Examples
    --------
    >>> data = ZarrDataModule("labelled.zarr", dataset="omat", max_atoms=512)
    >>> data.max_atoms
    512
    """

    reads = ("cell", "pbc")

    def __init__(
        self,
        store: StoreLike | Sequence[StoreLike],
        *,
        dataset: str | None = None,
        dataset_name: str | None = None,
        key_mapping: Mapping[str, str | Sequence[str]] = MappingProxyType({}),
        molecule_cell_size: float | None = None,
        dtype: torch.dtype = torch.float32,
        **settings: Any,
    ) -> None:
        convert = partial(
            to_fairchem,
            dataset=dataset,
            dataset_name=dataset_name,
            key_mapping=dict(key_mapping),
            molecule_cell_size=molecule_cell_size,
            flat_stress=True,
            dtype=dtype,
        )
        super().__init__(store, convert=convert, **settings)


class RunnerLoader:
    """Batches for fairchem's ``TrainEvalRunner``, whose unit says at which epoch and step it is.

    The samples are those that were there when it was made, as the runner's learning rate counts
    their batches.

    Parameters
    ----------
    loader : GraphLoader
        Loader of a data module, whose ranks share each epoch.
    dataset_names : sequence of str
        Names that its unit reports metrics for, which are ``dataset_name`` of batches.
    """

    def __init__(self, loader: GraphLoader, dataset_names: Sequence[str]) -> None:
        self._loader, self.dataset_names = loader, tuple(dataset_names)

    @property
    def dataset(self) -> Self:
        """What fairchem asks for `dataset_names`."""
        return self

    @property
    def batch_sampler(self) -> Self:
        """What fairchem asks for `set_epoch_and_start_iteration`."""
        return self

    @property
    def waited(self) -> float:
        """Seconds that were spent in getting batches so far."""
        return self._loader.waited

    def set_epoch_and_start_iteration(self, epoch: int, start_iteration: int) -> None:
        """Go to a step of an epoch, where the next iteration begins."""
        sampler = self._loader.sampler
        sampler.set_epoch(epoch)
        if start_iteration:
            sampler.start()
            for _ in range(start_iteration):
                sampler.advance()
            sampler.load_state_dict(sampler.state_dict())

    def __iter__(self) -> Iterator[AtomicData]:
        return iter(self._loader)

    def __len__(self) -> int:
        return len(self._loader)


def dataloader(
    store: StoreLike | Sequence[StoreLike], part: str = "train", **settings: Any
) -> RunnerLoader:
    """Loader for ``train_dataloader`` and ``eval_dataloader`` of fairchem's configuration.

    Parameters
    ----------
    store : StoreLike or sequence of StoreLike
        As for `zarrpipe.ZarrDataModule`.
    part : str
        ``"train"``, ``"val"`` or ``"test"``: which split, by the ``split`` among the settings.
    **settings
        The other arguments of `ZarrDataModule`.

    Raises
    ------
    ArgumentError
        If there is no such part, or fairchem runs graph-parallel, where ranks share a batch.

    Examples
    --------
    In a training configuration::

        train_dataloader:
          _target_: zarrpipe.fairchem.dataloader
          store: labelled.zarr
          max_atoms: 512
          dataset: omat
          dataset_name: omat.train
          key_mapping: {energy: omat_energy, forces: omat_forces, stress: omat_stress}
    """
    if part not in SPLITS:
        raise ArgumentError(f"part is {part!r}, expected one of {', '.join(SPLITS)}")
    if require("fairchem.core.common.gp_utils", "fairchem").initialized():
        raise ArgumentError(
            "fairchem runs graph-parallel, where several ranks share a batch, and these loaders "
            "give each rank its own: use zarrpipe.fairchem.StoreDataset with fairchem's sampler"
        )
    data = ZarrDataModule(store, **settings)
    data.setup("fit")
    names = [name] if (name := settings.get("dataset_name")) else []
    return RunnerLoader(getattr(data, f"{part}_dataloader")(), names)
