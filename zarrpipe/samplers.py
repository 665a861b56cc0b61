"""Which samples make which batch, for every rank, decided as data before anything is read.

An epoch is one order of all samples, a pure function of (seed, epoch, number of samples), cut into
steps. Each step takes the next run of the order and cuts it into one batch for each rank. So
what was consumed is always a prefix of the order, whatever the number of ranks, and a
position in it says all that another run, on more ranks or fewer, needs to go on.
"""

from collections.abc import Callable, Iterator, Mapping, Sized
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch.distributed as dist

from zarrpipe._blocks import Blocks, block_order
from zarrpipe.data.csr import Int64Array, pointers
from zarrpipe.errors import ArgumentError, ArgumentTypeError

_MOST_OF_32_BITS = 1 << 31

IndexArray = npt.NDArray[np.signedinteger[Any]]
"""Indices, in 32 bits where they fit."""


@dataclass(frozen=True)
class Plan:
    """The batches of an epoch, or of what is left of one, for all ranks.

    Parameters
    ----------
    order : array [n] int32 or int64
        Indices of the samples, in the order in which they are consumed.
    bounds : array [steps * world_size + 1] int64
        Batch b is ``order[bounds[b]:bounds[b + 1]]``; rank r has every world_size-th from r on.
    world_size : int
        Number of ranks.
    ahead : int
        Samples, over all ranks, that are worth fetching before they are needed.
    """

    order: IndexArray
    bounds: Int64Array
    world_size: int
    ahead: int = 0

    def __len__(self) -> int:
        """Number of steps, which is the number of batches of each rank."""
        return (len(self.bounds) - 1) // self.world_size

    def batches(self, rank: int) -> Iterator[Int64Array]:
        """Indices [K] int64 of the samples of each batch of one rank."""
        starts = self.bounds[rank : -1 : self.world_size].tolist()
        stops = self.bounds[rank + 1 :: self.world_size].tolist()
        return (
            self.order[start:stop].astype(np.int64)
            for start, stop in zip(starts, stops, strict=True)
        )

    def consumed(self, steps: int) -> int:
        """Number of samples in the first `steps` steps, over all ranks."""
        return int(self.bounds[steps * self.world_size])


def cut(count: int, batch_size: int, world_size: int) -> Int64Array:
    """Bounds [steps * world_size + 1] of batches that hold each of `count` samples once.

    Every rank gets the same number of batches and none is empty. All hold `batch_size` samples
    but those of the last step (of the last two where the last has fewer samples than there are
    ranks), which share theirs evenly. With a batch size of 1 and a count that does not divide
    by the ranks, some batches of the last step hold two.

    Raises
    ------
    ValueError
        If there are samples, but fewer than ranks.

    Examples
    --------
    >>> cut(10, batch_size=2, world_size=2).tolist()
    [0, 2, 4, 6, 8, 9, 10]
    >>> cut(3, batch_size=8, world_size=1).tolist()
    [0, 3]
    """
    whole, tail, tail_steps = _steps(count, batch_size, world_size)
    sizes = np.full((whole + tail_steps) * world_size, batch_size, dtype=np.int64)
    shares = tail_steps * world_size
    if shares:
        sizes[-shares:] = tail // shares
        sizes[-shares:][: tail % shares] += 1
    return pointers(sizes)


def _steps(count: int, batch_size: int, world_size: int) -> tuple[int, int, int]:
    """Number of whole steps, of samples after them, and of steps that share these evenly."""
    whole, tail = divmod(count, batch_size * world_size)
    if tail == 0:
        return whole, 0, 0
    if tail >= world_size:
        return whole, tail, 1
    if whole == 0:
        raise ArgumentError(
            f"{count} samples cannot give each of {world_size} ranks a batch without repeats: "
            "use at most as many ranks as samples, or add samples"
        )
    return whole - 1, tail + batch_size * world_size, 2 if batch_size > 1 else 1


def epoch_order(seed: int, epoch: int, index: int | IndexArray) -> IndexArray:
    """Order of indices [n], or of the first n integers, that belongs to a seed and an epoch.

    Examples
    --------
    >>> epoch_order(0, 0, 5).tolist(), epoch_order(0, 0, np.array([7, 8, 9, 5, 6])).tolist()
    ([2, 4, 3, 0, 1], [9, 6, 5, 7, 8])
    """
    generator = np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, epoch])))
    order = first_indices(index) if isinstance(index, int) else index.copy()
    generator.shuffle(order)
    return order


def first_indices(count: int) -> IndexArray:
    """Integers from 0 to count - 1, in 32 bits if they fit, since an epoch may be long."""
    return np.arange(count, dtype=index_dtype(count))


def index_dtype(count: int) -> np.dtype[Any]:
    """The smaller of two dtypes that holds integers from 0 to count - 1."""
    return np.dtype(np.int32 if count <= _MOST_OF_32_BITS else np.int64)


def compact_index(index: npt.NDArray[Any]) -> IndexArray:
    """The same indices in 32 bits if they fit."""
    count = int(index.max()) + 1 if len(index) else 0
    compact: IndexArray = index.astype(index_dtype(count), copy=False)
    return compact


class GraphBatchSampler:
    """Batches of sample indices: each sample once an epoch, the same number for every rank.

    It works as ``batch_sampler`` of torch's DataLoader and as the sampler of our own loader.
    An epoch keeps the samples that it began with. Those that `data` or `resample` bring appear
    in the next one.

    Parameters
    ----------
    data : sized
        The dataset, or anything that has one entry for each sample.
    batch_size : int
        Samples in a batch.
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
        If an argument is out of its range.

    Examples
    --------
    >>> sampler = GraphBatchSampler(range(5), batch_size=2, shuffle=False)
    >>> [batch.tolist() for batch in sampler], len(sampler)
    ([[0, 1], [2, 3], [4]], 3)
    """

    def __init__(
        self,
        data: Sized,
        batch_size: int,
        *,
        shuffle: bool = True,
        seed: int = 0,
        index: Any = None,
        blocks: Callable[[int], Blocks] | None = None,
        rank: int | None = None,
        world_size: int | None = None,
    ) -> None:
        if isinstance(batch_size, bool) or not isinstance(batch_size, int | np.integer):
            raise ArgumentTypeError(
                f"batch_size is {batch_size!r}, expected an integer of at least 1"
            )
        if batch_size < 1:
            raise ArgumentError(f"batch_size is {batch_size}, expected at least 1")
        if seed < 0:
            raise ArgumentError(f"seed is {seed}, expected a non-negative integer")
        if (rank is None) != (world_size is None):
            raise ArgumentError(f"rank is {rank} and world_size {world_size}: give both or neither")
        if rank is not None and world_size is not None and not 0 <= rank < world_size:
            raise ArgumentError(f"rank is {rank}, expected 0 to {world_size - 1}")
        self.batch_size, self.shuffle, self.seed = int(batch_size), bool(shuffle), int(seed)
        self._data, self._rank, self._world_size = data, rank, world_size
        self._blocks = blocks
        self._next_index = None if index is None else compact_index(np.asarray(index))
        self._epoch, self._resuming = 0, False
        self._plan: Plan | None = None
        self._known_blocks: Blocks | None = None
        self._origin = (0, 0)
        self._reset()

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
        count = self._num_samples
        order = first_indices(count) if self._index is None else self._index[:count]
        blocks, ahead = self._block_plan(), 0
        if blocks is not None:
            order = order[block_order(self.seed, self._epoch, *blocks)]
            ahead = blocks.samples
        elif self.shuffle:
            order = epoch_order(self.seed, self._epoch, order)
        order = order[self._position :]
        bounds = cut(len(order), self.batch_size, self.world_size)
        return Plan(order, bounds, self.world_size, ahead)

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
        }

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
        self._num_samples, self._known_blocks = count, None
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
        self._plan = self._known_blocks = None

    def __len__(self) -> int:
        """Number of steps of the epoch, those already consumed (on any ranks) included."""
        rest = self._num_samples - self._position
        whole, _, tail_steps = _steps(rest, self.batch_size, self.world_size)
        return self._step + whole + tail_steps

    def __iter__(self) -> Iterator[Int64Array]:
        plan = self.start()
        for batch in plan.batches(self.rank):
            self.advance()
            yield batch


def _distributed() -> bool:
    return dist.is_available() and dist.is_initialized()
