"""The sampler: batches of sample indices for every rank, with an exact, rank-free position.

An epoch is one order of all samples, a pure function of seed, epoch and number of samples, cut into
steps of one batch a rank. What was consumed is a prefix of that order on any number of ranks, so a
position in it is all that a run on other ranks needs to go on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sized
from functools import cache
from typing import Any

import numpy as np

from zarrpipe.data.csr import Int64Array
from zarrpipe.data.validate import check_count, check_flag
from zarrpipe.dataset.blocks import Blocks
from zarrpipe.errors import ArgumentError, ArgumentTypeError
from zarrpipe.training import ranks as _ranks
from zarrpipe.training.epoch.batch_plan import IndexArray, Plan, compact_index
from zarrpipe.training.epoch.epoch import Epoch, EpochConfig
from zarrpipe.training.epoch.mixing import Mixture, Weights
from zarrpipe.training.epoch.packing import Budgets


class GraphBatchSampler:
    """Batches of sample indices: each sample once an epoch, as many batches on every rank.

    It is a ``batch_sampler`` for torch's DataLoader and the sampler of `GraphLoader`. An epoch
    keeps the samples that it began with; samples that arrive meanwhile wait for the next epoch.

    With `weights` or `samples_per_epoch`, epochs are drawn: a sample with the expected count c
    comes floor(c) or ceil(c) times, and the total is exact. The draw depends only on the seed, the
    epoch, its samples and their weights.

    Parameters
    ----------
    data : sized
        The dataset, or anything that has one entry for each sample; budgets of atoms and edges
        and `balance` ask it for ``num_atoms`` and ``num_edges`` [N].
    batch_size : int, optional
        Number of samples in a batch; with a budget, an upper limit.
    max_atoms, max_edges : int, optional
        Budgets: the most atoms and edges in a batch. Each epoch packs its samples anew to fill
        them, and gives neighbouring batches a similar cost, so that ranks have equal work in each
        step. Without `shuffle`, a batch is the next samples that fit.
    balance : bool
        Whether to pack batches of `batch_size` with nearly equal numbers of atoms.
    shuffle : bool
        Whether each epoch has its own order; otherwise samples come in the order of the indices.
    seed : int
        Non-negative; with the epoch it decides the order.
    index : array [n] of int, optional
        Indices to sample from, for example a split; by default all of `data`.
    blocks : callable, optional
        Gives the blocks in which the first n samples are shuffled, for data that are read through
        a cache, as `ZarrDataset.blocks` does; `index` is ascending then. By default all orders are
        equally likely.
    weights : sequence of float, mapping or str, optional
        A sequence has the share of the epoch of each store of a `ZarrDataset`. A mapping such as
        ``{"round": {0: 0.2, 1: 0.8}}`` has the shares by the value of a field at system level;
        the key ``"other"`` is for all values without a share of their own, and for samples that
        lack the field. A name is that of a field at system level whose value is the weight
        of its sample. All are relative to their sum. The share of values without a sample goes to
        the others.
    samples_per_epoch : int, optional
        Samples of an epoch that is drawn, over all ranks; by default as many as there are.
    rank, world_size : int, optional
        By default those of torch.distributed when batches are needed.

    Raises
    ------
    ValueError
        If an argument is out of its range, a sample is larger than a budget, or the weights do
        not fit the data: a sample's is negative or absent, or its value has no share.

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
        weights: Weights | None = None,
        samples_per_epoch: int | None = None,
        rank: int | None = None,
        world_size: int | None = None,
    ) -> None:
        self.seed = check_count("seed", seed, 0)
        if (rank is None) != (world_size is None):
            raise ArgumentError(f"rank is {rank} and world_size {world_size}: give both or neither")
        if rank is not None and world_size is not None and not 0 <= rank < world_size:
            raise ArgumentError(f"rank is {rank}, expected 0 to {world_size - 1}")
        self.balance = check_flag("balance", balance)
        self.shuffle = check_flag("shuffle", shuffle)
        self._config = EpochConfig(
            data=data,
            budgets=Budgets.of(batch_size, max_atoms, max_edges),
            packed=self.balance or max_atoms is not None or max_edges is not None,
            shuffle=self.shuffle,
            blocks=blocks,
            mixture=Mixture.of(weights, samples_per_epoch),
        )
        self._rank, self._world_size = rank, world_size
        self._next_index = None if index is None else _checked_index(index, data)
        self._plan: Plan | None = None
        self._resuming = False
        self._set: int | None = None  # the epoch that `set_epoch` went to last
        self._begin(0)
        self._now.check()  # raises before training

    @property
    def data(self) -> Any:
        """The data that are sampled."""
        return self._config.data

    @property
    def batch_size(self) -> int | None:
        """Most samples of a batch."""
        return self._config.budgets.samples

    @property
    def max_atoms(self) -> int | None:
        """Most atoms of a batch."""
        return self._config.budgets.atoms

    @property
    def max_edges(self) -> int | None:
        """Most edges of a batch."""
        return self._config.budgets.edges

    @property
    def rank(self) -> int:
        """The rank whose batches are given."""
        if self._rank is not None:
            return self._rank
        return _ranks.rank()

    @property
    def world_size(self) -> int:
        """The number of ranks that share each epoch."""
        if self._world_size is not None:
            return self._world_size
        return _ranks.world_size()

    @property
    def epoch(self) -> int:
        """The epoch that is under way, or that comes next where none has begun."""
        return self._now.number

    @property
    def step(self) -> int:
        """Number of steps of the epoch that were taken, on any ranks."""
        return self._begun[1] + self._taken

    @property
    def _position(self) -> int:
        """Number of samples of the epoch that were consumed, over all ranks."""
        return self._begun[0] + (0 if self._plan is None else self._plan.consumed(self._taken))

    @property
    def num_samples(self) -> int:
        """Number of samples in the epoch, over all ranks; one that comes twice counts twice."""
        return self._now.total

    def resample(self, index: Any) -> None:
        """Sample from other indices from the next epoch on.

        An index that only grows at its end keeps every state that was saved before valid.

        Raises
        ------
        TypeError, ValueError
            If they are no integers, or there are no such samples.
        """
        self._next_index = _checked_index(index, self._config.data)

    def set_epoch(self, epoch: int) -> None:
        """Go to the start of an epoch; a position that was loaded for that epoch is kept.

        A loader that is iterated over again and again in one epoch of a trainer, as Lightning's
        ``CombinedLoader("max_size_cycle")`` does, goes on to its own epochs meanwhile. A position
        in those was loaded for the epoch that was set last.
        """
        if self._resuming and epoch == (self._now.number if self._set is None else self._set):
            return
        self._resuming, self._set = False, int(epoch)
        self._begin(self._set)

    def plan(self) -> Plan:
        """The batches of all ranks from the position on."""
        return self._now.plan(self._position, self.world_size)

    def last_batch(self) -> Int64Array:
        """Indices [K] int64 of this rank's samples in the last step that was taken; empty before.

        They are places in the sampler's data.
        """
        state = self.state_dict(unfinished=1)
        plan = self._now.plan(state["position"], self.world_size)
        return (
            next(plan.batches(self.rank), np.zeros(0, np.int64))
            if self._taken
            else np.zeros(0, np.int64)
        )

    def start(self, *, repeat: bool = True) -> Plan:
        """Begin to iterate, and give the plan of what comes.

        That is the rest of an epoch after `load_state_dict`, and the next epoch after a complete
        one. An epoch that was left early is repeated, or without `repeat` the next one begins.
        Call `advance` for each step that is consumed.
        """
        complete = self._position == self._now.total
        if self.step and (complete or not self._resuming):
            self._begin(self._now.number + (complete or not repeat))
        self._resuming = False
        self._begun, self._taken = (self._position, self.step), 0
        self._plan = self._now.plan(self._begun[0], self.world_size)
        return self._plan

    def advance(self) -> None:
        """Count one more step of the plan that `start` gave as consumed."""
        if self._plan is None:
            raise RuntimeError("advance() counts the steps of a plan: call start() first")
        self._taken += 1

    def state_dict(self, unfinished: int = 0) -> dict[str, Any]:
        """State from which another run, on any number of ranks, goes on; the same on every rank.

        The last steps that were taken since `start` come again, as many as are `unfinished`.
        """
        return self.states()(max(0, self._taken - unfinished))

    def states(self) -> Callable[[int], dict[str, Any]]:
        """Gives a function of the steps taken of the plan: the state then.

        What happens to the sampler later does not change it.
        """
        epoch, plan, (position, step) = cache(self._now.state_dict), self._plan, self._begun
        fixed = {"shuffle": int(self.shuffle), **self._settings()}
        fixed["set_epoch"] = self._now.number if self._set is None else self._set

        def state_after(taken: int) -> dict[str, Any]:
            consumed = 0 if plan is None else plan.consumed(taken)
            return {**epoch(), **fixed, "step": step + taken, "position": position + consumed}

        return state_after

    def _settings(self) -> dict[str, Any]:
        """Settings of packing and drawing; 0 is no limit."""
        names = ("batch_size", "max_atoms", "max_edges", "balance")
        packed, mixture = self._config.packed, self._config.mixture
        packing = {name: int(getattr(self, name) or 0) if packed else 0 for name in names}
        return packing if mixture is None else {**packing, **mixture.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state_dict` was taken: the next iteration gives the rest of the epoch.

        Samples that came later than the state wait for the next epoch. Of the state of a complete
        epoch only its number counts, so the next one may be of other samples and settings.

        Raises
        ------
        ValueError
            If there are fewer samples than the state counts, or it is of other settings.
        """
        count, available = int(state["num_samples"]), self._available()
        position = int(state["position"])
        if position == (int(state.get("samples_per_epoch", 0)) or count):
            epoch = self._epoch_of(min(count, available), int(state["seed"]), int(state["epoch"]))
            position = epoch.total
        else:
            if count > available:
                raise ArgumentError(
                    f"the state is of an epoch of {count} samples, here are {available}: give the "
                    "data and the split that it was saved with"
                )
            self._check_settings(state)
            epoch = self._epoch_of(count, int(state["seed"]), int(state["epoch"]))
            epoch.check_state(state)
        self.seed, self._now = epoch.seed, epoch
        self._begun, self._taken = (position, int(state["step"])), 0
        self._resuming, self._plan = True, None
        self._set = int(state["set_epoch"]) if "set_epoch" in state else None

    def _check_settings(self, state: Mapping[str, Any]) -> None:
        """Refuse the state of a sampler with other settings."""
        if bool(state["shuffle"]) is not self.shuffle:
            raise ArgumentError(
                f"the state has shuffle={bool(state['shuffle'])}, the sampler {self.shuffle}: "
                "the position in one order says nothing about the other"
            )
        settings = {**dict.fromkeys(Mixture.state_names, 0), **self._settings()}
        for name, here in settings.items():
            if state.get(name, 0) != here:
                raise ArgumentError(
                    f"the state is of batches with {name}={state.get(name, 0)} and here it is "
                    f"{here} (0 is none): the position in one order says nothing about another"
                )

    def _begin(self, number: int) -> None:
        """Go to the start of an epoch of all samples that are known now."""
        self._now = self._epoch_of(self._available(), self.seed, number)
        self._begun, self._taken = (0, 0), 0
        self._plan = None

    def _epoch_of(self, count: int, seed: int, number: int) -> Epoch:
        return Epoch(self._config, self._next_index, count, seed, number)

    def _available(self) -> int:
        """Number of samples that are known now."""
        return len(self._config.data if self._next_index is None else self._next_index)

    def __len__(self) -> int:
        """Number of steps of the epoch, those already consumed (on any ranks) included."""
        return self.step + self._now.steps(self._position, self.world_size)

    def __iter__(self) -> Iterator[Int64Array]:
        plan = self.start()
        for batch in plan.batches(self.rank):
            self.advance()
            yield batch


def _checked_index(index: Any, data: Sized) -> IndexArray:
    """Indices [n] of samples of data, in 32 bits if they fit."""
    values = np.asarray(index)
    if values.ndim != 1 or (values.size and values.dtype.kind not in "iu"):
        way_out = "; np.flatnonzero(mask) has those of a mask" if values.dtype == np.bool_ else ""
        raise ArgumentTypeError(
            f"index has shape {values.shape} and dtype {values.dtype}, expected [n] int{way_out}"
        )
    if values.size and not 0 <= values.min() <= values.max() < len(data):
        raise ArgumentError(
            f"index has {values.min()} to {values.max()}, expected indices of {len(data)} samples, "
            f"0 to {len(data) - 1}"
        )
    return compact_index(values)
