"""What one run of the benchmarks is asked for."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType


@dataclass(frozen=True)
class Size:
    """How much is measured.

    Parameters
    ----------
    samples
        Samples of each data set.
    large_bytes
        Bytes of the set that is read cold.
    rounds
        Rounds in which the engines take turns.
    round_seconds
        Least time that an engine gets in a round, as far as it has batches for it.
    engine_seconds
        Most time that a slow engine gets in all rounds together, but for two rounds.
    whole
        Samples that a sink reads back at once.
    stored
        Samples of the short and of the long store that are appended to.
    warm_writes
        Writes of nvalchemi before its writes are timed.
    pointers
        Samples of the store that has only pointers.
    planned
        Samples of a long epoch that is planned.
    cold_seconds
        Longest cold epoch; a longer one is stopped and its time extrapolated.
    epochs
        Epochs over which memory must not grow.
    """

    samples: Mapping[str, int]
    large_bytes: int
    rounds: int
    round_seconds: float
    engine_seconds: float
    whole: int
    stored: tuple[int, int]
    warm_writes: int
    pointers: int
    planned: int
    cold_seconds: float
    epochs: int


SIZES: Mapping[str, Size] = MappingProxyType(
    {
        "full": Size(
            samples={"molecules": 50_000, "structures": 10_000, "edges": 2_000, "bonds": 50_000},
            large_bytes=1_500_000_000,
            rounds=25,
            round_seconds=0.04,
            engine_seconds=2.0,
            whole=20_000,
            stored=(5_000, 5_000_000),
            warm_writes=200,
            pointers=100_000_000,
            planned=10_000_000,
            cold_seconds=60.0,
            epochs=20,
        ),
        "small": Size(
            samples={"molecules": 300, "structures": 150, "edges": 24, "bonds": 300},
            large_bytes=1_000_000,
            rounds=3,
            round_seconds=0.001,
            engine_seconds=0.02,
            whole=200,
            stored=(50, 1_000),
            warm_writes=2,
            pointers=10_000,
            planned=20_000,
            cold_seconds=2.0,
            epochs=3,
        ),
    }
)
"""The sizes that ``--size`` takes: the one that is reported, and the one of the tests."""


@dataclass(frozen=True)
class Settings:
    """One run.

    Parameters
    ----------
    work
        Directory for the data sets as each engine stores them; they are kept for the next run.
    size
        How much is measured.
    data
        Names of the data sets that are read.
    engines
        Names of the engines; empty for all that are installed.
    batch_sizes
        Samples in a batch.
    seed
        Of the data and of the order in which batches are drawn.
    core
        The core on which everything runs; None leaves that to the system.
    """

    work: Path
    size: Size = field(default_factory=lambda: SIZES["full"])
    data: tuple[str, ...] = ("molecules", "structures", "edges", "bonds")
    engines: tuple[str, ...] = ()
    batch_sizes: tuple[int, ...] = (1, 64, 512)
    seed: int = 0
    core: int | None = 0
