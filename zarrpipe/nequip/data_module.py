"""Stores as the data module of ``nequip-train``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from hydra.utils import instantiate
from lightning.pytorch import LightningDataModule
from nequip.data import DataStatisticsManager
from nequip.data.datamodule import NequIPDataModule
from nequip.data.transforms import ChemicalSpeciesToAtomTypeMapper
from nequip.utils import RankedLogger

from zarrpipe.adapters.trainers.nequip import to_nequip
from zarrpipe.data.batch import Batch
from zarrpipe.errors import ArgumentError
from zarrpipe.nequip.statistics import (
    counted,
    mean_neighbors,
    reference_energies,
    stored_statistics,
    warn_of_nan,
)
from zarrpipe.nequip.transforms import KEEP_LABELS, NequIPTransforms
from zarrpipe.store.backend.location import StoreLike
from zarrpipe.training.data_module import ZarrDataModule as _ZarrDataModule
from zarrpipe.training.loader import GraphLoader
from zarrpipe.training.sampler import GraphBatchSampler
from zarrpipe.transforms.neighbors import NeighborList

_logger = RankedLogger(__name__, rank_zero_only=True)
_TORCHS = "torch.utils.data.DataLoader"
_NEIGHBOR_SAMPLES = 1024
_COUNTED_TOGETHER = 32
_SUMMED = frozenset({"energy", "total_energy", "forces"})


class _WithoutDatasets(NequIPDataModule):  # type: ignore[misc]  # nequip is not followed
    """NequIP's data module, which ``nequip-train`` asks for, without the datasets that it makes."""

    def __init__(self) -> None:
        LightningDataModule.__init__(self)


class ZarrDataModule(_ZarrDataModule, _WithoutDatasets):
    """Stores as ``data`` of ``nequip-train``: batches are NequIP's ``AtomicDataDict``.

    Growth, resume, workers and several devices are as in `zarrpipe.ZarrDataModule`. What has to be
    made may be given as NequIP's configuration has it, with ``_target_``.

    Parameters
    ----------
    store : StoreLike or sequence of StoreLike
        The stores to split.
    transforms : sequence of callable, optional
        NequIP's transforms, as its other data modules take them: a
        ``ChemicalSpeciesToAtomTypeMapper``, and a ``NeighborListTransform`` unless `transform` has
        a `zarrpipe.transforms.NeighborList` or the stores have edges. They run after `transform`;
        see `NequIPTransforms`.
    key_mapping : mapping of str to str, optional
        NequIP's key for a field; see `zarrpipe.adapters.to_nequip`.
    stats_manager : DataStatisticsManager, optional
        Statistics beside those that `get_statistics` knows.
    transform, train_transform : callable or sequence of callable, optional
        Functions of a `Batch`; see `zarrpipe.ZarrDataModule`.
    train_dataloader : mapping, optional
        Its ``batch_size`` takes the place of `batch_size`: NequIP's commands that package and
        compile a trained model ask for one system in this way.
    **settings
        The other arguments of `zarrpipe.ZarrDataModule`, but for ``convert``.

    Raises
    ------
    TypeError
        If a transform cannot be called.
    ValueError
        As `zarrpipe.ZarrDataModule`, and for a batch without atom types or edges.
    FieldError
        For a batch that NequIP does not take; see `zarrpipe.adapters.to_nequip`.

    Examples
    --------
    In a configuration file of ``nequip-train``::

        data:
          _target_: zarrpipe.nequip.ZarrDataModule
          store: mptrj.zarr
          batch_size: 8
          transform:
            _target_: zarrpipe.transforms.NeighborList
            cutoff: ${cutoff_radius}
          transforms:
            - _target_: nequip.data.transforms.ChemicalSpeciesToAtomTypeMapper
              model_type_names: ${model_type_names}
    """

    reads = ("cell", "pbc")

    def __init__(
        self,
        store: StoreLike | Sequence[StoreLike],
        *,
        transforms: Sequence[Any] = (),
        key_mapping: Mapping[str, str] | None = None,
        stats_manager: Any = None,
        transform: Any = None,
        train_transform: Any = None,
        train_dataloader: Mapping[str, Any] | None = None,
        **settings: Any,
    ) -> None:
        settings |= _batch_size(train_dataloader or {})
        first = _listed(transform)
        last = NequIPTransforms([_built(one) for one in transforms], key_mapping)
        super().__init__(
            store,
            transform=[*first, last],
            train_transform=_listed(train_transform) or None,
            convert=_atomic_data,
            **settings,
        )
        self.num_datasets = dict.fromkeys(("train", "val", "test", "predict"), 1)
        self._of_batches, self._of_nequip = first, last
        self._stats_manager: DataStatisticsManager | None = _built(stats_manager)

    def get_statistics(self, dataset: str = "train", dataset_idx: int = 0) -> dict[str, Any]:
        """What ``${training_data_stats:name}`` stands for in the configuration of a model.

        For training these follow from sums that stores keep, and no sample is read for them:
        ``per_atom_energy_mean``, ``per_atom_energy_std``, ``forces_rms`` and, by the name of each
        type, ``reference_energies``, the least-squares fit of the total energies, for
        ``per_type_energy_shifts``. ``num_neighbors_mean`` is that of at most 1,024 samples.

        With a `stats_manager` all samples are read for what it has beside the first three, among
        them the neighbours. Labels that a sample lacks do not count. Where a transform may change
        energies or forces, or `key_mapping` names them, nothing of what is stored is used.

        Parameters
        ----------
        dataset
            "train", "val", "test", or "predict" for all samples.
        dataset_idx
            0, as there is one dataset of each.

        Warns
        -----
        UserWarning
            If a statistic is NaN, as no sample has its label or an element.
        """
        name = "all" if dataset == "predict" else dataset
        found: dict[str, Any] = self._stored_statistics() if name == "train" else {}
        if self._stats_manager is None:
            return found | mean_neighbors(self._batches(name, _NEIGHBOR_SAMPLES))
        named, rest = counted(self._stats_manager, found)
        found |= named
        if rest is not None:
            found |= rest.get_statistics(self._batches(name))
        warn_of_nan(found, name)
        return found

    def _batches(self, name: str, most: int | None = None) -> Iterator[dict[str, torch.Tensor]]:
        """NequIP's batches of all samples of a split, or of at most so many drawn ones."""
        dataset, rows = self._splits.of(name)
        rows = np.arange(len(dataset)) if rows is None else rows
        if most is not None and most < len(rows):
            rows = np.sort(np.random.default_rng(0).choice(rows, most, replace=False))
        sampler = GraphBatchSampler(dataset, _COUNTED_TOGETHER, shuffle=False, index=rows)
        loader = GraphLoader(dataset, sampler, num_workers=self.num_workers, convert=_atomic_data)
        try:
            yield from loader
        finally:
            loader.close()

    def _stored_statistics(self) -> dict[str, Any]:
        """Statistics of training that no transform changes, from the sums of stores."""
        last = self._of_nequip
        kinds = {type(one) for one in (*self._of_batches, *last.transforms)}
        mapped = {*last.key_mapping, *last.key_mapping.values()}
        if not kinds <= {NeighborList, *KEEP_LABELS} or mapped & _SUMMED:
            return {}
        facts = self.statistics
        found: dict[str, Any] = {**stored_statistics(facts, self._statistics.sums)}
        for one in last.transforms:
            if isinstance(one, ChemicalSpeciesToAtomTypeMapper) and facts.reference_energies:
                energies = reference_energies(facts, one)
                if energies is not None:
                    found["reference_energies"] = energies
        _logger.info(f"Statistics that the stores keep: {found}")
        return found


def _batch_size(loader: Mapping[str, Any]) -> dict[str, int]:
    """Setting of a ``train_dataloader``; refuses what zarrpipe's loader has other settings for."""
    others = set(loader) - {"_target_", "batch_size"}
    if others or loader.get("_target_", _TORCHS) != _TORCHS:
        raise ArgumentError(
            f"train_dataloader is {dict(loader)}, expected batch_size alone: batches come from "
            "zarrpipe's loader, whose batch_size, num_workers, seed and shuffle stand beside store"
        )
    return {"batch_size": loader["batch_size"]} if "batch_size" in loader else {}


def _listed(given: Any) -> list[Any]:
    """Transforms of an argument: none, one or several, made if they are a configuration."""
    if given is None:
        return []
    several = isinstance(given, Sequence)
    return [_built(one) for one in (given if several else [given])]


def _built(given: Any) -> Any:
    """The object that a configuration with ``_target_`` describes, or what was given."""
    if isinstance(given, Mapping) and "_target_" in given:
        return instantiate(dict(given), _convert_="all")
    return given


def _atomic_data(batch: Batch) -> dict[str, torch.Tensor]:
    """NequIP's batch of a transformed one; refuses what no model takes."""
    data = to_nequip(batch)
    if "atom_types" not in data:
        raise ArgumentError(
            "the batches have no atom types: expected a "
            "nequip.data.transforms.ChemicalSpeciesToAtomTypeMapper among transforms"
        )
    if "edge_index" not in data:
        raise ArgumentError(
            "the batches have no edges: expected a nequip.data.transforms.NeighborListTransform "
            "among transforms, or transform=zarrpipe.transforms.NeighborList(cutoff)"
        )
    return data
