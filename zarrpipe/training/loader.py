"""A loader that Lightning leaves alone, resumes, and that reads in the process that trains.

Lightning replaces the samplers of a torch DataLoader when it trains on several devices. This is no
DataLoader, so it does not, and the sampler knows its rank itself. A gather from a store costs less
than handing a batch over from another process, so worker processes are for transforms that
compute (neighbour lists, augmentation).
"""

import contextlib
import copy
import itertools
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from typing import Any

import numpy as np

from zarrpipe.data.batch import Batch
from zarrpipe.dataset.zarr_dataset import ZarrDataset
from zarrpipe.errors import ArgumentError, ArgumentTypeError
from zarrpipe.training.epoch.plans import Plan
from zarrpipe.training.sampler import GraphBatchSampler
from zarrpipe.training.workers.pool import Workers
from zarrpipe.training.workers.prefetch import advised, read_ahead
from zarrpipe.transforms.compose import Transform


class GraphLoader:
    """The batches that a sampler decides, read from a dataset.

    Parameters
    ----------
    dataset : ZarrDataset
        Where the samples are.
    sampler : GraphBatchSampler
        Which of them make each batch; Lightning calls its ``set_epoch``.
    num_workers : int
        Worker processes, which run the dataset's transform; 0 reads in this one. They are started
        at the first batch, by forkserver (spawn where there is none), so a script needs
        ``if __name__ == "__main__":``, and live until `close`. There the global generators of
        torch, NumPy and Python are seeded for each batch, by the sampler's seed, the epoch, the
        rank and the step: a transform draws the same numbers with any number of workers.
    prefetch : int
        Batches that a thread reads ahead where there are no workers. It helps a loop that waits
        outside of Python (for a GPU), and costs one that does not.
    transform : callable, optional
        Called with each batch before the dataset's own. What random transforms draw for a sample
        follows from the sampler's seed and epoch and from the id of its structure alone; it is the
        same in every epoch where samples are not shuffled.

    Raises
    ------
    ValueError
        If `num_workers` or `prefetch` is negative, or workers are asked for to read what is
        resident in this process.
    """

    batch_sampler = None
    """Lightning asks for it in what has a sampler; None says that `sampler` decides."""

    def __init__(
        self,
        dataset: ZarrDataset,
        sampler: GraphBatchSampler,
        *,
        num_workers: int = 0,
        prefetch: int = 0,
        transform: Transform | None = None,
    ) -> None:
        for name, number in (("num_workers", num_workers), ("prefetch", prefetch)):
            if isinstance(number, bool) or not isinstance(number, int):
                raise ArgumentTypeError(f"{name} is {number!r}, expected an integer of 0 or more")
            if number < 0:
                raise ArgumentError(f"{name} is {number}, expected 0 or more")
        if num_workers and dataset is not None and dataset.resident is not None:
            raise ArgumentError(
                f"num_workers is {num_workers}, but the dataset is held on {dataset.resident} by "
                "this process alone: expected num_workers=0, or a dataset that is not resident"
            )
        if transform is not None:
            dataset.preceded_by(transform)  # which refuses what it cannot precede
        # Not named `dataset`: Lightning would rebuild whatever has that attribute to overfit.
        self._dataset, self._num_workers, self._prefetch = dataset, num_workers, prefetch
        self.sampler, self._transform = sampler, transform
        self._workers: Workers | None = None
        self.waited = 0.0
        """Seconds in which whoever iterates has waited for batches, over all epochs."""
        self.unfinished: Callable[[], int] = int
        """Gives how many of the batches that were handed out a state does not count."""

    def __len__(self) -> int:
        """Number of batches of this rank in the epoch, those before a resume included."""
        return len(self.sampler)

    def __iter__(self) -> Iterator[Batch]:
        # A generator: Lightning calls iter() before it has said which epoch comes.
        plan = self.sampler.start()
        with contextlib.closing(self._read(plan)) as batches:
            while (batch := self._next(batches)) is not None:
                self.sampler.advance()
                yield batch

    def _next(self, batches: Iterator[Batch]) -> Batch | None:
        begun = time.perf_counter()
        batch = next(batches, None)
        self.waited += time.perf_counter() - begun
        return batch

    def _read(self, plan: Plan) -> Generator[Batch, None, None]:
        rank, dataset = self.sampler.rank, self._dataset
        if self._transform is not None:
            dataset = dataset.preceded_by(self._transform)
        batches, copies = plan.batches(rank), plan.copies_of(rank) if dataset.random else None
        if self._num_workers:
            if self._workers is None or self._workers.closed:
                self._workers = Workers(dataset, self._num_workers)
            state, draw = dataset.state_dict(), self._draw()
            return self._workers.read(state, self._seed(), batches, copies, draw)
        if dataset.random:
            dataset = copy.copy(dataset)
            dataset.set_epoch(*self._draw())
        told = advised(batches, dataset.prefetch, plan.ahead // plan.world_size)
        read = map(dataset.read, told, itertools.repeat(None) if copies is None else copies)
        return read_ahead(read, self._prefetch) if self._prefetch else (batch for batch in read)

    def _draw(self) -> tuple[int, int]:
        """Epoch and seed of what random transforms draw."""
        state = self.sampler.state_dict()
        return (state["epoch"] if self.sampler.shuffle else 0), state["seed"]

    def _seed(self) -> int:
        """Seed of the next batch: a function of the settings, the epoch, the step and the rank."""
        state = self.sampler.state_dict()
        known = np.random.SeedSequence([state["seed"], state["epoch"], self.sampler.rank])
        return int(known.generate_state(1, np.uint64)[0]) + int(state["step"])

    def close(self) -> None:
        """End the workers; another iteration starts new ones."""
        if self._workers is not None:
            self._workers.close()
        self._workers = None

    def state_dict(self) -> dict[str, Any]:
        """Position after the batches that were handed out, as plain types, equal on all ranks."""
        return {**self.sampler.state_dict(self.unfinished()), **self._dataset.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state_dict` was taken: the next iteration gives the rest of the epoch.

        Raises
        ------
        ValueError
            If the stores or the sampler are not those of the state.
        """
        self._dataset.load_state_dict(state)
        self.sampler.load_state_dict(state)
