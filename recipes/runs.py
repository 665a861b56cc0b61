"""The directory of a training run: its name, its files, and how a run goes on in it.

runs/ethanol-schnet/
    config.yaml        every setting of the run
    metrics.csv        what was logged, by step
    tensorboard/       the same, for ``tensorboard --logdir runs``
    checkpoints/       best.ckpt and last.ckpt
"""

import csv
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.cli import SaveConfigCallback
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter
from lightning.pytorch.loggers.logger import rank_zero_experiment
from lightning.pytorch.utilities import rank_zero_only

from zarrpipe.errors import ArgumentError

ROOT = Path("runs")
CONFIG, METRICS, CHECKPOINTS, TENSORBOARD = (
    "config.yaml",
    "metrics.csv",
    "checkpoints",
    "tensorboard",
)


@dataclass(frozen=True)
class Run:
    """A directory that a training run has written."""

    directory: Path

    @property
    def config(self) -> Path:
        """Every setting of the run."""
        return self.directory / CONFIG

    @property
    def metrics(self) -> Path:
        """What was logged."""
        return self.directory / METRICS

    def checkpoint(self) -> Path:
        """The best checkpoint, or the last one where there is none."""
        return self._first("best.ckpt", "last.ckpt")

    def last(self) -> Path:
        """The checkpoint that training goes on from."""
        return self._first("last.ckpt")

    def _first(self, *names: str) -> Path:
        """The first checkpoint that is there."""
        for name in names:
            if (self.directory / CHECKPOINTS / name).is_file():
                return self.directory / CHECKPOINTS / name
        raise ArgumentError(
            f"{self.directory / CHECKPOINTS} has no {' and no '.join(names)}: expected a run that "
            "was validated at least once, which is when checkpoints are saved; a new run begins "
            "with --config and another --out"
        )


def find(directory: str | Path) -> Run:
    """Run in a directory; refuses one that holds none."""
    run = Run(Path(directory))
    if not _begun(run.directory):
        raise ArgumentError(
            f"there is no training run in {directory}, as it has no {CONFIG}: expected a directory "
            "that 'train.py fit' has written, such as runs/ethanol-schnet"
        )
    return run


def of_checkpoint(path: str | Path | None) -> Run | None:
    """Run that a checkpoint belongs to, if it lies in one."""
    if path is None or Path(path).parent.name != CHECKPOINTS:
        return None
    run = Run(Path(path).parent.parent)
    return run if _begun(run.directory) else None


def stem(store: Any) -> str:
    """Short name of a store, or of the first of several."""
    if isinstance(store, Sequence) and not isinstance(store, str):
        return stem(store[0]) if store else "store"
    name = Path(str(store).rstrip("/")).name if isinstance(store, str | Path) else "store"
    return Path(name).stem or "store"


@dataclass(frozen=True)
class Claim:
    """A directory that was taken for a new run, and the directories that were made for it."""

    directory: Path
    made: tuple[Path, ...] = ()

    def release(self) -> None:
        """Remove what a run has left that did not come to log or save anything."""
        directory = self.directory
        if not _first_process() or (directory / METRICS).exists():
            return
        if (directory / CHECKPOINTS).is_dir() and any((directory / CHECKPOINTS).iterdir()):
            return
        (directory / CONFIG).unlink(missing_ok=True)
        shutil.rmtree(directory / TENSORBOARD, ignore_errors=True)
        for one in (directory / CHECKPOINTS, *self.made):
            if one.is_dir() and not any(one.iterdir()):
                one.rmdir()


def claim(out: str | Path | None, store: Any, potential: str) -> Claim:
    """Take the directory of a new run, by default named after store and potential.

    Only the first rank does; the others take its name when training begins.
    """
    name = f"{stem(store)}-{potential.rpartition('.')[2].lower()}"
    wanted = ROOT / name if out is None else Path(out)
    if not _first_process():
        return Claim(wanted)
    number = 1
    while (claimed := _claimed(wanted)) is None:
        if out is not None:
            raise ArgumentError(
                f"{wanted} holds a run or a file already: give another --out, or go on with that "
                f"run by --run {wanted}"
            )
        number += 1
        wanted = ROOT / f"{name}-{number}"
    return claimed


def _claimed(directory: Path) -> Claim | None:
    """Claim a directory by its first file, or None where a run or a file is."""
    if directory.exists() and not directory.is_dir():
        return None
    if any((directory / name).exists() for name in (CONFIG, METRICS, CHECKPOINTS, TENSORBOARD)):
        return None
    made = tuple(one for one in (directory, *directory.parents) if not one.exists())
    directory.mkdir(parents=True, exist_ok=True)
    try:
        (directory / CONFIG).open("x").close()
    except FileExistsError:  # another start was quicker
        return None
    return Claim(directory, made)


def _begun(directory: Path) -> bool:
    """Whether a run has written its config, which is empty before."""
    config = directory / CONFIG
    return config.is_file() and config.stat().st_size > 0


def _first_process() -> bool:
    """Whether this is the process of rank 0, as far as the environment says."""
    node = os.environ.get("NODE_RANK", os.environ.get("GROUP_RANK", "0"))
    return rank_zero_only.rank == 0 and node == "0"


def loggers(directory: Path) -> list[Logger]:
    """The loggers of a run."""
    return [
        MetricsLogger(directory, name="", version="", flush_logs_every_n_steps=1),
        TensorBoardLogger(directory, name=TENSORBOARD, version="", default_hp_metric=False),
    ]


class MetricsLogger(CSVLogger):
    """Lightning's logger of ``metrics.csv``, which goes on with a file that is there."""

    @property
    @rank_zero_experiment
    def experiment(self) -> ExperimentWriter:
        """Writer of the file."""
        if self._experiment is None:
            self._experiment = _MetricsWriter(self.log_dir)
        return self._experiment

    def log_hyperparams(self, params: Any = None) -> None:
        """Write none, as ``config.yaml`` has them."""


class _MetricsWriter(ExperimentWriter):
    """Lightning's writer, which would remove a file that is there."""

    def _check_log_dir_exists(self) -> None:
        if Path(self.metrics_file_path).is_file():
            with Path(self.metrics_file_path).open(newline="") as file:
                self.metrics_keys = next(csv.reader(file), [])


class RunFiles(SaveConfigCallback):
    """Writes ``config.yaml`` when training begins, and forgets metrics that are logged again."""

    def __init__(self, parser: Any, config: Any, **options: Any) -> None:
        config = config.clone()
        config.run = config.ckpt_path = None  # a run does not begin with itself
        super().__init__(parser, config, overwrite=True, **options)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Write nothing yet, as a model may still refuse the data."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the config, with what the potential took from the data."""
        self.config.model.options = pl_module.hparams["options"]
        super().setup(trainer, pl_module, "fit")

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Leave out the rows of steps that come again."""
        if trainer.is_global_zero and trainer.state.fn == "fit" and trainer.loggers:
            drop_after(Path(trainer.default_root_dir) / METRICS, checkpoint["global_step"])


def drop_after(path: Path, step: int) -> None:
    """Leave out the rows of a ``metrics.csv`` whose step is greater than `step`."""
    if not path.is_file():
        return
    with path.open(newline="") as file:
        rows = csv.DictReader(file)
        kept = [row for row in rows if int(row["step"]) <= step]
        keys = list(rows.fieldnames or ())
    beside = path.with_suffix(".csv.new")
    with beside.open("w", newline="") as file:
        writer = csv.DictWriter(file, keys)
        writer.writeheader()
        writer.writerows(kept)
    beside.replace(path)
