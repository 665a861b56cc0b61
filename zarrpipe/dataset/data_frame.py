"""Samples as tables: of pandas, or of plain values."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from zarrpipe.data.csr import AnyArray, Int64Array
from zarrpipe.data.fields import COUNTS
from zarrpipe.data.levels import Level
from zarrpipe.data.schema import Field
from zarrpipe.errors import ArgumentTypeError, SchemaError
from zarrpipe.libraries import require
from zarrpipe.store.query.columns import (
    StoreColumns,
    column_dtype,
    derived_column,
    is_number,
    is_text,
)
from zarrpipe.store.query.evaluation import unknown_column

if TYPE_CHECKING:
    import pandas as pd

Part = tuple[Int64Array, StoreColumns]
"""Positions [K] of samples of one store, and their columns."""


class _Column:
    """The values of a column, which are filled part by part."""

    def __init__(self, name: str, schema: Mapping[str, Field], count: int) -> None:
        plain = name in COUNTS or derived_column(name, schema) is not None
        self.name, self._is_text = name, is_text(name, schema)
        self._shape = () if plain or is_number(schema[name]) else schema[name].shape
        dtype = np.dtype("int64") if self._is_text else column_dtype(name, schema)
        self._values = np.zeros((count, *self._shape), dtype)
        self._known = np.zeros(count, dtype=bool)
        self._vocabulary: dict[str, int] = {}

    def fill(self, positions: Int64Array, columns: StoreColumns) -> None:
        """Take the values of some samples."""
        present = columns.present(self.name)
        known = np.arange(len(positions)) if present is None else np.flatnonzero(present)
        if self._is_text:
            values = self._codes(columns, known)
        else:
            values = (columns.field if self._shape else columns.values)(self.name)[known]
        self._values[positions[known]], self._known[positions[known]] = values, True

    def _codes(self, columns: StoreColumns, known: Int64Array) -> AnyArray:
        """Codes in the vocabulary of this column of the samples that have a text."""
        codes = columns.values(self.name)[known]
        _, first, places = np.unique(codes, return_index=True, return_inverse=True)
        texts, vocabulary = columns.texts(self.name, known[first]), self._vocabulary
        own = [vocabulary.setdefault(text, len(vocabulary)) for text in texts]
        return np.array(own, dtype=np.int64)[places]

    def plain(self) -> list[Any]:
        """Values of Python, one for each sample, None for those that have none."""
        values = self._values.tolist()
        if self._is_text:
            texts = [*self._vocabulary, ""]
            values = [texts[code] for code in values]
        known = self._known.tolist()
        return [value if has else None for value, has in zip(values, known, strict=True)]

    def series(self, pandas: Any) -> Iterator[tuple[str, Any]]:
        """Columns of a table by name, one for each number of a row."""
        for place in np.ndindex(self._shape):
            suffix = "".join(f"_{axis}" for axis in place)
            yield f"{self.name}{suffix}", self._array(pandas, self._values[:, *place])

    def _array(self, pandas: Any, values: AnyArray) -> Any:
        if self._is_text:
            codes = np.where(self._known, values, -1)
            return pandas.Categorical.from_codes(codes, [*self._vocabulary])
        if self._known.all():
            return values
        if values.dtype.kind == "f":
            return np.where(self._known, values, values.dtype.type(np.nan))
        arrays = pandas.arrays
        kind = arrays.BooleanArray if values.dtype.kind == "b" else arrays.IntegerArray
        return kind(values.copy(), ~self._known)


def data_frame(
    schema: Mapping[str, Field], count: int, parts: Iterable[Part], fields: Sequence[str] | None
) -> "pd.DataFrame":
    """Table of the `count` samples of all parts; see `SampleTable.to_pandas`."""
    names = _names(fields, schema)
    pandas = require("pandas", "import")
    columns = _filled(names, schema, count, parts)
    found = {name: values for column in columns for name, values in column.series(pandas)}
    frame: pd.DataFrame = pandas.DataFrame(found, index=pandas.RangeIndex(count))
    return frame


def plain_columns(
    schema: Mapping[str, Field], count: int, parts: Iterable[Part], fields: Sequence[str] | None
) -> dict[str, list[Any]]:
    """Columns of the `count` samples of all parts; see `SampleTable.to_dict`."""
    columns = _filled(_names(fields, schema), schema, count, parts)
    return {column.name: column.plain() for column in columns}


def _filled(
    names: Sequence[str], schema: Mapping[str, Field], count: int, parts: Iterable[Part]
) -> list[_Column]:
    """Columns with the values of all parts."""
    columns = [_Column(name, schema, count) for name in names]
    for positions, part in parts:
        for column in columns:
            column.fill(positions, part)
    return columns


def _names(fields: Sequence[str] | None, schema: Mapping[str, Field]) -> list[str]:
    """Names of the columns that are asked for, without repeats."""
    if fields is None:
        return ["num_atoms", *(name for name, known in schema.items() if is_number(known))]
    if isinstance(fields, str) or not isinstance(fields, Sequence):
        raise ArgumentTypeError(
            f"fields is {fields!r}, expected a list of names such as ['energy', 'max_force']"
        )
    for name in fields:
        if name in COUNTS or derived_column(name, schema) is not None:
            continue
        if name not in schema:
            raise SchemaError(f"no store has a field {unknown_column(name, schema)}")
        if schema[name].level is not Level.SYSTEM:
            raise SchemaError(
                f"field {name!r} at level {schema[name].level!r} has not one row for each "
                "sample: read() gives it as an array"
            )
    return list(dict.fromkeys(fields))
