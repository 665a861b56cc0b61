"""What is known of growing stores and training runs at one moment, as data."""

import dataclasses
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType
from typing import Any

Points = tuple[tuple[float, float], ...]

UNITS = MappingProxyType(
    {
        "_meV_atom": "meV/atom",
        "_meV_A3": "meV/\u00c5\u00b3",
        "_meV_A": "meV/\u00c5",
    }
)
"""Units by the ends of the names of columns."""

_NAMES = {"mae": "MAE", "rmse": "RMSE"}


@dataclass(frozen=True)
class Writer:
    """The process that the lock of a store names; one that is not alive was killed.

    `since` is in seconds since 1970.
    """

    host: str
    pid: int
    since: float
    alive: bool


@dataclass(frozen=True)
class StoreFacts:
    """A store that may be written to.

    Parameters
    ----------
    store : str
        Path or URL.
    problem : str
        Why it cannot be read now, "" if it can. Numbers are those of the last look then.
    samples, atoms : int
        Committed ones, without deleted samples.
    arrived : int
        Samples that came since the first look, also those that were drained or removed since.
    samples_per_s, samples_per_s_mean : float or None
        Of the last interval, and since the first look; None before the second one.
    rounds : int
        Number of values of the field ``round``, 0 if there is no such field.
    last_round, last_round_samples : int or None
        The largest of them, and how many samples have it.
    bytes_stored, bytes_free : int or None
        Bytes on disk that its files take, and that are free there; None if it is not a directory.
    writer : Writer or None
        Who writes it, if anybody.
    last_append : float or None
        When samples came last, in seconds since 1970.
    growth : tuple of (time, samples)
        Since the first look, at most some hundred points.
    """

    store: str
    problem: str = ""
    samples: int = 0
    atoms: int = 0
    arrived: int = 0
    samples_per_s: float | None = None
    samples_per_s_mean: float | None = None
    rounds: int = 0
    last_round: int | None = None
    last_round_samples: int | None = None
    bytes_stored: int | None = None
    bytes_free: int | None = None
    writer: Writer | None = None
    last_append: float | None = None
    growth: Points = ()


class State(StrEnum):
    """Whether a run goes on, as far as its log says."""

    WAITING = "waiting"  # it has logged nothing yet
    RUNNING = "running"
    SILENT = "silent"  # nothing came for long: it has ended early, or stands still
    ENDED = "ended"  # training has returned, or the steps or epochs of the config are done


SILENT = "silent: no line came for long, so that the run has ended early or is stuck"


@dataclass(frozen=True)
class Metric:
    """A column of a log.

    Parameters
    ----------
    name : str
        Name of the column.
    unit : str
        As the name says it, "" if it does not.
    last, best : float
        The last value, and the smallest.
    curve : tuple of (step, value)
        Its values, at most some hundred of them.
    """

    name: str
    unit: str
    last: float
    best: float
    curve: Points

    @property
    def label(self) -> str:
        """Name for people.

        >>> Metric("val/forces_mae_meV_A", "meV/Angstrom", 1.0, 1.0, ()).label
        'forces MAE'
        """
        words = self.name.rpartition("/")[2]
        for end in UNITS:
            words = words.removesuffix(end)
        part = f"{self.name.partition('/')[0]} " if words == "loss" else ""
        return part + " ".join(_NAMES.get(word, word) for word in words.split("_"))

    @property
    def recent(self) -> tuple[float, ...]:
        """The last values of the curve."""
        return tuple(value for _, value in self.curve[-8:])


@dataclass(frozen=True)
class RunFacts:
    """A training run, or an arm of a closed loop, by its log.

    Parameters
    ----------
    run : str
        Directory of the log.
    stores : tuple of str
        Stores that its config names.
    problem : str
        Why its log cannot be read now, "" if it can.
    state : State
        Whether it goes on.
    epoch, step, max_steps, round : int or None
        Where it is; None if the log, or the config, does not say it.
    num_samples : int or None
        Samples that the epoch trains on.
    samples_per_s, wait : float or None
        Of the first process: samples a second, and the share of time it waits for data.
    learning_rate : float or None
        The last one.
    loss : Metric or None
        Of training.
    errors : tuple of Metric
        Of validation: forces, energy, stress.
    last_line : float or None
        When the log was written to last, in seconds since 1970.
    """

    run: str
    stores: tuple[str, ...] = ()
    problem: str = ""
    state: State = State.WAITING
    epoch: int | None = None
    step: int | None = None
    max_steps: int | None = None
    round: int | None = None
    num_samples: int | None = None
    samples_per_s: float | None = None
    wait: float | None = None
    learning_rate: float | None = None
    loss: Metric | None = None
    errors: tuple[Metric, ...] = ()
    last_line: float | None = None


@dataclass(frozen=True)
class Facts:
    """All that is watched, at `time` (seconds since 1970); the watch began at `began`.

    `processor_share` is the processor time that watching has taken since then, as a share of one
    core.
    """

    time: float
    began: float
    processor_share: float
    stores: tuple[StoreFacts, ...] = ()
    runs: tuple[RunFacts, ...] = ()
    notes: tuple[str, ...] = ()

    def to_dict(self, *, curves: bool = False) -> dict[str, Any]:
        """Convert to plain types, for JSON; without `curves`, the last values of each metric."""
        facts = dataclasses.asdict(self)
        for run, one in zip(facts["runs"], self.runs, strict=True):
            run["loss"] = None if one.loss is None else _plain(one.loss, curves=curves)
            run["errors"] = [_plain(metric, curves=curves) for metric in one.errors]
        for store in facts["stores"] if not curves else ():
            del store["growth"]
        return facts


def _plain(metric: Metric, *, curves: bool) -> dict[str, Any]:
    """Metric as plain types."""
    facts = {"label": metric.label, **dataclasses.asdict(metric)}
    if not curves:
        del facts["curve"]
        facts["recent"] = list(metric.recent)
    return facts


def thinned(points: list[tuple[float, float]], most: int = 400) -> None:
    """Leave out every second of too many points, in place; the first and the last one stay."""
    if len(points) > most:
        del points[-2:0:-2]
