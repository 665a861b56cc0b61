"""Values of one row per sample, over several stores: sizes, ids, fields of systems, conditions."""

from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import torch

from zarrpipe.data.csr import AnyArray, Int64Array, positions_of
from zarrpipe.data.fields import CORE_FIELDS
from zarrpipe.data.levels import Level
from zarrpipe.data.schema import Field
from zarrpipe.dataset.conditions import Condition
from zarrpipe.dataset.field_values import StoreFieldValues, meets
from zarrpipe.dataset.field_values import check as check_condition
from zarrpipe.dataset.stores import Stores
from zarrpipe.errors import SchemaError
from zarrpipe.store.read.view import StoreView

Index = npt.ArrayLike | torch.Tensor | slice
Scalar = TypeVar("Scalar", bound=np.generic)

_BLOCK = 1 << 18


def check_fields(fields: Sequence[str] | None, schema: Mapping[str, Field]) -> None:
    """Refuse names of fields that no store has."""
    for name in fields or ():
        if name not in schema:
            raise SchemaError(f"no store has a field {name!r}, they have {sorted(schema)}")


class SampleTable:
    """All samples of stores, or a selection of them in any order."""

    def __init__(self, stores: Stores) -> None:
        self._stores = stores
        self._chosen: Int64Array | None = None

    def __len__(self) -> int:
        return len(self._stores.index_map) if self._chosen is None else len(self._chosen)

    @property
    def schema(self) -> Mapping[str, Field]:
        """Fields that the stores have between them, by name."""
        return self._stores.schema

    @property
    def units(self) -> dict[str, str]:
        """Unit of each field that has one: ASE's for the registry, else as the stores say."""
        return {name: field.unit for name, field in self.schema.items() if field.unit}

    @property
    def num_atoms(self) -> Int64Array:
        """Number of atoms of each sample, [N] int64."""
        return self._num_rows(Level.ATOM)

    @property
    def num_edges(self) -> Int64Array:
        """Number of edges of each sample, [N] int64."""
        return self._num_rows(Level.EDGE)

    @property
    def num_stores(self) -> int:
        """Number of stores, those without samples included."""
        return len(self._stores.opened)

    def store_of(self, index: Index | None = None) -> Int64Array:
        """Place of the store of every sample, [N] int64, or of those at integers [K]."""
        return self._stores.index_map.locate(self._rows_or_all(index))[0]

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
        views = self._stores.views

        def values_of(view: StoreView, samples: Int64Array) -> AnyArray:
            if name not in view.schema:
                raise SchemaError(
                    f"store {views.index(view)} has no field {name!r}, it has {sorted(view.schema)}"
                )
            return view.system_field(name, samples)

        return self._collected(self._rows_or_all(index), values_of)

    def present(self, name: str, index: Index | None = None) -> npt.NDArray[np.bool_]:
        """Which samples have a field, [N] bool, or of those at integers [K].

        Raises
        ------
        SchemaError
            If no store has the field and the registry does not know it.
        """
        check_fields([] if name in CORE_FIELDS else [name], self.schema)

        def present_of(view: StoreView, samples: Int64Array) -> AnyArray:
            if name not in view.schema:
                return np.zeros(len(samples), dtype=bool)
            return view.present(name, samples)

        return self._collected(self._rows_or_all(index), present_of)

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
            chosen.append(block[self._meet(wanted, self._rows(block), schema)])
        return np.concatenate(chosen)

    def _rows(self, index: Index) -> Int64Array:
        """Positions [K] in the order of arrival, none negative."""
        rows = positions_of(index, len(self), "sample", "a dataset")
        return rows if self._chosen is None else self._chosen[rows]

    def _rows_or_all(self, index: Index | None) -> Int64Array:
        return self._rows(np.arange(len(self)) if index is None else index)

    def _num_rows(self, level: Level) -> Int64Array:
        """Number of rows of each sample at a level that has pointers, [N] int64."""
        by_store = [view.num_rows(level) for view in self._stores.views]
        values: Int64Array = self._stores.index_map.collect(by_store)
        return values if self._chosen is None else values[self._chosen]

    def _meet(
        self, condition: Condition, rows: Int64Array, schema: Mapping[str, Field]
    ) -> npt.NDArray[np.bool_]:
        """Which samples [K] meet a condition."""
        mask, views = np.zeros(len(rows), dtype=bool), self._stores.views
        for part in self._stores.parts(rows):
            values = StoreFieldValues(views[part.store], part.samples, schema)
            here = slice(None) if part.places is None else part.places
            mask[here] = meets(condition, values, len(part.samples))
        return mask

    def _collected(
        self, rows: Int64Array, values_of: Callable[[StoreView, Int64Array], npt.NDArray[Scalar]]
    ) -> npt.NDArray[Scalar]:
        """Values of samples [K], one call per store."""
        views = self._stores.views
        if len(views) == 1:
            return values_of(views[0], rows)
        found = [
            (part, values_of(views[part.store], part.samples)) for part in self._stores.parts(rows)
        ]
        if not found:
            return values_of(views[0], rows)
        first = found[0][1]
        values = np.empty((len(rows), *first.shape[1:]), first.dtype)
        for part, own in found:
            values[part.places] = own
        return values
