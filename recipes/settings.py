"""What defines a run of the closed loop."""

from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np

TEST_TEMPERATURES = (500, 800)


@dataclass(frozen=True)
class Settings:
    """What defines a run.

    Parameters
    ----------
    out
        Directory of the run.
    seed
        Seed of everything but the test set.
    arms
        Which arms run, each in a process of its own.
    labels
        Number of labels at the end of each round; the first ones are from short xTB trajectories.
    members
        Size of the committee.
    steps
        Training steps of a member in a round.
    batch_size
        Frames in a training step.
    walkers
        Number of walkers; their temperatures go from 500 to 800 K.
    snapshots
        How often the walkers are looked at in a stretch of dynamics; a round has one or more.
    stride
        Steps of 0.5 fs between snapshots.
    burn_in
        Steps of 0.5 fs that the first trajectories run before their first frame.
    trust
        Upper trust level of the committee's deviation, in eV/Angstrom.
    known_quantile
        The lower trust level is this quantile of the deviation on what is labelled already.
    test_frames
        Frames of each of the two test trajectories.
    test_seed
        Seed of the test trajectories.
    test_dir
        Where they are kept; by default ``<out>/test``.
    potential
        Name of the potential, see `zarrpipe.ml.POTENTIALS`.
    options
        Its arguments.
    """

    out: Path = Path("runs/ethanol")
    seed: int = 0
    arms: Literal["both", "committee", "random"] = "both"
    labels: tuple[int, ...] = (30, 80, 130, 180, 240, 300)
    members: int = 3
    steps: int = 500
    batch_size: int = 10
    walkers: int = 16
    snapshots: int = 12
    stride: int = 30
    burn_in: int = 400
    trust: float = 1.0
    known_quantile: float = 0.95
    test_frames: int = 200
    test_seed: int = 0
    test_dir: Path | None = None
    potential: str = "schnet"
    options: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        rises = all(early < late for early, late in pairwise(self.labels))
        if not self.labels or self.labels[0] < 3 or not rises:
            raise ValueError(
                f"labels={self.labels}, expected numbers that rise, from 3 or more on, such as "
                "(30, 80, 130)"
            )
        for name in ("members", "steps", "batch_size", "walkers", "snapshots", "stride"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}, expected at least 1")

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the arms."""
        return ("committee", "random") if self.arms == "both" else (self.arms,)

    @property
    def candidates(self) -> int:
        """Most candidates that a round can have."""
        return self.labels[-1] + self.walkers * self.snapshots

    def seed_of(self, *parts: str | int) -> int:
        """Seed of one draw: a function of the run's seed and of what is drawn."""
        text = "/".join(map(str, parts)).encode()
        return int(np.random.SeedSequence([self.seed, *text]).generate_state(1)[0])

    def test_store(self, kelvin: int) -> Path:
        """Store of a test trajectory."""
        directory = self.test_dir or self.out / "test"
        return directory / f"{kelvin}K-{self.test_frames}-seed{self.test_seed}.zarr"
