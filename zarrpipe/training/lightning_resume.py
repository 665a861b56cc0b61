"""Lightning's counters of epochs and steps, corrected where a run resumes or its epochs grow."""

import math
from collections.abc import Iterable
from operator import attrgetter
from typing import Any

import lightning
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import BatchSizeFinder
from lightning.pytorch.utilities.rank_zero import rank_zero_warn

from zarrpipe.compat import FIT_LOOP_COUNTS, FIT_LOOP_RESUME, PrivateName
from zarrpipe.dataset.zarr_dataset import ZarrDataset
from zarrpipe.errors import ArgumentError, MissingLibraryError
from zarrpipe.training.epoch.batch_plan import IndexArray, first_indices
from zarrpipe.training.loader import GraphLoader
from zarrpipe.training.ranks import world_size


class ResumeFix(Callback):  # type: ignore[misc]  # lightning is not followed
    """Ends an epoch that Lightning resumes after its last batch, and warns of a short schedule.

    After a checkpoint of an epoch's last batch, Lightning 2.6 keeps the counters of that epoch: if
    the next one has more batches, because the store grew, it skips as many as the epoch before had.
    With ``max_steps`` it skips the whole next epoch. `estimate` is the trainer's
    ``estimated_stepping_batches``, if it was read to configure optimizers.
    """

    def __init__(self) -> None:
        self.estimate: float | None = None
        self._before: object = None
        self._said = False

    @classmethod
    def of(cls, trainer: Trainer) -> "ResumeFix":
        """The callback of a trainer, which is added if it is missing, reset for a new fit."""
        found = [one for one in trainer.callbacks if isinstance(one, cls)]
        counts = found[0] if found else cls()
        if not found:
            trainer.callbacks.insert(0, counts)
        counts.estimate, counts._before, counts._said = None, trainer.train_dataloader, False
        return counts

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note the estimate that optimizers were configured with, unless a checkpoint had one."""
        loader = trainer.train_dataloader
        if self.estimate is None and loader is not None and loader is not self._before:
            self.estimate = trainer.estimated_stepping_batches

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Correct the counters of a resumed run."""
        loader, loop = trainer.train_dataloader, trainer.fit_loop
        if not isinstance(loader, GraphLoader):
            return
        _require(loop, FIT_LOOP_COUNTS)
        if not loop.epoch_loop.batch_progress.total.ready:
            return  # nothing was begun before
        _require(loop, FIT_LOOP_RESUME)
        if loop.epoch_progress.current.processed > loader.sampler.epoch:
            _end_epoch(trainer)
        elif loop.restarted_mid_epoch:
            _go_back(trainer, loader.sampler.step)
            self._check(trainer, loader.sampler.step)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Warn if there are more steps than were estimated."""
        self._check(trainer, 0)

    def _check(self, trainer: Trainer, done: int) -> None:
        coming = _steps(trainer, done)
        if self._said or self.estimate is None or coming <= self.estimate:
            return
        self._said = True
        rank_zero_warn(
            f"training comes to {coming} steps, and optimizers were configured when "
            f"estimated_stepping_batches was {self.estimate}: there are more batches now, since "
            "the store grew, budgets were filled otherwise or there are fewer devices. A schedule "
            "of that length ends too early, and OneCycleLR raises when it does: expected "
            "Trainer(max_epochs=-1, max_steps=...), which fixes the number of steps"
        )


def unfinished(trainer: Trainer, loader: GraphLoader) -> int:
    """Number of batches taken from a loader whose gradients no optimizer has used yet.

    These are the batch of the current step and those whose gradients are being accumulated, which
    Lightning does not save. A resumed run repeats them.
    """
    if not (trainer.training or trainer.validating):
        return 0
    progress = trainer.fit_loop.epoch_loop.batch_progress
    processed = progress.current.processed
    begun = loader.sampler.step == processed + 1
    if progress.is_last_batch and not begun:
        return 0
    return int(begun + processed % trainer.accumulate_grad_batches)


def shareable(name: str, dataset: ZarrDataset, rows: IndexArray | None) -> IndexArray | None:
    """Rows to evaluate; none, with a warning, if there are fewer than devices.

    A first validation sample that arrives while several devices train must not end training.
    """
    devices = world_size()
    count = len(dataset) if rows is None else len(rows)
    if devices == 1:
        return rows
    if 0 < count < devices:
        rank_zero_warn(
            f"the {name} loader has {count} samples for {devices} devices, and one of them would "
            "have no batch: it stays empty until there are as many; use fewer devices, or a "
            "larger share"
        )
        count = 0
    return first_indices(count) if rows is None else rows[:count]


def check_reloading(trainer: Trainer, *, packed: bool) -> None:
    """Make Lightning fetch the loader in each epoch, so that new samples are in it."""
    every = trainer.reload_dataloaders_every_n_epochs
    if not every:
        trainer.reload_dataloaders_every_n_epochs = 1
    elif every > 1 and packed:
        raise ArgumentError(
            f"reload_dataloaders_every_n_epochs is {every}, and the number of batches that fill a "
            "budget differs by epoch: Lightning counts them only when it fetches the loader, and "
            "would leave some out; expected 0 or 1"
        )


def check_finders(trainer: Trainer, batch_size: int | None) -> None:
    """Refuse a BatchSizeFinder for `batch_size` where budgets alone limit a batch."""
    for callback in trainer.callbacks:
        scaled = getattr(callback, "_batch_arg_name", None)
        if batch_size is None and isinstance(callback, BatchSizeFinder) and scaled == "batch_size":
            raise ArgumentError(
                "batch_size is None, as max_atoms or max_edges alone limit a batch, so there is "
                "nothing for the batch size finder to scale: expected batch_arg_name='max_atoms' "
                "and an init_val of no less than the largest sample, or a batch_size"
            )


def check_seed(loader: GraphLoader, seed: int) -> None:
    """Warn if a resumed loader keeps another seed than the data module's."""
    if loader.sampler.seed != seed:
        rank_zero_warn(
            f"seed is {seed}, and the checkpoint is of a run with seed {loader.sampler.seed}, "
            "with which training goes on, so that no sample of its epoch is left out or repeated: "
            f"expected that seed; to train with seed {seed} begin a new fit without ckpt_path"
        )


def _require(loop: Any, names: Iterable[PrivateName]) -> None:
    """Refuse a release of Lightning whose fit loop lacks a name."""
    for private in names:
        try:
            attrgetter(private.name)(loop)
        except AttributeError as error:
            anew = ", or a new fit without ckpt_path" if private in FIT_LOOP_RESUME else ""
            raise MissingLibraryError(
                f"lightning {lightning.__version__} has no fit_loop.{private.name}, without which "
                "batches would be left out or repeated when training goes on after a checkpoint: "
                "expected a release that has it, as those of 2.6 "
                f"(pip install 'lightning==2.6.*'){anew}"
            ) from error


def _go_back(trainer: Trainer, step: int) -> None:
    """Subtract the batches that are repeated from Lightning's counters."""
    inner = trainer.fit_loop.epoch_loop
    current, total = inner.batch_progress.current, inner.batch_progress.total
    again = current.completed + inner.restarted_on_train_batch_end - step
    if again > 0:
        current.completed -= again
        for name in ("ready", "started", "processed", "completed"):
            setattr(total, name, getattr(total, name) - again)


def _end_epoch(trainer: Trainer) -> None:
    """Let the next epoch begin as in a run that was not resumed."""
    loop, inner = trainer.fit_loop, trainer.fit_loop.epoch_loop
    if loop.epoch_progress.current.completed < loop.epoch_progress.current.processed:
        loop.epoch_progress.increment_completed()
    if inner.restarted_on_train_batch_end:
        inner.batch_progress.increment_completed()
        inner._batches_that_stepped += 1
    inner.restarting = False
    inner.reset_restart_stage()
    loop.on_iteration_done()
    loop._last_train_dl_reload_epoch = inner.val_loop._last_val_dl_reload_epoch = -math.inf


def _steps(trainer: Trainer, done: int) -> int:
    """Total number of optimizer steps if later epochs are as long as this one, 0 if unknown.

    `done` is the number of batches of this epoch that were trained on.
    """
    if trainer.max_epochs in (None, -1) or not trainer.lightning_module.automatic_optimization:
        return 0
    every, batches = trainer.accumulate_grad_batches, trainer.num_training_batches
    later = (trainer.max_epochs - trainer.current_epoch - 1) * math.ceil(batches / every)
    steps = trainer.global_step + math.ceil((batches - done) / every) + later
    return int(steps if trainer.max_steps == -1 else min(steps, trainer.max_steps))
