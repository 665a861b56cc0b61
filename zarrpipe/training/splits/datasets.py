"""The stores of a data module as datasets, and the samples of each split in them."""

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

import numpy as np
from zarr.storage import LocalStore, MemoryStore

from zarrpipe.data.ids import UInt64Array
from zarrpipe.data.schema import Field
from zarrpipe.dataset.zarr_dataset import ZarrDataset
from zarrpipe.errors import ArgumentTypeError, StoreEmptyError, StoreFormatError
from zarrpipe.store.backend.location import Root, StoreLike
from zarrpipe.store.format.layout import IDS
from zarrpipe.training.epoch.batch_plan import IndexArray
from zarrpipe.training.ranks import all_ranks, rank, refresh_all_ranks, world_size
from zarrpipe.training.splits.assignment import SPLITS, SplitAssignment, SplitRule

Stored = StoreLike | Sequence[StoreLike]
_BLOCK = 1 << 20
_NO_IDS = np.zeros(0, dtype=np.uint64)

WITHOUT_RESUME = (
    "begin a new fit without ckpt_path, which goes on with the samples that it was saved with; "
    "Model.load_from_checkpoint(path) has the weights of a checkpoint"
)


class SplitDatasets:
    """The datasets of a data module and the rows of each split; stores open at the first use.

    `stores` has the stores to split as "all", and those of each split that has its own. `split`
    applies to "all", and `where` to every sample. `opened` returns the dataset of named stores.
    """

    def __init__(
        self,
        stores: Mapping[str, Stored | None],
        opened: Callable[[str, Stored], ZarrDataset],
        split: SplitRule,
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
        self._splits = SplitAssignment(self.split, self.where, self._schema)
        self._chosen = {
            name: SplitAssignment(SplitRule(), self.where, self._schema) for name in self._stores
        }

    def __str__(self) -> str:
        named = (f"{name}={place(own)}" for name, own in self._stores.items())
        return ", ".join(named).removeprefix("all=")

    @property
    def datasets(self) -> Mapping[str, ZarrDataset]:
        """Datasets of all samples, by the name of their stores."""
        if not self._datasets:
            self._datasets = self._open()
        return self._datasets

    @property
    def opened(self) -> Mapping[str, ZarrDataset]:
        """As `datasets`, but empty before their first use."""
        return self._datasets

    def _open(self) -> dict[str, ZarrDataset]:
        return {name: self._opened(name, own) for name, own in self._stores.items()}

    def _schema(self) -> dict[str, Field]:
        """Fields of all stores."""
        every = self.datasets.values()
        return {name: field for own in every for name, field in own.schema.items()}

    @property
    def known(self) -> int:
        """Number of known samples to split; 0 before the stores were opened."""
        return len(self._datasets["all"]) if self._datasets else 0

    def of(self, name: str) -> tuple[ZarrDataset, IndexArray | None]:
        """Dataset of a split or of "all", and the positions in it, None for all."""
        dataset = self.datasets.get(name)
        if dataset is None:
            every = self.datasets["all"]
            return every, self._splits.rows(every)[name]
        return dataset, None if self.where is None else self._chosen[name].rows(dataset)["train"]

    def dataset_of(self, name: str) -> ZarrDataset:
        """Dataset of the samples of a split that are known now."""
        dataset, rows = self.of(name)
        return dataset.index_select(np.arange(len(dataset)) if rows is None else rows)

    def _count(self, name: str) -> int:
        """Number of samples of a split that are known now."""
        dataset, rows = self.of(name)
        return len(dataset) if rows is None else len(rows)

    def refresh(self, *, again: bool = False) -> None:
        """Refresh every rank to the samples that rank 0 sees; reopen stores that were rewritten.

        Reopening raises `StoreFormatError`, or with `again` refreshes the stores once more.
        """
        try:
            all_ranks(lambda: len(self.datasets))  # opens them
            for dataset in self.datasets.values():
                refresh_all_ranks(dataset)
        except Exception as error:
            if world_size() == 1 and not isinstance(error, StoreFormatError):
                raise
            known = isinstance(error, StoreFormatError)
            ranks = all_ranks(lambda: (known, self.open_anew()))
            rewritten = next((message for _, message in ranks if message is not None), None)
            if again and (rewritten is not None or all(damaged for damaged, _ in ranks)):
                self.refresh()
            elif rewritten is None:
                raise
            else:
                raise StoreFormatError(rewritten) from error

    def open_anew(self) -> str | None:
        """Reopen all stores, or none if one fails; return a message if one was rewritten."""
        before, opened = self._datasets, self._open()
        self.split = replace(self.split)  # with a table of ids in which none was found yet
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
            f"so this epoch's samples can no longer be told: {WITHOUT_RESUME}"
        )

    def check(self) -> None:
        """Refuse index files whose ids are not in the stores; rank 0 warns of missing ids."""
        self._splits.check(self.datasets["all"], warn=rank() == 0)

    def check_trained(self, *, validated: bool) -> None:
        """Refuse stores without training samples; warn if `validated` and val is empty."""
        count, share = len(self.datasets["all"]), self.split.shares[SPLITS.index("val")]
        if not self._count("train"):
            self._fail(count)
        if validated and share and rank() == 0 and not self._count("val"):
            warnings.warn(
                f"none of {count} samples is in the validation split (val), whose share is "
                f"{share:g}: until one is, nothing is validated, and callbacks such as "
                "EarlyStopping find no metric; expected more samples, a larger share or val_store",
                stacklevel=5,
            )

    def _fail(self, count: int) -> NoReturn:
        """Raise an error that says why there are no training samples."""
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
        """Let rank 0 warn of structures in training and another split.

        Splits of the same stores by id share no structure and are not examined.
        """
        if rank() == 0:
            for name in SPLITS[1:]:
                if name in self.datasets or self.split.by != "id":
                    self._overlaps.warn(name, self.of("train"), self.of(name))


def place(stored: Stored) -> str:
    """Short description of stores, without the content of those in memory."""
    if isinstance(stored, Sequence) and not isinstance(stored, str):
        return f"[{', '.join(map(place, stored))}]"
    return repr(str(stored)) if isinstance(stored, str | Path) else f"<{type(stored).__name__}>"


Selection = tuple[ZarrDataset, IndexArray | None]
"""A dataset and positions in it, None for all."""


class Overlaps:
    """Warns of structures in training and another split; counts again only after changes.

    Stores that are remote or have no ids are skipped: every fit would have to fetch all ids first.
    """

    def __init__(self) -> None:
        self._known: dict[str, tuple[object, tuple[int, int]]] = {}

    def warn(self, name: str, train: Selection, other: Selection) -> None:
        """Warn if samples of split `name` have the id of a training sample."""
        if not (_has_local_ids(train[0]) and _has_local_ids(other[0])):
            return
        state = train[0].state_dict(), other[0].state_dict()
        before, counts = self._known.get(name, (None, (0, 0)))
        if before != state:
            counts = overlap(train, other)
            self._known[name] = state, counts
        count, every = counts
        if count:
            warnings.warn(
                f"{count} of the {every} {name} samples have the same structure (id) as a training "
                f"sample, so that the errors of {name} are smaller than those of unseen "
                f"structures: expected others; leave them out of {name}, or name what to train on "
                "in an index file (zarrpipe.write_split)",
                stacklevel=6,
            )


def _has_local_ids(dataset: ZarrDataset) -> bool:
    """Whether ids need not be fetched or computed."""
    return all(
        isinstance(Root.of(view.store).path.store, LocalStore | MemoryStore)
        and view.snapshot.has(IDS)
        for view in dataset._stores.views
    )


def overlap(train: Selection, other: Selection) -> tuple[int, int]:
    """Number of a split's samples with the id of a training sample, and of all its samples."""
    ids, counts = np.unique(np.concatenate([_NO_IDS, *_ids(other)]), return_counts=True)
    met = np.zeros(len(ids), dtype=bool)
    if len(ids):
        for some in _ids(train):
            some.sort()  # a search for ascending ids is faster
            places = np.searchsorted(ids[:-1], some)
            met[places[ids[places] == some]] = True
    return int(counts[met].sum()), int(counts.sum())


def _ids(selection: Selection) -> Iterator[UInt64Array]:
    """Ids of samples, block by block."""
    dataset, rows = selection
    count = len(dataset) if rows is None else len(rows)
    for start in range(0, count, _BLOCK):
        end = min(start + _BLOCK, count)
        yield dataset.ids_of(np.arange(start, end) if rows is None else rows[start:end])
