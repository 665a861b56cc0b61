"""How fast a store can be read on one machine, and how long training would wait for it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from zarrpipe.data.tables import Table
from zarrpipe.training.flow import Flow

COLD, WARM = "cold", "warm"


@dataclass(frozen=True)
class Spread:
    """The least, the median and the most of the repeats."""

    least: float
    median: float
    most: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Spread of at least one value."""
        return cls(min(values), float(np.median(values)), max(values))


@dataclass(frozen=True)
class Reading:
    """What one way of reading gave.

    Parameters
    ----------
    pages : str
        "cold" where nothing of the store was in memory, "warm" where all was that is read.
    workers : int
        Worker processes of the loader; 0 reads in the process of the training loop.
    step_ms : float
        Time that a model takes after each batch, in ms; 0 without a model.
    repeats : int
        Number of repeats.
    samples_per_s, atoms_per_s, bytes_per_s, batches_per_s : Spread
        Rates, over the repeats; bytes are those of the fields of batches.
    wait : Spread
        Share of the time that was not the model's, 0 to 1; without a model all of it.
    """

    pages: str
    workers: int
    step_ms: float
    repeats: int
    samples_per_s: Spread
    atoms_per_s: Spread
    bytes_per_s: Spread
    batches_per_s: Spread
    wait: Spread

    @classmethod
    def of(cls, pages: str, workers: int, step_ms: float, flows: Sequence[Flow]) -> Reading:
        """Rates of what was counted in each repeat."""
        found = [flow.metrics(None, None) for flow in flows]
        rates = {
            name: Spread.of([one[name] for one in found])
            for name in ("samples_per_s", "atoms_per_s", "bytes_per_s", "wait")
        }
        batches = Spread.of([flow.batches / flow.seconds for flow in flows])
        return cls(pages, workers, step_ms, len(flows), batches_per_s=batches, **rates)


@dataclass(frozen=True)
class Throughput:
    """How fast a store can be read; `print` it to read it.

    Parameters
    ----------
    store : str
        Place of the store.
    num_samples : int
        Its samples, without deleted ones.
    num_read : int
        Those that the warm readings repeat: as many as a cold one reads in its time.
    batch_size, seed : int
        Samples of a batch, and the seed of their order.
    step_ms : float
        Time of the model's step in those readings that have one, in ms.
    seconds : float
        Time that the measurement took.
    readings : tuple of Reading
        The ways of reading.
    notes : tuple of str
        What could not be measured, and why.
    """

    store: str
    num_samples: int
    num_read: int
    batch_size: int
    seed: int
    step_ms: float
    seconds: float
    readings: tuple[Reading, ...]
    notes: tuple[str, ...] = ()

    def without_model(self, workers: int) -> Reading:
        """The warm reading of a loader without a model."""
        way = (WARM, workers, 0.0)
        return next(one for one in self.readings if (one.pages, one.workers, one.step_ms) == way)

    def headroom(self, workers: int) -> float:
        """How many times as fast as the model takes them batches come, warm."""
        return self.without_model(workers).batches_per_s.median * self.step_ms / 1e3

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain types, with the headroom by number of workers."""
        workers = sorted({one.workers for one in self.readings})
        return {
            **dataclasses.asdict(self),
            "headroom": {str(count): self.headroom(count) for count in workers},
        }

    def tables(self) -> list[Table]:
        """The readings as a table of text, and what they mean for training."""
        header = ("pages", "loader", "model", "samples/s", "least to most", "atoms/s", "MB/s")
        rows = tuple(_cells(one) for one in self.readings)
        title = (
            f"{self.store}: batches of {self.batch_size:,}, of {self.num_read:,} of the "
            f"{self.num_samples:,} samples"
        )
        lines = [(text,) for text in (*self._verdicts(), *self.notes)]
        return [
            Table((*header, "wait"), rows, (3, 4, 5, 6, 7), title),
            Table((), tuple(lines), title="training:"),
        ]

    def __str__(self) -> str:
        return "\n".join(map(str, self.tables()))

    def _verdicts(self) -> Iterator[str]:
        """What the readings with a model mean."""
        for one in self.readings:
            if not one.step_ms:
                continue
            ratio, wait = self.headroom(one.workers), one.wait.median
            most = self.without_model(one.workers).samples_per_s
            yield (
                f"{_loader(one.workers)}: batches come {ratio:.3g} times as fast as a step of "
                f"{one.step_ms:g} ms takes them; training waits {wait:.1%} of its time; no model "
                f"gets more than {most.median:,.0f} samples/s"
            )


def _cells(one: Reading) -> tuple[str, ...]:
    """A reading as a row of the table."""
    rate = one.samples_per_s
    return (
        one.pages,
        _loader(one.workers),
        f"{one.step_ms:g} ms" if one.step_ms else "none",
        f"{rate.median:,.0f}",
        f"{rate.least:,.0f} to {rate.most:,.0f}",
        f"{one.atoms_per_s.median:,.0f}",
        f"{one.bytes_per_s.median / 1e6:,.1f}",
        f"{one.wait.median:.1%}" if one.step_ms else "-",
    )


def _loader(workers: int) -> str:
    return "in process" if not workers else f"{workers} workers" if workers > 1 else "1 worker"
