"""The loader of a data module: nodes of torchdata and ours, and an exact position and length.

Lightning replaces the samplers of a torch DataLoader when it trains on several devices. This is no
DataLoader, so it does not, and the sampler knows its rank itself. A gather from a store costs less
than handing a batch over from another process, so worker processes are for transforms that
compute (neighbour lists, augmentation).
"""

import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torchdata.nodes import BaseNode, Loader, Prefetcher

from zarrpipe.data.batch import Batch
from zarrpipe.data.validate import check_count
from zarrpipe.dataset.zarr_dataset import ZarrDataset
from zarrpipe.errors import ArgumentError
from zarrpipe.nodes import LookAhead, Reader, SamplerNode, WorkerReader
from zarrpipe.training.flow import Flow
from zarrpipe.training.sampler import GraphBatchSampler
from zarrpipe.training.workers.pool import Workers
from zarrpipe.transforms.compose import Transform


class GraphLoader(Loader):  # type: ignore[misc]  # torchdata is not followed
    """The batches that a sampler decides, read from a dataset by the nodes of `zarrpipe.nodes`.

    It adds to torchdata's loader an exact length, a sampler whose ``set_epoch`` Lightning calls, a
    state that means the same on any number of ranks, and threads that end with an iteration that
    is left early.

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
        Batches that torchdata's `Prefetcher` reads ahead in a thread where there are no workers. It
        helps a loop that waits outside of Python (for a GPU), and costs one that does not.
    transform : callable, optional
        Called with each batch before the dataset's own. What random transforms draw for a sample
        follows from the sampler's seed and epoch and from the id of its structure alone; it is the
        same in every epoch where samples are not shuffled.
    convert : callable, optional
        Called in this process with each batch; what it returns is handed out in its place, such as
        the batch of another library. `sampler.set_epoch` and the state work as without it.

    Raises
    ------
    ValueError
        If `num_workers` or `prefetch` is negative, or there are workers and the dataset is
        resident in this process.
    """

    batch_sampler = None
    """Lightning reads it from a loader that has a sampler; None says that `sampler` decides."""

    def __init__(
        self,
        dataset: ZarrDataset,
        sampler: GraphBatchSampler,
        *,
        num_workers: int = 0,
        prefetch: int = 0,
        transform: Transform | None = None,
        convert: Callable[[Batch], Any] | None = None,
    ) -> None:
        super().__init__(root=None)
        self._num_workers = num_workers = check_count("num_workers", num_workers, 0)
        self._prefetch = check_count("prefetch", prefetch, 0)
        if num_workers and dataset.resident is not None:
            raise ArgumentError(
                f"num_workers is {num_workers}, but the dataset is held on {dataset.resident} by "
                "this process alone: expected num_workers=0, or a dataset that is not resident"
            )
        if transform is not None:
            dataset.preceded_by(transform)  # which refuses what it cannot precede
        # Not named `dataset`: Lightning would rebuild whatever has that attribute to overfit.
        self._dataset, self._transform, self.sampler = dataset, transform, sampler
        self._convert = convert
        self._workers = Workers(num_workers) if num_workers else None
        self.flow = Flow()
        """Batches that were handed out, over all epochs, and the seconds that were waited for them;
        `seconds` stays 0, and the batches are counted only where `counting` is set."""
        self.counting = False
        """Whether batches are counted, for which the tensors of all their fields are made."""
        self.unfinished: Callable[[], int] = int
        """Returns the number of handed-out batches that a state does not count."""

    @property
    def waited(self) -> float:
        """Seconds that iterations have waited for batches, over all epochs."""
        return self.flow.waited

    def __len__(self) -> int:
        """Number of batches of this rank in the epoch, those before a resume included."""
        return len(self.sampler)

    def __iter__(self) -> Iterator[Any]:
        # A generator: Lightning calls iter() before it has said which epoch comes.
        nodes = self.root = self._nodes()
        clock = time.perf_counter
        begun = clock()
        try:
            nodes.reset()
            while True:
                batch = nodes.next()  # not next(nodes), which looks whether they were reset
                if self.counting:
                    self.flow.add(batch)
                if self._convert is not None:
                    batch = self._convert(batch)
                self.flow.waited += clock() - begun
                self.sampler.advance()
                yield batch
                begun = clock()
        except StopIteration:
            self.flow.waited += clock() - begun
        finally:
            if self.root is nodes:
                self.root = None  # torchdata's threads end with the last reference to their node

    def _nodes(self) -> BaseNode:
        """Nodes of one iteration; they begin when the first batch is asked for."""
        dataset = self._dataset
        if self._transform is not None:
            dataset = dataset.preceded_by(self._transform)
        indices = SamplerNode(self.sampler, advance=False)
        if self._workers is not None:
            return WorkerReader(indices, dataset, self._workers)
        batches = Reader(LookAhead(indices, dataset), dataset)
        # No snapshots: the sampler counts what was handed out.
        return Prefetcher(batches, self._prefetch, 0) if self._prefetch else batches

    def close(self) -> None:
        """End the workers; another iteration starts new ones."""
        if self._workers is not None:
            self._workers.close()

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
