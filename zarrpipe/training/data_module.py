"""Stores as a LightningDataModule."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningDataModule

from zarrpipe.data.batch import Batch
from zarrpipe.dataset.zarr_dataset import ZarrDataset, check_reads
from zarrpipe.errors import StoreFormatError, ZarrPipeError
from zarrpipe.store.backend.location import StoreLike
from zarrpipe.store.cache.directory import CacheConfig
from zarrpipe.store.query.conditions import Condition
from zarrpipe.training.lightning_resume import ResumeFix, check_finders, check_reloading
from zarrpipe.training.loader import GraphLoader
from zarrpipe.training.ranks import all_ranks, check_alike, check_slurm_tasks
from zarrpipe.training.settings import (
    Fixed,
    Setting,
    Settings,
    check_device,
    checked_converter,
    checked_device,
)
from zarrpipe.training.split_loaders import Loaders
from zarrpipe.training.splits.assignment import SPLITS, SplitRule
from zarrpipe.training.splits.datasets import WITHOUT_RESUME, SplitDatasets, Stored
from zarrpipe.training.statistics import SplitStatistics, Statistics
from zarrpipe.transforms.compose import as_transform


class ZarrDataModule(LightningDataModule):  # type: ignore[misc]  # lightning is not followed
    """Training, validation and test batches from stores that may grow during the run.

    Each training epoch takes all samples that are committed when it begins, the same on every
    rank. For this, Lightning asks for the loader again each epoch
    (``reload_dataloaders_every_n_epochs``, which is set to 1 if it is 0). A checkpoint records the
    samples of its epoch and the position in it, so a resumed run goes through exactly the rest, on
    any number of devices. Several devices need no Trainer flag.

    Each argument is an attribute. Those of batches, order, augmentation and reading
    (``batch_size`` to ``samples_per_epoch``, ``train_transform``, ``seed``, ``shuffle``,
    ``num_workers``, ``prefetch``) may be assigned and take effect in the next epoch. So Lightning's
    batch size finder works; for a budget, with ``batch_arg_name="max_atoms"``. The others cannot be
    assigned.

    Parameters
    ----------
    store : StoreLike or sequence of StoreLike
        The stores to split. They must exist when `setup` is called.
    batch_size : int, optional
        Number of systems in a batch of each rank. With a budget, an upper limit; 32 without one.
    max_atoms, max_edges : int, optional
        Budgets: training batches are filled up to so many atoms and edges; see
        `GraphBatchSampler`.
    balance : bool
        Whether training batches of `batch_size` get nearly equal numbers of atoms.
    weights, samples_per_epoch : optional
        Weights by which the samples of training epochs are drawn, and their number over all
        devices; see `GraphBatchSampler`. An epoch uses the weights of the samples that it begins
        with.
    split : sequence of float, or mapping of str to index file or float
        Shares of training, validation and test. Where `val_store` or `test_store` is given, that
        share goes to training. A mapping gives "train", "val" and "test" by index files (``.npy``
        with ids, as `write_split` writes; or arrays of ids, uint64) or by shares of the samples
        that no file names; None means no samples. A split that is not named gets all other samples:
        "train", or the only one that is missing. Samples with equal ids are in one split.
    split_by : str
        "id" assigns each structure to a split by the hash of its id. The name of a field at system
        level keeps samples with equal values of that field in one split. A sample never changes its
        split while its store grows or is merged, compacted or reordered.
    where : str, optional
        Condition for samples of all splits, such as ``"round >= 3 and has(forces)"``; see
        `ZarrDataset.where`. It applies to samples that arrive later too.
    at : str or sequence of str, optional
        Mark of `store`, or one for each of its stores; see `ZarrData.mark`. Training and its splits
        use the samples that were stored when the mark was made.
    val_store, test_store : StoreLike or sequence of StoreLike, optional
        Stores that are used whole for validation and test. A warning before a fit says how many of
        their structures are also trained on.
    fields : sequence of str, optional
        Fields of the batches; all by default.
    transform : callable or sequence of callable, optional
        Maps each `Batch` that is read to the `Batch` to use, in every split: one function or
        object, or several in order; see `zarrpipe.transforms`. In a configuration file, a dotted
        path, or ``class_path`` and ``init_args`` of a class with ``__call__``, or a list of these.
        Workers, if there are any, run it.
    train_transform : callable or sequence of callable, optional
        Augmentation: the same for training batches only, before `transform`. Random transforms draw
        from `seed`, the epoch and the id of the structure. In `transform`, they draw the same in
        each validation.
    convert : callable, optional
        Maps each `Batch` to what the training loop gets, such as the batch of another library. It
        runs in this process, on the device of training, in every split. In a configuration file as
        `transform`.
    seed : int
        Seed of the order of training samples; the split does not depend on it. A resumed run keeps
        the seed of its checkpoint, and warns if that differs.
    shuffle : str, optional
        "samples" shuffles all training samples. "blocks" shuffles blocks of neighbouring samples
        and the samples within a few of them at a time, so that each chunk of a store is fetched
        once an epoch. The default is "blocks" if `cache_bytes` is smaller than the data, and
        "samples" otherwise.
    num_workers, prefetch : int
        Number of worker processes of each loader, or of batches that a thread reads ahead; see
        `GraphLoader`.
    device : str or torch.device, optional
        Device of the batches; by default that of the model under Lightning.
    resident : bool
        Whether all samples are held on `device` (in memory by default); see `ZarrDataset`.
    cache_dir, cache_bytes : optional
        Place and size of the cache for rows of compressed or remote stores; see `ZarrDataset`.

    Raises
    ------
    ValueError
        If `split` does not sum to 1, or a number is out of its range.
    """

    reads: tuple[str, ...] = ()
    """Fields of a store that `fields` must not leave out, as a subclass needs them."""

    batch_size, max_atoms, max_edges = Setting(), Setting(), Setting()
    balance, weights, samples_per_epoch = Setting(), Setting(), Setting()
    seed, shuffle, train_transform = Setting(), Setting(), Setting()
    num_workers, prefetch = Setting(), Setting()
    split, split_by, where, at = Fixed(), Fixed(), Fixed(), Fixed()
    fields, transform, convert, device = Fixed(), Fixed(), Fixed(), Fixed()
    store, val_store, test_store = Fixed(), Fixed(), Fixed()
    resident, cache_dir, cache_bytes = Fixed(), Fixed(), Fixed()

    def __init__(
        self,
        store: StoreLike | Sequence[StoreLike],
        *,
        batch_size: int | None = None,
        max_atoms: int | None = None,
        max_edges: int | None = None,
        balance: bool = False,
        weights: Sequence[float] | Mapping[str, Mapping[Any, float]] | str | None = None,
        samples_per_epoch: int | None = None,
        split: Sequence[float] | Mapping[str, Any] = (0.9, 0.05, 0.05),
        split_by: str = "id",
        where: str | None = None,
        at: str | Sequence[str] | None = None,
        val_store: StoreLike | Sequence[StoreLike] | None = None,
        test_store: StoreLike | Sequence[StoreLike] | None = None,
        fields: Sequence[str] | None = None,
        transform: Callable[..., Any] | Sequence[Callable[..., Any]] | None = None,
        train_transform: Callable[..., Any] | Sequence[Callable[..., Any]] | None = None,
        convert: Callable[..., Any] | None = None,
        seed: int = 0,
        shuffle: str | None = None,
        num_workers: int = 0,
        prefetch: int = 0,
        device: str | torch.device | None = None,
        resident: bool = False,
        cache_dir: str | Path | None = None,
        cache_bytes: int | None = None,
    ) -> None:
        super().__init__()
        settings = Settings.of(
            batch_size=batch_size,
            max_atoms=max_atoms,
            max_edges=max_edges,
            balance=balance,
            weights=weights,
            samples_per_epoch=samples_per_epoch,
            train_transform=train_transform,
            seed=seed,
            shuffle=shuffle,
            num_workers=num_workers,
            prefetch=prefetch,
            resident=resident,
        )
        CacheConfig.of(cache_dir, cache_bytes)
        self.split, self.split_by, self.fields = split, split_by, fields
        self.where, self.at = None if where is None else Condition.of(where).text, at
        self.transform, self.convert = as_transform(transform), checked_converter(convert)
        self.device = None if device is None else checked_device(device)
        self.store, self.val_store, self.test_store = store, val_store, test_store
        self.resident, self.cache_dir, self.cache_bytes = resident, cache_dir, cache_bytes
        stores = {"all": store, "val": val_store, "test": test_store}
        own = [name for name in SPLITS if stores.get(name) is not None]
        self._splits = SplitDatasets(
            stores, self._opened, SplitRule.of(split, split_by, own), self.where
        )
        self._statistics = SplitStatistics()
        self._resume_fix = ResumeFix()
        made = None if convert is None else self._converted
        self._loaders = Loaders(settings, made)  # assignments are checked from here on

    def __str__(self) -> str:
        """The stores; Lightning's own text would read a batch of each loader."""
        return f"{type(self).__name__}({self._splits})"

    __repr__ = __str__

    @property
    def dataset(self) -> ZarrDataset:
        """Every sample of `store`."""
        return self._splits.datasets["all"]

    @property
    def train_dataset(self) -> ZarrDataset:
        """The training samples that are known now."""
        return self._splits.dataset_of("train")

    @property
    def val_dataset(self) -> ZarrDataset:
        """The validation samples that are known now."""
        return self._splits.dataset_of("val")

    @property
    def test_dataset(self) -> ZarrDataset:
        """The test samples that are known now."""
        return self._splits.dataset_of("test")

    @property
    def statistics(self) -> Statistics:
        """Statistics of `train_dataset`; only samples that are new since the last call are read.

        The first call uses the sums that stores keep, if the share of training is a whole per cent
        of the ids, and else reads all samples.
        """
        (_, rows), split = self._splits.of("train"), self._splits.split
        assert rows is not None  # the split decides them
        share = split.shares[0] if split.by_hash_of_id and self.where is None else None
        return self._statistics.of(self.dataset, rows, share)

    def refresh(self) -> int:
        """See what was committed since; gives how many samples of `store` are new.

        With torch.distributed every rank has to call it, and all see what rank 0 saw. Loaders
        keep to what their epoch began with.

        Raises
        ------
        StoreFormatError
            If samples were deleted or moved meanwhile. What is asked for next is of the stores as
            they are now, as after `setup`.
        """
        before = self._splits.known
        self._look()
        return len(self.dataset) - before

    def setup(self, stage: str) -> None:
        """Look at the stores, the same way on every rank; they may have changed in any way.

        Before a fit rank 0 warns of validation and test samples with the id of a training sample,
        where they come from other stores or are split by a field, and if `split` gives validation
        a share and it has no sample. What comes later is not looked at, nor are stores that are
        not local or have no ids.

        Raises
        ------
        ValueError
            If `device` is not there, `max_edges` is given and no store has edges, or before a fit
            several SLURM tasks are not ranks of one run.
        StoreEmptyError
            If there is no sample to train on.
        """
        if stage == "fit":
            check_slurm_tasks()
        all_ranks(partial(check_device, self.device))
        self._loaders.close()
        self._loaders.resume_from = None
        self._look(again=True)  # nothing is under way
        all_ranks(partial(self._check, stage))

    def _check(self, stage: str) -> None:
        """Check the stores, splits and trainer of this rank."""
        self._splits.check()
        self._loaders.settings.check(self.dataset)
        check_reads(self, self.fields, self.dataset.schema)
        if self.trainer is not None:
            check_finders(self.trainer, self.batch_size)
        if stage != "fit":
            return
        validated = self.trainer is None or self.trainer.enable_validation
        self._splits.check_trained(validated=validated)
        self._splits.check_apart()
        if self.trainer is not None:
            check_reloading(self.trainer, packed=self._loaders.settings.packed)
            self._resume_fix = ResumeFix.of(self.trainer)

    def teardown(self, stage: str) -> None:
        """Let go of the loaders and end their workers."""
        self._loaders.close()

    def on_exception(self, exception: BaseException) -> None:
        """Say the way out where a batch could not be read because a store was rewritten."""
        if isinstance(exception, StoreFormatError):
            self._forget()
            # The exception is raised as it is where the stores cannot be opened.
            with contextlib.suppress(ZarrPipeError, OSError):
                rewritten = self._splits.open_anew()
                if rewritten is not None:
                    exception.add_note(rewritten)

    def train_dataloader(self) -> GraphLoader:
        """Loader of the training samples; where a new epoch begins, of those committed by then.

        With torch.distributed every rank has to ask for it.

        Raises
        ------
        StoreFormatError
            If ranks have other stores, index files or settings, or samples were deleted or moved.
        """
        known, epoch = self._loaders.get("train"), self._loaders.next_epoch(self.trainer)
        current = (
            known is not None
            and self.trainer is not None
            and epoch == known.sampler.epoch
            and known is self._loaders.current("train")
        )
        check_alike(lambda: {"epoch": epoch, "settings assigned": not current})
        if current and known is not None:
            return known
        if known is not None:
            self.refresh()

        def begin() -> Mapping[str, Any]:
            loader = self._loader("train")
            self._loaders.begin(loader, known, epoch, fitting=self.trainer is not None)
            return loader.state_dict()

        check_alike(begin)
        loader = self._loaders.get("train")
        assert loader is not None
        return loader

    def val_dataloader(self) -> GraphLoader:
        """Loader of the validation samples, in order; of length 0, and skipped, without any."""
        return self._loader("val")

    def test_dataloader(self) -> GraphLoader:
        """Loader of the test samples, in order; of length 0, and skipped, without any."""
        return self._loader("test")

    def predict_dataloader(self) -> GraphLoader:
        """Loader of every sample of `store` that meets `where`, in order."""
        return self._loader("all")

    def transfer_batch_to_device(
        self, batch: Any, device: torch.device, dataloader_idx: int
    ) -> Any:
        """Batch on the device: itself if it is there, otherwise a copy."""
        where = self.device or device
        if not isinstance(batch, Batch):
            return super().transfer_batch_to_device(batch, where, dataloader_idx)
        return (
            batch if batch.device == where else batch.to(where, non_blocking=where.type == "cuda")
        )

    def state_dict(self) -> dict[str, Any]:
        """Position in the training epoch and the samples that it has, as plain types.

        Lightning saves the loader's own state too, but restores it only if nothing has asked for
        the loader before; a scheduler that reads ``estimated_stepping_batches`` has.
        """
        loader = self._loaders.get("train")
        estimate = self._resume_fix.estimate
        return {} if loader is None else {"train": loader.state_dict(), "estimated_steps": estimate}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Let the next fit go on where the checkpoint was taken."""
        if self.trainer is not None and self.trainer.state.fn != "fit":
            return
        if not state_dict:  # of a module whose training had not begun
            return
        try:
            self.dataset.load_state_dict(state_dict["train"])
        except StoreFormatError as error:
            raise StoreFormatError(
                f"{error}; where samples were deleted or moved since, {WITHOUT_RESUME}"
            ) from error
        self._loaders.resume_from = state_dict["train"]
        self._resume_fix.estimate = state_dict.get("estimated_steps")
        self._forget()

    def _look(self, *, again: bool = False) -> None:
        """See new samples, and drop loaders and statistics of stores that were reopened."""
        opened = self._splits.opened
        try:
            self._splits.refresh(again=again)
        finally:
            if opened and self._splits.opened is not opened:
                self._forget()

    def _forget(self) -> None:
        """Drop loaders and statistics, as indices may mean other samples now."""
        self._loaders.close()
        self._statistics = SplitStatistics()

    def _opened(self, name: str, stored: Stored) -> ZarrDataset:
        return ZarrDataset(
            stored,
            self.fields,
            self.transform,
            cache_dir=self.cache_dir,
            cache_bytes=self.cache_bytes,
            at=self.at if name == "all" else None,
            resident=(self.device or "cpu") if self.resident else None,
        )

    def _converted(self, batch: Batch) -> Any:
        """What `convert` makes of a batch, on the device of training."""
        assert self.convert is not None  # otherwise no loader calls this
        device = torch.device("cpu") if self.trainer is None else self.trainer.strategy.root_device
        return self.convert(self.transfer_batch_to_device(batch, device, 0))

    def _loader(self, name: str) -> GraphLoader:
        return self._loaders.of(name, *self._splits.of(name), self.trainer)
