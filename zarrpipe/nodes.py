"""Nodes for `torchdata.nodes` that read stores, to be composed with those of torchdata.

A pipeline takes batches of indices from a sampler and reads them: ``SamplerNode -> LookAhead ->
Reader``, or ``SamplerNode -> WorkerReader`` for transforms that compute.
`torchdata.nodes.Loader` iterates over it, and saves and loads its state. The state of these nodes
is a position in the epoch, which means the same on any number of ranks.
"""

import threading
from collections import deque
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from torchdata.nodes import BaseNode

from zarrpipe.data.batch import Batch
from zarrpipe.data.validate import check_count
from zarrpipe.dataset.zarr_dataset import ZarrDataset
from zarrpipe.errors import ArgumentTypeError
from zarrpipe.training.epoch.batch_plan import BatchIndices
from zarrpipe.training.sampler import GraphBatchSampler
from zarrpipe.training.workers.pool import Workers

__all__ = [
    "BatchIndices",
    "BatchReader",
    "IndexNode",
    "LookAhead",
    "Reader",
    "SamplerNode",
    "WorkerReader",
]

_SOURCE = "source"


class IndexNode(BaseNode):  # type: ignore[misc]  # torchdata is not followed
    """Base of nodes that give `BatchIndices` and can return their state before their last items.

    A node that takes items ahead of time needs such a source, as its own state is the one before
    the items that it still holds.

    Attributes
    ----------
    ahead : int
        Samples of this rank that are worth fetching before they are read.
    """

    ahead = 0

    def state_before(self, count: int) -> dict[str, Any]:
        """State of this node as it was before it gave its last `count` items."""
        raise NotImplementedError(type(self))

    def get_state(self) -> dict[str, Any]:
        """State of this node now."""
        return self.state_before(0)


class SamplerNode(IndexNode):
    """The batches of a sampler's epoch, as indices.

    Each reset begins the next epoch, or the one that the sampler's ``set_epoch`` chose. The state
    is that of the sampler and of its dataset, on any number of ranks: an epoch goes on where it
    was, with the samples that it began with.

    Parameters
    ----------
    sampler : GraphBatchSampler
        Decides the batches.
    advance : bool
        Whether the sampler counts a batch as consumed when this node gives it. `GraphLoader` counts
        the batches that it hands out instead, has the state, and repeats an epoch that was left.

    Examples
    --------
    >>> from torchdata.nodes import Loader
    >>> from zarrpipe import GraphBatchSampler
    >>> loader = Loader(SamplerNode(GraphBatchSampler(range(5), batch_size=2, shuffle=False)))
    >>> [item.samples.tolist() for item in loader]
    [[0, 1], [2, 3], [4]]
    """

    def __init__(self, sampler: GraphBatchSampler, *, advance: bool = True) -> None:
        super().__init__()
        self.sampler, self._advance = sampler, advance
        self._states = sampler.states()
        self._known: dict[str, Any] = {}
        self._items: Iterator[BatchIndices] = iter(())
        self._taken = 0

    def reset(self, initial_state: Mapping[str, Any] | None = None) -> None:
        """Begin an epoch, or go on where a state was taken."""
        super().reset(initial_state)
        sampler, dataset = self.sampler, self.sampler.data
        stateful = isinstance(dataset, ZarrDataset)
        if initial_state is not None:
            if stateful:
                dataset.load_state_dict(initial_state)
            sampler.load_state_dict(initial_state)
        plan = sampler.start(repeat=not self._advance)
        self._states = sampler.states()
        self._known = dataset.state_dict() if stateful else {}
        self._items = plan.items(
            sampler.rank,
            draw=(sampler.epoch if sampler.shuffle else 0, sampler.seed),
            seed=_first_seed(sampler),
        )
        self._taken, self.ahead = 0, plan.ahead // plan.world_size

    def next(self) -> BatchIndices:
        """Indices of the next batch."""
        item = next(self._items)
        self._taken += 1
        if self._advance:
            self.sampler.advance()
        return item

    def state_before(self, count: int) -> dict[str, Any]:
        """State of the sampler, and of its dataset, before the last `count` batches."""
        if not self._advance:
            return {}  # the loader that counts has the state
        return {**self._states(self._taken - count), **self._known}


class LookAhead(IndexNode):
    """The batches of a source, announced to a dataset before they are read.

    Rows on a disk or far away are then fetched in the background, many batches in one call.

    Parameters
    ----------
    source : IndexNode
        Gives the batches.
    dataset : ZarrDataset
        Its `prefetch` is called with the samples that come.
    samples : int
        Samples to announce in one call, at least; more where the sampler shuffles larger blocks.
    """

    def __init__(self, source: IndexNode, dataset: ZarrDataset, samples: int = 1024) -> None:
        super().__init__()
        self.source, self._dataset = _index_node(source), dataset
        self._samples = check_count("samples", samples, 1)
        self._now: deque[BatchIndices] = deque()
        self._coming: deque[BatchIndices] = deque()

    def reset(self, initial_state: Mapping[str, Any] | None = None) -> None:
        """Reset the source; nothing is announced until the first batch is asked for."""
        super().reset(initial_state)
        self.source.reset(None if initial_state is None else initial_state[_SOURCE])
        self.ahead = self.source.ahead
        self._now, self._coming = deque(), deque()

    def __next__(self) -> BatchIndices:
        if self._now:  # most often, and without a look whether this node was reset
            return self._now.popleft()
        item: BatchIndices = super().__next__()
        return item

    def next(self) -> BatchIndices:
        """Indices of the next batch; those of the batches behind it are announced already."""
        self._now = self._coming or self._announced()
        self._coming = self._announced()
        if not self._now:
            raise StopIteration
        return self._now.popleft()

    def _announced(self) -> deque[BatchIndices]:
        """Take batches from the source and announce their samples."""
        group, count, least = deque[BatchIndices](), 0, max(self.ahead, self._samples)
        for item in self.source:
            group.append(item)
            count += len(item.samples)
            if count >= least:
                break
        if count:
            self._dataset.prefetch(np.concatenate([item.samples for item in group]))
        return group

    def state_before(self, count: int) -> dict[str, Any]:
        """State before the last `count` batches that were given, not those that are held."""
        held = len(self._now) + len(self._coming)
        return {_SOURCE: self.source.state_before(count + held)}


class BatchReader:
    """Reads the batch of some indices: the function for torchdata's `Mapper` and `ParallelMapper`.

    Threads (``ParallelMapper(..., method="thread")``) help transforms that release the interpreter
    lock. For other transforms use `WorkerReader`: torchdata's processes cost milliseconds a batch.

    Parameters
    ----------
    dataset : ZarrDataset
        Where the samples are; its transform is applied.
    """

    def __init__(self, dataset: ZarrDataset) -> None:
        self._dataset = dataset

    def __call__(self, indices: BatchIndices) -> Batch:
        """Batch of some indices."""
        try:
            return self._dataset.read(indices.samples, indices.copies, indices.draw)
        except BaseException as error:
            _check_thread(error)
            raise


def _check_thread(error: BaseException) -> None:
    """Turn an exit in a thread into RuntimeError: torchdata's reader would wait forever for it."""
    in_thread = threading.current_thread() is not threading.main_thread()
    if in_thread and not isinstance(error, Exception):
        raise RuntimeError(f"reading a batch in a thread raised {error!r}") from error


class Reader(BaseNode):  # type: ignore[misc]  # torchdata is not followed
    """Reads the batches of a source in this process, as `Mapper` does with a `BatchReader`.

    It takes a microsecond less of each batch.

    Parameters
    ----------
    source : BaseNode
        Gives `BatchIndices`.
    dataset : ZarrDataset
        Where the samples are; its transform is applied.
    """

    def __init__(self, source: BaseNode, dataset: ZarrDataset) -> None:
        super().__init__()
        self.source, self._dataset = source, dataset

    def reset(self, initial_state: Mapping[str, Any] | None = None) -> None:
        """Reset the source."""
        super().reset(initial_state)
        self.source.reset(None if initial_state is None else initial_state[_SOURCE])

    def next(self) -> Batch:
        """The next batch."""
        indices = next(self.source)
        try:
            return self._dataset.read(indices.samples, indices.copies, indices.draw)
        except BaseException as error:
            _check_thread(error)
            raise

    def get_state(self) -> dict[str, Any]:
        """State of the source."""
        return {_SOURCE: self.source.state_dict()}


class WorkerReader(BaseNode):  # type: ignore[misc]  # torchdata is not followed
    """Reads the batches of a source in worker processes, which hand them over in shared memory.

    Parameters
    ----------
    source : IndexNode
        Gives the indices of the batches.
    dataset : ZarrDataset
        Where the samples are. Each process gets a copy, with its transform.
    workers : int or Workers
        Number of processes, which start at the first batch; or those of an earlier node of this
        dataset.
    """

    def __init__(self, source: IndexNode, dataset: ZarrDataset, workers: "int | Workers") -> None:
        super().__init__()
        self.source, self._dataset = _index_node(source), dataset
        if not isinstance(workers, Workers):
            workers = Workers(check_count("workers", workers, 1))
        self._workers, self._given, self._taken = workers, 0, 0
        self._batches: Iterator[Batch] = iter(())

    def reset(self, initial_state: Mapping[str, Any] | None = None) -> None:
        """Reset the source; the workers are asked once the first batch is."""
        super().reset(initial_state)
        self.source.reset(None if initial_state is None else initial_state[_SOURCE])
        self._given = self._taken = 0
        self._batches = self._workers.read(self._dataset, self._items())

    def _items(self) -> Iterator[BatchIndices]:
        for item in self.source:
            self._taken += 1
            yield item

    def next(self) -> Batch:
        """The next batch, in the order of the source."""
        batch = next(self._batches)
        self._given += 1
        return batch

    def get_state(self) -> dict[str, Any]:
        """State of the source before the batches that are still to be given."""
        return {_SOURCE: self.source.state_before(self._taken - self._given)}

    def close(self) -> None:
        """End the processes; another iteration starts new ones."""
        self._workers.close()


def _index_node(source: Any) -> IndexNode:
    """Refuse a source that cannot give its state before its last items."""
    if not isinstance(source, IndexNode):
        raise ArgumentTypeError(
            f"source is a {type(source).__name__}, expected an IndexNode such as "
            "SamplerNode(GraphBatchSampler(...))"
        )
    return source


def _first_seed(sampler: GraphBatchSampler) -> int:
    """Seed of the next batch's global generators, by seed, epoch, rank and step."""
    key = np.random.SeedSequence([sampler.seed, sampler.epoch, sampler.rank])
    return int(key.generate_state(1, np.uint64)[0]) + sampler.step
