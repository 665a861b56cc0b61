"""The table of levels, on which format 1 rests, and the checks of arguments."""

import numpy as np
import pytest
import torch

from zarrpipe import AtomicData, Batch
from zarrpipe.data.fields import COMMIT_ORDER, COUNTS, INDEX_FIELDS, LEVELS, SEGMENTED, Level
from zarrpipe.data.validate import check_count, check_flag
from zarrpipe.errors import ArgumentError, ArgumentTypeError, FieldError
from zarrpipe.store.format.layout import meta_specs


def test_the_arrays_of_format_1():
    """Stores of every version have these, so a row of the table may be added but not changed."""
    assert {(spec.path, spec.level, spec.dtype.name, spec.fill) for spec in meta_specs()} >= {
        ("meta/atoms_ptr", "system", "int64", 0),
        ("meta/edges_ptr", "system", "int64", 0),
        ("meta/samples_mask", "system", "bool", False),
        ("meta/atoms_mask", "atom", "bool", True),
        ("meta/edges_mask", "edge", "bool", True),
        ("meta/ids", "system", "uint64", 0),
    }
    assert COMMIT_ORDER[-1] is Level.ATOM
    assert INDEX_FIELDS["neighbor_list"] is Level.ATOM
    assert (COUNTS["num_atoms"], COUNTS["num_edges"]) == (Level.ATOM, Level.EDGE)


def test_each_level_has_one_row_and_a_number():
    assert set(LEVELS) == set(Level)
    assert [spec.number for spec in LEVELS.values()] == [*range(len(Level))]
    assert set(COMMIT_ORDER) == set(SEGMENTED) == set(Level) - {Level.SYSTEM}


def test_row_pointers():
    systems = [
        AtomicData([[0.0, 0.0, 0.0]] * n, [1] * n, neighbor_list=[[0, 0]] * e)
        for n, e in ((2, 1), (1, 0), (3, 2))
    ]
    batch = Batch.from_data_list(systems)
    assert batch.row_pointers(Level.ATOM).tolist() == [0, 2, 3, 6]
    assert batch.row_pointers(Level.EDGE).tolist() == [0, 1, 1, 3]
    assert [batch.rows(level) for level in LEVELS] == [3, 6, 3]
    assert batch.neighbor_list.tolist() == [[0, 0], [3, 3], [3, 3]]
    assert batch.index_select([2, 0]).neighbor_list.tolist() == [[0, 0], [0, 0], [3, 3]]


@pytest.mark.parametrize(
    ("value", "error", "match"),
    [
        (True, ArgumentTypeError, "size is True, expected an integer from 1 to 9 .bytes."),
        (2.0, ArgumentTypeError, "size is 2.0, expected an integer"),
        ("2", ArgumentTypeError, "size is '2', expected an integer"),
        (0, ArgumentError, "size is 0, expected an integer from 1"),
        (np.int64(10), ArgumentError, "size is .*10.*, expected an integer from 1 to 9"),
    ],
)
def test_counts(value, error, match):
    assert check_count("size", np.uint8(3), 1, 9) == 3
    assert check_count("size", 10**30) == 10**30
    with pytest.raises(error, match=match):
        check_count("size", value, 1, 9, unit="bytes")
    with pytest.raises(FieldError, match="size is"):
        check_count("size", value, 1, 9, error=FieldError)


def test_flags():
    assert check_flag("durable", np.True_) is True
    for wrong in ("false", 1, None, torch.tensor(True)):
        with pytest.raises(ArgumentTypeError, match=r"durable is .*, expected True or False"):
            check_flag("durable", wrong)
