"""Several systems or batches as one: what their fields share, and what some of them lack."""

from collections.abc import Sequence

import torch

from zarrpipe.data.container import FieldTensors
from zarrpipe.data.csr import tensor_pointers
from zarrpipe.data.fields import Level, shape_hint
from zarrpipe.errors import FieldError

Parts = tuple[
    dict[str, torch.Tensor],
    dict[str, Level],
    torch.Tensor,
    torch.Tensor,
    dict[str, torch.Tensor],
]
"""Fields, levels, pointers to atoms and to edges, and presence: what a batch is made of."""


def concatenated(parts: Sequence[FieldTensors]) -> Parts:
    """What a batch of all systems of `parts`, in order, is made of.

    Raises
    ------
    FieldError
        If two parts have a field at different levels, dtypes or trailing shapes.
    """
    levels = _common_levels(parts)
    where = parts[0].device
    batch_ptr = tensor_pointers(_rows_per_graph(parts, Level.ATOM)).to(where)
    edge_ptr = tensor_pointers(_rows_per_graph(parts, Level.EDGE)).to(where)
    fields = {name: _concatenate(name, level, parts) for name, level in levels.items()}
    if "neighbor_list" in fields:
        first_atom = tensor_pointers(torch.tensor([part.num_nodes for part in parts]))
        edges = torch.tensor([part.num_edges for part in parts])
        shift = torch.repeat_interleave(first_atom[:-1], edges).to(where)
        fields["neighbor_list"] = fields["neighbor_list"] + shift[:, None]
    present = {}
    for name in levels:
        has = torch.cat([part.has(name) for part in parts])
        if not bool(has.all()):
            present[name] = has
    return fields, levels, batch_ptr, edge_ptr, present


def fill_value(dtype: torch.dtype) -> float:
    """What a row of an absent field holds: NaN for floats, 0 for all else."""
    return float("nan") if dtype.is_floating_point else 0


def _common_levels(parts: Sequence[FieldTensors]) -> dict[str, Level]:
    levels: dict[str, Level] = {}
    for position, part in enumerate(parts):
        for name, level in part.levels.items():
            if levels.setdefault(name, level) is not level:
                raise FieldError(
                    f"field {name!r} of sample {position} is at level {level.value!r}, "
                    f"samples before it have it at {levels[name].value!r}"
                )
    return levels


def _rows_per_graph(parts: Sequence[FieldTensors], level: Level) -> torch.Tensor:
    """Number of atoms or edges of each system of each part, on the CPU."""
    if all(part.num_graphs == 1 for part in parts):
        return torch.tensor([part.rows(level) for part in parts])
    return torch.cat([part.rows_per_graph(level).cpu() for part in parts])


def _concatenate(name: str, level: Level, parts: Sequence[FieldTensors]) -> torch.Tensor:
    """Field `name` of every part in one tensor, filled where a part lacks it."""
    first = next(part.fields[name] for part in parts if name in part)
    values = []
    for position, part in enumerate(parts):
        if name in part:
            value = part.fields[name]
            if value.shape[1:] != first.shape[1:] or value.dtype != first.dtype:
                raise FieldError(
                    f"field {name!r} of sample {position} has rows of shape "
                    f"{tuple(value.shape[1:])} and dtype {value.dtype}, samples before it "
                    f"{tuple(first.shape[1:])} and {first.dtype}"
                    f"{shape_hint(tuple(value.shape[1:]), tuple(first.shape[1:]))}"
                )
        else:
            shape = (part.rows(level), *first.shape[1:])
            value = first.new_full(shape, fill_value(first.dtype))
        values.append(value)
    return torch.cat(values)
