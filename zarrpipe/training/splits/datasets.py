"""The stores of a data module as datasets, and the samples of each side in them."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

import numpy as np

from zarrpipe.data.schema import Field
from zarrpipe.dataset.zarr_dataset import ZarrDataset
from zarrpipe.errors import ArgumentTypeError, StoreEmptyError, StoreFormatError
from zarrpipe.store.backend.location import StoreLike
from zarrpipe.training.epoch.plans import IndexArray
from zarrpipe.training.ranks import all_ranks, rank, refresh_together, world_size
from zarrpipe.training.splits.assignment import SIDES, Split, SplitAssignment
from zarrpipe.training.splits.overlap import Overlaps

Stored = StoreLike | Sequence[StoreLike]

WITHOUT_RESUME = (
    "begin a new fit without ckpt_path, which goes on with the samples that it was saved with; "
    "Model.load_from_checkpoint(path) has the weights of a checkpoint"
)


class SplitDatasets:
    """What the stores of a data module have for each side; they are opened when first asked for.

    Parameters
    ----------
    stores : mapping of str to stores or None
        Those that are split as "all", and of each side that has stores of its own.
    opened : callable
        Gives the dataset of stores.
    split : Split
        How those that are split are.
    where : str, optional
        Condition that each sample has to meet.
    """

    def __init__(
        self,
        stores: Mapping[str, Stored | None],
        opened: Callable[[Stored], ZarrDataset],
        split: Split,
        where: str | None,
    ) -> None:
        if stores["all"] is None:
            raise ArgumentTypeError("store is None, expected the place of a store, or several")
        self._stores = {name: own for name, own in stores.items() if own is not None}
        self._opened, self.split, self.where = opened, split, where
        self._overlaps = Overlaps()
        self._forget()

    def _forget(self) -> None:
        self._datasets: dict[str, ZarrDataset] = {}
        self._sides = SplitAssignment(self.split, self.where, self._schema)
        self._chosen = {
            name: SplitAssignment(Split(), self.where, self._schema) for name in self._stores
        }

    def __str__(self) -> str:
        named = (f"{name}={place(own)}" for name, own in self._stores.items())
        return ", ".join(named).removeprefix("all=")

    @property
    def datasets(self) -> Mapping[str, ZarrDataset]:
        """Every sample of the stores, by the name of these."""
        if not self._datasets:
            self._datasets = self._open()
        return self._datasets

    @property
    def opened(self) -> Mapping[str, ZarrDataset]:
        """As `datasets`; empty if nothing has asked for them yet."""
        return self._datasets

    def _open(self) -> dict[str, ZarrDataset]:
        return {name: self._opened(own) for name, own in self._stores.items()}

    def _schema(self) -> dict[str, Field]:
        """Fields of all stores, of whichever side."""
        every = self.datasets.values()
        return {name: field for own in every for name, field in own.schema.items()}

    @property
    def known(self) -> int:
        """Number of samples to split that were seen; 0 before they were looked for."""
        return len(self._datasets["all"]) if self._datasets else 0

    def of(self, name: str) -> tuple[ZarrDataset, IndexArray | None]:
        """Dataset that has a side, or "all", and its positions there where they are not all."""
        dataset = self.datasets.get(name)
        if dataset is None:
            every = self.datasets["all"]
            return every, self._sides.rows(every)[name]
        return dataset, None if self.where is None else self._chosen[name].rows(dataset)["train"]

    def side(self, name: str) -> ZarrDataset:
        """The samples of a side that are known now."""
        dataset, rows = self.of(name)
        return dataset.index_select(np.arange(len(dataset)) if rows is None else rows)

    def _count(self, name: str) -> int:
        """Number of samples of a side that are known now."""
        dataset, rows = self.of(name)
        return len(dataset) if rows is None else len(rows)

    def refresh(self, *, again: bool = False) -> None:
        """See what was committed since, on every rank what rank 0 sees.

        With `again` stores that were opened anew are looked at once more, by all ranks or by none.
        """
        try:
            all_ranks(lambda: len(self.datasets))  # which are opened, where they were not
            for dataset in self.datasets.values():
                refresh_together(dataset)
        except Exception as error:
            if world_size() == 1 and not isinstance(error, StoreFormatError):
                raise
            known = isinstance(error, StoreFormatError)
            ranks = all_ranks(lambda: (known, self.open_anew()))
            told = next((one for _, one in ranks if one is not None), None)
            if again and (told is not None or all(one for one, _ in ranks)):
                self.refresh()
            elif told is None:
                raise
            else:
                raise StoreFormatError(told) from error

    def open_anew(self) -> str | None:
        """Forget what was known of the stores; gives what is to be said if one was rewritten.

        Where one cannot be opened nothing is forgotten.
        """
        before, opened = self._datasets, self._open()
        self.split = replace(self.split)  # which ids of index files were met is forgotten too
        self._forget()
        self._datasets = opened
        rewritten = [
            place(self._stores[name])
            for name, own in before.items()
            if own.state_dict()["generations"] != opened[name].state_dict()["generations"]
        ]
        if not rewritten:
            return None
        return (
            f"samples of {', '.join(rewritten)} were deleted or moved since they were looked at, "
            f"so it is not known any more which of them this epoch has and had: {WITHOUT_RESUME}"
        )

    def check(self) -> None:
        """Look whether the ids of index files are in the stores; rank 0 warns of some that are not."""
        self._sides.check(self.datasets["all"], warn=rank() == 0)

    def check_trained(self, *, validated: bool) -> None:
        """Look whether there are samples to train on and, if it is `validated`, to validate with.

        Rank 0 warns if there are none of the latter; they may come later.
        """
        count, share = len(self.datasets["all"]), self.split.shares[SIDES.index("val")]
        if not self._count("train"):
            self._fail(count)
        if validated and share and rank() == 0 and not self._count("val"):
            warnings.warn(
                f"none of {count} samples is on the side of validation (val), whose share is "
                f"{share:g}: until one is, there is nothing to validate with, and EarlyStopping "
                "and the like find no metric of it; expected more samples, a larger share or a "
                "val_store",
                stacklevel=5,
            )

    def _fail(self, count: int) -> NoReturn:
        """Say why there is nothing to train on."""
        met = "" if self.where is None else f" that meets where={self.where!r}"
        if count and not self._count("all"):
            raise StoreEmptyError(
                f"no sample to train on: none of {count} samples meets where={self.where!r}; write "
                "samples that do, or give another condition"
            )
        raise StoreEmptyError(
            f"no sample to train on: of {count} samples split={self.split} gives none to "
            f"training{met}; write more samples or give training a larger share"
        )

    def check_apart(self) -> None:
        """Have rank 0 warn of structures that are to be trained on and evaluated with.

        A split by ids has none; other stores and groups of samples may. Stores whose ids are not
        at hand are not looked at.
        """
        if rank() == 0:
            for name in SIDES[1:]:
                if name in self.datasets or self.split.by != "id":
                    self._overlaps.warn(name, self.of("train"), self.of(name))


def place(stored: Stored) -> str:
    """Stores in a few words; those in memory without what they hold."""
    if isinstance(stored, Sequence) and not isinstance(stored, str):
        return f"[{', '.join(map(place, stored))}]"
    return repr(str(stored)) if isinstance(stored, str | Path) else f"<{type(stored).__name__}>"
