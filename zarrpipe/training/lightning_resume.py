"""Lightning's counts of epochs, steps and devices, beside a loader whose epochs differ."""

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
from zarrpipe.training.epoch.plans import IndexArray, first_indices
from zarrpipe.training.loader import GraphLoader
from zarrpipe.training.ranks import world_size


class ResumeFix(Callback):  # type: ignore[misc]  # lightning is not followed
    """Ends an epoch that Lightning resumes after its last batch, and says when a schedule is short.

    Lightning 2.6 begins the epoch after a checkpoint of the last batch with the counts of the
    epoch before: if it has more batches, because the store grew, as many of them as that had are
    taken for done. With ``max_steps``, a checkpoint of the end of an epoch has it skip the next.

    Attributes
    ----------
    estimate : float, optional
        The trainer's ``estimated_stepping_batches``, if it was read to configure optimizers.
    """

    def __init__(self) -> None:
        self.estimate: float | None = None
        self._before: object = None
        self._said = False

    @classmethod
    def of(cls, trainer: Trainer) -> "ResumeFix":
        """The one that a trainer has, or gets, as of before any fit."""
        found = [one for one in trainer.callbacks if isinstance(one, cls)]
        counts = found[0] if found else cls()
        if not found:
            trainer.callbacks.insert(0, counts)
        counts.estimate, counts._before, counts._said = None, trainer.train_dataloader, False
        return counts

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Remember what optimizers were configured with; a resumed run had it from its first."""
        loader = trainer.train_dataloader
        if self.estimate is None and loader is not None and loader is not self._before:
            self.estimate = trainer.estimated_stepping_batches

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin with an epoch, or with the rest of one."""
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
        """See whether there are more steps than were expected."""
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
            "Trainer(max_epochs=-1, max_steps=...), which is the estimate whatever the data do"
        )


def unfinished(trainer: Trainer, loader: GraphLoader) -> int:
    """Batches that a loop took from its loader and whose gradients no optimizer has used.

    They are one inside of a step, where a checkpoint is saved if an exception is raised, and those
    whose gradients are being accumulated, which Lightning does not save. They come again.
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
    """Rows that devices can share to evaluate; none, which is said, where some would have no batch.

    So a first validation sample that arrives while several devices train does not end training.
    """
    devices = world_size()
    count = len(dataset) if rows is None else len(rows)
    if devices == 1:
        return rows
    if 0 < count < devices:
        rank_zero_warn(
            f"the {name} loader has {count} samples for {devices} devices, and one of them would "
            "have no batch: it is left empty until there are as many; use fewer devices, or a "
            "larger share"
        )
        count = 0
    return first_indices(count) if rows is None else rows[:count]


def check_reloading(trainer: Trainer, *, packed: bool) -> None:
    """Have the loader fetched anew in each epoch, so that it has what was committed by then."""
    every = trainer.reload_dataloaders_every_n_epochs
    if not every:
        trainer.reload_dataloaders_every_n_epochs = 1
    elif every > 1 and packed:
        raise ArgumentError(
            f"reload_dataloaders_every_n_epochs is {every}, and batches that fill a budget are not "
            "as many in each epoch: Lightning counts them only when it fetches the loader, and "
            "would leave some out; expected 0 or 1"
        )


def check_finders(trainer: Trainer, batch_size: int | None) -> None:
    """Refuse to look for the largest batch size where budgets alone are the size of batches."""
    for callback in trainer.callbacks:
        scaled = getattr(callback, "_batch_arg_name", None)
        if batch_size is None and isinstance(callback, BatchSizeFinder) and scaled == "batch_size":
            raise ArgumentError(
                "batch_size is None, as max_atoms or max_edges alone limit a batch, so there is "
                "nothing for the batch size finder to scale: expected batch_arg_name='max_atoms' "
                "and an init_val of no less than the largest sample, or a batch_size"
            )


def check_seed(loader: GraphLoader, seed: int) -> None:
    """Say that a resumed loader has another seed than was given: an order has only one."""
    if loader.sampler.seed != seed:
        rank_zero_warn(
            f"seed is {seed}, and the checkpoint is of a run with seed {loader.sampler.seed}, "
            "with which training goes on, so that no sample of its epoch is left out or repeated: "
            f"expected that seed; to train with seed {seed} begin a new fit without ckpt_path"
        )


def _require(loop: Any, names: Iterable[PrivateName]) -> None:
    """Refuse a release of Lightning whose fit loop lacks names, before anything is trained on."""
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
    """Have Lightning count the batches that come again, before it goes on at a step."""
    inner = trainer.fit_loop.epoch_loop
    current, total = inner.batch_progress.current, inner.batch_progress.total
    again = current.completed + inner.restarted_on_train_batch_end - step
    if again > 0:
        current.completed -= again
        for name in ("ready", "started", "processed", "completed"):
            setattr(total, name, getattr(total, name) - again)


def _end_epoch(trainer: Trainer) -> None:
    """Have the next epoch begin as it does where nothing is resumed."""
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
    """Steps of optimizers in all, if later epochs are as long as this one; 0 where it is unknown.

    `done` batches of this epoch have been trained on.
    """
    if trainer.max_epochs in (None, -1) or not trainer.lightning_module.automatic_optimization:
        return 0
    every, batches = trainer.accumulate_grad_batches, trainer.num_training_batches
    later = (trainer.max_epochs - trainer.current_epoch - 1) * math.ceil(batches / every)
    steps = trainer.global_step + math.ceil((batches - done) / every) + later
    return int(steps if trainer.max_steps == -1 else min(steps, trainer.max_steps))
