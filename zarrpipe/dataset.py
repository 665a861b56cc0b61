"""The stores as one map-style torch Dataset, read a batch at a time."""

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import Dataset
from torch.utils.data._utils.collate import default_collate_fn_map

from zarrpipe.data.atomic import AtomicData
from zarrpipe.data.batch import Batch
from zarrpipe.data.csr import AnyArray, Int64Array, position_of, positions_of
from zarrpipe.data.fields import CORE_FIELDS, REQUIRED_FIELDS, Level
from zarrpipe.data.schema import Field
from zarrpipe.data.sums import LabelSums
from zarrpipe.epochs.blocks import Blocks, UnitLayout, choose_blocks
from zarrpipe.errors import ArgumentError, ArgumentTypeError, SchemaError, StoreFormatError
from zarrpipe.samples.arrivals import Arrivals
from zarrpipe.samples.columns import StoreColumns, holds
from zarrpipe.samples.columns import check as check_condition
from zarrpipe.samples.conditions import Condition
from zarrpipe.samples.resident import Resident
from zarrpipe.store.check.report import Report
from zarrpipe.store.check.run import check
from zarrpipe.store.gather import Gathers, Part
from zarrpipe.store.root import StoreLike
from zarrpipe.store.staging.caching import Caching
from zarrpipe.store.sums import kept_sums
from zarrpipe.store.view import StoreView
from zarrpipe.transforms._compose import (
    Transform,
    apply,
    as_transform,
    fields_read,
    is_random,
    joined,
)
from zarrpipe.transforms._numbers import sample_keys

Index = npt.ArrayLike | torch.Tensor | slice
Scalar = TypeVar("Scalar", bound=np.generic)

_BLOCK = 1 << 18


class ZarrDataset(Dataset[AtomicData]):
    """The samples of one store, or of several that follow each other.

    An index means the same sample for as long as the dataset lives: what `refresh` finds gets the
    indices at the end, whichever store it is in. So indices follow the order of arrival, and
    `state_dict` says what it was. A dataset that is opened anew has store after store.

    Parameters
    ----------
    store_or_stores : StoreLike or sequence of StoreLike
        At least one store that exists.
    fields : sequence of str, optional
        The fields to read; by default all. Positions and atomic numbers always come. A sample
        whose store lacks a field has it filled and marked as absent.
    transform : callable or sequence of callable, optional
        Called with each `Batch` that is read (with a batch of one for ``dataset[i]``) and gives
        the `Batch` to use; several are called one after the other. It has to be picklable where
        worker processes are used. What a random one of `zarrpipe.transforms` draws belongs to the
        sample and to the epoch that `set_epoch` says.
    cache_dir : str or Path, optional
        Directory on a local disk for the rows of stores that are compressed or not local. Each is
        fetched and decoded once, and found again by other processes and later runs. By default
        they are held in memory.
    cache_bytes : int, optional
        Most bytes that are held of each such store; by default all that was read. What was used
        longest ago makes room.

    resident : str or torch.device, optional
        Device ("cpu", "cuda") on which all samples are held from the first batch on, and on which
        batches are. It needs the memory for them all, and one process that reads.

    Raises
    ------
    StoreNotFoundError
        If there is no store at a place.
    SchemaError
        If no store has a field that is asked for, or two stores have a field at different
        levels, dtypes or row shapes, or in different units.
    """

    def __init__(
        self,
        store_or_stores: StoreLike | Sequence[StoreLike],
        fields: Sequence[str] | None = None,
        transform: Transform | Sequence[Transform] | None = None,
        *,
        cache_dir: str | Path | None = None,
        cache_bytes: int | None = None,
        resident: str | torch.device | None = None,
    ) -> None:
        self._transform, self._draw = as_transform(transform), (0, 0)
        stores = _listed(store_or_stores)
        caching = Caching.of(cache_dir, cache_bytes)
        self._views = [StoreView(store, caching) for store in stores]
        self._gathers = Gathers([view.snapshot for view in self._views], fixed=True)
        self._arrivals = Arrivals((i, view.num_samples) for i, view in enumerate(self._views))
        self._chosen: Int64Array | None = None
        self._fields = _names(fields)
        self._resident = None if resident is None else Resident(_device(resident))
        self.schema: Mapping[str, Field] = _common_schema([view.schema for view in self._views])
        _check_fields(self._fields, self.schema)
        _check_reads(self._transform, self._fields, self.schema)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_gathers"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._gathers = Gathers([view.snapshot for view in self._views], fixed=True)

    def __len__(self) -> int:
        return len(self._arrivals) if self._chosen is None else len(self._chosen)

    def __getitem__(self, index: int) -> AtomicData:
        row = position_of(index, len(self), "sample", "a dataset")
        return self.__getitems__([row]).get_data(0)

    def __getitems__(self, index: Index) -> Batch:
        """Batch of the samples at integers [K], in that order; repeats are allowed.

        A bool mask of all samples or a slice chooses too. `Batch.present` says which samples have
        a field that some lack.

        Raises
        ------
        SampleIndexError
            If an index is outside of the dataset, or is none.
        """
        return self.read(index)

    def read(self, index: Index, copies: Int64Array | None = None) -> Batch:
        """As ``__getitems__``; `copies` [K] tell the random numbers of equal samples apart."""
        if self._resident is None:
            batch = self.gather(index, self._fields)
        else:
            batch = self._followed(self._resident).gather(self._rows(index))
        if self._transform is None:
            return batch
        if not self.random:
            return apply(self._transform, batch)
        return apply(self._transform, batch, sample_keys(*self._draw, self.ids_of(index), copies))

    @property
    def random(self) -> bool:
        """Whether its transform, or one of them, draws for each sample."""
        return is_random(self._transform)

    def set_epoch(self, epoch: int, seed: int = 0) -> None:
        """Let a random transform draw what belongs to an epoch and a seed, 0 and 0 at first.

        Only a loop of one's own has to say it: loaders of a `ZarrDataModule` do.
        """
        self._draw = (int(seed), int(epoch))

    def preceded_by(self, transform: Transform | None) -> Self:
        """Dataset of the samples that are known now, with a transform before its own."""
        _check_reads(transform, self._fields, self.schema)
        other = copy.copy(self)
        other._transform = joined(transform, self._transform)
        return other

    @property
    def resident(self) -> torch.device | None:
        """Device on which all samples are held, if they are."""
        return None if self._resident is None else self._resident.device

    def _followed(self, resident: Resident) -> Resident:
        """All samples on their device, those that are new included."""
        if len(resident) < len(self._arrivals):
            every = copy.copy(self)
            every._chosen = None
            totals = {
                Level.SYSTEM: len(every),
                Level.ATOM: int(every.num_atoms.sum()),
                Level.EDGE: int(every.num_edges.sum()),
            }
            resident.follow(totals, lambda index: every.gather(index, self._fields))
        return resident

    def gather(self, index: Index, fields: Sequence[str] | None = None) -> Batch:
        """As ``__getitems__``, but the fields that are given (all for None) and no transform."""
        rows = self._rows(index)
        return self._gathers.of(fields)(len(rows), self._parts(rows) or [Part(0, rows)])

    def blocks(self, count: int | None = None) -> Blocks:
        """How the first `count` samples, by default all, are shuffled near each other.

        Groups of them fit the caches of their stores, so that each chunk is fetched once an epoch.
        What came after these samples changes nothing.
        """
        count = len(self._arrivals) if count is None else count
        arrivals = self._arrivals.until(count)
        chosen = {
            store: self._blocks_of(view, arrivals.held(store))
            for store, view in enumerate(self._views)
            if arrivals.held(store)
        }
        bounds, end = [np.zeros(1, dtype=np.int64)], 0
        for store, length, first in arrivals.placed():
            here = np.clip(chosen[store].bounds, first, first + length) - first + end
            bounds.append(here)
            end += length
        groups = [blocks.group for blocks in chosen.values()]
        return Blocks(np.unique(np.concatenate(bounds)), min(groups, default=1))

    def _blocks_of(self, view: StoreView, count: int) -> Blocks:
        layouts = [layout for _, layout in self._layouts(view)]
        return Blocks(*choose_blocks(count, layouts, view.snapshot.limit))

    def _layouts(self, view: StoreView) -> list[tuple[bool, UnitLayout]]:
        """How the arrays of a store that are read are cut, and whether through a cache."""
        return [
            (unit.staged, UnitLayout(unit.rows, unit.row_bytes, view.row_starts(unit.level)))
            for unit in view.units(self._fields)
        ]

    @property
    def exceeds_cache(self) -> bool:
        """Whether a cache cannot hold all that is read of the samples in its store."""
        for store, view in enumerate(self._views):
            count, limit = self._arrivals.held(store), view.snapshot.limit
            if limit is None:
                continue
            if sum(own.bytes_of(count) for staged, own in self._layouts(view) if staged) > limit:
                return True
        return False

    def advise(self, index: Index) -> None:
        """Say that the samples at integers [K] will be read soon.

        What is on a disk or far away is brought nearer in the background meanwhile.
        """
        rows = self._rows(index)
        self._gathers.of(self._fields).advise(self._parts(rows))

    def _parts(self, rows: Int64Array) -> list[Part]:
        """Samples by store, and where they stand among `rows`."""
        if len(self._views) == 1:
            return [Part(0, np.ascontiguousarray(rows))]
        store, row = self._arrivals.locate(rows)
        places = [np.flatnonzero(store == one) for one in range(len(self._views))]
        return [Part(one, row[here], here) for one, here in enumerate(places) if len(here)]

    def _rows(self, index: Index) -> Int64Array:
        """Positions [K] in the order of arrival, none negative."""
        rows = positions_of(index, len(self), "sample", "a dataset")
        return rows if self._chosen is None else self._chosen[rows]

    def index_select(self, index: Index) -> Self:
        """Dataset of the samples at integers [K], over the same open stores; it never grows."""
        selected = copy.copy(self)
        selected._chosen = self._rows(index).copy()
        return selected

    @property
    def units(self) -> dict[str, str]:
        """Unit of each field that has one: ASE's for the registry, else as the stores say."""
        return {name: field.unit for name, field in self.schema.items() if field.unit}

    @property
    def num_atoms(self) -> Int64Array:
        """Number of atoms of each sample, [N] int64."""
        return self._of_samples([view.num_atoms for view in self._views])

    @property
    def num_edges(self) -> Int64Array:
        """Number of edges of each sample, [N] int64."""
        return self._of_samples([view.num_edges for view in self._views])

    @property
    def num_stores(self) -> int:
        """Number of stores, those without samples included."""
        return len(self._views)

    def store_of(self, index: Index | None = None) -> Int64Array:
        """Place of the store of every sample, [N] int64, or of those at integers [K]."""
        rows = self._rows(np.arange(len(self)) if index is None else index)
        return self._arrivals.locate(rows)[0]

    @property
    def ids(self) -> npt.NDArray[np.uint64]:
        """64-bit name of each structure, [N] uint64."""
        return self.ids_of(np.arange(len(self)))

    def ids_of(self, index: Index) -> npt.NDArray[np.uint64]:
        """64-bit name of the structures of the samples at integers [K], uint64."""
        return self._collected(self._rows(index), StoreView.ids_of)

    def system_field(self, name: str, index: Index | None = None) -> AnyArray:
        """Field at system level of every sample, [N, ...], or of those at integers [K].

        Raises
        ------
        SchemaError
            If a store that has one of the samples lacks the field.
        """

        def values_of(view: StoreView, samples: Int64Array) -> AnyArray:
            if name not in view.schema:
                raise SchemaError(
                    f"store {self._views.index(view)} has no field {name!r}, it has "
                    f"{sorted(view.schema)}"
                )
            return view.system_field(name, samples)

        rows = self._rows(np.arange(len(self)) if index is None else index)
        return self._collected(rows, values_of)

    def present(self, name: str, index: Index | None = None) -> npt.NDArray[np.bool_]:
        """Which samples have a field, [N] bool, or of those at integers [K].

        Raises
        ------
        SchemaError
            If no store has the field and the registry does not know it.
        """
        _check_fields([] if name in CORE_FIELDS else [name], self.schema)
        rows = self._rows(np.arange(len(self)) if index is None else index)
        return self._collected(
            rows,
            lambda view, samples: (
                view.present(name, samples)
                if name in view.schema
                else np.zeros(len(samples), dtype=bool)
            ),
        )

    def where(
        self,
        condition: str,
        index: Index | None = None,
        *,
        beside: Mapping[str, Field] | None = None,
    ) -> Int64Array:
        """Positions [K] int64, ascending, of the samples that meet a condition.

        Only the fields that it names are read. What is said of a field that a sample lacks is
        neither true nor false for it, nor is what divides by zero: ``round < 3`` and ``not round
        < 3`` both leave it out, ``has(energy) or round < 3`` takes it if it has an energy.

        Parameters
        ----------
        condition : str
            Comparisons (``3 <= round < 7``, ``round in (1, 2)``), ``and``, ``or``, ``not``,
            ``+ - * / %``, ``abs()``, numbers, fields at system level that have one number for
            each sample, ``num_atoms``, ``num_edges``, and ``has(field)`` for fields of any level.
            Numbers count in the precision of the field that they are compared with.
        index : array [K] of int, optional
            Samples to look at, which are given back where they meet it, in this order.
        beside : mapping of str to Field, optional
            Schema of stores beside these: fields that it may name too, which no sample here has.

        Raises
        ------
        ValueError
            If it is no such condition.
        SchemaError
            If it names a field that neither a store nor the registry has, or needs the value of a
            field that has not one number for each sample.

        Examples
        --------
        >>> import zarrpipe as zp
        >>> store = {}
        >>> with zp.ZarrData(store) as sink:
        ...     sink.write(zp.AtomicData([[0.0, 0.0, 0.0]], [1], energy=[[-13.6]]))
        ...     sink.write(zp.AtomicData([[0.0, 0.0, 0.0]], [8]))
        >>> zp.ZarrDataset(store).where("has(energy) and energy < 0 and num_atoms < 10")
        array([0])
        """
        wanted = Condition.of(condition)
        schema = {**(beside or {}), **self.schema}
        check_condition(wanted, schema)
        given = None if index is None else positions_of(index, len(self), "sample", "a dataset")
        count = len(self) if given is None else len(given)
        chosen = [np.zeros(0, dtype=np.int64)]
        for start in range(0, count, _BLOCK):
            stop = min(start + _BLOCK, count)
            block = np.arange(start, stop) if given is None else given[start:stop]
            chosen.append(block[self._holds(wanted, self._rows(block), schema)])
        return np.concatenate(chosen)

    def _holds(
        self, condition: Condition, rows: Int64Array, schema: Mapping[str, Field]
    ) -> npt.NDArray[np.bool_]:
        """Which samples, from whichever stores they are in, meet a condition."""
        mask = np.zeros(len(rows), dtype=bool)
        for part in self._parts(rows):
            columns = StoreColumns(self._views[part.store], part.samples, schema)
            here = slice(None) if part.places is None else part.places
            mask[here] = holds(condition, columns, len(part.samples))
        return mask

    def _collected(
        self, rows: Int64Array, values_of: Callable[[StoreView, Int64Array], npt.NDArray[Scalar]]
    ) -> npt.NDArray[Scalar]:
        """Values of samples, from whichever stores they are in."""
        if len(self._views) == 1:
            return values_of(self._views[0], rows)
        parts = [
            (part, values_of(self._views[part.store], part.samples)) for part in self._parts(rows)
        ]
        if not parts:
            return values_of(self._views[0], rows)
        first = parts[0][1]
        values = np.empty((len(rows), *first.shape[1:]), first.dtype)
        for part, own in parts:
            values[part.places] = own
        return values

    def _of_samples(self, by_store: list[npt.NDArray[Scalar]]) -> npt.NDArray[Scalar]:
        values = self._arrivals.collect(by_store)
        return values if self._chosen is None else values[self._chosen]

    def refresh(self) -> int:
        """See what was committed since; gives the number of new samples, which come last.

        A selection stays as it is.
        """
        if self._chosen is not None:
            return 0
        for place, view in enumerate(self._views):
            generation = view.generation
            view.refresh()
            if view.generation != generation:
                raise StoreFormatError(
                    f"store {place} was rewritten: samples were deleted or moved, so indices mean "
                    "others than before; open a new dataset"
                )
        self.schema = _common_schema([view.schema for view in self._views])
        before, known = len(self), self._arrivals
        new = [(i, view.num_samples - known.held(i)) for i, view in enumerate(self._views)]
        self._arrivals = Arrivals([*known.runs, *new])
        return len(self) - before

    def kept_sums(self) -> tuple[list[LabelSums], Int64Array]:
        """Sums that the stores keep, by bucket, and the positions [K] that are in none of them."""
        if self._chosen is not None:
            return [], np.arange(len(self))
        found: dict[int, LabelSums] = {}
        for store, view in enumerate(self._views):
            kept = kept_sums(view.snapshot)
            if kept is not None and kept.samples <= self._arrivals.held(store):
                found[store] = kept.sums
        rest, end = [np.zeros(0, dtype=np.int64)], 0
        for store, count, first in self._arrivals.placed():
            known = int(found[store].total("samples")) if store in found else 0
            rest.append(np.arange(end + min(count, max(0, known - first)), end + count))
            end += count
        return list(found.values()), np.concatenate(rest)

    def check(self) -> tuple[Report, ...]:
        """Look each store through for damage; see `zarrpipe.check`."""
        return tuple(check(view.store) for view in self._views)

    def state_dict(self) -> dict[str, Any]:
        """What indices mean, as plain types.

        ``arrivals`` is ``[[store, number of samples], ...]``, ``generations`` names each store as
        it was rewritten last.
        """
        return {
            "arrivals": [list(run) for run in self._arrivals.runs],
            "generations": [view.generation for view in self._views],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Give every index the meaning that it had; what came later waits for `refresh`.

        Raises
        ------
        StoreFormatError
            If the stores are not those of the state: there are more or fewer, one was rewritten
            since, or has fewer samples than the state counts.
        """
        arrivals = Arrivals((store, count) for store, count in state["arrivals"])
        generations = state["generations"]
        if len(generations) != len(self._views):
            raise StoreFormatError(
                f"the state is of {len(generations)} stores, here are {len(self._views)}: give "
                "those that it was saved with, in the same order"
            )
        for place, (view, generation) in enumerate(zip(self._views, generations, strict=True)):
            count = arrivals.held(place)
            if view.num_samples < count:
                view.refresh()
            if view.num_samples < count or view.generation != generation:
                raise StoreFormatError(
                    f"store {place} has {view.num_samples} samples, the state counts {count} (of "
                    f"{generation!r}, the store is {view.generation!r}): give the stores that it "
                    "was saved with, in the same order and as they were"
                )
        resident = self._resident
        if resident is not None and not arrivals.begin_as(self._arrivals, len(resident)):
            self._resident = Resident(resident.device)  # selections keep theirs
        self._arrivals = arrivals
        self.schema = _common_schema([view.schema for view in self._views])


def _listed(stores: StoreLike | Sequence[StoreLike]) -> Sequence[StoreLike]:
    """One or many stores as a list."""
    if not isinstance(stores, Sequence) or isinstance(stores, str | bytes):
        return [stores]
    if not stores:
        raise ArgumentError("an empty list of stores makes no dataset: expected at least one")
    return stores


def _names(fields: Sequence[str] | None) -> tuple[str, ...] | None:
    """Names of fields that are asked for, the needed ones included; None for all."""
    if fields is None:
        return None
    if isinstance(fields, str) or not isinstance(fields, Iterable):
        raise ArgumentTypeError(
            f"fields is {fields!r}, expected a list of names such as ['energy', 'forces']"
        )
    return tuple(dict.fromkeys((*REQUIRED_FIELDS, *fields)))


def _device(name: str | torch.device) -> torch.device:
    """Device that is there.

    Raises
    ------
    ValueError
        If torch knows no such device, or has none.
    """
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError, TypeError) as error:
        raise ArgumentError(
            f"resident={name!r} is no device that torch has here, expected 'cpu', 'cuda' or "
            f"another that it can use ({str(error).splitlines()[0]})"
        ) from error


def collate(samples: Sequence[AtomicData | Batch] | Batch, **_: Any) -> Batch:
    """Batch of a list of samples; a `Batch` is passed through.

    torch's ``default_collate`` finds it for both types, so that a DataLoader needs none by hand.

    Raises
    ------
    FieldError
        If the list is empty or its samples do not fit each other.
    """
    return samples if isinstance(samples, Batch) else Batch.concatenate(samples)


default_collate_fn_map[AtomicData] = collate
default_collate_fn_map[Batch] = collate


def _check_fields(fields: Sequence[str] | None, schema: Mapping[str, Field]) -> None:
    for name in fields or ():
        if name not in schema:
            raise SchemaError(f"no store has a field {name!r}, they have {sorted(schema)}")


def _check_reads(
    transform: Transform | None, fields: Sequence[str] | None, schema: Mapping[str, Field]
) -> None:
    """Refuse to leave out a field without which a transform would do another thing."""
    for name in fields_read(transform):
        if name in schema and fields is not None and name not in fields:
            raise ArgumentError(
                f"fields leaves out {name!r}, which {transform!r} has to see: add it to fields"
            )


def _common_schema(schemas: Sequence[Mapping[str, Field]]) -> Mapping[str, Field]:
    """Fields of all stores; refuse two that differ."""
    common: dict[str, Field] = {}
    for place, schema in enumerate(schemas):
        for name, field in schema.items():
            first = common.setdefault(name, field)
            given = (field.level, field.dtype, field.shape, field.unit)
            if given != (first.level, first.dtype, first.shape, first.unit):
                raise SchemaError(
                    f"store {place} has field {name!r} at level {field.level.value!r} with dtype "
                    f"{field.dtype}, rows of shape {field.shape} and unit {field.unit or None!r}, "
                    f"a store before it at {first.level.value!r} with {first.dtype}, "
                    f"{first.shape} and {first.unit or None!r}: convert one"
                )
    return common
