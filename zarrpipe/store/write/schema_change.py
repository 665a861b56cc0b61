"""What a store has to make room for before a batch fits: fields that are new, fields that lack."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np

from zarrpipe.data.batch import Batch
from zarrpipe.data.schema import Schema
from zarrpipe.store.format.commit_log import RowCounts
from zarrpipe.store.format.layout import ArraySpec, field_spec, present_spec
from zarrpipe.store.write.plan import RowWrite, plan_fill


@dataclass(frozen=True)
class NewArray:
    """An array to be made.

    Parameters
    ----------
    spec
        The array.
    rows
        How many rows of its level are stored already.
    absent
        Whether these rows are to read False, not as the fill value.
    """

    spec: ArraySpec
    rows: int
    absent: bool = False

    def fill(self, chunk_rows: int) -> RowWrite | None:
        """What has to be written for the rows that are stored; None for nothing."""
        if self.absent:
            return RowWrite(self.spec.path, 0, np.zeros(self.rows, dtype=bool))
        return plan_fill(self.spec, self.rows, chunk_rows)


@dataclass(frozen=True)
class SchemaChange:
    """Arrays that a batch makes necessary, and what the store's attributes say once they are there.

    Parameters
    ----------
    arrays
        To be made, in this order.
    schema
        Fields of the store with the new ones.
    partly
        Fields that have a presence array then.
    """

    arrays: tuple[NewArray, ...]
    schema: Schema
    nullable: frozenset[str]


def plan_schema_change(
    schema: Schema,
    nullable: frozenset[str],
    extent: RowCounts,
    batch: Batch,
    units: Mapping[str, str] = MappingProxyType({}),
) -> SchemaChange | None:
    """What to make before a batch is appended; None if nothing.

    Parameters
    ----------
    schema
        Fields of the store, which the batch fits.
    partly
        Fields that have a presence array.
    extent
        What is committed.
    batch
        Systems to be appended.
    units
        Units of own fields that are new.
    """
    new = schema.new_fields(batch, units)
    lacking = {name for name in schema if name not in batch} | batch.partly_present
    if extent.samples:
        lacking |= {item.name for item in new}
    lacking -= nullable
    if not new and not lacking:
        return None
    extended = schema.extended(new)
    arrays = [NewArray(field_spec(item), extent.rows(item.level)) for item in new]
    arrays += [
        NewArray(present_spec(extended[name]), extent.samples, absent=name not in schema)
        for name in sorted(lacking)
    ]
    return SchemaChange(tuple(arrays), extended, nullable | lacking)
