"""A loader that Lightning leaves alone, resumes, and that reads in the process that trains.

Lightning replaces the samplers of a torch DataLoader when it trains on several devices. This is no
DataLoader, so it does not, and the sampler knows its rank itself. A gather from a store costs less
than handing a batch over from another process, so worker processes are for transforms that
compute (neighbour lists, augmentation). They hand back NumPy arrays, which cost a fraction of
tensors on the way, and batches are wrapped here.
"""

import multiprocessing
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader

from zarrpipe.data.batch import Batch
from zarrpipe.data.csr import AnyArray, Int64Array
from zarrpipe.data.fields import Level
from zarrpipe.dataset import ZarrDataset
from zarrpipe.samplers import GraphBatchSampler, Plan

Packed = tuple[dict[str, AnyArray], dict[str, Level], AnyArray, AnyArray, dict[str, AnyArray]]
Request = tuple[dict[str, Any], Int64Array]


class GraphLoader:
    """The batches that a sampler decides, read from a dataset.

    Parameters
    ----------
    dataset : ZarrDataset
        Where the samples are.
    sampler : GraphBatchSampler
        Which of them make each batch; Lightning calls its ``set_epoch``.
    num_workers : int
        Worker processes; 0 reads in this one. They are started at the first batch, by forkserver
        (spawn where there is none), so a script needs ``if __name__ == "__main__":``.

    Raises
    ------
    ValueError
        If `num_workers` is negative.
    """

    batch_sampler = None
    """Lightning asks for it in what has a sampler; None says that `sampler` decides."""

    def __init__(
        self, dataset: ZarrDataset, sampler: GraphBatchSampler, *, num_workers: int = 0
    ) -> None:
        if isinstance(num_workers, bool) or not isinstance(num_workers, int):
            raise TypeError(f"num_workers is {num_workers!r}, expected an integer of 0 or more")
        if num_workers < 0:
            raise ValueError(f"num_workers is {num_workers}, expected 0 or more")
        # Not named `dataset`: Lightning would rebuild whatever has that attribute to overfit.
        self._dataset, self._num_workers = dataset, num_workers
        self.sampler = sampler
        self._workers: _Workers | None = None

    def __len__(self) -> int:
        """Number of batches of this rank in the epoch, those before a resume included."""
        return len(self.sampler)

    def __iter__(self) -> Iterator[Batch]:
        # A generator: Lightning calls iter() before it has said which epoch comes.
        plan = self.sampler.start()
        for batch in self._read(plan):
            self.sampler.advance()
            yield batch

    def _read(self, plan: Plan) -> Iterator[Batch]:
        if self._num_workers == 0:
            return map(self._dataset.__getitems__, plan.batches(self.sampler.rank))
        if self._workers is None:
            self._workers = _Workers(self._dataset, self._num_workers)
        return self._workers.read(self._dataset.state_dict(), plan.batches(self.sampler.rank))

    def close(self) -> None:
        """End the workers; another iteration starts new ones."""
        self._workers = None

    def state_dict(self) -> dict[str, Any]:
        """Position after the batches that were handed out, as plain types, equal on all ranks."""
        return {**self.sampler.state_dict(), **self._dataset.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state_dict` was taken: the next iteration gives the rest of the epoch.

        Raises
        ------
        ValueError
            If the stores or the sampler are not those of the state.
        """
        self._dataset.load_state_dict(state)
        self.sampler.load_state_dict(state)


class _Workers:
    """Processes that read what they are told, batch by batch and in order."""

    def __init__(self, dataset: ZarrDataset, num_workers: int) -> None:
        methods = multiprocessing.get_all_start_methods()
        # An object of its own: workers of a loader that is part of a cycle are slow to end.
        self._requests = _Requests()
        self._loader: DataLoader[Packed] = DataLoader(
            _Remote(dataset),  # type: ignore[arg-type]
            batch_sampler=self._requests,  # type: ignore[arg-type]
            num_workers=num_workers,
            collate_fn=_as_it_is,
            multiprocessing_context="forkserver" if "forkserver" in methods else "spawn",
            persistent_workers=True,
            # Its own generator, so that the random numbers of a model do not depend on workers.
            generator=torch.Generator(),
        )

    def read(self, state: dict[str, Any], batches: Iterator[Int64Array]) -> Iterator[Batch]:
        """Batches at the given indices, which mean what `state` says."""
        self._requests.batches = ((state, index) for index in batches)
        return map(_unpack, self._loader)


class _Requests:
    """What the workers are to read in the iteration that begins."""

    batches: Iterator[Request] = iter(())

    def __iter__(self) -> Iterator[Request]:
        return self.batches


class _Remote:
    """The dataset in a worker: it follows the growth of the one in the main process."""

    def __init__(self, dataset: ZarrDataset) -> None:
        self._dataset = dataset

    def __getitems__(self, request: Request) -> Packed:
        state, index = request
        self._dataset.load_state_dict(state)
        return _pack(self._dataset.__getitems__(index))


def _as_it_is(packed: Any) -> Any:
    return packed


def _pack(batch: Batch) -> Packed:
    return (
        {name: value.numpy() for name, value in batch.fields.items()},
        dict(batch.levels),
        batch.batch_ptr.numpy(),
        batch.edge_ptr.numpy(),
        {name: batch.present(name).numpy() for name in batch.partly_present},
    )


def _unpack(packed: Packed) -> Batch:
    fields, levels, batch_ptr, edge_ptr, present = packed
    return Batch._trusted(
        {name: _tensor(value) for name, value in fields.items()},
        levels,
        _tensor(batch_ptr),
        _tensor(edge_ptr),
        {name: _tensor(mask) for name, mask in present.items()},
    )


def _tensor(values: AnyArray) -> torch.Tensor:
    return torch.from_numpy(values if values.flags.writeable else np.array(values))
