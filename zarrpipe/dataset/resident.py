"""All samples of a dataset as tensors on one device, where one gather makes a batch.

Pointers and presence are kept in NumPy, so that the host never waits for a GPU: a batch sends one
small array of row numbers there, and nothing comes back.
"""

import threading
from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np
import torch

from zarrpipe.data.batch import Batch
from zarrpipe.data.categories import translated, united_vocabulary
from zarrpipe.data.collate import fill_value, shift_rows, zero_absent
from zarrpipe.data.csr import AnyArray, Int64Array, pointers, tensor_segment_rows
from zarrpipe.data.fields import Role
from zarrpipe.data.levels import Level, pointer_levels
from zarrpipe.dataset.stores import Stores
from zarrpipe.errors import ArgumentError

_BLOCK = 8192
_GROWTH = 1.25


class Resident:
    """Samples on a device, in the order in which they were added."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.order: Stores | None = None  # what the samples are the first of
        self._lock = threading.Lock()
        self._ptr = {level: np.zeros(1, dtype=np.int64) for level in pointer_levels(())}
        self._tensors: dict[str, torch.Tensor] = {}
        self._roles: dict[str, Role] = {}
        self._present: dict[str, AnyArray] = {}

    def __reduce__(self) -> tuple[type["Resident"], tuple[torch.device]]:
        return Resident, (self.device,)

    def __len__(self) -> int:
        return len(self._ptr[Level.ATOM]) - 1

    def follow(
        self,
        stores: Stores,
        totals: Callable[[], Mapping[Level, int]],
        read: Callable[[Int64Array], Batch],
    ) -> bool:
        """Add missing samples; return False if the stores no longer begin with those held.

        `totals` returns the final number of rows of each level, and `read` the batch at positions.
        """
        with self._lock:
            count, common = len(stores), min(len(stores), len(self))
            if self.order is not None and not stores.begin_as(self.order, common):
                return False
            if common < count:
                self.order, expected = stores, totals()
                for start in range(len(self), count, _BLOCK):
                    self._add(read(np.arange(start, min(start + _BLOCK, count))), expected)
        return True

    def gather(self, samples: Int64Array) -> Batch:
        """Batch of samples [K] on the device; raises IndexError if one does not exist."""
        with self._lock:
            held, tensors, has_field = self._ptr, dict(self._tensors), self._present
        count = len(held[Level.ATOM]) - 1
        if len(samples) and not 0 <= samples.min() <= samples.max() < count:
            raise IndexError(f"samples {samples.min()} to {samples.max()} of {count}")
        starts = {level: ptr[samples] for level, ptr in held.items()}
        ptr = {level: pointers(held[level][samples + 1] - start) for level, start in starts.items()}
        total = {level: int(ends[-1]) for level, ends in ptr.items()}
        chosen, *sent = self._sent(samples, *starts.values(), *ptr.values())
        begins = dict(zip(ptr, sent, strict=False))
        ends = dict(zip(ptr, sent[len(ptr) :], strict=True))
        rows = {
            level: tensor_segment_rows(begins[level], ends[level], total[level]) for level in ptr
        }
        fields = {
            name: value.index_select(0, rows.get(self._roles[name].level, chosen))
            for name, value in tensors.items()
        }
        present = {
            name: self._sent(has[samples])[0]
            for name, has in has_field.items()
            if not has[samples].all()
        }
        for name, role in self._roles.items():
            if role.index_of is not None:
                shift, level = ends[role.index_of][:-1] - begins[role.index_of], role.level
                per_sample = ends[level].diff() if level in ends else torch.ones_like(chosen)
                rows_of = per_sample, total.get(level, len(samples))
                shift_rows(fields[name], shift, *rows_of)
                zero_absent(fields[name], present.get(name), *rows_of)
        return Batch._trusted(fields, self._roles.copy(), ends, present)

    def _sent(self, *arrays: AnyArray) -> list[torch.Tensor]:
        """Arrays of one dtype on the device, in one asynchronous copy."""
        packed = torch.from_numpy(np.concatenate(arrays))
        if self.device.type == "cuda":
            packed = packed.pin_memory().to(self.device, non_blocking=True)
        return list(torch.split(packed, [len(array) for array in arrays]))

    def _add(self, batch: Batch, totals: Mapping[Level, int]) -> None:
        """Append a batch, with room for the expected totals."""
        held, pointers_of = len(self), dict(self._ptr)
        for level in batch.pointer_levels:  # the samples so far have no rows of a new level
            pointers_of.setdefault(level, np.zeros(held + 1, dtype=np.int64))
        first = {level: int(ptr[-1]) for level, ptr in pointers_of.items()}
        present = {}
        for name, given in batch.to(self.device).fields.items():
            role, rows = self._in_one_vocabulary(name, batch.roles[name], given)
            self._roles[name] = role
            rows = rows if role.index_of is None else rows + first[role.index_of]
            start = first.get(role.level, held)
            self._put(name, rows, start, totals.get(role.level, totals[Level.SYSTEM]))
            known = self._present.get(name, np.zeros(held, dtype=bool))
            present[name] = np.concatenate([known, batch.present(name).numpy()])
        # Last, so that samples whose fields are not all there do not count as held.
        self._present = present
        self._ptr = {
            level: np.concatenate([ptr, ptr[-1] + batch.rows_per_graph(level).cumsum(0).numpy()])
            for level, ptr in pointers_of.items()
        }

    def _in_one_vocabulary(
        self, name: str, role: Role, value: torch.Tensor
    ) -> tuple[Role, torch.Tensor]:
        """Role and new values of a field; strings held and new ones get one vocabulary."""
        held = self._roles.get(name)
        if held is None or role.categories is None or held.categories is None:
            return role, value
        strings = united_vocabulary(name, (held.categories, role.categories))
        return replace(role, categories=strings), translated(value, role.categories, strings)

    def _put(self, name: str, rows: torch.Tensor, start: int, total: int) -> None:
        stop, tensor = start + len(rows), self._tensors.get(name)
        if tensor is None or len(tensor) < stop:
            room = max(stop, total, 0 if tensor is None else int(len(tensor) * _GROWTH))
            larger = rows.new_empty((room, *rows.shape[1:]))
            larger[:start] = fill_value(rows.dtype) if tensor is None else tensor[:start]
            self._tensors[name] = tensor = larger
        tensor[start:stop] = rows


def device_named(name: str | torch.device) -> torch.device:
    """Device of a name; raises ValueError if torch does not know it or cannot use it here."""
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError, TypeError) as error:
        raise ArgumentError(
            f"resident={name!r} is no device that torch has here, expected 'cpu', 'cuda' or "
            f"another that it can use ({str(error).splitlines()[0]})"
        ) from error
