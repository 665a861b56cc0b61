"""The table of levels, on which format 1 rests, and the checks of arguments."""

import pickle

import numpy as np
import pytest
import torch

from zarrpipe import AtomicData, Batch
from zarrpipe.data.fields import CORE_FIELDS, COUNTS
from zarrpipe.data.levels import BUILT_IN, Level, defined, pointer_levels, united
from zarrpipe.data.validate import check_count, check_flag
from zarrpipe.errors import ArgumentError, ArgumentTypeError, FieldError
from zarrpipe.store.format.layout import meta_specs
from zarrpipe.testing import assert_batches_equal


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
    assert pointer_levels([])[0] is Level.ATOM  # written last, as it commits
    assert CORE_FIELDS["neighbor_list"].index_of is Level.ATOM
    assert (COUNTS["num_atoms"], COUNTS["num_edges"]) == (Level.ATOM, Level.EDGE)


def test_level_ptr():
    systems = [
        AtomicData([[0.0, 0.0, 0.0]] * n, [1] * n, neighbor_list=[[0, 0]] * e)
        for n, e in ((2, 1), (1, 0), (3, 2))
    ]
    batch = Batch.from_data_list(systems)
    assert batch.level_ptr(Level.ATOM).tolist() == [0, 2, 3, 6]
    assert batch.level_ptr(Level.EDGE).tolist() == [0, 1, 1, 3]
    assert [batch.num_rows(level) for level in BUILT_IN] == [3, 6, 3]
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


BOND, ANGLE = Level.segmented("bond"), Level.segmented("angle")
PAIR = Level.product("atom_pair", "atom", "atom")
CONFORMER = Level.uniform("conformer")


def molecule(atoms: int, bonds: int, *, pairs: bool = True, start: float = 0.0) -> AtomicData:
    """System with bonds, angles of bonds, and a Hessian."""
    order = start + torch.arange(bonds, dtype=torch.float64)
    ends = torch.stack([torch.arange(bonds) % atoms, (torch.arange(bonds) + 1) % atoms], 1)
    hessian = start + torch.arange(atoms * atoms * 9, dtype=torch.float64)
    levels = {
        "bond": {"bond_order": order, "bond_atoms": ends},
        ANGLE: {"angle_bonds": torch.zeros(min(bonds, 1), 2, dtype=torch.int64)},
        CONFORMER: {"rotor": [start]},
    }
    if pairs:
        levels[PAIR] = {"hessian": hessian.reshape(atoms, atoms, 3, 3)}
    return AtomicData(
        torch.full((atoms, 3), start, dtype=torch.float64),
        [1] * atoms,
        other_levels=levels,
        index_of={"bond_atoms": "atom", "angle_bonds": "bond"},
    )


def test_a_level_is_its_name():
    assert BOND == "bond"
    assert {"bond": 1}[BOND] == 1
    assert Level("atom") is Level.ATOM
    assert pickle.loads(pickle.dumps(Level.EDGE)) is Level.EDGE
    copied = pickle.loads(pickle.dumps(PAIR))
    assert copied.same_as(PAIR)
    assert not copied.same_as(Level.segmented("atom_pair"))
    assert [*defined({"bond": BOND.definition, "atom_pair": PAIR.definition}).values()] == [
        BOND,
        PAIR,
    ]
    assert PAIR.definition == {"kind": "product", "left": "atoms", "right": "atoms"}


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: Level("bond"), "'bond' is no level: expected 'system', 'atom' or 'edge', or"),
        (lambda: Level.segmented("atoms"), "means a level that every store has"),
        (lambda: Level.segmented("a/b"), "must be a Python identifier"),
        (lambda: Level.segmented("x" * 201), "has 201 bytes, expected at most 200"),
        (lambda: Level.product("pair", "atom", CONFORMER), "'conformer', which is uniform"),
        (lambda: united([BOND], [Level.uniform("bond")]), "'bond' is uniform here and segmented"),
        (lambda: defined({"bond": {"kind": "odd"}}), "is of kind 'odd'; expected 'uniform'"),
        (lambda: defined({"p": {"kind": "product", "left": "x"}}), "not defined before it"),
    ],
)
def test_no_level(make, match):
    with pytest.raises(FieldError, match=match):
        make()


def test_fields_of_own_levels():
    one, two = molecule(3, 2), molecule(2, 1, start=100.0)
    assert (one.num_rows("bond"), one.num_rows(PAIR), one.num_rows("system")) == (2, 9, 1)
    assert one.hessian.shape == (9, 3, 3)
    assert one.keys["bond"] == {"bond_order", "bond_atoms"}
    batch = Batch.from_data_list([one, two])
    assert batch.level_ptr("bond").tolist() == [0, 2, 3]
    assert batch.level_ptr(PAIR).tolist() == [0, 9, 13]
    assert batch.level_ptr("conformer").tolist() == batch.level_ptr("system").tolist() == [0, 1, 2]
    assert batch.bond_atoms.tolist() == [[0, 1], [1, 2], [3, 4]]
    assert batch.angle_bonds.tolist() == [[0, 0], [2, 2]]
    assert batch.num_rows("bond") == 3
    assert batch.levels["hessian"] == "atom_pair"
    back = batch.get_data(1)
    assert back.bond_atoms.tolist() == [[0, 1]]
    assert back.angle_bonds.tolist() == [[0, 0]]
    assert torch.equal(back.hessian, two.hessian)
    swapped = batch.index_select([1, 0])
    assert swapped.bond_atoms.tolist() == [[0, 1], [2, 3], [3, 4]]
    assert swapped.angle_bonds.tolist() == [[0, 0], [1, 1]]
    assert_batches_equal(swapped, Batch.from_data_list([two, one]))
    assert_batches_equal(Batch.concatenate([batch, swapped.clone()]).index_select([0, 2]), batch)
    assert_batches_equal(pickle.loads(pickle.dumps(batch)), batch)


def test_a_system_may_lack_a_level():
    batch = Batch.from_data_list(
        [
            molecule(3, 2),
            molecule(2, 0, pairs=False),
            AtomicData(torch.zeros(1, 3, dtype=torch.float64), [2]),
        ]
    )
    assert batch.level_ptr(PAIR).tolist() == [0, 9, 9, 9]
    assert batch.level_ptr("bond").tolist() == [0, 2, 2, 2]
    assert batch.present("hessian").tolist() == [True, False, False]
    assert batch.present("bond_order").tolist() == [True, True, False]
    assert "hessian" not in batch.get_data(1)
    assert "bond" not in batch.get_data(2).keys


def test_a_batch_of_own_levels():
    fields = {
        "positions": torch.zeros(3, 3),
        "atomic_numbers": torch.ones(3, dtype=torch.int64),
        "bond_atoms": torch.tensor([[0, 1]]),
        "hessian": torch.zeros(5, 3, 3),
    }
    ptr = torch.tensor([0, 2, 3])
    given = {"levels": {"bond_atoms": "bond", "hessian": PAIR}, "index_of": {"bond_atoms": "atom"}}
    batch = Batch(fields, ptr, level_ptrs={"bond": torch.tensor([0, 1, 1])}, **given)
    assert batch.level_ptr(PAIR).tolist() == [0, 4, 5]
    part = Batch(
        {**fields, "hessian": torch.zeros(4, 3, 3)},
        ptr,
        level_ptrs={"bond": torch.tensor([0, 1, 1]), PAIR: torch.tensor([0, 4, 4])},
        **given,
    )
    assert part.rows_per_graph(PAIR).tolist() == [4, 0]
    for changed, match in (
        ({"bond": torch.tensor([0, 0, 1])}, "bond 0 is .0, 1., its system 1 has the atoms 2 to 2"),
        ({PAIR: torch.tensor([0, 3, 4])}, "gives system 0 3 rows, expected 4, one for each pair"),
        ({"bond": torch.tensor([0, 1])}, "has 2 entries and batch_ptr 3"),
    ):
        with pytest.raises(FieldError, match=match):
            Batch(fields, ptr, level_ptrs={"bond": torch.tensor([0, 1, 1]), **changed}, **given)


def test_a_level_needs_the_names_of_its_fields():
    with pytest.raises(ArgumentTypeError, match="bond is a list, expected a mapping of the names"):
        AtomicData([[0.0] * 3], [1], other_levels={"bond": [1.0]})


def test_row_numbers_of_one_byte_count_a_large_batch():
    small = torch.tensor([[0, 1]], dtype=torch.uint8)
    pair = {"other_levels": {"bond": {"bond_atoms": small}}, "index_of": {"bond_atoms": "atom"}}
    batch = Batch.from_data_list([AtomicData([[0.0] * 3] * 2, [1, 1], **pair)] * 200)
    assert batch.bond_atoms[-1].tolist() == [398, 399]


def test_one_name_is_one_level():
    """Neither systems nor fields of a batch can mean two levels by one name."""
    bond = AtomicData([[0.0] * 3], [1], other_levels={"bond": {"x": [1.0, 2.0]}})
    for name in ("x", "y"):
        other = AtomicData([[0.0] * 3], [1], other_levels={Level.uniform("bond"): {name: [1.0]}})
        for pair in ([bond, other], [other, bond]):
            with pytest.raises(FieldError, match=r"level 'bond' .*is (uniform|segmented)"):
                Batch.from_data_list(pair)


def test_a_level_that_is_not_here():
    system = AtomicData([[0.0] * 3], [1], other_levels={Level.uniform("frame"): {"time": [1.0]}})
    for data in (system, Batch.from_data_list([system])):
        assert data.num_rows("frame") == data.num_rows("system") == 1
        assert data.num_rows("edge") == data.num_rows(Level.segmented("bond")) == 0
        for rows in (data.num_rows, data.rows_per_graph):
            with pytest.raises(FieldError, match=r"has no level 'bnd'; it has .*'edge', 'frame'"):
                rows("bnd")


@pytest.mark.parametrize(
    ("given", "match"),
    [
        ({"index_of": {"bond_atoms": "bend"}}, "as row numbers of 'bend', expected a level with"),
        ({"index_of": {"bond_atoms": "system"}}, "as row numbers of 'system', expected a level"),
        ({"bond_atoms": [[0, 5]]}, "'bond_atoms' has indices from 0 to 5, expected 0 to 1"),
        ({"bond_atoms": [[0.0, 1.0]]}, "'bond_atoms' has dtype torch.float32, expected integers"),
        ({"bond_atoms": torch.tensor([[True, False]])}, "dtype torch.bool, expected integers"),
        (
            {"index_of": {"bond_ordr": "atom"}},
            r"no such field is given \(did you mean 'bond_order'",
        ),
        ({"bond_order": [1.0, 2.0]}, r"shape \(2,\), expected one row for each of 1 bonds"),
    ],
)
def test_bad_fields_of_own_levels(given, match):
    index_of = {"bond_atoms": "atom", **given.pop("index_of", {})}
    fields = {"bond_atoms": [[0, 1]], "bond_order": [1.0], **given}
    with pytest.raises(FieldError, match=match):
        AtomicData([[0.0] * 3] * 2, [1, 1], other_levels={"bond": fields}, index_of=index_of)
    with pytest.raises(FieldError, match=r"shape \(2, 3\), expected \(2, 2, ...\) or \(4, ...\)"):
        AtomicData([[0.0] * 3] * 2, [1, 1], other_levels={PAIR: {"pairs": torch.zeros(2, 3)}})
