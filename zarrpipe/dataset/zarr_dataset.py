"""The stores as one map-style torch Dataset, read a batch at a time."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import Dataset

from zarrpipe.data.batch import Batch
from zarrpipe.data.csr import Int64Array, position_of
from zarrpipe.data.levels import Level, pointer_levels
from zarrpipe.data.schema import Field, levels_of
from zarrpipe.data.system import AtomicData
from zarrpipe.data.validate import check_flag
from zarrpipe.dataset.blocks import Blocks, exceed_caches, shuffled_blocks
from zarrpipe.dataset.resident import Resident, device_named
from zarrpipe.dataset.stores import Stores
from zarrpipe.dataset.table import Index, SampleTable
from zarrpipe.errors import ArgumentError, SampleIndexTypeError
from zarrpipe.store.backend.location import StoreLike
from zarrpipe.store.cache.directory import CacheConfig
from zarrpipe.store.check.report import Report
from zarrpipe.store.check.run import check
from zarrpipe.store.format.metadata import Mark
from zarrpipe.store.query.columns import check_fields, field_names
from zarrpipe.store.query.conditions import Condition
from zarrpipe.store.statistics.sums import LabelSums
from zarrpipe.store.summary import facts_text, schema_table
from zarrpipe.transforms.compose import (
    Transform,
    apply,
    as_transform,
    fields_read,
    is_random,
    joined,
)
from zarrpipe.transforms.random_numbers import sample_keys

_INT64 = np.dtype("int64")
_NO_IDS = np.zeros(0, dtype=np.uint64)

__all__ = ["Index", "ZarrDataset"]


class ZarrDataset(SampleTable, Dataset[AtomicData]):
    """The samples of one store, or of several stores one after the other.

    The parent of parts (see ``ZarrData(..., part=)``) has the samples of its parts, in natural
    order of their names: 2 comes before 10.

    An index stays the index of the same sample as long as the dataset object exists: samples that
    `refresh` finds are appended at the end, whichever store or new part they are in. `state_dict`
    records this order of arrival. A dataset that is opened anew lists the stores one after the
    other.

    Parameters
    ----------
    store_or_stores : StoreLike or sequence of StoreLike
        At least one store that exists.
    fields : sequence of str, optional
        The fields to read, besides positions and atomic numbers; all by default. Where a store
        lacks a field, its samples get fill values and are marked as lacking it.
    transform : callable or sequence of callable, optional
        Maps each `Batch` that is read (a batch of one for ``dataset[i]``) to the `Batch` to use;
        several run in order. Worker processes need it to be picklable. The random ones of
        `zarrpipe.transforms` draw by sample and by the epoch of `set_epoch`.
    cache_dir : str or Path, optional
        Directory on a local disk for decoded rows of stores that are compressed or not local. Rows
        are fetched and decoded once; other processes and later runs find them there. By default
        they are held in memory.
    cache_bytes : int, optional
        Limit of the cache of each such store, which drops the rows that were used longest ago; by
        default there is no limit.
    where : str, optional
        Condition for samples of the dataset; see `where`. `refresh` adds new samples that meet it.
    at : str or sequence of str, optional
        Mark of the store, or one for each store; see `ZarrData.mark`. The dataset has the samples
        that were stored when the mark was made, and `refresh` finds no others.
    resident : str or torch.device, optional
        Device ("cpu", "cuda") that holds all samples from the first batch on, and on which batches
        are made. It needs the memory for all of them, and a single process that reads.
    unique : bool
        Whether samples with the structure (id) of an earlier one are left out, in whichever store
        or part either is, of those that meet `where`. What is in the dataset stays in it:
        `refresh` leaves out new samples with a structure that it has, also where another order of
        the parts would have chosen these. It needs the ids of all samples, 16 bytes each.

    Raises
    ------
    StoreNotFoundError
        If there is no store at a place.
    SchemaError
        If no store has a field that is asked for, or two stores have a field at different
        levels, dtypes or row shapes, or in different units.
    ArgumentError
        If a store has no such mark.
    StoreFormatError
        If samples were deleted since the mark was made.
    """

    def __init__(
        self,
        store_or_stores: StoreLike | Sequence[StoreLike],
        fields: Sequence[str] | None = None,
        transform: Transform | Sequence[Transform] | None = None,
        *,
        cache_dir: str | Path | None = None,
        cache_bytes: int | None = None,
        where: str | None = None,
        at: str | Sequence[str] | None = None,
        resident: str | torch.device | None = None,
        unique: bool = False,
    ) -> None:
        self._transform, self._draw = as_transform(transform), (0, 0)
        cache_config = CacheConfig.of(cache_dir, cache_bytes)
        super().__init__(Stores.open(store_or_stores, cache_config, at))
        self._fields = field_names(fields)
        self._resident = None if resident is None else Resident(device_named(resident))
        self._agreed: Stores | None = None
        check_fields(self._fields or (), self.schema)
        check_reads(self._transform, self._fields, self.schema)
        self._where = None if where is None else Condition.of(where).text
        check_flag("unique", unique)
        self._unique = unique
        if self._is_filtered:
            self._follow(self._stores, None)

    @property
    def _is_filtered(self) -> bool:
        """Whether only some samples of the stores belong to the dataset, also of new ones."""
        return self._where is not None or self._unique

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._stores.check_current()

    def __repr__(self) -> str:
        return f"<{self._title}: {', '.join(self._fields or self.schema)}>"

    def _repr_html_(self) -> str:
        """Facts of the stores and the fields that are read, which notebooks show."""
        shown = {name: self.schema[name] for name in self._fields or self.schema}
        present = {name: int(np.count_nonzero(self.present(name))) for name in shown}
        facts = facts_text(self._stores.views)
        stored = len(self._stores)
        if len(self) < stored:
            facts = f"{int(self.num_atoms.sum()):,} atoms, of stores of {stored:,} samples: {facts}"
        return schema_table(self._title, shown, present, facts)

    def view(self, index: int = 0, viewer: str | None = None) -> Any:
        """Widget that shows a sample in a notebook; see `AtomicData.view`.

        Parameters
        ----------
        index : int
            Which sample.
        viewer : {"chemiscope", "py3dmol", "ase"}, optional
            Library that draws it.

        Raises
        ------
        SampleIndexError
            If there is no such sample.
        """
        return self[index]._view(viewer, f"sample {index % len(self)}")

    @property
    def _title(self) -> str:
        count = "1 sample" if len(self) == 1 else f"{len(self)} samples"
        stores = "1 store" if self.num_stores == 1 else f"{self.num_stores} stores"
        chosen = "" if self._where is None else f" where {self._where}"
        return f"{type(self).__name__} of {count} in {stores}{chosen}"

    def __getitem__(self, index: int) -> AtomicData:
        try:
            row = position_of(index, len(self), "sample", "a dataset")
        except SampleIndexTypeError as error:
            raise SampleIndexTypeError(
                f"{error}; read() gives a batch of several, index_select() a dataset of them"
            ) from None
        return self.read([row]).get_data(0)

    def __getitems__(self, index: Index) -> Batch:
        """As `read`, for torch's DataLoader."""
        return self.read(index)

    def read(
        self,
        index: Index,
        copies: Int64Array | None = None,
        draw: tuple[int, int] | None = None,
    ) -> Batch:
        """Batch of the samples at integers [K], in that order; repeats are allowed.

        A bool mask of all samples or a slice chooses too. `Batch.present` says which samples have
        a field that some lack.

        Parameters
        ----------
        index : array [K] of int, mask [N] of bool, or slice
            The samples.
        copies : array [K] int64, optional
            Which of its copies each is; random transforms draw for each copy anew.
        draw : tuple of int, optional
            Epoch and seed that random transforms draw by; by default those of `set_epoch`.

        Raises
        ------
        SampleIndexError
            If an index is outside of the dataset, or is none.
        """
        if self._resident is None:
            batch = self.gather(index, self._fields)
        else:
            batch = self._held(self._resident).gather(self._rows(index))
        if self._transform is None:
            return batch
        if not self.random:
            return apply(self._transform, batch)
        seed, epoch = self._draw if draw is None else (draw[1], draw[0])
        keys = sample_keys(seed, epoch, self.ids_of(index), copies)
        return apply(self._transform, batch, keys)

    @property
    def random(self) -> bool:
        """Whether its transform, or one of them, draws for each sample."""
        return is_random(self._transform)

    @property
    def marks(self) -> tuple[Mapping[str, Mark], ...]:
        """Marks of each store, by name; see `ZarrData.mark`."""
        return tuple(view.marks for view in self._stores.opened)

    def set_epoch(self, epoch: int, seed: int = 0) -> None:
        """Let a random transform draw what belongs to an epoch and a seed, 0 and 0 at first.

        Only a loop of one's own has to say it: loaders of a `ZarrDataModule` do.
        """
        self._draw = (int(seed), int(epoch))

    def preceded_by(self, transform: Transform | None) -> Self:
        """Dataset of the samples that are known now, with a transform before its own."""
        check_reads(transform, self._fields, self.schema)
        other = copy.copy(self)
        other._transform = joined(transform, self._transform)
        return other

    @property
    def resident(self) -> torch.device | None:
        """Device on which all samples are held, if they are."""
        return None if self._resident is None else self._resident.device

    def _held(self, resident: Resident) -> Resident:
        """All samples on their device, including new ones."""
        if self._agreed is not resident.order or len(resident) < len(self._stores):
            every = copy.copy(self)
            every._chosen = None
            while not resident.follow(
                every._stores, every._totals, lambda index: every.gather(index, self._fields)
            ):
                # A copy that has grown otherwise came first.
                self._resident = resident = Resident(resident.device)
            self._agreed = resident.order
        return resident

    def _totals(self) -> dict[Level, int]:
        levels = pointer_levels(levels_of(self._stores.schema.values()))
        rows = {level: int(self._num_rows(level).sum()) for level in levels}
        return {Level.SYSTEM: len(self), **rows}

    def gather(self, index: Index, fields: Sequence[str] | None = None) -> Batch:
        """As ``__getitems__``, for the given fields (None for all) and without the transform."""
        wanted = None if fields is None else tuple(fields)
        if self._chosen is None and type(index) is np.ndarray and index.dtype == _INT64:
            try:  # one check of the index, where samples are looked up
                return self._stores.read(index.reshape(-1), wanted)
            except IndexError:  # some are negative, or there are no such samples
                pass
        return self._stores.read(self._rows(index), wanted)

    def blocks(self, count: int | None = None) -> Blocks:
        """Blocks in which the first `count` samples, by default all, are shuffled.

        Groups of them fit the caches of their stores, so that each chunk is fetched once an epoch.
        What came after these samples changes nothing.
        """
        if not self._is_filtered or self._chosen is None:
            count = len(self._stores) if count is None else count
            return shuffled_blocks(self._stores, self._fields, count)
        chosen = self._chosen[:count]
        blocks = shuffled_blocks(self._stores, self._fields, int(chosen.max(initial=-1)) + 1)
        return blocks._replace(bounds=np.unique(np.searchsorted(chosen, blocks.bounds)))

    @property
    def exceeds_cache(self) -> bool:
        """Whether the fields that are read of a store's samples exceed its cache."""
        return exceed_caches(self._stores, self._fields)

    def prefetch(self, index: Index) -> None:
        """Bring the samples at integers [K] to memory in the background.

        It costs little where they are in memory already.
        """
        self._stores.prefetch(self._rows(index), self._fields)

    def index_select(self, index: Index) -> Self:
        """Dataset of the samples at integers [K], over the same open stores; it never grows."""
        selected = copy.copy(self)
        selected._chosen = self._rows(index).copy()
        selected._where, selected._unique = None, False
        return selected

    def refresh(self) -> int:
        """See what was committed since; gives the number of new samples, which come last.

        A selection by indices stays as it is; one by a condition takes in what meets it.
        """
        if self._chosen is not None and not self._is_filtered:
            return 0
        before, stores = len(self), self._stores.refreshed()
        self._follow(stores, self._chosen)
        return len(self) - before

    def _follow(self, stores: Stores, chosen: Int64Array | None) -> None:
        """Go to another state of the stores, whose first samples `chosen` were looked at."""
        if self._is_filtered:
            every = copy.copy(self)
            every._stores, every._chosen = stores, None
            known = len(self._stores) if chosen is not None else 0
            new = np.arange(known, len(stores))
            if self._where is not None:
                new = every.where(self._where, new)
            if self._unique:
                new = _first_of_each(new, every.ids_of(new), self.ids if known else _NO_IDS)
            chosen = new if chosen is None else np.concatenate([chosen, new])
        self._stores, self._chosen, self._agreed = stores, chosen, None

    def kept_sums(self) -> tuple[list[LabelSums], Int64Array]:
        """Sums that the stores keep, by bucket, and the positions [K] that are in none of them."""
        if self._chosen is not None:
            return [], np.arange(len(self))
        return self._stores.stored_statistics()

    def check(self) -> tuple[Report, ...]:
        """Look each store through for damage; see `zarrpipe.check`."""
        return tuple(check(view.store) for view in self._stores.opened)

    def state_dict(self) -> dict[str, Any]:
        """The meaning of each index, as plain types.

        ``arrivals`` is ``[[store, number of samples], ...]``, ``generations`` names each store as
        it was rewritten last, ``where`` is the condition if there is one. Where there are parts,
        each counts as a store, and ``parts`` is ``[[place of the parent, name], ...]``.
        """
        state = self._stores.state_dict()
        if self._unique:
            state["unique"] = True
        return state if self._where is None else {**state, "where": self._where}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Give every index the meaning that it had; what came later waits for `refresh`.

        Raises
        ------
        StoreFormatError
            If the stores are not those of the state: there are more or fewer, a part of it is not
            there, one was rewritten since, or has fewer samples than the state counts. Parts that
            the state does not name come with the next `refresh`.
        ValueError
            If the state is of another condition `where`, or of another `unique`.
        """
        if state.get("where") != self._where:
            raise ArgumentError(
                f"the state is of a dataset with where={state.get('where')!r}, this one has "
                f"where={self._where!r}: open it with the condition of the state"
            )
        if state.get("unique", False) is not self._unique:
            raise ArgumentError(
                f"the state is of a dataset with unique={not self._unique}, this one has "
                f"unique={self._unique}: open it as the one of the state"
            )
        before = self._stores
        self._follow(before.restored(state), None if self._is_filtered else self._chosen)
        resident = self._resident
        if resident is not None and not self._stores.begin_as(before, len(resident)):
            self._resident = Resident(resident.device)  # selections keep theirs


def _first_of_each(
    positions: Int64Array, ids: npt.NDArray[np.uint64], known: npt.NDArray[np.uint64]
) -> Int64Array:
    """Ascending positions [K] of the first sample with each id [N], without ids that are known."""
    found, first = np.unique(ids, return_index=True)
    # NumPy 2.0 overflows in a table of 64-bit ids.
    new = ~np.isin(found, known, kind="sort")
    return np.sort(positions[first[new]])


def check_reads(
    transform: object, fields: Sequence[str] | None, schema: Mapping[str, Field]
) -> None:
    """Refuse to leave out a field that changes what a transform does; it names them in `reads`."""
    for name in fields_read(transform):
        if name in schema and fields is not None and name not in fields:
            raise ArgumentError(
                f"fields leaves out {name!r}, which {transform!r} has to see: add it to fields"
            )
