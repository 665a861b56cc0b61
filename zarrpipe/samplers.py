"""Which samples make which batch, for every rank, decided as data before anything is read.

An epoch is one order of all samples, a pure function of (seed, epoch, number of samples), cut into
steps. Each step takes the next run of the order and cuts it into one batch for each rank. So
what was consumed is always a prefix of the order, whatever the number of ranks, and a
position in it says all that another run, on more ranks or fewer, needs to go on.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch.distributed as dist

from zarrpipe._blocks import Blocks, block_order
from zarrpipe._budgets import Budgets
from zarrpipe._packing import pack, pack_in_order, shared
from zarrpipe._plans import (
    IndexArray,
    Plan,
    compact_index,
    cut,
    epoch_order,
    first_indices,
    steps_of,
)
from zarrpipe.data.csr import Int64Array
from zarrpipe.errors import ArgumentError


class GraphBatchSampler:
    """Batches of sample indices: each sample once an epoch, the same number for every rank.

    It works as ``batch_sampler`` of torch's DataLoader and as the sampler of our own loader.
    An epoch keeps the samples that it began with. Those that `data` or `resample` bring appear
    in the next one.

    Parameters
    ----------
    data : sized
        The dataset, or anything that has one entry for each sample; budgets of atoms and edges
        and `balance` ask it for ``num_atoms`` and ``num_edges`` [N].
    batch_size : int, optional
        Samples in a batch; beside the budgets, the most that it may have.
    max_atoms, max_edges : int, optional
        Most atoms and edges of a batch. With either, samples are put together anew in each epoch
        so that batches fill the budgets, and follow each other by their cost within some hundred
        batches, so that all ranks have as much to do at each step. Without `shuffle` a batch is
        the next samples that fit.
    balance : bool
        Whether samples are put together so without budgets too: batches of `batch_size` with
        nearly the same number of atoms.
    shuffle : bool
        Whether each epoch has an order of its own; otherwise it is that of the indices.
    seed : int
        Non-negative; with the epoch it decides the order.
    index : array [n] of int, optional
        Indices to sample from, for example a split; by default all of `data`.
    blocks : callable, optional
        Gives how the first n samples are shuffled near each other, for data that are read through
        a cache, as `ZarrDataset.blocks` does; `index` is ascending then. By default every order of
        all samples is as likely.
    rank, world_size : int, optional
        By default torch.distributed is asked, once batches are needed.

    Raises
    ------
    ValueError
        If an argument is out of its range, or a sample is larger than a budget.

    Examples
    --------
    >>> sampler = GraphBatchSampler(range(5), batch_size=2, shuffle=False)
    >>> [batch.tolist() for batch in sampler], len(sampler)
    ([[0, 1], [2, 3], [4]], 3)
    """

    def __init__(
        self,
        data: Any,
        batch_size: int | None = None,
        *,
        max_atoms: int | None = None,
        max_edges: int | None = None,
        balance: bool = False,
        shuffle: bool = True,
        seed: int = 0,
        index: Any = None,
        blocks: Callable[[int], Blocks] | None = None,
        rank: int | None = None,
        world_size: int | None = None,
    ) -> None:
        self._budgets = Budgets.of(batch_size, max_atoms, max_edges)
        self._packed = bool(balance) or max_atoms is not None or max_edges is not None
        if seed < 0:
            raise ArgumentError(f"seed is {seed}, expected a non-negative integer")
        if (rank is None) != (world_size is None):
            raise ArgumentError(f"rank is {rank} and world_size {world_size}: give both or neither")
        if rank is not None and world_size is not None and not 0 <= rank < world_size:
            raise ArgumentError(f"rank is {rank}, expected 0 to {world_size - 1}")
        self.balance, self.shuffle, self.seed = bool(balance), bool(shuffle), int(seed)
        self._data, self._rank, self._world_size = data, rank, world_size
        self._blocks = blocks
        self._next_index = None if index is None else compact_index(np.asarray(index))
        self._epoch, self._resuming = 0, False
        self._plan: Plan | None = None
        self._known_blocks: Blocks | None = None
        self._known_batches: tuple[IndexArray, Int64Array] | None = None
        self._origin = (0, 0)
        self._reset()
        if self._packed:
            self._budgets.costs(
                data, self._samples()
            )  # a sample that no batch can hold is known now

    @property
    def batch_size(self) -> int | None:
        """Most samples of a batch."""
        return self._budgets.samples

    @property
    def max_atoms(self) -> int | None:
        """Most atoms of a batch."""
        return self._budgets.atoms

    @property
    def max_edges(self) -> int | None:
        """Most edges of a batch."""
        return self._budgets.edges

    @property
    def rank(self) -> int:
        """The rank whose batches are given."""
        if self._rank is not None:
            return self._rank
        return dist.get_rank() if _distributed() else 0

    @property
    def world_size(self) -> int:
        """The number of ranks that share each epoch."""
        if self._world_size is not None:
            return self._world_size
        return dist.get_world_size() if _distributed() else 1

    @property
    def epoch(self) -> int:
        """The epoch that is under way, or that comes next where none has begun."""
        return self._epoch

    @property
    def num_samples(self) -> int:
        """Number of samples in the epoch, over all ranks."""
        return self._num_samples

    def resample(self, index: Any) -> None:
        """Sample from other indices from the next epoch on.

        An index that only grows at its end keeps every state that was saved before valid.
        """
        self._next_index = compact_index(np.asarray(index))

    def set_epoch(self, epoch: int) -> None:
        """Go to the start of an epoch; a position that was loaded for that epoch is kept."""
        if self._resuming and epoch == self._epoch:
            return
        self._epoch, self._resuming = int(epoch), False
        self._reset()

    def plan(self) -> Plan:
        """The batches of all ranks from the position on."""
        blocks = self._block_plan()
        if self._packed:
            order, bounds = self._batches()[0][self._position :], self._shared()
        else:
            order = self._order()[self._position :]
            bounds = cut(len(order), self._budgets.samples or 1, self.world_size)
        return Plan(order, bounds, self.world_size, 0 if blocks is None else blocks.samples)

    def _order(self) -> IndexArray:
        """Samples of the epoch in the order of the indices, or shuffled."""
        order = self._samples()
        blocks = self._block_plan()
        if blocks is not None:
            return order[block_order(self.seed, self._epoch, *blocks)]
        return epoch_order(self.seed, self._epoch, order) if self.shuffle else order

    def _samples(self) -> IndexArray:
        """Samples of the epoch in the order of the indices."""
        count = self._num_samples
        return first_indices(count) if self._index is None else self._index[:count]

    def _batches(self) -> tuple[IndexArray, Int64Array]:
        """All samples of the epoch, put together, and the bounds of their batches."""
        if self._known_batches is None:
            order = self._order()
            costs = self._budgets.costs(self._data, order)
            if self.shuffle:
                places, bounds = pack(costs)
                self._known_batches = order[places], bounds
            else:
                self._known_batches = order, pack_in_order(costs)
        return self._known_batches

    def _shared(self) -> Int64Array:
        """Bounds of the batches that are left, counted from the position."""
        _, bounds = self._batches()
        left = bounds[np.searchsorted(bounds, self._position, side="right") :] - self._position
        return shared(np.append(0, left), self.world_size)

    def _block_plan(self) -> Blocks | None:
        """Blocks of the positions in the epoch's samples; None where there are none."""
        if self._blocks is None or not self.shuffle or not self._num_samples:
            return None
        if self._known_blocks is None and self._index is None:
            self._known_blocks = self._blocks(self._num_samples)
        elif self._known_blocks is None and self._index is not None:
            index = self._index[: self._num_samples]
            bounds, group = self._blocks(int(index[-1]) + 1)
            self._known_blocks = Blocks(np.searchsorted(index, bounds).astype(np.int64), group)
        return self._known_blocks

    def start(self) -> Plan:
        """Begin to iterate, and give the plan of what comes.

        That is the rest of an epoch after `load_state_dict`, the next epoch after a complete one,
        and otherwise the epoch from its start. Call `advance` for each step that is consumed.
        """
        complete = self._position == self._num_samples
        if self._step and (complete or not self._resuming):
            self._epoch += complete
            self._reset()
        self._resuming = False
        self._plan = self.plan()
        self._origin = (self._position, self._step)
        return self._plan

    def advance(self) -> None:
        """Count one more step of the plan that `start` gave as consumed."""
        if self._plan is None:
            raise RuntimeError("advance() counts the steps of a plan: call start() first")
        position, step = self._origin
        self._step += 1
        self._position = position + self._plan.consumed(self._step - step)

    def state_dict(self) -> dict[str, int]:
        """What another run, on any number of ranks, needs to go on; the same on every rank."""
        return {
            "seed": self.seed,
            "shuffle": int(self.shuffle),
            "epoch": self._epoch,
            "step": self._step,
            "position": self._position,
            "num_samples": self._num_samples,
            "group": self._group(),
            **self._packing(),
        }

    def _packing(self) -> dict[str, int]:
        """What decides how samples are put together; 0 is no limit."""
        names = ("batch_size", "max_atoms", "max_edges", "balance")
        return {name: int(getattr(self, name) or 0) if self._packed else 0 for name in names}

    def _group(self) -> int:
        """Blocks that are shuffled together; 0 where samples are not shuffled in blocks."""
        blocks = self._block_plan()
        return 0 if blocks is None else blocks.group

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Go on where `state_dict` was taken: the next iteration gives the rest of the epoch.

        Samples that came later than the state wait for the next epoch.

        Raises
        ------
        ValueError
            If there are fewer samples than the state counts, or only one of the two is shuffled.
        """
        count = int(state["num_samples"])
        self._index = self._next_index
        available = len(self._data if self._index is None else self._index)
        if count > available:
            raise ArgumentError(
                f"the state is of an epoch of {count} samples, here are {available}: give the "
                "data and the split that it was saved with"
            )
        if bool(state["shuffle"]) is not self.shuffle:
            raise ArgumentError(
                f"the state has shuffle={bool(state['shuffle'])}, the sampler {self.shuffle}: "
                "the position in one order says nothing about the other"
            )
        for name, here in self._packing().items():
            if state.get(name, 0) != here:
                raise ArgumentError(
                    f"the state is of batches with {name}={state.get(name, 0)} and here it is "
                    f"{here} (0 is none): the position in one order says nothing about another"
                )
        self._num_samples, self._known_blocks, self._known_batches = count, None, None
        if self._group() != state.get("group", 0):
            raise ArgumentError(
                f"the state is of an order shuffled in groups of {state.get('group', 0)} blocks, "
                f"here they have {self._group()} (0 is none): give the cache_bytes, the fields and "
                "the stores that it was saved with"
            )
        self.seed, self._epoch = int(state["seed"]), int(state["epoch"])
        self._step, self._position = int(state["step"]), int(state["position"])
        self._resuming, self._plan = True, None

    def _reset(self) -> None:
        """Stand at the start of the epoch, with the samples that there are now."""
        self._index = self._next_index
        self._num_samples = len(self._data if self._index is None else self._index)
        self._position = self._step = 0
        self._plan = self._known_blocks = self._known_batches = None

    def __len__(self) -> int:
        """Number of steps of the epoch, those already consumed (on any ranks) included."""
        if self._packed:
            return self._step + (len(self._shared()) - 1) // self.world_size
        rest = self._num_samples - self._position
        whole, _, tail_steps = steps_of(rest, self._budgets.samples or 1, self.world_size)
        return self._step + whole + tail_steps

    def __iter__(self) -> Iterator[Int64Array]:
        plan = self.start()
        for batch in plan.batches(self.rank):
            self.advance()
            yield batch


def _distributed() -> bool:
    return dist.is_available() and dist.is_initialized()
