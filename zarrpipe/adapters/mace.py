"""MACE: its `AtomicData` and `Batch`, which follow an old PyG of its own."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch

from zarrpipe.adapters.pyg import Graphs
from zarrpipe.data.batch import Batch
from zarrpipe.data.collate import fill_value
from zarrpipe.data.levels import Level
from zarrpipe.errors import FieldError

_NAMES = {
    "edge_index": "neighbor_list",
    "unit_shifts": "neighbor_list_shifts",
    "virials": "virial",
    "total_charge": "charge",
    "total_spin": "spin",
}
_LABELS = ("energy", "forces", "stress", "virials", "dipole", "charges", "polarizability")
_DERIVED = frozenset(
    {"batch", "ptr", "num_nodes", "node_attrs", "rcell", "volume", "density_coefficients"}
    | {"elec_temp", "fermi_level", "external_field", "head", "weight"}
    | {f"{label}_weight" for label in _LABELS}
)
_SYSTEM = ("polarizability", "head", "weight", *(f"{label}_weight" for label in _LABELS))


def from_mace(
    data: Any,
    *,
    z_table: Sequence[int] | None = None,
    keep: Iterable[str] = (),
    levels: Mapping[str, Level | str] | None = None,
) -> Batch:
    """Batch of MACE's ``AtomicData``, or of the ``Batch`` that its loader makes of them.

    ``edge_index``, ``unit_shifts``, ``virials``, ``total_charge`` and ``total_spin`` become
    neighbor_list, neighbor_list_shifts, virial, charge and spin. MACE writes zeros for a label
    that it does not have and gives it the weight 0: such a label is marked absent here, and left
    out if no system has it. What MACE derives or uses for training only (one-hot ``node_attrs``,
    weights, heads, ``rcell``, ``volume``, ...) is left out.

    Parameters
    ----------
    data
        One system or a batch.
    z_table
        Atomic number of each column of ``node_attrs``, as a sequence or as MACE's
        ``AtomicNumberTable``; needed unless `data` carries ``atomic_numbers``.
    keep
        Attributes to take that would be left out, such as ``"head"`` or ``"energy_weight"``; a
        label among them is taken as it is, whatever its weight.
    levels
        Level of a field of the user's own, as in `from_pyg`.

    Raises
    ------
    FieldError
        If the elements are not known, or as `from_pyg`.
    """
    kept = frozenset(keep)
    absent = {label: lacks for label, lacks in _absent_labels(data).items() if label not in kept}
    nowhere = {label for label, lacks in absent.items() if bool(lacks.all())}
    batch = Graphs(
        data,
        _NAMES,
        {**dict.fromkeys(_SYSTEM, Level.SYSTEM), **(levels or {})},
        skipped=(_DERIVED | nowhere) - kept,
        extra={"atomic_numbers": _numbers(data, z_table)},
    ).batch()
    return _mark_absent(batch, absent)


def _absent_labels(data: Any) -> dict[str, torch.Tensor]:
    """Which systems [B] lack a label: those with weight 0, or all if there is no such label."""
    count = int(data.num_graphs) if hasattr(data, "ptr") else 1
    absent = {}
    for label in _LABELS:
        weight = getattr(data, f"{label}_weight", None)
        if getattr(data, label, None) is None:
            absent[label] = torch.ones(count, dtype=torch.bool)
        elif weight is None:
            absent[label] = torch.zeros(count, dtype=torch.bool)
        else:
            absent[label] = (weight.reshape(count, -1) == 0).all(1)
    return absent


def _mark_absent(batch: Batch, absent: Mapping[str, torch.Tensor]) -> Batch:
    fields, present = dict(batch.fields), {}
    for label, lacks in absent.items():
        name = _NAMES.get(label, label)
        if name in fields and bool(lacks.any()):
            rows = lacks[batch.batch_idx] if batch.levels[name] is Level.ATOM else lacks
            fields[name] = fields[name].clone()
            fields[name][rows] = fill_value(fields[name].dtype)
            present[name] = ~lacks
    return Batch(
        fields, batch.batch_ptr, batch.edge_ptr, levels=dict(batch.levels), present=present
    )


def _numbers(data: Any, z_table: Any) -> torch.Tensor:
    """Atomic numbers [V], carried by the object or looked up from its one-hot attributes."""
    carried = getattr(data, "atomic_numbers", None)
    if isinstance(carried, torch.Tensor):
        return carried
    if z_table is None:
        raise FieldError(
            "MACE's AtomicData says only which column of its z_table an atom has: set "
            "data.atomic_numbers, or call zarrpipe.adapters.from_mace(data, z_table=[1, 6, ...])"
        )
    columns = data.node_attrs.shape[1]
    numbers = torch.as_tensor(list(getattr(z_table, "zs", z_table)), device=data.node_attrs.device)
    if len(numbers) != columns:
        raise FieldError(
            f"z_table has {len(numbers)} elements {numbers.tolist()}, node_attrs has {columns} "
            "columns: give the table that the data were made with"
        )
    return numbers[data.node_attrs.argmax(1)]
