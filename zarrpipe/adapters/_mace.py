"""MACE: its `AtomicData` and `Batch`, which follow an old PyG of its own."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch

from zarrpipe.adapters._pyg import Graphs
from zarrpipe.data.batch import Batch, fill_value
from zarrpipe.data.fields import Level
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
        Attributes to take that would be left out, such as ``"head"`` or ``"energy_weight"``.
    levels
        Level of a field of the user's own, as in `from_pyg`.

    Raises
    ------
    FieldError
        If the elements are not known, or as `from_pyg`.
    """
    count = int(getattr(data, "num_graphs", 1)) if hasattr(data, "ptr") else 1
    missing = {label: _absent(data, label, count) for label in _LABELS}
    nowhere = {label for label, absent in missing.items() if bool(absent.all())}
    batch = Graphs(
        data,
        _NAMES,
        {**dict.fromkeys(_SYSTEM, Level.SYSTEM), **(levels or {})},
        skipped=(_DERIVED | nowhere) - frozenset(keep),
        extra={"atomic_numbers": _numbers(data, z_table)},
    ).batch()
    partly = {
        _NAMES.get(label, label): ~absent
        for label, absent in missing.items()
        if label not in nowhere and bool(absent.any())
    }
    return _mark_absent(batch, partly) if partly else batch


def _absent(data: Any, label: str, count: int) -> torch.Tensor:
    """Which systems [B] lack a label: those with weight 0, or all if there is no such label."""
    if getattr(data, label, None) is None:
        return torch.ones(count, dtype=torch.bool)
    weight = getattr(data, f"{label}_weight", None)
    if weight is None:
        return torch.zeros(count, dtype=torch.bool, device=data[label].device)
    absent: torch.Tensor = (weight.reshape(count, -1) == 0).all(1)
    return absent


def _mark_absent(batch: Batch, present: Mapping[str, torch.Tensor]) -> Batch:
    fields = dict(batch.fields)
    for name, has in present.items():
        row_has = has[batch.batch_idx] if batch.levels[name] is Level.ATOM else has
        value = fields[name].clone()
        value[~row_has] = fill_value(value.dtype)
        fields[name] = value
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
