"""The samples to write: chosen by a condition, a split, an order; read in batches."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from zarrpipe.adapters.streams import stream_batches
from zarrpipe.data.batch import Batch
from zarrpipe.data.csr import Int64Array
from zarrpipe.data.fields import REQUIRED_FIELDS
from zarrpipe.data.levels import Level
from zarrpipe.data.schema import Field, Schema
from zarrpipe.data.validate import check_count
from zarrpipe.dataset.zarr_dataset import ZarrDataset
from zarrpipe.errors import StoreEmptyError
from zarrpipe.progress import progress_bar
from zarrpipe.store.query.columns import check_fields, field_names
from zarrpipe.training.splits.of_dataset import rows_of_split


@dataclass(frozen=True)
class Choice:
    """Which samples are written, and in which order; see `write_out`."""

    where: str | None = None
    split: str | Path | None = None
    splits: Sequence[float] = (0.9, 0.05, 0.05)
    split_by: str = "id"
    sort: str | None = None
    limit: int | None = None

    def of(self, dataset: ZarrDataset) -> ZarrDataset:
        """Dataset of the chosen samples.

        Raises `StoreEmptyError` if there are none.
        """
        if self.limit is not None:
            check_count("limit", self.limit, 1, unit="samples")
        if not len(dataset):
            raise StoreEmptyError("the store has no samples: there is nothing to write")
        split = None if self.split is None else str(self.split)
        rows, _ = rows_of_split(dataset, split, self.splits, by=self.split_by, where=self.where)
        if not len(rows):
            raise StoreEmptyError(
                f"none of {len(dataset)} samples is chosen by {self._described()}: there is "
                "nothing to write"
            )
        some = dataset.index_select(rows)
        if self.sort is not None:
            some = some.index_select(_order(some, self.sort))
        return some if self.limit is None else some.index_select(slice(self.limit))

    def _described(self) -> str:
        given = {"where": self.where, "split": self.split}
        return " and ".join(f"{name}={own!r}" for name, own in given.items() if own is not None)


def _order(dataset: ZarrDataset, sort: str) -> Int64Array:
    """Positions [N] by a column, the largest first; those without a value come last."""
    first = dataset.nlargest(sort, len(dataset))
    return np.concatenate([first, np.setdiff1d(np.arange(len(dataset)), first)])


def kind_of(level: Level) -> str:
    """Kind of a level and its parents, as in ``"product atom atom"``."""
    return " ".join([level.kind, *level.parents])


class Samples:
    """The chosen samples of a dataset, with some of their fields.

    `schema` has the fields of every batch, with the units of the stores.
    """

    def __init__(
        self,
        dataset: ZarrDataset,
        fields: Sequence[str] | None = None,
        *,
        progress: bool = False,
        left_out: Sequence[str] = (),
    ) -> None:
        first = dataset.read([0])
        wanted = field_names(fields)
        check_fields(wanted or (), {**dataset.schema, **Schema.of(first)})
        self._unwanted = tuple(
            name for name in first.fields if name in left_out or name not in (wanted or (name,))
        )
        self._dataset, self._progress = dataset, progress
        found = Schema.of(first.without(*self._unwanted)).with_units({})
        units = {name: unit for name, unit in dataset.units.items() if name in found}
        self.schema: Mapping[str, Field] = found.with_units(units)

    def __len__(self) -> int:
        return len(self._dataset)

    def without(self, *names: str) -> Samples:
        """The same samples without some fields."""
        unwanted = {*self._unwanted, *names}
        kept = [name for name in self.schema if name not in names]
        return Samples(self._dataset, kept, progress=self._progress, left_out=[*unwanted])

    def batches(self) -> Iterator[Batch]:
        """Batches of about 32 MB, in order and in memory."""
        with progress_bar(self._progress, "export", len(self), unit=" samples") as done:
            for batch in stream_batches(self._dataset):
                yield batch.without(*self._unwanted).cpu()
                done(batch.num_graphs)

    def missing(self, name: str) -> int:
        """Number of samples that lack a field."""
        if name in REQUIRED_FIELDS or name not in self._dataset.schema:
            return 0
        return int(len(self) - np.count_nonzero(self._dataset.present(name)))
