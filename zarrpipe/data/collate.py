"""Batches out of several systems or batches, and out of some systems of a batch."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Protocol

import torch

from zarrpipe.data.buffers import Bytes
from zarrpipe.data.categories import translated, united_vocabulary
from zarrpipe.data.container import FieldTensors
from zarrpipe.data.csr import tensor_pointers, tensor_segment_rows
from zarrpipe.data.fields import Role, shape_hint
from zarrpipe.data.levels import Level, described, pointer_levels, united
from zarrpipe.errors import FieldError

Parts = tuple[
    dict[str, torch.Tensor],
    dict[str, Role],
    dict[Level, torch.Tensor],
    dict[str, torch.Tensor],
]
"""Fields, their roles, pointers by level, and presence: the arguments of `Batch._trusted`."""


class PackedTensors(Protocol):
    """Bytes of a batch, whose tensors are made at the first access."""

    @property
    def buffer(self) -> Bytes | torch.Tensor:
        """The bytes."""

    def parts(self) -> Parts:
        """Fields, their roles, pointers and presence."""

    def transferred(self, copy: Callable[[torch.Tensor], torch.Tensor]) -> "PackedTensors":
        """The same bytes, copied in one piece."""


def concatenated(parts: Sequence[FieldTensors]) -> Parts:
    """Batch of all systems of `parts`, in order; parts must agree on levels, dtypes and shapes."""
    roles, where = _common_roles(parts), parts[0].device
    given = (role.level for part in parts for role in part.roles.values())
    levels = united((level for part in parts for level in part.pointer_levels), given)
    pointers = {
        level: tensor_pointers(_rows_per_graph(parts, level)).to(where)
        for level in pointer_levels(levels)
    }
    roles = {name: _with_categories(name, role, parts) for name, role in roles.items()}
    fields = {name: _concatenate(name, role, parts) for name, role in roles.items()}
    present = {}
    for name in roles:
        has = torch.cat([part.has(name) for part in parts])
        if not bool(has.all()):
            present[name] = has
    for name, role in roles.items():
        if role.index_of is not None:
            first = tensor_pointers(torch.tensor([part.num_rows(role.index_of) for part in parts]))
            rows = torch.tensor([part.num_rows(role.level) for part in parts])
            shift_rows(fields[name], first[:-1].to(where), rows.to(where))
            zero_absent(fields[name], present.get(name), _per_system(pointers, role.level))
    return fields, roles, pointers, present


def selected(parts: Parts, chosen: torch.Tensor) -> Parts:
    """Batch of the systems at `chosen` [K] int64, in that order."""
    fields, roles, pointers, present = parts
    starts = {level: ptr[:-1][chosen] for level, ptr in pointers.items()}
    new = {level: tensor_pointers(ptr.diff()[chosen]) for level, ptr in pointers.items()}
    rows = {level: tensor_segment_rows(starts[level], ptr) for level, ptr in new.items()}
    taken = {
        name: fields[name].index_select(0, rows.get(role.level, chosen))
        for name, role in roles.items()
    }
    masks = {name: mask[chosen] for name, mask in present.items()}
    masks = {name: mask for name, mask in masks.items() if not bool(mask.all())}
    for name, role in roles.items():
        if role.index_of is not None:
            counts = _per_system(new, role.level)
            shift_rows(taken[name], new[role.index_of][:-1] - starts[role.index_of], counts)
            zero_absent(taken[name], masks.get(name), counts)
    return taken, dict(roles), new, masks


def one_system(
    parts: Parts, index: int
) -> tuple[dict[str, torch.Tensor], dict[str, Role], dict[Level, int]]:
    """Fields, roles and numbers of rows of one system, without the fields that it lacks."""
    fields, roles, pointers, present = parts
    rows = {level: slice(int(ptr[index]), int(ptr[index + 1])) for level, ptr in pointers.items()}
    system = slice(index, index + 1)
    own = {
        name: role
        for name, role in roles.items()
        if name not in present or bool(present[name][index])
    }
    taken = {name: fields[name][rows.get(role.level, system)] for name, role in own.items()}
    for name, role in own.items():
        if role.index_of is not None:
            taken[name] = taken[name] - rows[role.index_of].start
    return taken, own, {level: run.stop - run.start for level, run in rows.items()}


def shift_rows(
    values: torch.Tensor, shift: torch.Tensor, counts: torch.Tensor, total: int | None = None
) -> None:
    """Add `shift` [B] in place to the row numbers of each system, which has `counts` [B] of them.

    `total`, the sum of the counts, saves a wait for the GPU.
    """
    of_rows = torch.repeat_interleave(shift, counts, output_size=total)
    values += of_rows.reshape(-1, *(1,) * (values.ndim - 1))


def zero_absent(
    values: torch.Tensor, has: torch.Tensor | None, counts: torch.Tensor, total: int | None = None
) -> None:
    """Set the rows of systems that lack a field, by `has` [B], to zero; None for no such system.

    `counts` and `total` are as in `shift_rows`.
    """
    if has is not None:
        lacks = ~torch.repeat_interleave(has, counts, output_size=total)
        values.masked_fill_(lacks.reshape(-1, *(1,) * (values.ndim - 1)), 0)


def _per_system(pointers: Mapping[Level, torch.Tensor], level: Level) -> torch.Tensor:
    """Number of rows [B] of each system of a batch at a level."""
    ptr = pointers.get(level)
    return torch.ones_like(pointers[Level.ATOM][1:]) if ptr is None else ptr.diff()


def fill_value(dtype: torch.dtype) -> float:
    """Value of the rows of an absent field: NaN for floats, 0 otherwise."""
    return float("nan") if dtype.is_floating_point else 0


def _common_roles(parts: Sequence[FieldTensors]) -> dict[str, Role]:
    roles: dict[str, Role] = {}
    for position, part in enumerate(parts):
        for name, role in part.roles.items():
            known = roles.setdefault(name, role)
            if known is role:
                continue
            if known.level != role.level:
                raise FieldError(
                    f"field {name!r} of sample {position} is at level {role.level!r}, "
                    f"samples before it have it at {known.level!r}"
                )
            if not known.level.same_as(role.level):
                raise FieldError(
                    f"level {role.level!r} of sample {position} is {described(role.level)}, that "
                    f"of samples before it {described(known.level)}: use another name for one"
                )
            if (known.categories is None) is not (role.categories is None):
                kinds = [
                    "numbers" if one.categories is None else "strings" for one in (role, known)
                ]
                raise FieldError(
                    f"field {name!r} of sample {position} has {kinds[0]}, samples before it have "
                    f"{kinds[1]}: use another name for one of them"
                )
            if known.index_of != role.index_of:
                raise FieldError(
                    f"field {name!r} of sample {position} counts rows of {_counted(role)}, that of "
                    f"samples before it counts {_counted(known)}: give all of them the same "
                    "index_of"
                )
    return roles


def _with_categories(name: str, role: Role, parts: Sequence[FieldTensors]) -> Role:
    """Role with the categories of all parts, if the field is one of strings."""
    if role.categories is None:
        return role
    vocabularies = [part.categories(name) for part in parts if name in part]
    return replace(role, categories=united_vocabulary(name, vocabularies))


def _counted(role: Role) -> str:
    return "no level" if role.index_of is None else repr(str(role.index_of))


def _rows_per_graph(parts: Sequence[FieldTensors], level: Level) -> torch.Tensor:
    """Number of rows of each system of each part at a level, on the CPU."""
    if all(part.num_graphs == 1 for part in parts):
        return torch.tensor([part.num_rows(level) for part in parts])
    return torch.cat([part.rows_per_graph(level).cpu() for part in parts])


def _concatenate(name: str, role: Role, parts: Sequence[FieldTensors]) -> torch.Tensor:
    """Field `name` of every part in one tensor, filled where a part lacks it."""
    first = next(part.fields[name] for part in parts if name in part)
    values = []
    for position, part in enumerate(parts):
        if name in part:
            value = part.fields[name]
            if role.categories is not None:
                value = translated(value, part.categories(name), role.categories)
            if value.shape[1:] != first.shape[1:] or value.dtype != first.dtype:
                raise FieldError(
                    f"field {name!r} of sample {position} has rows of shape "
                    f"{tuple(value.shape[1:])} and dtype {value.dtype}, samples before it "
                    f"{tuple(first.shape[1:])} and {first.dtype}"
                    f"{shape_hint(tuple(value.shape[1:]), tuple(first.shape[1:]))}"
                )
        else:
            shape = (part.num_rows(role.level), *first.shape[1:])
            value = first.new_full(shape, fill_value(first.dtype))
        values.append(value)
    return torch.cat(values)
