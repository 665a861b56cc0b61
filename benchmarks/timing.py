"""Engines timed in turn, so that whatever slows the machine down slows all of them alike.

In each round every task does the same steps; the rounds are short and many. A ratio is taken within
a round, and reported is its median over the rounds.
"""

import gc
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import numpy as np

from benchmarks.settings import Settings


@dataclass(frozen=True)
class Task:
    """Something to be timed.

    Parameters
    ----------
    name
        Who does it.
    step
        Called with one request after the other; the last result is held while the next is made,
        as a training loop holds its batch.
    requests
        What the steps of a round are called with.
    least
        Steps of a round that are never left out.
    """

    name: str
    step: Callable[[Any], Any]
    requests: Sequence[Any] = (None,)
    least: int = 1


@dataclass(frozen=True)
class Timing:
    """Seconds of one step in each round.

    Parameters
    ----------
    name
        Who was timed.
    seconds
        [rounds] float; NaN for a round that a slow task sat out.
    """

    name: str
    seconds: np.ndarray[Any, np.dtype[np.float64]]

    @property
    def rounds(self) -> int:
        """Number of rounds that the task took part in."""
        return int(np.isfinite(self.seconds).sum())

    def quartiles(self, scale: Callable[[float], float]) -> tuple[float, float, float]:
        """Median and the two quartiles, lower first, of ``scale(seconds of a step)``."""
        taken = self.seconds[np.isfinite(self.seconds)]
        values = np.array([scale(float(seconds)) for seconds in taken])
        low, median, high = np.quantile(values, (0.25, 0.5, 0.75))
        return float(median), float(low), float(high)


def speed_ratio(timing: Timing, reference: Timing) -> float:
    """How many times as fast as the reference: the median over the rounds of both."""
    return 1.0 / time_ratio(timing, reference)


def time_ratio(timing: Timing, reference: Timing) -> float:
    """How many times as long as the reference it takes: the median over the rounds of both."""
    ratios = timing.seconds / reference.seconds
    return float(np.median(ratios[np.isfinite(ratios)]))


def in_turn(
    tasks: Sequence[Task],
    *,
    rounds: int,
    round_seconds: float = float("inf"),
    task_seconds: float = float("inf"),
) -> list[Timing]:
    """Time tasks in turn.

    Parameters
    ----------
    tasks
        What is timed; the first of each round is another one each time.
    rounds
        Number of rounds.
    round_seconds
        A round of a task has as many of its first requests as are estimated to take this long.
    task_seconds
        A task that would take longer than this in all sits rounds out, at equal distances; it
        takes part in at least two (in all if there are fewer).
    """
    steps, strides = [], []
    for task in tasks:
        once = _estimate(task)
        wanted = len(task.requests) if round_seconds == float("inf") else int(round_seconds / once)
        count = min(len(task.requests), max(wanted, task.least, 1))
        steps.append(count)
        most = max(2.0, task_seconds / (count * once))
        strides.append(max(1, int(rounds / min(most, rounds))))
    seconds = np.full((len(tasks), rounds), np.nan)
    gc.freeze()  # what there is now is not searched for garbage while somebody is timed
    try:
        for turn in range(rounds):
            for place in range(len(tasks)):
                which = (place + turn) % len(tasks)
                if turn % strides[which] == 0:
                    seconds[which, turn] = _timed(tasks[which], steps[which])
    finally:
        gc.unfreeze()
    return [Timing(task.name, taken) for task, taken in zip(tasks, seconds, strict=True)]


def _estimate(task: Task) -> float:
    """Seconds of a step, after one that is not counted because it may open or compile things."""
    task.step(task.requests[0])
    few = min(3, len(task.requests))
    return max(_timed(task, 1 if few == 1 else few - 1), 1e-9)


def _timed(task: Task, count: int) -> float:
    requests, step = task.requests[:count], task.step
    kept = None
    start = perf_counter()
    for request in requests:
        kept = step(request)
    stop = perf_counter()
    del kept
    return (stop - start) / count


def timed(settings: Settings, tasks: Sequence[Task]) -> list[Timing]:
    """Time tasks in turn, for the rounds and seconds of a run."""
    return in_turn(
        tasks,
        rounds=settings.size.rounds,
        round_seconds=settings.size.round_seconds,
        task_seconds=settings.size.engine_seconds,
    )
