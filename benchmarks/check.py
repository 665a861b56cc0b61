"""Whether an engine gives the right values, so that nobody is timed on wrong ones."""

from collections.abc import Mapping

import numpy as np

from benchmarks.data import ATOM_ROWS, AnyArray, Int64Array, Samples


class WrongValuesError(AssertionError):
    """An engine gave other values than were written."""


def expected(samples: Samples, index: Int64Array) -> dict[str, AnyArray]:
    """The batch of the samples at `index`, put together sample by sample."""
    records = [samples.record(int(i)) for i in index]
    counts = [len(record["positions"]) for record in records]
    ptr = np.concatenate([[0], np.cumsum(counts)])
    for name in set(ATOM_ROWS) & set(samples.fields):
        for record, offset in zip(records, ptr[:-1], strict=True):
            record[name] = record[name] + offset
    fields = {name: np.concatenate([record[name] for record in records]) for name in samples.fields}
    return {**fields, "batch_ptr": ptr}


def check_batch(
    engine: str,
    samples: Samples,
    index: Int64Array,
    found: Mapping[str, AnyArray],
    *,
    single: bool = False,
) -> None:
    """Compare what an engine has read with what was written.

    A dtype may differ, as some engines have only one of a kind; shapes and values may not, but
    for being rounded to float32 where `single` says that the engine does so.

    Raises
    ------
    WrongValuesError
        If a field is missing, or has another shape or other values.
    """
    for name, right in expected(samples, index).items():
        if name not in found:
            raise WrongValuesError(f"{engine}: no {name!r} among {sorted(found)}")
        if single and right.dtype == np.float64:
            right = right.astype(np.float32)  # noqa: PLW2901
        given = np.asarray(found[name])
        if given.shape != right.shape:
            raise WrongValuesError(
                f"{engine}: {name!r} has shape {given.shape}, expected {right.shape}"
            )
        if not np.array_equal(given, right):
            row = int(np.argwhere(given != right)[0][0])
            raise WrongValuesError(
                f"{engine}: {name!r} has {given[row]} in row {row}, expected {right[row]}"
            )
