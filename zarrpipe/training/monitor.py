"""A callback that logs how fast data arrive."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import CSVLogger

from zarrpipe.errors import ArgumentError, ArgumentTypeError
from zarrpipe.training.flow import Flow
from zarrpipe.training.loader import GraphLoader


class DataMonitor(Callback):  # type: ignore[misc]  # lightning is not followed
    """Logs how long training waits for its data, and shows it in the progress bar.

    Logged as ``data/wait`` (share of the time, 0 to 1), ``data/samples_per_s``,
    ``data/atoms_per_s``, ``data/bytes_per_s`` and, with budgets, ``data/fill_atoms`` and
    ``data/fill_edges`` (share of the budget that a batch fills on average), and once an epoch
    ``data/num_samples``, the samples that it has over all ranks. Time in validation loops does not
    count. With several devices each process measures itself, and the first logs.

    For ``zarrpipe watch`` it also logs ``data/ended``: 0 when training begins, and 1 when it
    has returned without an error. The ``hparams.yaml`` of a `CSVLogger` gets the stores of
    the data module, and the largest numbers of steps and epochs.

    Parameters
    ----------
    every_n_steps : int, optional
        Batches between two figures; by default the trainer's ``log_every_n_steps``.

    Attributes
    ----------
    total : Flow
        Everything since training began.

    Raises
    ------
    ValueError
        If `every_n_steps` is not positive.
    TypeError
        When training begins, if its loader is not one of zarrpipe's.
    """

    def __init__(self, every_n_steps: int | None = None) -> None:
        if every_n_steps is not None and every_n_steps < 1:
            raise ArgumentError(f"every_n_steps is {every_n_steps}, expected at least 1")
        self.every_n_steps = every_n_steps
        self.total, self._recent, self._taken = Flow(), Flow(), Flow()
        self._since = 0.0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin to measure, and note what the run reads and how long it is to be."""
        self.total = Flow()
        self._begin(trainer)
        for logger in trainer.loggers:
            if isinstance(logger, CSVLogger):
                logger.log_hyperparams(_plan(trainer))
        _log_metrics(trainer, {"ended": 0.0})  # an epoch that is resumed has no start

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measure the epoch's loader, and log how many samples the epoch has."""
        self._begin(trainer)
        samples = float(self._loader(trainer).sampler.num_samples)
        _log_metrics(trainer, {"num_samples": samples})

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, *_: Any
    ) -> None:
        """Count a batch, and log every `every_n_steps`."""
        now, flow = time.perf_counter(), self._loader(trainer).flow
        self._recent.merge(flow.since(self._taken))
        self._recent.seconds += now - self._since
        self._since, self._taken = now, replace(flow)
        due = self._recent.batches >= (self.every_n_steps or trainer.log_every_n_steps or 1)
        if due or trainer.is_last_batch:
            wait = self._recent.wait
            self._log(trainer)
            self.log("data/wait", wait, prog_bar=True, logger=False, batch_size=1)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the last batches of an epoch that is cut short."""
        if self._recent.batches:
            self._log(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log that training has ended, which does not happen after an error."""
        _log_metrics(trainer, {"ended": 1.0})

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Exclude the time of the validation loop."""
        self._since = time.perf_counter()

    def _begin(self, trainer: Trainer) -> None:
        loader = self._loader(trainer)
        loader.counting = True
        self._recent, self._taken = Flow(), replace(loader.flow)
        self._since = time.perf_counter()

    def _log(self, trainer: Trainer) -> None:
        sampler, recent = self._loader(trainer).sampler, self._recent
        self.total.merge(recent)
        self._recent = Flow()
        figures = recent.metrics(sampler.max_atoms, sampler.max_edges)
        _log_metrics(trainer, figures)

    def _loader(self, trainer: Trainer) -> GraphLoader:
        loader = trainer.train_dataloader
        if not isinstance(loader, GraphLoader):
            raise ArgumentTypeError(
                f"DataMonitor measures the loader of a ZarrDataModule, and training reads from a "
                f"{type(loader).__name__}: leave the callback out, or use a ZarrDataModule"
            )
        return loader


def _log_metrics(trainer: Trainer, figures: Mapping[str, float]) -> None:
    """Pass figures to all loggers."""
    for logger in trainer.loggers:
        named = {f"data/{name}": value for name, value in figures.items()}
        logger.log_metrics(named, step=trainer.global_step)


def _plan(trainer: Trainer) -> dict[str, Any]:
    """Stores and limits of a run, as the configuration files of LightningCLI name them."""
    stores = getattr(trainer.datamodule, "store", ())
    several = stores if isinstance(stores, list | tuple) else [stores]
    places = [str(one) for one in several if isinstance(one, str | Path)]
    return {
        "data": {"store": [one if "://" in one else str(Path(one).absolute()) for one in places]},
        "trainer": {"max_steps": trainer.max_steps, "max_epochs": trainer.max_epochs},
    }
