"""Statistics for NequIP's configuration files, from the sums that stores keep."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from nequip.data import (
    BaseModifier,
    DataStatisticsManager,
    Mean,
    NumNeighbors,
    PerAtomModifier,
    RootMeanSquare,
    StandardDeviation,
)
from nequip.data.transforms import ChemicalSpeciesToAtomTypeMapper

from zarrpipe.store.statistics.sums import LabelSums
from zarrpipe.training.statistics import Statistics

_MOST_LOST = 1e-9
"""Smallest variance, relative to the squared mean, that the difference of sums still shows."""


def stored_statistics(facts: Statistics, sums: LabelSums) -> dict[str, float]:
    """What NequIP calls mean and spread of the energy per atom, and root mean square of forces.

    A figure without any label is left out, as is a spread that rounding hides.
    """
    raw, found = sums.copy(), {}
    raw.move_origin(np.zeros_like(sums.origin))
    number = raw.total("energies")
    if number:
        mean = raw.total("per_atom") / number
        found["per_atom_energy_mean"] = mean
        left = raw.total("square_per_atom") / number - mean**2
        if number > 1 and left > _MOST_LOST * mean**2:
            found["per_atom_energy_std"] = math.sqrt(left * number / (number - 1))
    if math.isfinite(facts.forces_rms):
        found["forces_rms"] = facts.forces_rms
    return found


def reference_energies(
    facts: Statistics, mapper: ChemicalSpeciesToAtomTypeMapper
) -> dict[str, float] | None:
    """Reference energy, eV, by the name of each type, 0 for what no sample has.

    None if a type has several elements.
    """
    table = facts.reference_energy_table()[: len(mapper.lookup_table)]
    found = {}
    for place, name in enumerate(mapper.model_type_names):
        energies = table[mapper.lookup_table == place].tolist()
        if len(energies) > 1:
            return None
        found[name] = energies[0] if energies else 0.0
    return found


def counted(
    manager: DataStatisticsManager, stored: dict[str, float]
) -> tuple[dict[str, float], DataStatisticsManager | None]:
    """Statistics of a manager that are stored, by its names, and a manager of the others.

    The other one ignores NaN, the label of a sample that lacks it.
    """
    found, rest = {}, []
    for place, name in enumerate(manager.names):
        field, metric, by_type = manager.fields[place], manager[place], manager.per_type[place]
        known = None if by_type else _stored_name(field, metric)
        if known in stored:
            found[name] = stored[known]
        else:
            rest.append(
                {
                    "name": name,
                    "field": field,
                    "metric": metric[0] if by_type else metric,
                    "per_type": by_type,
                    "ignore_nan": True,
                }
            )
    return found, DataStatisticsManager(rest, type_names=manager.type_names) if rest else None


def _stored_name(field: Any, metric: Any) -> str | None:
    """The stored statistic that a metric of a field is, if any."""
    key = getattr(field, "field", None)
    if type(field) is PerAtomModifier and key == "total_energy" and field._factor is None:
        if type(metric) is Mean:
            return "per_atom_energy_mean"
        if type(metric) is StandardDeviation and metric.unbiased and not metric.squared:
            return "per_atom_energy_std"
    if type(field) is BaseModifier and key == "forces" and type(metric) is RootMeanSquare:
        return "forces_rms"
    return None


def mean_neighbors(batches: Iterable[Any]) -> dict[str, Any]:
    """Mean number of edges of an atom, by NequIP's name."""
    metric = {"field": NumNeighbors(), "metric": Mean(), "name": "num_neighbors_mean"}
    found: dict[str, Any] = DataStatisticsManager([metric]).get_statistics(batches)
    return found


def warn_of_nan(found: Mapping[str, Any], split: str) -> None:
    """Let rank 0 warn of statistics that are NaN, which a model that uses them would be too."""
    for name, value in found.items():
        by_type = value.items() if isinstance(value, dict) else [("", value)]
        bad = [kind for kind, number in by_type if math.isnan(number)]
        if bad and not isinstance(value, torch.Tensor):  # which repeats one of a type
            of_types = f" for {', '.join(bad)}" if isinstance(value, dict) else ""
            rank_zero_warn(
                f"the statistic {name!r} is NaN{of_types}, as no sample of {split} has what it is "
                "of, and so is a model that uses it: leave these types out, or give numbers"
            )
