"""One epoch: its samples, their copies, order and batches."""

import hashlib
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from zarrpipe.data.csr import Int64Array
from zarrpipe.dataset.blocks import Blocks, block_order
from zarrpipe.errors import ArgumentError
from zarrpipe.training.epoch.batch_plan import (
    IndexArray,
    Plan,
    cut,
    epoch_order,
    first_indices,
    steps_of,
)
from zarrpipe.training.epoch.mixing import Mixture
from zarrpipe.training.epoch.packing import Budgets, deal_steps, pack, pack_in_order, shared
from zarrpipe.training.epoch.weighted_draws import copies_in

_BLOCK = 1 << 20


@dataclass(frozen=True)
class EpochConfig:
    """Settings of all epochs of a sampler.

    `packed` fills batches up to the budgets, `shuffle` gives each epoch its own order, and `blocks`
    returns the blocks in which the first n samples of `data` are shuffled. Without a `mixture` each
    sample comes once.
    """

    data: Any
    budgets: Budgets
    packed: bool
    shuffle: bool
    blocks: Callable[[int], Blocks] | None
    mixture: Mixture | None


class Epoch:
    """One epoch, a pure function of its arguments and of the sizes and fields of the data.

    It has the first `count` samples of `index` [n], by default of all; `seed` and `number` decide
    the order and the draw.
    """

    def __init__(
        self, config: EpochConfig, index: IndexArray | None, count: int, seed: int, number: int
    ) -> None:
        self._config, self._index = config, index
        self.count, self.seed, self.number = count, seed, number

    @property
    def total(self) -> int:
        """Number of samples, counting each copy."""
        mixture = self._config.mixture
        return self.count if mixture is None else mixture.total(self.count)

    def check(self) -> None:
        """Refuse weights that do not fit the data, and samples larger than a budget."""
        if self._config.mixture is not None:
            _ = self._samples
        elif self._config.packed:
            self._config.budgets.costs(self._config.data, self._samples)

    def state_dict(self) -> dict[str, int]:
        """The epoch as plain types."""
        return {
            "seed": self.seed,
            "epoch": self.number,
            "num_samples": self.count,
            "index": self._index_digest,
            "group": self._group,
            "blocks": self._blocks_checksum,
        }

    def check_state(self, state: Mapping[str, Any]) -> None:
        """Refuse the state of an epoch of other samples or blocks."""
        if self._index_digest != state.get("index", self._index_digest):
            raise ArgumentError(
                "the state is of other samples: give the data, the split and the where that it was "
                "saved with"
            )
        if self._group != state.get("group", 0):
            raise ArgumentError(
                f"the state is of an order shuffled in groups of {state.get('group', 0)} blocks, "
                f"here they have {self._group} (0 is none): give the cache_bytes, the fields and "
                "the stores that it was saved with"
            )
        if self._blocks_checksum != state.get("blocks", self._blocks_checksum):
            raise ArgumentError(
                "the state is of an order shuffled in other blocks than there are here: give the "
                "fields and the stores that it was saved with"
            )

    def plan(self, position: int, world_size: int) -> Plan:
        """The batches of all ranks from a position on."""
        blocks = self._blocks
        if self._config.packed:
            order, copies, _ = self._batches
            bounds = self._shared(position, world_size)
        else:
            order, copies = self._order()
            rest = self.total - position
            bounds = cut(rest, self._config.budgets.samples or 1, world_size)
        self.__dict__.pop("_samples", None)  # frees its memory
        plan = Plan(
            order=order[position:],
            bounds=bounds,
            world_size=world_size,
            ahead=0 if blocks is None else blocks.samples,
            copies=None if copies is None else copies[position:],
        )
        return self._levelled(plan) if self._config.packed and self._config.shuffle else plan

    def _levelled(self, plan: Plan) -> Plan:
        """Plan whose last one or two steps are dealt to the ranks evenly, if a batch had to be cut.

        Consumed samples stay a prefix of the same order, and a step depends only on what is left,
        so the plan is the same wherever it starts.
        """
        world_size, canonical = plan.world_size, self._batches[-1]
        first = len(self._batches[0]) - len(plan.order)
        last = plan.bounds[-world_size - 1 :] + first
        if np.array_equal(canonical[np.searchsorted(canonical, last)], last):
            return plan
        for steps in range(min(2, len(plan)), 0, -1):
            start = int(plan.bounds[-steps * world_size - 1])
            # The last step has at most one batch a rank; a rest of more would be two steps.
            latest = int(canonical[max(0, len(canonical) - 1 - world_size)]) - first - start
            costs = self._config.budgets.costs(self._config.data, plan.order[start:])
            found = deal_steps(costs, steps, world_size, latest)
            if found is not None:
                return plan.with_tail(start, *found)
        return plan

    def steps(self, position: int, world_size: int) -> int:
        """Number of steps from a position on."""
        if self._config.packed:
            return (len(self._shared(position, world_size)) - 1) // world_size
        rest = self.total - position
        whole, _, tail_steps = steps_of(rest, self._config.budgets.samples or 1, world_size)
        return whole + tail_steps

    @cached_property
    def _samples(self) -> IndexArray:
        """Samples in the order of the indices, with copies."""
        count, mixture = self.count, self._config.mixture
        samples = first_indices(count) if self._index is None else self._index[:count]
        if mixture is None or not count:
            return samples
        expected = mixture.expected(self._config.data, samples)
        if self._config.packed:  # also refuses samples that this epoch does not draw
            self._config.budgets.costs(self._config.data, samples[expected.counts > 0])
        return samples.repeat(mixture.counts(expected, self.seed, self.number))

    def _order(self) -> tuple[IndexArray, IndexArray | None]:
        """Samples in the order of the epoch, and which copy each is."""
        samples, blocks = self._samples, self._blocks
        copies = None if self._config.mixture is None else copies_in(samples)
        if blocks is not None:
            places: IndexArray = block_order(self.seed, self.number, *blocks)
        elif not self._config.shuffle:
            return samples, copies
        elif copies is None:
            return epoch_order(self.seed, self.number, samples), None
        else:
            places = epoch_order(self.seed, self.number, len(samples))
        return samples[places], None if copies is None else copies[places]

    @cached_property
    def _batches(self) -> tuple[IndexArray, IndexArray | None, Int64Array]:
        """All samples, packed, which copy each is, and the bounds of their batches."""
        order, copies = self._order()
        costs = self._config.budgets.costs(self._config.data, order)
        if not self._config.shuffle:
            return order, copies, pack_in_order(costs)
        places, bounds = pack(costs)
        return order[places], None if copies is None else copies[places], bounds

    def _shared(self, position: int, world_size: int) -> Int64Array:
        """Bounds of the remaining batches, relative to the position."""
        *_, bounds = self._batches
        left = bounds[np.searchsorted(bounds, position, side="right") :] - position
        return shared(np.append(0, left), world_size)

    @cached_property
    def _data_blocks(self) -> Blocks | None:
        """Blocks of the data's indices, if samples are shuffled in blocks."""
        if self._config.blocks is None or not self._config.shuffle or not self.count:
            return None
        index = self._index
        return self._config.blocks(self.count if index is None else int(index[self.count - 1]) + 1)

    @cached_property
    def _blocks(self) -> Blocks | None:
        """Blocks of the positions in the epoch, if samples are shuffled in blocks."""
        if self._data_blocks is None or (self._index is None and self._config.mixture is None):
            return self._data_blocks
        bounds, group = self._data_blocks
        return Blocks(np.searchsorted(self._samples, bounds).astype(np.int64), group)

    @property
    def _group(self) -> int:
        """Number of blocks that are shuffled together, or 0."""
        return 0 if self._data_blocks is None else self._data_blocks.group

    @property
    def _blocks_checksum(self) -> int:
        """Checksum of the blocks, or 0."""
        return 0 if self._data_blocks is None else zlib.crc32(self._data_blocks.bounds.tobytes())

    @cached_property
    def _index_digest(self) -> int:
        """Digest of the indices, below 2**63; 0 if they are 0, 1, 2 and so on."""
        index = None if self._index is None else self._index[: self.count]
        if index is None or _are_first(index):
            return 0
        digest = hashlib.blake2b(digest_size=8)
        for start in range(0, self.count, _BLOCK):
            some = np.ascontiguousarray(index[start : start + _BLOCK], dtype="<i8")
            digest.update(some.data)
        return int.from_bytes(digest.digest()) >> 1


def _are_first(index: IndexArray) -> bool:
    """Whether an index is 0, 1, 2 and so on."""
    for start in range(0, len(index), _BLOCK):
        some = index[start : start + _BLOCK]
        if not np.array_equal(some, np.arange(start, start + len(some))):
            return False
    return True
