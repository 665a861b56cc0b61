"""Columns of the samples of a store: fields with one number a sample, counts, derived columns.

A column of texts has codes as its values. What depends on the kind of such a column is in
`is_text`, `StoreColumns.code` and `StoreColumns.texts`.
"""

import difflib
import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from zarrpipe.data.batch import Batch
from zarrpipe.data.categories import Vocabulary
from zarrpipe.data.csr import AnyArray, Int64Array, pointers
from zarrpipe.data.fields import COUNTS, REQUIRED_FIELDS, FieldSpec
from zarrpipe.data.levels import Level
from zarrpipe.data.schema import Field
from zarrpipe.errors import ArgumentTypeError, SchemaError
from zarrpipe.store.query.derived import DERIVED, BoolArray, DerivedColumn, Values, has_element
from zarrpipe.store.query.elements import formula_code, formulas
from zarrpipe.store.read.view import StoreView

_ATOMS, _SAMPLES = 1 << 18, 1 << 14
_MANY = 1 << 16


def derived_column(name: str, schema: Mapping[str, Field]) -> DerivedColumn | None:
    """The derived column of a name, unless a field of the schema has this name."""
    return None if name in schema else DERIVED.get(name)


def is_text(name: str, schema: Mapping[str, Field]) -> bool:
    """Whether a column has texts: a field of strings, or a derived column."""
    derived = derived_column(name, schema)
    if derived is not None:
        return derived.is_text
    return name in schema and schema[name].categories is not None


def is_number(known: Field | FieldSpec) -> bool:
    """Whether a field has one number for each sample."""
    return known.level is Level.SYSTEM and math.prod(known.shape or ()) == 1


def column_dtype(name: str, schema: Mapping[str, Field]) -> np.dtype[Any]:
    """Dtype of the values of a column."""
    if name in COUNTS:
        return np.dtype("int64")
    derived = derived_column(name, schema)
    if derived is not None:
        return derived.dtype
    return schema[name].dtype if name in schema else np.dtype("float64")


def field_names(fields: Sequence[str] | None) -> tuple[str, ...] | None:
    """Names of fields that are asked for, the needed ones included; None for all."""
    if fields is None:
        return None
    if isinstance(fields, str) or not isinstance(fields, Iterable):
        raise ArgumentTypeError(
            f"fields is {fields!r}, expected a list of names such as ['energy', 'forces']"
        )
    return tuple(dict.fromkeys((*REQUIRED_FIELDS, *fields)))


def check_fields(names: Iterable[str], schema: Mapping[str, Field]) -> None:
    """Refuse names of fields that no store has."""
    for name in names:
        if name not in schema:
            what = f"{name!r}{close_match(name, schema)}"
            raise SchemaError(f"no store has a field {what}, they have {sorted(schema)}")


def close_match(name: str, names: Iterable[str]) -> str:
    """Question in brackets whether the closest of some names was meant; empty if none is close."""
    near = difflib.get_close_matches(name, [*names], n=1)
    return f" (did you mean {near[0]!r}?)" if near else ""


class NoColumns:
    """Columns of no samples, with the dtypes of a schema."""

    def __init__(self, schema: Mapping[str, Field]) -> None:
        self._schema = schema

    def values(self, name: str) -> AnyArray:
        """No values of the column's dtype."""
        return np.zeros(0, dtype=column_dtype(name, self._schema))

    def present(self, name: str) -> BoolArray | None:
        """None, as every sample has it."""
        return None

    def code(self, name: str, text: str) -> int | None:
        """See `StoreColumns.code`."""
        return None if derived_column(name, self._schema) is None else formula_code(text)

    def has_element(self, number: int) -> BoolArray:
        """No values."""
        return np.zeros(0, dtype=bool)


class StoreColumns:
    """Columns of some samples [K] int64 of a store, which may lack fields of a schema."""

    def __init__(self, view: StoreView, samples: Int64Array, schema: Mapping[str, Field]) -> None:
        self._view, self._schema = view, schema
        self._samples = np.ascontiguousarray(samples, dtype=np.int64)
        self._computed: dict[str, Values] = {}

    @property
    def num_atoms(self) -> Int64Array:
        """Number of atoms of each sample, [K]."""
        return self._view.counts_of(Level.ATOM, self._samples)

    def field(self, name: str) -> AnyArray:
        """Rows [K, ...] of a field at system level; arbitrary where a sample has none."""
        if name in self._view.schema:
            return self._view.system_field(name, self._samples)
        known = self._schema.get(name)
        shape = () if known is None else known.shape
        return np.zeros((len(self._samples), *shape), column_dtype(name, self._schema))

    def values(self, name: str) -> AnyArray:
        """Value of each sample, [K]; arbitrary where the sample has none."""
        if name in COUNTS:
            return self._view.counts_of(COUNTS[name], self._samples)
        if derived_column(name, self._schema) is not None:
            return self._derived(name)[0]
        return self.field(name).reshape(len(self._samples))

    def present(self, name: str) -> BoolArray | None:
        """Which samples have a field or column, [K]; None for all of them."""
        if name in COUNTS:
            return None
        if derived_column(name, self._schema) is not None:
            return self._derived(name)[1]
        if name not in self._view.schema:
            return np.zeros(len(self._samples), dtype=bool)
        mask: BoolArray = self._view.present(name, self._samples)
        return None if mask.all() else mask

    def code(self, name: str, text: str) -> int | None:
        """Value that stands for a text in a column of texts; None if no sample has the text.

        Raises ValueError if the column cannot have such a text.
        """
        if derived_column(name, self._schema) is not None:
            return formula_code(text)
        strings = self._strings(name)
        return strings.index(text) if text in strings else None

    def texts(self, name: str, places: Int64Array) -> list[str]:
        """Texts [J] of the samples at some places [J] among the K in a column of texts."""
        if derived_column(name, self._schema) is None:
            strings = self._strings(name)
            return [strings[code] for code in self.values(name)[places].tolist()]
        some, texts = StoreColumns(self._view, self._samples[places], self._schema), list[str]()
        for _, batch in some.batches():
            numbers = batch.fields["atomic_numbers"].numpy()
            texts += formulas(numbers, batch.batch_ptr.numpy())
        return texts

    def _strings(self, name: str) -> Vocabulary:
        """Vocabulary of a field of strings in this store."""
        known = self._view.schema.get(name)
        return () if known is None or known.categories is None else known.categories

    def has_element(self, number: int) -> BoolArray:
        """Which samples have an atom of an element, [K]."""
        return has_element(self, number)

    def batches(self, *optional: str) -> Iterator[tuple[slice, Batch]]:
        """Batches of bounded size; see `derived.SampleRows`."""
        fields, count = [one for one in optional if one in self._view.schema], len(self._samples)
        ptr = pointers(self.num_atoms)
        cuts = np.searchsorted(ptr, np.arange(0, ptr[-1], _ATOMS))
        bounds = np.unique(np.concatenate([cuts, np.arange(0, count, _SAMPLES), [count]]))
        for start, stop in itertools.pairwise(bounds.tolist()):
            yield slice(start, stop), self._view.gather(self._samples[start:stop], fields)
        if count >= _MANY:  # goes through them all, once
            self._view.drop_pages((*REQUIRED_FIELDS, *fields))

    def _derived(self, name: str) -> Values:
        """Values of a derived column, which are computed once."""
        if name not in self._computed:
            self._computed[name] = self._compute(DERIVED[name])
        return self._computed[name]

    def _compute(self, column: DerivedColumn) -> Values:
        count, known = len(self._samples), None
        if any(name not in self._view.schema for name in column.needs):
            return np.zeros(count, column.dtype), np.zeros(count, dtype=bool)
        with np.errstate(all="ignore"):  # of rows that are NaN, or beyond the range of a dtype
            values, known = column.compute(self)
        for name in column.needs:
            known = both(known, self.present(name))
        return values, known


def both(one: BoolArray | None, other: BoolArray | None) -> BoolArray | None:
    """Where both masks are True; None stands for a mask that is True everywhere."""
    if one is None or other is None:
        return other if one is None else one
    return one & other
