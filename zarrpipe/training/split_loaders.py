"""The loaders of a data module: which one an epoch gets, and where it continues."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from lightning.pytorch import Trainer

from zarrpipe.data.batch import Batch
from zarrpipe.dataset.zarr_dataset import ZarrDataset
from zarrpipe.training.epoch.batch_plan import IndexArray
from zarrpipe.training.lightning_resume import check_seed, shareable, unfinished
from zarrpipe.training.loader import GraphLoader
from zarrpipe.training.settings import Settings


class Loaders:
    """One loader per split, kept with its workers from epoch to epoch.

    A loader keeps its settings to the end of its epoch; after a change the next epoch gets a new
    loader.
    """

    def __init__(self, settings: Settings, convert: Callable[[Batch], Any] | None = None) -> None:
        self.settings, self._convert = settings, convert
        self.resume_from: Mapping[str, Any] | None = None
        """State at which the next training loader continues."""
        self._kept: dict[str, tuple[Settings, GraphLoader]] = {}

    def change(self, **given: Any) -> None:
        """Change settings of future loaders; an invalid value raises and changes nothing."""
        settings = replace(self.settings, **given)
        if not all(_same(getattr(self.settings, name), value) for name, value in given.items()):
            self.settings = settings

    def get(self, name: str) -> GraphLoader | None:
        """The last loader of a split."""
        return self._kept[name][1] if name in self._kept else None

    def current(self, name: str) -> GraphLoader | None:
        """The last loader of a split if its settings have not changed since."""
        made_by, loader = self._kept.get(name, (None, None))
        return loader if made_by is self.settings else None

    def of(
        self, name: str, dataset: ZarrDataset, rows: IndexArray | None, trainer: Trainer | None
    ) -> GraphLoader:
        """Loader of some rows of a dataset: the current one of the split, or a new one."""
        training = name == "train"
        if not training:
            rows = shareable(name, dataset, rows)
        loader = self.current(name)
        if loader is None:
            loader = self._make(name, dataset, rows, trainer)
        elif rows is not None:
            loader.sampler.resample(rows)
        if training:
            loader.unfinished = lambda: self._unfinished(trainer)
        else:
            # Lightning takes the length before it calls set_epoch.
            loader.sampler.set_epoch(loader.sampler.epoch)
        return loader

    def _make(
        self, name: str, dataset: ZarrDataset, rows: IndexArray | None, trainer: Trainer | None
    ) -> GraphLoader:
        """Replace the last loader of a split by a new one, and end the old one's workers."""
        training, settings, state = name == "train", self.settings, self.resume_from
        in_blocks = settings.shuffle == "blocks"
        if settings.shuffle is None:
            in_blocks = dataset.exceeds_cache
            if training and state is not None:  # the store may have grown since
                in_blocks = bool(state.get("group", 0))
        shuffle = training and (trainer is None or not trainer.overfit_batches)
        sampler = settings.sampler(dataset, shuffle=shuffle, index=rows, in_blocks=in_blocks)
        loader = settings.loader(dataset, sampler, training=training, convert=self._convert)
        last = self.get(name)
        if last is not None:
            last.close()
        self._kept[name] = settings, loader
        return loader

    def _unfinished(self, trainer: Trainer | None) -> int:
        known = self.get("train")
        return 0 if trainer is None or known is None else unfinished(trainer, known)

    def next_epoch(self, trainer: Trainer | None) -> int | None:
        """The epoch that the next training loader begins; None for the first one."""
        known = self.get("train")
        if known is None:
            return None
        if trainer is not None:
            return int(trainer.current_epoch)
        sampler = known.sampler
        return sampler.epoch + (0 < sampler.step == len(sampler))

    def begin(
        self, loader: GraphLoader, known: GraphLoader | None, epoch: int | None, *, fitting: bool
    ) -> None:
        """Move a training loader to an epoch, or to where a checkpoint was taken."""
        if epoch is not None:
            if fitting or loader is not known:
                loader.sampler.set_epoch(epoch)
        elif self.resume_from is not None:
            loader.load_state_dict(self.resume_from)
            check_seed(loader, self.settings.seed)
            self.resume_from = None

    def close(self) -> None:
        """Drop all loaders and end their workers."""
        for _, loader in self._kept.values():
            loader.close()
        self._kept = {}


def _same(known: object, given: object) -> bool:
    """Whether two values are equal and immutable."""
    if not isinstance(known, int | str | None):
        return False
    return type(known) is type(given) and known == given
