"""`measure`: read a store as training does, cold and warm, with workers and with a model."""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from zarr.storage import MemoryStore

from zarrpipe.data.csr import Int64Array
from zarrpipe.data.validate import check_count, check_flag
from zarrpipe.dataset.zarr_dataset import ZarrDataset
from zarrpipe.errors import ArgumentError, StoreEmptyError
from zarrpipe.store.backend.location import Root, StoreLike
from zarrpipe.store.read.page_cache import cold_bytes
from zarrpipe.training.flow import Flow
from zarrpipe.training.loader import GraphLoader
from zarrpipe.training.sampler import GraphBatchSampler
from zarrpipe.training.throughput import COLD, WARM, Reading, Throughput
from zarrpipe.training.workers.pool import start_context

_MOST_LEFT = 0.02
"""Share of a store that may stay in memory where it counts as cold."""


def measure(
    store: StoreLike,
    *,
    batch_size: int = 32,
    num_workers: int = 2,
    step_ms: float = 10.0,
    busy: bool = False,
    seconds: float = 20.0,
    repeats: int = 3,
    seed: int = 0,
) -> Throughput:
    """Measure how fast shuffled batches of a store come, and how long a model waits for them.

    The store is read by the loader of `ZarrDataModule`, in this process and with workers. Cold
    readings begin after the pages of its files were dropped from the page cache, each in a process
    of its own; where that is not possible, a note says why. They read a part of the store; warm
    readings read the same part again, without a model and with one. Each batch is read with the
    tensors of all its fields. A script needs ``if __name__ == "__main__":``, as with workers.

    Parameters
    ----------
    store : StoreLike
        The store. One that is not local is cold where nothing was fetched from it yet.
    batch_size : int
        Samples of a batch.
    num_workers : int
        Worker processes of the second loader; 0 measures this process alone.
    step_ms : float
        Time that the model takes after each batch, in ms.
    busy : bool
        Whether the model computes on the CPU (products of matrices) for that time; by default
        it sleeps, as a process that waits for its GPU.
    seconds : float
        Time of all readings together; the start of processes comes on top.
    repeats : int
        How often each reading is repeated, in turn with the others.
    seed : int
        Seed of the order of the samples.

    Returns
    -------
    Throughput
        The rates; the least, the median and the most of the repeats.

    Raises
    ------
    StoreNotFoundError
        If there is no store.
    StoreEmptyError
        If it has no samples.
    ValueError
        If a number is out of its range.

    Examples
    --------
    >>> import zarrpipe as zp
    >>> store = {}
    >>> with zp.ZarrData(store) as sink:
    ...     sink.write([zp.AtomicData([[0.0, 0.0, 0.0]], [8])] * 64)
    >>> found = measure(store, num_workers=0, step_ms=1.0, seconds=0.2)
    >>> [(one.pages, one.workers, one.step_ms) for one in found.readings]
    [('warm', 0, 0.0), ('warm', 0, 1.0)]
    """
    check_count("batch_size", batch_size, 1)
    check_count("repeats", repeats, 1)
    check_flag("busy", busy)
    workers = [0, num_workers] if check_count("num_workers", num_workers, 0) else [0]
    for name, value in (("step_ms", step_ms), ("seconds", seconds)):
        if not value > 0:
            raise ArgumentError(f"{name} is {value}, expected more than 0")
    begun, root = time.perf_counter(), Root.of(store)
    length = seconds / (repeats * (2 * len(workers) + 1) + len(workers))
    step = _step(step_ms / 1e3, busy=busy)
    bench = _Bench(store, batch_size, seed, repeats, length)
    dataset = ZarrDataset(store)
    count = len(dataset)
    if not count:
        raise StoreEmptyError(f"{root} has no samples to read: write some first")
    bench.run(bench.loader(dataset), length=0.0)  # compiles, and imports what is missing
    del dataset
    cold, note = bench.cold(root)
    readings = [Reading.of(COLD, 0, 0.0, cold)] if cold else []
    dataset = ZarrDataset(store)
    known = cold[-1] if cold else bench.run(bench.loader(dataset), most_epochs=1)
    part = bench.part(dataset, known.batches)
    for (number, model), flows in bench.warm(dataset, part, workers, step).items():
        readings.append(Reading.of(WARM, number, step_ms if model else 0.0, flows))
    taken, notes = time.perf_counter() - begun, (note,) if note else ()
    facts = (str(root), count, len(part), batch_size, seed, step_ms, taken)
    return Throughput(*facts, tuple(readings), notes)


@dataclass(frozen=True)
class _Bench:
    """What all readings have in common; each repeat takes `length` seconds."""

    store: StoreLike
    batch_size: int
    seed: int
    repeats: int
    length: float

    def loader(
        self, dataset: ZarrDataset, index: Int64Array | None = None, workers: int = 0
    ) -> GraphLoader:
        """Loader of some samples, shuffled as a data module does."""
        blocks = dataset.blocks if dataset.exceeds_cache else None
        sampler = GraphBatchSampler(
            dataset, self.batch_size, seed=self.seed, index=index, blocks=blocks
        )
        return GraphLoader(dataset, sampler, num_workers=workers)

    def part(self, dataset: ZarrDataset, batches: int) -> Int64Array:
        """Samples of the first batches, ascending."""
        plan = self.loader(dataset).sampler.plan()
        first = [*itertools.islice(plan.batches(0), batches)]
        return np.unique(np.concatenate(first)).astype(np.int64)

    def run(
        self,
        loader: GraphLoader,
        step: Callable[[], object] | None = None,
        *,
        length: float | None = None,
        most_epochs: int | None = None,
    ) -> Flow:
        """Read from the beginning of an epoch on, for a time or a number of epochs.

        All time but that of the model's steps counts as waiting.
        """
        flow, most, clock = Flow(), self.length if length is None else length, time.perf_counter
        loader.sampler.set_epoch(0)
        stepped, begun = 0.0, clock()
        for epoch in itertools.count(1):
            for batch in loader:
                flow.add(batch)  # which makes the tensors of all fields
                if step is not None:
                    at = clock()
                    step()
                    stepped += clock() - at
                flow.seconds = clock() - begun
                if flow.seconds > most:
                    break
            if flow.seconds > most or epoch == most_epochs:
                break
        flow.waited = flow.seconds - stepped
        return flow

    def warm(
        self,
        dataset: ZarrDataset,
        part: Int64Array,
        workers: Sequence[int],
        step: Callable[[], object],
    ) -> dict[tuple[int, bool], list[Flow]]:
        """Read what is in memory, by workers and with a model or without, in turn."""
        loaders = {count: self.loader(dataset, part, count) for count in workers}
        flows: dict[tuple[int, bool], list[Flow]] = {
            (count, model): [] for count in workers for model in (False, True)
        }
        try:
            for loader in loaders.values():  # starts workers, and fills caches
                self.run(loader, most_epochs=1)
            for _ in range(self.repeats):
                for (count, model), some in flows.items():
                    some.append(self.run(loaders[count], step if model else None))
        finally:
            for loader in loaders.values():
                loader.close()
        return flows

    def cold(self, root: Root) -> tuple[list[Flow], str]:
        """Read with nothing in memory, or say why that cannot be done.

        A file is read by a new process each time, since pages that are mapped cannot be dropped.
        """
        flows: list[Flow] = []
        if isinstance(root.path.store, MemoryStore):
            return flows, "cold: not measured, since the store is in memory"
        if root.directory is None:
            flows += [self.opened() for _ in range(self.repeats)]
            return flows, "cold: nothing was held here; what the other side holds is not known"
        if not hasattr(os, "posix_fadvise"):
            return flows, "cold: not measured, since this system cannot drop pages of files"
        for _ in range(self.repeats):
            left = drop_pages(root.directory)
            if left > _MOST_LEFT:
                return flows, (
                    f"cold: measured {len(flows)} times, since {left:.0%} of the store stayed in "
                    "memory: another process has it mapped, or its file system is in memory"
                )
            with ProcessPoolExecutor(1, mp_context=start_context()) as pool:
                flows.append(pool.submit(self.opened).result())
        return flows, ""

    def opened(self) -> Flow:
        """Open the store anew and read at most one epoch."""
        return self.run(self.loader(ZarrDataset(self.store)), most_epochs=1)


def _step(seconds: float, *, busy: bool) -> Callable[[], object]:
    """A model's step: a wait, or products of matrices on the CPU."""
    if not busy:
        return lambda: time.sleep(seconds)
    matrix = torch.ones(256, 256)

    def compute() -> None:
        end = time.perf_counter() + seconds
        while time.perf_counter() < end:
            matrix @ matrix

    return compute


def drop_pages(directory: Path) -> float:
    """Drop the files of a directory from the page cache; return the share that is still there."""
    left = whole = 0
    for path in (path for path in directory.rglob("*") if path.is_file() and path.stat().st_size):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)  # dirty pages stay
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)
        mapped = np.memmap(path, np.uint8, "r")
        whole += mapped.nbytes
        left += max(0, mapped.nbytes - cold_bytes(mapped))
    return left / whole if whole else 0.0
