"""MatGL: potentials of ``matgl.utils.training`` trained from stores.

Run with MatGL 4.1.2.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from zarrpipe.adapters.trainers.matgl import to_matgl
from zarrpipe.data.batch import Batch
from zarrpipe.errors import ArgumentError, FieldError
from zarrpipe.store.backend.location import StoreLike
from zarrpipe.store.query.elements import SYMBOLS, atomic_number
from zarrpipe.training.data_module import ZarrDataModule as _ZarrDataModule
from zarrpipe.training.statistics import measure
from zarrpipe.transforms.compose import as_transform, joined
from zarrpipe.transforms.neighbors import NeighborList

__all__ = ["ZarrDataModule"]


class ZarrDataModule(_ZarrDataModule):
    """Stores as the data of MatGL's ``PotentialLightningModule``.

    Neighbour lists are found by vesin when a batch is read, in the worker processes if there are
    any; `zarrpipe.adapters.to_matgl` then makes MatGL's tuple on the device of training. It has the
    labels that the potential in training computes: energies and forces, stresses where
    ``stress_weight`` is not 0, ``magmoms`` or ``charges`` where theirs is not. Growth, resume,
    workers and several devices are as in `zarrpipe.ZarrDataModule`.

    Parameters
    ----------
    store : StoreLike or sequence of StoreLike
        The stores to split.
    cutoff : float
        Cutoff of the model, Angstrom.
    element_types : sequence of str, optional
        Symbols in the order of the model's ``element_types``; by default the elements of all
        splits that are there when they are first needed, by atomic number, and the same from then
        on. Give them where a store grows, or a model exists already.
    state_attr : str, optional
        Field with the state attributes; see `zarrpipe.adapters.to_matgl`.
    transform : callable or sequence of callable, optional
        As in `zarrpipe.ZarrDataModule`; neighbour lists are found behind it.
    **settings
        The other arguments of `zarrpipe.ZarrDataModule`, but for ``convert``.

    Raises
    ------
    ValueError
        If `cutoff` is not positive or there is no such element; before training, if the model has
        other ``element_types`` or another cutoff, or wants line graphs; or as
        `zarrpipe.ZarrDataModule`.
    FieldError
        Before training, if the stores lack a label that the loss needs, or some samples do and
        the module has not ``allow_missing_labels=True``. In training, if no sample of a batch has
        it, of which MatGL's loss would be NaN.
    MissingLibraryError
        If vesin is not installed.

    Examples
    --------
    >>> data = ZarrDataModule("labelled.zarr", cutoff=5.0, batch_size=16)  # doctest: +SKIP
    >>> data.setup("fit")  # doctest: +SKIP
    >>> model = TensorNet(data.element_types, cutoff=5.0, is_intensive=False)  # doctest: +SKIP
    >>> module = PotentialLightningModule(model, **data.normalization)  # doctest: +SKIP
    >>> lightning.Trainer(inference_mode=False).fit(module, data)  # doctest: +SKIP
    """

    def __init__(
        self,
        store: StoreLike | Sequence[StoreLike],
        *,
        cutoff: float,
        element_types: Sequence[str] | None = None,
        state_attr: str | None = None,
        transform: Callable[..., Any] | Sequence[Callable[..., Any]] | None = None,
        **settings: Any,
    ) -> None:
        search = NeighborList(cutoff)
        self.cutoff, self.state_attr = search.cutoff, state_attr
        self._element_types = None if element_types is None else tuple(element_types)
        for symbol in self._element_types or ():
            atomic_number(symbol)
        super().__init__(
            store,
            transform=joined(as_transform(transform), search),
            convert=self._converted_to_matgl,
            **settings,
        )

    @property
    def element_types(self) -> tuple[str, ...]:
        """Symbols of the elements, for a model."""
        if self._element_types is None:
            parts = [self.statistics]
            parts += [measure(one).statistics() for one in (self.val_dataset, self.test_dataset)]
            numbers = sorted({z for facts in parts for z in facts.element_counts})
            self._element_types = tuple(SYMBOLS[z] for z in numbers)
        return self._element_types

    @property
    def normalization(self) -> dict[str, Any]:
        """``element_refs``, ``data_mean`` and ``data_std`` for a potential, from the training set.

        Reference energies in the order of `element_types`, 0 for an element without labels; MatGL
        adds ``data_mean`` to the energy of each structure, whatever its size, so it is 0;
        ``data_std`` is the root mean square of the forces, or without forces the spread of the
        energy per atom.
        """
        facts = self.statistics
        table = facts.reference_energy_table().numpy()
        spreads = (facts.forces_rms, facts.energy_per_atom_std)
        spread = next((one for one in spreads if math.isfinite(one) and one > 0), 1.0)
        refs = np.array([table[atomic_number(symbol)] for symbol in self.element_types])
        return {"element_refs": refs, "data_mean": 0.0, "data_std": spread}

    def _check(self, stage: str) -> None:
        super()._check(stage)
        module = self._module()
        if module is None:
            return
        model = module.model.model
        for name, ours in (("element_types", self.element_types), ("cutoff", self.cutoff)):
            theirs = getattr(model, name, ours)
            if (tuple(theirs) if isinstance(theirs, list) else theirs) != ours:
                raise ArgumentError(
                    f"{name} of the data module is {ours!r}, and that of the model is {theirs!r}: "
                    f"expected the same, as with {name}=model.{name} for the data module"
                )
        if module.include_line_graph:
            raise ArgumentError(
                "the module has include_line_graph=True, and batches have no line graph: leave it "
                "out, so that M3GNet and CHGNet make theirs of the graph that they are given"
            )
        if stage == "fit":
            for dataset in (self.train_dataset, self.val_dataset):
                for fields in _asked(module):
                    has = np.zeros(len(dataset), dtype=bool)
                    for name in set(fields) & dataset.schema.keys():
                        has |= dataset.present(name)
                    _check_label(module, fields, len(has), int(has.sum()))

    def _module(self) -> Any:
        """The ``PotentialLightningModule`` in training, if it is one."""
        module = None if self.trainer is None else self.trainer.lightning_module
        return module if hasattr(module, "allow_missing_labels") else None

    def _converted_to_matgl(self, batch: Batch) -> tuple[Any, ...]:
        """MatGL's tuple, with the labels that the potential in training computes."""
        module = self._module()
        if module is None:
            return to_matgl(batch, self.element_types, state_attr=self.state_attr)
        for fields in _asked(module):
            if all(name in batch.partly_present or name not in batch for name in fields):
                known = torch.stack([batch.has(name) for name in fields]).any(0).sum()
                _check_label(module, fields, batch.num_graphs, int(known))
        return to_matgl(
            batch,
            self.element_types,
            include_stress=module.model.calc_stresses,
            include_magmom=module.model.calc_magmom,
            include_charge=module.model.calc_charge,
            state_attr=self.state_attr,
        )


def _asked(module: Any) -> list[tuple[str, ...]]:
    """Labels that a module's loss needs, each with the fields that may give it."""
    potential = module.model
    asked: list[tuple[str, ...]] = [("energy",), ("forces",)]
    if potential.calc_stresses:
        asked.append(("stress", "virial"))
    if potential.calc_magmom:
        asked.append(("magmoms",))
    if potential.calc_charge:
        asked.append(("charges",))
    return asked


def _check_label(module: Any, fields: Sequence[str], count: int, known: int) -> None:
    """Refuse `count` samples, of which `known` have a label, where the loss would be NaN."""
    name = fields[0]
    masked = module.allow_missing_labels and name != "charges"  # which MatGL does not mask
    if known == count or (known and masked):
        return
    ways = [f"where='{' or '.join(f'has({field})' for field in fields)}'"]
    if name in _WEIGHTS:
        ways.append(f"PotentialLightningModule({_WEIGHTS[name]}=0)")
    if masked:
        ways.append("larger batches")
    elif name != "charges":
        ways.append("PotentialLightningModule(allow_missing_labels=True)")
    raise FieldError(
        f"{count - known} of {count} samples have no {name!r}, and MatGL's loss would be NaN: "
        f"expected {' or '.join(ways)}"
    )


_WEIGHTS = {"stress": "stress_weight", "magmoms": "magmom_weight", "charges": "charge_weight"}
