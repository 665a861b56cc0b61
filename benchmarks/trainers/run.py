"""One training loop over two loaders: the losses of each, its time per step, its share of waiting.

A module of this package, named after a library, has ``pair(work: Path, steps: int) -> Pair``. Both
sides have the same weights at the start and the same order of batches, and take their steps in
turn, so that a busy machine slows both.
"""

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from statistics import median
from typing import Any

WARM_UP = 5
"""First steps that no time is taken of: libraries compile and allocate then."""


@dataclass(frozen=True)
class Run:
    """A training: the loss of each step, and the seconds that its batch and the step took.

    Parameters
    ----------
    losses
        Loss of each step before its update.
    waited, stepped
        Seconds of each step that went into its batch, and into the model.
    """

    losses: tuple[float, ...]
    waited: tuple[float, ...]
    stepped: tuple[float, ...]

    @property
    def step_s(self) -> float:
        """Median seconds of a step with its batch, after the first ones."""
        both = zip(self.waited, self.stepped, strict=True)
        return median([wait + step for wait, step in both][WARM_UP:])

    @property
    def wait(self) -> float:
        """Share of the time after the first steps that went into batches."""
        waited = sum(self.waited[WARM_UP:])
        return waited / (waited + sum(self.stepped[WARM_UP:]))


@dataclass(frozen=True)
class Pair:
    """Training through zarrpipe, and through the library's own loader.

    Parameters
    ----------
    library, release
        What trains.
    ours, theirs
        The two runs.
    """

    library: str
    release: str
    ours: Run
    theirs: Run

    @property
    def difference(self) -> float:
        """Largest difference of two losses of one step, relative to the loss."""
        both = zip(self.ours.losses, self.theirs.losses, strict=True)
        return max(abs(a - b) / max(abs(a), abs(b), 1e-300) for a, b in both)

    @property
    def ratio(self) -> float:
        """Time of a step through the library's own loader, in times of one through zarrpipe."""
        return self.theirs.step_s / self.ours.step_s


def endless(loader: Iterable[Any]) -> Iterator[Any]:
    """Batches of epoch after epoch."""
    while True:
        yield from loader


def take_turns(
    steps: int,
    ours: tuple[Iterable[Any], Callable[[Any], float]],
    theirs: tuple[Iterable[Any], Callable[[Any], float]],
) -> tuple[Run, Run]:
    """Train both sides step by step in turn.

    Parameters
    ----------
    steps
        Steps of each.
    ours, theirs
        A loader and a function that takes a batch, updates its weights and returns the loss.
    """
    sides = [(endless(loader), step) for loader, step in (ours, theirs)]
    figures: list[list[tuple[float, float, float]]] = [[], []]
    clock = time.perf_counter
    for number in range(steps):
        for side in (0, 1) if number % 2 else (1, 0):
            batches, step = sides[side]
            begun = clock()
            batch = next(batches)
            given = clock()
            loss = step(batch)
            figures[side].append((loss, given - begun, clock() - given))
    first, second = (
        Run(*(tuple(column) for column in zip(*rows, strict=True))) for rows in figures
    )
    return first, second
