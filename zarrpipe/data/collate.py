"""Batches out of several systems or batches, and out of some systems of a batch."""

from collections.abc import Callable, Sequence
from typing import Protocol

import torch

from zarrpipe.data.buffers import Bytes
from zarrpipe.data.container import FieldTensors
from zarrpipe.data.csr import tensor_pointers, tensor_segment_rows
from zarrpipe.data.fields import INDEX_FIELDS, SEGMENTED, Level, shape_hint
from zarrpipe.errors import FieldError

Parts = tuple[
    dict[str, torch.Tensor],
    dict[str, Level],
    dict[Level, torch.Tensor],
    dict[str, torch.Tensor],
]
"""Fields, levels, pointers by level, and presence: the arguments of `Batch._trusted`."""


class PackedTensors(Protocol):
    """Bytes of a batch, whose tensors are made at the first access."""

    @property
    def buffer(self) -> Bytes | torch.Tensor:
        """The bytes."""

    def parts(self) -> Parts:
        """Fields, levels, pointers and presence."""

    def transferred(self, copy: Callable[[torch.Tensor], torch.Tensor]) -> "PackedTensors":
        """The same bytes, copied in one piece."""


def concatenated(parts: Sequence[FieldTensors]) -> Parts:
    """Batch of all systems of `parts`, in order; parts must agree on levels, dtypes and shapes."""
    levels = _common_levels(parts)
    where = parts[0].device
    pointers = {
        level: tensor_pointers(_rows_per_graph(parts, level)).to(where) for level in SEGMENTED
    }
    fields = {name: _concatenate(name, level, parts) for name, level in levels.items()}
    for name in fields.keys() & INDEX_FIELDS.keys():
        first = tensor_pointers(torch.tensor([part.rows(INDEX_FIELDS[name]) for part in parts]))
        rows = torch.tensor([part.rows(levels[name]) for part in parts])
        shift_rows(fields[name], first[:-1].to(where), rows.to(where))
    present = {}
    for name in levels:
        has = torch.cat([part.has(name) for part in parts])
        if not bool(has.all()):
            present[name] = has
    return fields, levels, pointers, present


def selected(parts: Parts, chosen: torch.Tensor) -> Parts:
    """Batch of the systems at `chosen` [K] int64, in that order."""
    fields, levels, pointers, present = parts
    starts = {level: ptr[:-1][chosen] for level, ptr in pointers.items()}
    new = {level: tensor_pointers(ptr.diff()[chosen]) for level, ptr in pointers.items()}
    rows = {level: tensor_segment_rows(starts[level], ptr) for level, ptr in new.items()}
    taken = {
        name: fields[name].index_select(0, rows.get(level, chosen))
        for name, level in levels.items()
    }
    for name in taken.keys() & INDEX_FIELDS.keys():
        counted = INDEX_FIELDS[name]
        shift = new[counted][:-1] - starts[counted]
        shift_rows(taken[name], shift, new[levels[name]].diff())
    masks = {name: mask[chosen] for name, mask in present.items()}
    masks = {name: mask for name, mask in masks.items() if not bool(mask.all())}
    return taken, dict(levels), new, masks


def one_system(
    parts: Parts, index: int
) -> tuple[dict[str, torch.Tensor], dict[str, Level], dict[Level, int]]:
    """Fields, levels and numbers of rows of one system, without the fields that it lacks."""
    fields, levels, pointers, present = parts
    rows = {level: slice(int(ptr[index]), int(ptr[index + 1])) for level, ptr in pointers.items()}
    system = slice(index, index + 1)
    own = {
        name: level
        for name, level in levels.items()
        if name not in present or bool(present[name][index])
    }
    taken = {name: fields[name][rows.get(level, system)] for name, level in own.items()}
    for name in taken.keys() & INDEX_FIELDS.keys():
        taken[name] = taken[name] - rows[INDEX_FIELDS[name]].start
    return taken, own, {level: run.stop - run.start for level, run in rows.items()}


def shift_rows(
    values: torch.Tensor, shift: torch.Tensor, counts: torch.Tensor, total: int | None = None
) -> None:
    """Add `shift` [B] in place to the row numbers of each system, which has `counts` [B] of them.

    `total`, the sum of the counts, saves a wait for the GPU.
    """
    of_rows = torch.repeat_interleave(shift, counts, output_size=total)
    values += of_rows.reshape(-1, *(1,) * (values.ndim - 1))


def fill_value(dtype: torch.dtype) -> float:
    """Value of the rows of an absent field: NaN for floats, 0 otherwise."""
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
