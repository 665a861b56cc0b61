"""One loader for all epochs, for training loops of other libraries."""

from collections.abc import Iterator
from typing import Any

from zarrpipe.training.data_module import ZarrDataModule
from zarrpipe.training.loader import GraphLoader


class EpochLoader:
    """Training batches for a loop that keeps one loader: each pass over it is the next epoch.

    An epoch has what is committed when it begins, so a store that a simulation writes into may
    grow while the loop runs.

    Parameters
    ----------
    data : zarrpipe.ZarrDataModule
        Set up for "fit".
    """

    def __init__(self, data: ZarrDataModule) -> None:
        self._data = data

    @property
    def _loader(self) -> GraphLoader:
        """Loader of the epoch that is under way or comes next."""
        return self._data.train_dataloader()

    @property
    def waited(self) -> float:
        """Seconds that were spent in getting batches so far."""
        return self._loader.waited

    def set_epoch(self, epoch: int) -> None:
        """Let the next pass be this epoch, whose order of samples follows from its number."""
        self._loader.sampler.set_epoch(epoch)

    def __iter__(self) -> Iterator[Any]:
        return iter(self._loader)

    def __len__(self) -> int:
        return len(self._loader)
