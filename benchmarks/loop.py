"""Loop: what the way from the gather to a training loop costs, without workers and with two."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import zarrpipe as zp
from benchmarks.engines.ours import ENGINES, STORE
from benchmarks.keeping import kept_samples, samples_of
from benchmarks.machine import every_core, on_cores
from benchmarks.rows import Row
from benchmarks.settings import Settings
from benchmarks.timing import Task, in_turn, speed_ratio
from zarrpipe.training.loader import GraphLoader

SUITE = "loop"
WORKERS = 2
DRAWN = 16_384
"""Samples of an epoch with workers."""


def run(settings: Settings) -> list[Row]:
    """Samples/s of an epoch through loaders."""
    rows = []
    for name in settings.data:
        if name == "edges":
            continue
        samples = samples_of(settings, name)
        store = kept_samples(settings, name, ENGINES[0], samples) / STORE
        for size in settings.batch_sizes:
            rows += _without_workers(settings, store, f"{name}, batches of {size}", size)
    if "molecules" in settings.data:
        samples = samples_of(settings, "molecules")
        store = kept_samples(settings, "molecules", ENGINES[0], samples) / STORE
        with on_cores(None if settings.core is None else every_core()):
            rows += _with_workers(settings, store, settings.batch_sizes[0])
    return rows


def no_change(batch: zp.Batch) -> zp.Batch:
    """A transform that does nothing, so that only the way of a batch is measured."""
    return batch


def _without_workers(settings: Settings, store: Path, case: str, size: int) -> list[Row]:
    """The train loader of the data module against the bare gather of the same batches."""
    module = zp.ZarrDataModule(store, batch_size=size, seed=settings.seed)
    module.setup("fit")
    loader = module.train_dataloader()
    plan = list(loader.sampler.plan().batches(0))
    dataset = module.dataset

    def bare() -> Iterable[Any]:
        return map(dataset.__getitems__, plan)

    tasks = [_task("bare gather", bare), _task("train loader, no workers", lambda: loader)]
    rows = _rows(settings, tasks, f"{case}, without workers", sum(map(len, plan)), "bare gather")
    module.teardown("fit")
    return rows


def _with_workers(settings: Settings, store: Path, size: int) -> list[Row]:
    """Two workers with a transform that does nothing, against none, on every core."""
    import torch  # noqa: PLC0415  this function alone needs its loader

    dataset = zp.ZarrDataset(store, transform=no_change)
    count = min(DRAWN, len(dataset))
    index = range(count)
    loaders = {
        workers: GraphLoader(
            dataset,
            zp.GraphBatchSampler(dataset, size, seed=settings.seed, index=index),
            num_workers=workers,
        )
        for workers in (0, WORKERS)
    }
    usual: Any = torch.utils.data.DataLoader(
        dataset,
        batch_sampler=list(zp.GraphBatchSampler(dataset, size, index=index)),  # type: ignore[arg-type]
        num_workers=WORKERS,
        collate_fn=zp.collate,
        multiprocessing_context="forkserver",
        persistent_workers=True,
    )
    none, two = "no workers", "two workers"
    tasks = [
        _task(none, lambda: loaders[0]),
        _task(two, lambda: loaders[WORKERS]),
        _task("two workers of torch's DataLoader", lambda: usual),
    ]
    case = f"molecules, batches of {size}, a transform that does nothing, on every core"
    rows = _rows(settings, tasks, case, count, none)
    loaders[WORKERS].close()
    return rows


def _task(name: str, batches: Callable[[], Iterable[Any]]) -> Task:
    """Task of one epoch."""

    def epoch(_: Any) -> None:
        batch = None
        for batch in batches():  # noqa: B007  held while the next is made
            pass
        del batch

    return Task(name, epoch)


def _rows(
    settings: Settings, tasks: list[Task], case: str, samples: int, reference: str
) -> list[Row]:
    timings = in_turn(tasks, rounds=settings.size.rounds, task_seconds=settings.size.engine_seconds)
    by_name = {timing.name: timing for timing in timings}
    rows = []
    for timing in timings:
        value, low, high = timing.quartiles(lambda seconds: samples / seconds)
        ratios = {reference: speed_ratio(timing, by_name[reference])}
        unit, rounds = "samples/s", timing.rounds
        rows.append(Row(SUITE, case, timing.name, value, unit, low, high, rounds, ratios))
    return rows
