"""Batches on their way to the device, and gathered there, beside a plain copy of as many bytes."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

import zarrpipe as zp
from benchmarks.data import Int64Array, Samples, shuffled_batches
from benchmarks.engines.ours import ENGINES, STORE
from benchmarks.gpu.device import host_bytes, synchronize
from benchmarks.keeping import kept_samples, samples_of
from benchmarks.rows import Row
from benchmarks.settings import Settings
from benchmarks.timing import Task, time_ratio, timed
from zarrpipe.testing import assert_batches_equal

SETS, BATCHES = ("molecules", "structures"), (64, 512)
DRAWN, PREFETCH = 16_384, 2
REFERENCE = "pinned copy"


def rows(settings: Settings, device: torch.device) -> Iterator[Row]:
    """Microseconds of a batch, of single ones that are each waited for, and of whole epochs."""
    for name in SETS:
        samples = samples_of(settings, name)
        store = kept_samples(settings, name, ENGINES[0], samples) / STORE
        for size in BATCHES:
            index = shuffled_batches(len(samples), size, DRAWN, settings.seed)
            kilobytes = sum(map(samples.batch_bytes, index)) / len(index) / 1e3
            case = f"{name}, batches of {len(index[0])}, {kilobytes:.0f} kB"
            yield from _rows(settings, case, single(store, samples, index, device), 1)
            module = zp.ZarrDataModule(
                store, batch_size=size, split=(1.0, 0.0, 0.0), seed=settings.seed
            )
            module.setup("fit")
            order = list(module.train_dataloader().sampler.plan().batches(0))
            tasks = epochs(store, samples, order, device)
            yield from _rows(settings, f"{case}, epochs", tasks, len(order))


def single(
    store: Path, samples: Samples, index: Sequence[Int64Array], device: torch.device
) -> list[Task]:
    """Tasks that bring one batch of `index` to the device and wait until it is there."""
    dataset, held = zp.ZarrDataset(store), zp.ZarrDataset(store, resident=device)
    ready = [dataset.__getitems__(one) for one in index]
    for one, batch in zip(index[:3], ready, strict=False):
        assert_batches_equal(held.__getitems__(one).cpu(), batch)
        assert_batches_equal(moved(batch, device).cpu(), batch)

    def task(name: str, make: Callable[[int], Any]) -> Task:
        def step(place: int) -> Any:
            made = make(place)
            synchronize(device)
            return made

        return Task(name, step, range(len(index)))

    nbytes = [samples.batch_bytes(one) for one in index]
    pinned, pageable = (copies(nbytes, device, pinned=pinned) for pinned in (True, False))
    return [
        task(REFERENCE, pinned),
        task("copy of pageable memory", pageable),
        task("Batch.to", lambda place: moved(ready[place], device)),
        task("read, Batch.to", lambda place: moved(dataset.__getitems__(index[place]), device)),
        task("resident gather", lambda place: held.__getitems__(index[place])),
    ]


def epochs(
    store: Path, samples: Samples, order: Sequence[Int64Array], device: torch.device
) -> list[Task]:
    """Tasks of the batches `order`, or as many, on the device, which is waited for at the end."""

    def task(name: str, batches: Callable[[], Iterable[Any]]) -> Task:
        def epoch(_: None) -> None:
            batch = None
            for batch in batches():  # noqa: B007  held while the next is made
                pass
            synchronize(device)
            del batch

        return Task(name, epoch)

    def loader(**settings: Any) -> Callable[[], Iterable[Any]]:
        module = zp.ZarrDataModule(
            store, batch_size=len(order[0]), split=(1.0, 0.0, 0.0), device=device, **settings
        )
        module.setup("fit")
        batches = module.train_dataloader()
        return lambda: (module.transfer_batch_to_device(one, device, 0) for one in batches)

    copied = copies([samples.batch_bytes(one) for one in order], device)
    return [
        task(REFERENCE, lambda: map(copied, range(len(order)))),
        task("train loader", loader()),
        task(f"train loader, prefetch={PREFETCH}", loader(prefetch=PREFETCH)),
        task("train loader, resident", loader(resident=True)),
    ]


def moved(batch: zp.Batch, device: torch.device) -> zp.Batch:
    """The batch on the device, by one copy that is not waited for."""
    return batch.to(device, non_blocking=True)


def copies(
    nbytes: Sequence[int], device: torch.device, *, pinned: bool = True
) -> Callable[[int], torch.Tensor]:
    """Function of a place in `nbytes` that copies as many bytes to the device."""
    there = torch.empty(max(nbytes), dtype=torch.uint8, device=device)
    source = host_bytes(max(nbytes), device, pinned=pinned)

    def copy(place: int) -> torch.Tensor:
        count = nbytes[place]
        return there[:count].copy_(source[:count], non_blocking=True)

    return copy


def _rows(settings: Settings, case: str, tasks: Sequence[Task], batches: int) -> Iterator[Row]:
    """Rows of tasks whose step takes so many batches, the first of which is the reference."""
    timings = timed(settings, tasks)
    for timing in timings:
        value, low, high = timing.quartiles(lambda seconds: seconds * 1e6 / batches)
        ratios = {REFERENCE: time_ratio(timing, timings[0])}
        yield Row("gpu", case, timing.name, value, "us", low, high, timing.rounds, ratios)
