"""NequIP's transforms of its ``AtomicDataDict``, as transforms of a `Batch`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
from nequip.data import AtomicDataDict, get_field_type
from nequip.data.transforms import (
    AddNaNStressTransform,
    ChemicalSpeciesToAtomTypeMapper,
    NeighborListPruneTransform,
    NeighborListTransform,
    SortedNeighborListTransform,
    StressSignFlipTransform,
    VirialToStressTransform,
)

from zarrpipe.adapters.trainers.nequip import from_trusted, to_nequip
from zarrpipe.data.batch import Batch
from zarrpipe.data.csr import tensor_pointers
from zarrpipe.errors import ArgumentTypeError

OF_BATCHES = frozenset(
    {
        AddNaNStressTransform,
        ChemicalSpeciesToAtomTypeMapper,
        NeighborListPruneTransform,
        SortedNeighborListTransform,
        StressSignFlipTransform,
        VirialToStressTransform,
    }
)
"""Transforms that do to a batch what they do to its systems."""

KEEP_LABELS = OF_BATCHES | {NeighborListTransform}
"""Transforms that change neither energies nor forces."""

_OF_NEIGHBORS = ("pos", "cell", "pbc", "atom_types", "batch", "num_atoms")


class NequIPTransforms:
    """NequIP's transforms as one of zarrpipe's, which runs in workers where there are any.

    Those that do to a batch what they do to its systems are called once for a batch; others, such
    as ``NonPeriodicCellTransform`` and a user's own, once for each system, as in NequIP's datasets.

    Parameters
    ----------
    transforms : sequence of callable
        Each takes an ``AtomicDataDict`` and returns the one to use.
    key_mapping : mapping of str to str, optional
        See `zarrpipe.adapters.to_nequip`.

    Raises
    ------
    TypeError
        If one cannot be called.
    """

    def __init__(
        self,
        transforms: Sequence[Callable[..., Any]],
        key_mapping: Mapping[str, str] | None = None,
    ) -> None:
        for one in transforms:
            if not callable(one) or isinstance(one, type):
                raise ArgumentTypeError(
                    f"transforms has {one!r}, expected objects that take an AtomicDataDict, or in "
                    "a configuration file their _target_"
                )
        self.transforms = tuple(transforms)
        self.key_mapping = dict(key_mapping or {})

    def __call__(self, batch: Batch) -> Batch:
        """Batch of the fields that NequIP knows, transformed."""
        data = to_nequip(batch, key_mapping=self.key_mapping)
        for transform in self.transforms:
            if type(transform) in OF_BATCHES:
                data = transform(data)
            elif type(transform) is NeighborListTransform:  # needs few keys, which are cut up fast
                few = {key: data[key] for key in _OF_NEIGHBORS if key in data}
                data |= AtomicDataDict.batched_from_list([transform(one) for one in systems(few)])
            else:
                data = AtomicDataDict.batched_from_list([transform(one) for one in systems(data)])
        return from_trusted(data)

    def __repr__(self) -> str:
        return f"NequIPTransforms({list(self.transforms)})"


def systems(data: Mapping[str, torch.Tensor]) -> list[dict[str, torch.Tensor]]:
    """The systems of a batched ``AtomicDataDict``, each without the keys of a batch."""
    atoms = data["num_atoms"]
    bounds = {"node": tensor_pointers(atoms).tolist(), "graph": list(range(len(atoms) + 1))}
    if "edge_index" in data:
        edges = torch.bincount(data["batch"][data["edge_index"][0]], minlength=len(atoms))
        bounds["edge"] = tensor_pointers(edges).tolist()
    found: list[dict[str, torch.Tensor]] = [{} for _ in range(len(atoms))]
    for key, value in data.items():
        if key in ("batch", "num_atoms"):
            continue
        level = "edge" if key == "edge_index" else get_field_type(key)
        for place, (start, stop) in enumerate(pairwise(bounds[level])):
            if key == "edge_index":
                found[place][key] = value[:, start:stop] - bounds["node"][place]
            else:
                found[place][key] = value[start:stop]
    return found
