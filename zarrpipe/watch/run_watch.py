"""Facts of one training run, polled from its log."""

import csv
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from zarrpipe.watch.csv_tail import CsvTail
from zarrpipe.watch.facts import UNITS, Metric, RunFacts, State, thinned
from zarrpipe.watch.run_config import RunConfig, read_config

PATIENCE = 120.0
"""Seconds without a line after which a run is silent; longer where its lines come more rarely."""

_LABELS = ("force", "energy", "stress", "virial")


@dataclass
class _Column:
    """Values of a column that is an error or a loss."""

    last: float = math.nan
    best: float = math.inf
    curve: list[tuple[float, float]] = field(default_factory=list)

    def add(self, step: float, value: float) -> None:
        self.last, self.best = value, min(self.best, value)
        self.curve.append((step, value))
        thinned(self.curve)

    def metric(self, name: str) -> Metric:
        unit = next((text for end, text in UNITS.items() if name.endswith(end)), "")
        return Metric(name, unit, self.last, self.best, tuple(self.curve))


class RunWatch:
    """A run in a directory with a ``metrics.csv``, which may still be written.

    The log is that of Lightning's ``CSVLogger`` with the keys of `ForceField`, `DataMonitor` or
    NequIP, or a table with a row a round, as ``recipes/closed_loop.py`` writes it.
    """

    def __init__(self, log: Path) -> None:
        self._log = log
        self._tail = CsvTail(log)
        self._config, self._config_seen = RunConfig(), -1.0
        self._longest = 0.0
        self._changed: float | None = None
        self._forget()

    def _forget(self) -> None:
        self._values: dict[str, float] = {}
        self._columns: dict[str, _Column] = {}
        self._rows = 0

    @property
    def belongs_elsewhere(self) -> bool:
        """Whether all rows are of arms that have logs of their own."""
        return self._tail.modified is not None and not self._values

    def look(self, now: float) -> RunFacts:
        """The facts at a time, in seconds since 1970."""
        problem, came = "", True
        while came:
            try:
                found = self._tail.read()
            except (OSError, csv.Error) as error:
                problem = f"{type(error).__name__}: {error}"
                break
            if found.anew:
                self._forget()
            for row in found.rows:
                self._add(row)
            came = found.more
        self._follow_config()
        return self._facts(now, problem)

    def _add(self, row: Mapping[str, str]) -> None:
        """Add a row."""
        if "arm" in row and row["arm"] != self._log.parent.name:
            return
        values = {name: value for name, text in row.items() if (value := _number(text)) is not None}
        self._values.update(values)
        self._rows += 1
        step = values.get("step", values.get("round", float(self._rows)))
        for name, value in values.items():
            if is_error(name) or is_loss(name):
                self._columns.setdefault(name, _Column()).add(step, value)

    def _follow_config(self) -> None:
        """Read the config, if it changed: that of LightningCLI, or what `DataMonitor` has noted."""
        paths = (self._log.with_name(name) for name in ("config.yaml", "hparams.yaml"))
        path = next((path for path in paths if path.is_file()), None)
        try:
            modified = -1.0 if path is None else path.stat().st_mtime
        except OSError:
            return
        if path is not None and modified != self._config_seen:
            self._config, self._config_seen = read_config(path), modified

    def _facts(self, now: float, problem: str) -> RunFacts:
        values, errors = self._values, shown_errors(self._columns)
        losses = sorted(
            filter(is_loss, self._columns), key=lambda name: ("weighted" not in name, len(name))
        )
        return RunFacts(
            run=str(self._log.parent),
            stores=self._config.stores,
            problem=problem,
            state=self._state(now),
            epoch=_whole(values.get("epoch")),
            step=_whole(values.get("step")),
            max_steps=self._config.max_steps,
            round=_whole(values.get("round")),
            num_samples=_whole(values.get("data/num_samples", values.get("labels"))),
            samples_per_s=values.get("data/samples_per_s"),
            wait=values.get("data/wait"),
            learning_rate=next(
                (value for name, value in values.items() if name == "lr" or name[:3] == "lr-"), None
            ),
            loss=self._columns[losses[0]].metric(losses[0]) if losses else None,
            errors=tuple(self._columns[name].metric(name) for name in errors),
            last_line=self._tail.modified,
        )

    def _state(self, now: float) -> State:
        """Whether the run goes on."""
        modified, before = self._tail.modified, self._changed
        if modified is None or not self._values:
            return State.WAITING
        if before is not None:
            self._longest = max(self._longest, modified - before)
        self._changed = modified
        step, epoch = self._values.get("step", -1.0), self._values.get("epoch", -1.0)
        if self._values.get("data/ended") == 1.0:
            return State.ENDED
        silent = now - modified > max(PATIENCE, 5 * self._longest)
        if self._config.max_steps is not None and step >= self._config.max_steps - 1:
            return State.ENDED
        if silent and self._config.max_epochs == epoch + 1:
            return State.ENDED
        return State.SILENT if silent else State.RUNNING


def is_error(name: str) -> bool:
    """Whether a column is an error of validation, or of a test set of a closed loop."""
    kind = "mae" in name or "rmse" in name
    return kind and (name.startswith("val") or "/" not in name)


def is_loss(name: str) -> bool:
    """Whether a column is a loss of training."""
    return name.startswith("train") and "loss" in name


def shown_errors(names: Mapping[str, Any]) -> list[str]:
    """One column for each label, forces first: the mean error before the root mean square.

    >>> shown_errors({"val/energy_rmse_meV_atom": 0, "val/forces_mae_meV_A": 0, "val/loss": 0})
    ['val/forces_mae_meV_A', 'val/energy_rmse_meV_atom']
    """
    errors = sorted(
        filter(is_error, names),
        key=lambda name: ("mae" not in name, "atom" not in name, len(name), name),
    )
    labelled = [next((one for one in errors if label in one), None) for label in _LABELS]
    others = [one for one in errors if not any(label in one for label in _LABELS)]
    return [one for one in labelled if one is not None] + others


def _number(text: str) -> float | None:
    """A finite number, or None for any other text."""
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _whole(value: float | None) -> int | None:
    return None if value is None else int(value)
