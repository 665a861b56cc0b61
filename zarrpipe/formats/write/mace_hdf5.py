"""HDF5 files of configurations, which MACE's `HDF5Dataset` reads and `mace_run_train` trains on."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from zarrpipe.data.fields import CORE_FIELDS
from zarrpipe.data.levels import Level
from zarrpipe.data.schema import Field
from zarrpipe.data.system import AtomicData
from zarrpipe.formats.write.left_out import empty_rows, reserved, units_of, without_place
from zarrpipe.formats.write.samples import Samples
from zarrpipe.libraries import require

_LABELS = {
    "energy": "energy",
    "forces": "forces",
    "stress": "stress",
    "virials": "virial",
    "dipole": "dipole",
    "charges": "charges",
    "polarizability": "polarizability",
}
"""Our field by MACE's label; each is in every configuration, with the weight 0 if it is missing.

MACE takes a label of which the file says nothing as 0, with the weight 1.
"""

_CONDITIONS = {"total_charge": "charge", "total_spin": "spin", "elec_temp": "elec_temp"}
"""Our field by MACE's property that is no label, and has a value by default."""

_STRUCTURE = ("positions", "atomic_numbers", "cell", "pbc")
_KNOWN = frozenset({*_LABELS.values(), *_CONDITIONS.values()})
_OWN = ("config_type", "config_weight", *(f"config_{label}_weight" for label in _LABELS))
_TAKEN = frozenset(
    {"weight", "virials", "total_charge", "total_spin", "head", "edge_index", "node_attrs"}
    | {"unit_shifts", "num_nodes", "rcell", "volume", "batch", "ptr"}
    | {f"{label}_weight" for label in _LABELS}
)
"""Attributes of MACE's data that a property of the same name would replace or be hidden by."""

_MISSING = "None"


def write_mace(path: Path, samples: Samples) -> dict[str, str]:
    """Write configurations one by one, in the layout of MACE's `save_configurations_as_HDF5`."""
    h5py = require("h5py", "import")
    left_out = _left_out(samples)
    some, number = samples.without(*left_out), 0
    own = [name for name in some.schema if name not in {*_STRUCTURE, *_OWN, *_KNOWN}]
    with h5py.File(path, "w") as file:
        file.attrs["drop_last"] = False
        group = file.create_group("config_batch_0")
        for batch in some.batches():
            for index in range(batch.num_graphs):
                _write_one(group.create_group(f"config_{number}"), batch.get_data(index), own)
                number += 1
    return left_out | units_of(some.schema)


def _left_out(samples: Samples) -> dict[str, str]:
    schema = samples.schema
    left_out = without_place(schema) | empty_rows(schema) | reserved(schema, _TAKEN)
    known = {*_STRUCTURE, *_OWN, *_KNOWN, *left_out}
    for name, item in schema.items():
        if name == "config_type" or name in known:
            continue
        if item.categories is not None:
            left_out[name] = "it has strings, of which MACE reads the config_type alone"
        elif samples.missing(name):
            left_out[name] = "some samples lack it, and MACE batches what every sample has"
    return left_out | {name: why for name, why in _unfit(schema).items() if name not in left_out}


def _unfit(schema: Mapping[str, Field]) -> dict[str, str]:
    """Own fields with MACE's names and other kinds of values."""
    expected = {"config_type": "a string", **dict.fromkeys(_OWN[1:], "one number")}
    found = {}
    for name, kind in expected.items():
        item = schema.get(name)
        if item is None:
            continue
        one = item.level is Level.SYSTEM and int(np.prod(item.shape)) == 1
        if (item.categories is not None) is not (kind == "a string") or not one:
            found[name] = f"MACE expects {kind} for each sample under this name"
    return found


def _write_one(group: Any, data: AtomicData, own: list[str]) -> None:
    """Write a configuration; "None" is what MACE has for a value that is missing."""
    values = {name: value.numpy() for name, value in data.fields.items()}
    group["atomic_numbers"], group["positions"] = values["atomic_numbers"], values["positions"]
    group["cell"] = values["cell"][0] if "cell" in values else np.zeros((3, 3))
    group["pbc"] = values["pbc"][0] if "pbc" in values else np.zeros(3, dtype=bool)
    group["weight"] = float(values["config_weight"].item()) if "config_weight" in values else 1.0
    given = data.strings("config_type")[0] if "config_type" in values else None
    group["config_type"] = "Default" if given is None else given
    properties, weights = group.create_group("properties"), group.create_group("property_weights")
    for label, name in _LABELS.items():
        properties[label] = _value(data, name) if name in values else _MISSING
        usual = 1.0 if name in values else 0.0
        weight = values.get(f"config_{label}_weight")
        weights[label] = usual if weight is None or not usual else float(weight.item())
    for label, name in (*_CONDITIONS.items(), *zip(own, own, strict=True)):
        if name in values:
            properties[label] = _value(data, name)


def _value(data: AtomicData, name: str) -> Any:
    """Value of a field in MACE's shapes: one number, ``[3, 3]``, ``[3]`` or ``[n, ...]``."""
    value = data[name].numpy()
    if data.levels[name] is Level.ATOM:
        return value
    known = name in CORE_FIELDS or name in _KNOWN
    return value.reshape(()) if known and value.size == 1 else value[0] if known else value
