"""Values of one row per sample, over several stores: sizes, ids, fields of systems, conditions."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch

from zarrpipe.data.categories import decoded, looked_up, translation
from zarrpipe.data.csr import AnyArray, Int64Array, positions_of
from zarrpipe.data.fields import CORE_FIELDS
from zarrpipe.data.levels import Level
from zarrpipe.data.schema import Field
from zarrpipe.data.validate import check_count
from zarrpipe.dataset.data_frame import data_frame, plain_columns
from zarrpipe.dataset.stores import Stores
from zarrpipe.errors import SchemaError
from zarrpipe.store.query.columns import StoreColumns, check_fields
from zarrpipe.store.query.conditions import Condition
from zarrpipe.store.query.evaluation import BLOCK, meets, numbers
from zarrpipe.store.query.evaluation import check as check_condition
from zarrpipe.store.read.view import StoreView

if TYPE_CHECKING:
    import pandas as pd

Index = npt.ArrayLike | torch.Tensor | slice
Scalar = TypeVar("Scalar", bound=np.generic)


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
        """Number of stores as they were given, those without samples included."""
        return len(self._stores.given)

    def store_of(self, index: Index | None = None) -> Int64Array:
        """Place of the store of every sample, [N] int64, or of those at integers [K].

        All parts of a store have its place.
        """
        return self._stores.given_of(self._rows_or_all(index))

    @property
    def ids(self) -> npt.NDArray[np.uint64]:
        """64-bit name of each structure, [N] uint64."""
        return self.ids_of(np.arange(len(self)))

    def ids_of(self, index: Index) -> npt.NDArray[np.uint64]:
        """64-bit name of the structures of the samples at integers [K], uint64."""
        return self._collected(self._rows(index), StoreView.ids_of, np.dtype("uint64"))

    def system_field(self, name: str, index: Index | None = None) -> AnyArray:
        """Field at system level of every sample, [N, ...], or of those at integers [K].

        Those of a field of strings are places in ``schema[name].categories``; see `strings`.

        Raises
        ------
        SchemaError
            If a store that has one of the samples lacks the field.
        """
        views = self._stores.views
        if not views:
            check_fields([name], self.schema)

        def values_of(view: StoreView, samples: Int64Array) -> AnyArray:
            if name not in view.schema:
                raise SchemaError(
                    f"store {views.index(view)} has no field {name!r}, it has {sorted(view.schema)}"
                )
            values = view.system_field(name, samples)
            own, wanted = view.schema[name].categories, self.schema[name].categories
            table = None if own is None or wanted is None else translation(own, wanted)
            return values if table is None else looked_up(name, values, table)

        return self._collected(self._rows_or_all(index), values_of)

    def strings(self, name: str, index: Index | None = None) -> list[str | None]:
        """String of every sample for a field of strings, or of those at integers [K].

        None stands for a sample that lacks the field.

        Raises
        ------
        SchemaError
            If no store has the field, or its values are numbers.
        """
        check_fields([name], self.schema)
        vocabulary = self.schema[name].categories
        if vocabulary is None:
            raise SchemaError(f"field {name!r} has numbers: read them with system_field({name!r})")
        rows, has = self._rows_or_all(index), self.present(name, index)
        codes = np.zeros(len(rows), dtype=np.int64)
        places = np.arange(len(self)) if index is None else np.asarray(index).reshape(-1)
        codes[has] = self.system_field(name, places[has])
        return decoded(name, codes.tolist(), has.tolist(), vocabulary)

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

        return self._collected(self._rows_or_all(index), present_of, np.dtype("bool"))

    def where(
        self,
        condition: str,
        index: Index | None = None,
        *,
        beside: Mapping[str, Field] | None = None,
    ) -> Int64Array:
        """Positions [K] int64, ascending, of the samples that meet a condition.

        Only the fields that it needs are read, some megabytes at a time. A comparison of a field
        that a sample lacks is neither true nor false for it, nor is what divides by zero: ``round <
        3`` and ``not round < 3`` both leave it out, ``has(energy) or round < 3`` takes it if it has
        an energy.

        Parameters
        ----------
        condition : str
            Comparisons (``3 <= round < 7``, ``round in (1, 2)``), ``and``, ``or``, ``not``,
            ``+ - * / %``, ``abs()``, numbers, ``has(field)`` for fields of any level,
            ``has_element("Cu")``, and columns: fields at system level that have one number for
            each sample, fields of strings (``config_type in ("bulk", "slab")``), ``num_atoms``,
            ``num_edges``, and, unless a field has this name, ``max_force`` (the largest norm of the
            forces of a sample, eV/Angstrom), ``energy_per_atom`` (eV), ``volume`` (Angstrom^3; only
            of a cell that has one), ``density`` (g/cm^3, with `atomic_masses` where a sample has
            them), and ``formula``, which is compared with texts, in any order of the elements
            (``formula == "H2O"``, ``formula in ("H2O", "CH4")``). Numbers count in the precision of
            the field that they are compared with.
        index : array [K] of int, optional
            Samples to look at, which are given back where they meet it, in this order.
        beside : mapping of str to Field, optional
            Schema of stores beside these: fields that it may name too, which no sample here has.

        Raises
        ------
        ValueError
            If it is no such condition.
        SchemaError
            If it names a column that neither a store nor the registry has, or needs the value of a
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
        >>> zp.ZarrDataset(store).where("formula == 'O' or has_element('Cu')")
        array([1])
        """
        wanted = Condition.of(condition)
        schema = {**(beside or {}), **self.schema}
        check_condition(wanted, schema)
        given = None if index is None else positions_of(index, len(self), "sample", "a dataset")
        chosen = [np.zeros(0, dtype=np.int64)]
        for positions, rows in self._in_blocks(given):
            mask = np.zeros(len(rows), dtype=bool)
            for here, columns, count in self._columns(rows, schema):
                mask[here] = meets(wanted, columns, count)
            chosen.append(positions[mask])
        return np.concatenate(chosen)

    def nlargest(self, column: str, n: int) -> Int64Array:
        """Positions [n] int64 of the samples with the largest values, the largest first.

        Of equal values the first positions come first. A sample without a value, or with NaN, is
        never among them, so that there may be fewer.

        Parameters
        ----------
        column : str
            A column with numbers, or what follows from such columns, as conditions have them (see
            `where`): ``"max_force"``, ``"abs(energy_per_atom + 3.2)"``.
        n : int
            How many, at least 0.

        Raises
        ------
        ValueError
            If it is no number of samples, or `n` is negative.
        SchemaError
            If there is no such column, or it has not one number for each sample.

        Examples
        --------
        >>> import zarrpipe as zp
        >>> store = {}
        >>> with zp.ZarrData(store) as sink:
        ...     for energy in (-1.0, -7.5, -3.0):
        ...         sink.write(zp.AtomicData([[0.0, 0.0, 0.0]], [1], energy=energy))
        >>> dataset = zp.ZarrDataset(store)
        >>> dataset.nlargest("energy", 2), dataset.nsmallest("energy", 1)
        (array([0, 2]), array([1]))
        """
        return self._ranked(column, n, descending=True)

    def nsmallest(self, column: str, n: int) -> Int64Array:
        """Positions [n] int64 of the samples with the smallest values; see `nlargest`."""
        return self._ranked(column, n, descending=False)

    def to_pandas(self, fields: Sequence[str] | None = None) -> pd.DataFrame:
        """Table of one row for each sample, by position.

        A field of several numbers has a column for each, such as ``dipole_0``. A sample that lacks
        a value has NaN, or ``pandas.NA`` among integers and bools. Texts are a categorical.

        Parameters
        ----------
        fields : sequence of str, optional
            Fields at system level, ``num_atoms``, ``num_edges`` and derived columns (see `where`);
            by default ``num_atoms`` and all fields with one number for each sample.

        Raises
        ------
        MissingLibraryError
            If pandas is not installed.
        SchemaError
            If there is no such column, or it has not one row for each sample.
        """
        return data_frame(self.schema, len(self), self._column_parts(), fields)

    def to_dict(self, fields: Sequence[str] | None = None) -> dict[str, list[Any]]:
        """Columns of plain values, one for each sample; as `to_pandas`, without pandas.

        A row of several numbers is a list, a text a string, and None stands for what a sample
        lacks.

        Examples
        --------
        >>> import zarrpipe as zp
        >>> store = {}
        >>> with zp.ZarrData(store) as sink:
        ...     sink.write(zp.AtomicData([[0.0, 0.0, 0.0]], [1], energy=-13.6))
        >>> zp.ZarrDataset(store).to_dict(["formula", "energy"])
        {'formula': ['H'], 'energy': [-13.6]}
        """
        return plain_columns(self.schema, len(self), self._column_parts(), fields)

    def _column_parts(self) -> Iterator[tuple[Int64Array, StoreColumns]]:
        """Positions [K] of samples of one store and their columns, until all samples were given."""
        for positions, rows in self._in_blocks():
            for here, columns, _ in self._columns(rows, self.schema):
                yield positions[here], columns

    def _ranked(self, column: str, n: int, *, descending: bool) -> Int64Array:
        """Positions [n] of the first values in an order; those of equal values are ascending."""
        n = check_count("n", n, 0, unit="samples")
        wanted = Condition.of(column, "column", "max_force")
        check_condition(wanted, self.schema, number=True)
        best, keys = np.zeros(0, dtype=np.int64), None
        for positions, rows in self._in_blocks():
            for here, columns, count in self._columns(rows, self.schema):
                values, known = numbers(wanted, columns, count)
                found = positions[here][known]
                key = _sort_key(values[known], descending=descending)
                best = np.concatenate([best, found])
                keys = key if keys is None else np.concatenate([keys, key])
            if keys is not None:
                order = np.lexsort((best, keys))[:n]
                best, keys = best[order], keys[order]
        return best

    def _in_blocks(
        self, given: Int64Array | None = None
    ) -> Iterator[tuple[Int64Array, Int64Array]]:
        """Positions, by default all, and their places in the order of arrival, by block."""
        count = len(self) if given is None else len(given)
        for start in range(0, count, BLOCK):
            stop = min(start + BLOCK, count)
            block = np.arange(start, stop) if given is None else given[start:stop]
            yield block, self._rows(block)

    def _columns(
        self, rows: Int64Array, schema: Mapping[str, Field]
    ) -> Iterator[tuple[Int64Array | slice, StoreColumns, int]]:
        """Columns of samples [K] by store: places among the K, the columns, and their length."""
        views = self._stores.views
        for part in self._stores.parts(rows):
            here = slice(None) if part.places is None else part.places
            yield here, StoreColumns(views[part.store], part.samples, schema), len(part.samples)

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

    def _collected(
        self,
        rows: Int64Array,
        values_of: Callable[[StoreView, Int64Array], npt.NDArray[Scalar]],
        dtype: np.dtype[Scalar] | None = None,
    ) -> npt.NDArray[Scalar]:
        """Values of samples [K], one call per store; `dtype` is that of no values without parts."""
        views = self._stores.views
        if not views:
            return np.zeros(len(rows), dtype)
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


def _sort_key(values: AnyArray, *, descending: bool) -> AnyArray:
    """Keys whose ascending order is the order of the values."""
    if values.dtype.kind == "f":
        return -values if descending else values
    whole = values.astype(np.int64, copy=False)
    return ~whole if descending else whole
