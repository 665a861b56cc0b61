"""A single system: what it refuses and why, and what may be said in short."""

import copy
import pickle

import numpy as np
import pytest
import torch

from zarrpipe import AtomicData
from zarrpipe.data.fields import CORE_FIELDS, Kind, as_field_dtype, check_name, level_of
from zarrpipe.data.levels import Level
from zarrpipe.errors import FieldError


def water(**fields) -> AtomicData:
    positions = torch.tensor([[0.0, 0.0, 0.1], [0.0, 0.8, -0.5], [0.0, -0.8, -0.5]])
    return AtomicData(positions, torch.tensor([8, 1, 1]), **fields)


EDGES = torch.tensor([[0, 1], [1, 0], [2, 0]])


def everything() -> AtomicData:
    return water(
        energy=torch.tensor([[-14.0]]),
        forces=torch.arange(9.0).reshape(3, 3),
        cell=torch.eye(3)[None],
        neighbor_list=EDGES,
        atom={"weights": torch.arange(6.0).reshape(3, 2)},
        edge={"kind": torch.tensor([1, 2, 3], dtype=torch.int32)},
        system={"tag": torch.tensor([7])},
    )


def test_values_levels_and_sizes():
    data = everything()
    assert (data.num_nodes, data.num_edges, data.num_graphs) == (3, 3, 1)
    assert data.keys == {
        "atom": {"positions", "atomic_numbers", "forces", "weights"},
        "edge": {"neighbor_list", "kind"},
        "system": {"energy", "cell", "tag"},
    }
    assert data.forces.tolist() == [[0.0, 1.0, 2.0], [3.0, 4.0, 5.0], [6.0, 7.0, 8.0]]
    assert data["tag"].tolist() == [7]
    assert data.levels["kind"] is Level.EDGE
    assert "energy" in data
    assert "stress" not in data
    assert (data.device, data.dtype) == (torch.device("cpu"), torch.float32)
    assert repr(data).startswith("AtomicData(num_nodes=3, num_edges=3, positions, atomic_numbers")


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("energy", -1.5, [[-1.5]]),
        ("energy", [-1.5], [[-1.5]]),
        ("energy", [[-1.5]], [[-1.5]]),
        ("pbc", [True, False, True], [[True, False, True]]),
        ("pbc", [1, 0, 1], [[True, False, True]]),
        ("pbc", torch.tensor([[1, 0, 1]], dtype=torch.uint8), [[True, False, True]]),
        ("dipole", [1.0, 2.0, 3.0], [[1.0, 2.0, 3.0]]),
        ("cell", np.eye(3), [np.eye(3).tolist()]),
        ("charge", 1.0, [[1.0]]),
        ("atom_categories", torch.tensor([1, 2, 3], dtype=torch.int8), [1, 2, 3]),
        ("node_attrs", [[1.0, 0.0], [0.0, 1.0], [0.5, 0.5]], [[1.0, 0.0], [0.0, 1.0], [0.5, 0.5]]),
    ],
)
def test_short_forms(name, value, expected):
    assert water(**{name: value})[name].tolist() == expected


def test_dtypes():
    """Integers become int64, lists follow the positions, a single number and arrays keep theirs."""
    data = water(
        energy=-40000.123456789,
        charge=1,
        charges=[0, 0, 1],
        forces=np.zeros((3, 3)),
        atom_categories=np.zeros(3, dtype=np.int32),
    )
    assert data.energy.tolist() == [[-40000.123456789]]
    assert data.charge.tolist() == [[1.0]]
    assert water(charge=np.int32(-2)).charge.tolist() == [[-2.0]]
    assert water(system={"tag": np.int32(3)}).tag.dtype is torch.int32
    assert data.charges.dtype is torch.float32
    assert data.charges.tolist() == [0.0, 0.0, 1.0]
    assert water(neighbor_list=[]).neighbor_list.shape == (0, 2)
    assert data.forces.dtype is torch.float64
    assert data.atom_categories.dtype is torch.int64
    assert AtomicData(np.zeros((1, 3)), [1], energy=[2.0]).energy.dtype is torch.float64
    own = water(system={"tag": torch.tensor([1], dtype=torch.int16), "scalar": 3.0})
    assert own.tag.dtype is torch.int16
    assert own.scalar.tolist() == [[3.0]]
    assert water(neighbor_list=EDGES.int()).neighbor_list.dtype is torch.int64


def test_none_is_left_out():
    assert "energy" not in water(energy=None, system={"tag": None})


@pytest.mark.parametrize(
    ("fields", "match"),
    [
        (
            {"forces": torch.zeros(4, 3)},
            r"'forces' has shape \(4, 3\), expected one row .* 3 atoms",
        ),
        ({"forces": torch.zeros(3, 2)}, r"'forces' has shape \(3, 2\), expected \(3, 3\)"),
        ({"forces": torch.zeros(())}, r"'forces' has shape \(\), expected one row for each of 3"),
        ({"charges": torch.zeros(3, 1)}, r"'charges' has shape \(3, 1\), expected \(3,\)"),
        (
            {"energy": torch.zeros(2, 1)},
            r"'energy' has shape \(2, 1\), expected \(1, 1\) or \(1,\)",
        ),
        (
            {"cell": torch.zeros(3, 3, 3)},
            r"'cell' has shape \(3, 3, 3\), expected \(1, 3, 3\) or \(3, 3\)",
        ),
        ({"stress": torch.zeros(1, 6)}, r"'stress' has shape \(1, 6\), expected \(1, 3, 3\)"),
        ({"pbc": [0.0, 1.0, 1.0]}, "'pbc' has dtype torch.float32, the registry has it as bool"),
        ({"pbc": [0, 2, 1]}, "'pbc' has dtype torch.int64, the registry has it as bool"),
        ({"energy": torch.tensor([[3]])}, "'energy' has dtype torch.int64, the registry has it as"),
        ({"energy": "low"}, "'energy' is 'low', expected a tensor, an array or numbers"),
        ({"atomic_masses": [None, 1, 1]}, "'atomic_masses' is .None, 1, 1., expected a tensor"),
        ({"force": torch.zeros(3, 3)}, "'force' is not in the registry .did you mean 'forces'"),
        ({"atom_categories": torch.zeros(3)}, "'atom_categories' has dtype torch.float32.*integer"),
        ({"forces": torch.zeros(3, 3, dtype=torch.bfloat16)}, "bfloat16, which cannot be stored"),
        ({"system": {"z": torch.zeros(1, dtype=torch.complex64)}}, "which cannot be stored"),
        (
            {"system": {"tag": torch.zeros(3)}},
            r"'tag' has shape \(3,\), expected one row for the one system: give shape \(1, 3\), as",
        ),
        ({"neighbor_list": torch.tensor([[0, 3]])}, "indices from 0 to 3, expected 0 to 2"),
        ({"neighbor_list": torch.tensor([[-1, 2]])}, "indices from -1 to 2, expected 0 to 2"),
        ({"neighbor_list": EDGES.T}, r"'neighbor_list' has shape \(2, 3\), expected \(2, 2\)"),
        ({"neighbor_list": EDGES[:, :1]}, r"'neighbor_list' has shape \(3, 1\), expected \(3, 2\)"),
        ({"neighbor_list": 0}, r"'neighbor_list' has shape \(\), expected one row"),
        (
            {"neighbor_list_shifts": torch.zeros(2, 3), "neighbor_list": EDGES},
            r"'neighbor_list_shifts' has shape \(2, 3\), expected one row for each of 3 edges",
        ),
        ({"neighbor_list": EDGES, "edge": {"own": torch.zeros(5)}}, r"'own' .* each of 3 edges"),
        (
            {"temperature": 3.0},
            "'temperature' is not in the registry, so its level has to be given",
        ),
        ({"atom": {"energy": torch.zeros(3)}}, "'energy' is given at level 'atom', the registry"),
        ({"atom": {"a": torch.zeros(3)}, "system": {"a": torch.zeros(1)}}, "'a' is here at level"),
        (
            {"system": {"x": [1.0, 2.5]}},
            r"'x' has shape \(2,\), .* the one system: give shape \(1, 2\): \[\[1.0, 2.5\]\]$",
        ),
        ({"system": {"_tag": torch.zeros(1)}}, "'_tag' must be a Python identifier"),
        ({"system": {"a b": torch.zeros(1)}}, "'a b' must be a Python identifier"),
        ({"system": {"num_nodes": torch.zeros(1)}}, "'num_nodes' is taken by"),
        ({"system": {"batch_ptr": torch.zeros(1)}}, "'batch_ptr' is taken by Batch.batch_ptr"),
        ({"energy": torch.zeros(1, 1, device="meta")}, "is on meta, the positions are on cpu"),
    ],
)
def test_refusals(fields, match):
    with pytest.raises(FieldError, match=match):
        water(**fields)


@pytest.mark.parametrize(
    ("positions", "numbers", "match"),
    [
        (torch.zeros(0, 3), [], r"'positions' has shape \(0, 3\), expected \(n, 3\) with at least"),
        (torch.zeros(3), [1], r"'positions' has shape \(3,\), expected \(n, 3\)"),
        (torch.zeros(1, 2), [1], r"'positions' has shape \(1, 2\)"),
        (torch.zeros(1, 3, dtype=torch.int64), [1], "'positions' has dtype torch.int64"),
        (torch.zeros(2, 3), [1], r"'atomic_numbers' has shape \(1,\), .* each of 2 atoms"),
        (torch.zeros(1, 3), [1.0], "'atomic_numbers' has dtype torch.float32.*as integer"),
        (torch.zeros(1, 3), [[1]], r"'atomic_numbers' has shape \(1, 1\), expected \(1,\)"),
    ],
)
def test_refused_structures(positions, numbers, match):
    with pytest.raises(ValueError, match=match):
        AtomicData(positions, numbers)


def test_setting_fields():
    data = water(energy=-1.0)
    data.energy = -2.0
    data.forces = torch.ones(3, 3)
    data.add_field("tag", [5], "system").add_field("tag", [6])
    assert (data.energy.item(), data.tag.tolist(), data.forces.sum().item()) == (-2.0, [6], 9.0)
    with pytest.raises(FieldError, match=r"'forces' has shape \(2, 3\)"):
        data.forces = torch.zeros(2, 3)
    with pytest.raises(FieldError, match="'tag' is here at level 'system' and cannot be set"):
        data.add_field("tag", [1, 2, 3], "atom")
    with pytest.raises(FieldError, match="'unknown' is not in the registry"):
        data.unknown = 3
    with pytest.raises(FieldError, match="'num_nodes' is taken"):
        data.num_nodes = 3
    with pytest.raises(AttributeError, match="AtomicData has no field 'stress'; it has atomic_n"):
        _ = data.stress
    with pytest.raises(AttributeError, match=r"no field 'pos' \(did you mean 'positions'\?\); it"):
        _ = data.pos
    with pytest.raises(AttributeError, match="no field 'batch'; it has"):
        _ = data.batch
    with pytest.raises(TypeError):
        data.fields["energy"] = torch.zeros(1, 1)
    assert data.forces.sum().item() == 9.0


def test_a_refused_edge_field_changes_nothing():
    data = water()
    for wrong in (EDGES[:, :1], torch.tensor([[0, 9]]), EDGES.float()):
        with pytest.raises(FieldError, match="'neighbor_list'"):
            data.neighbor_list = wrong
        assert data.num_edges == 0
    data.neighbor_list = EDGES
    assert data.num_edges == 3
    data.neighbor_list = EDGES[:2]
    assert data.num_edges == 2
    data.add_field("own", torch.zeros(2), "edge")
    with pytest.raises(FieldError, match=r"'neighbor_list' has shape \(3, 2\), .* each of 2 edges"):
        data.neighbor_list = EDGES
    assert data.neighbor_list.tolist() == EDGES[:2].tolist()


def test_no_edges_is_not_the_same_as_no_neighbor_list():
    data = water(neighbor_list=torch.zeros(0, 2, dtype=torch.int64))
    assert data.num_edges == 0
    assert "neighbor_list" in data


def equal(one: AtomicData, other: AtomicData) -> bool:
    return (
        one.levels == other.levels
        and one.num_edges == other.num_edges
        and all(torch.equal(one[name], other[name]) for name in one.fields)
        and all(one[name].dtype == other[name].dtype for name in one.fields)
    )


@pytest.mark.parametrize(
    "duplicate",
    [
        copy.copy,
        copy.deepcopy,
        lambda data: pickle.loads(pickle.dumps(data)),
        AtomicData.clone,
        AtomicData.cpu,
        AtomicData.detach,
        lambda data: data.to("cpu"),
    ],
)
def test_copies(duplicate):
    data = everything()
    assert equal(duplicate(data), data)


def test_clones_share_no_memory():
    data = everything()
    clone, alias = data.clone(), data.detach()
    data.positions.zero_()
    assert clone.positions.sum().item() != 0
    assert alias.positions.sum().item() == 0
    clone.energy = 5.0
    assert data.energy.item() == -14.0


def test_to_another_dtype_converts_floats_alone():
    data = everything().to(dtype=torch.float64)
    assert {name for name, value in data.fields.items() if value.dtype is torch.float64} == {
        "positions",
        "energy",
        "forces",
        "cell",
        "weights",
    }
    assert data.kind.dtype is torch.int32
    assert everything().to("meta").positions.device.type == "meta"


def test_registry():
    """Every field of the registry is declared once, with a level and a kind that it can have."""
    assert CORE_FIELDS["forces"].unit == "eV/Angstrom"
    assert CORE_FIELDS["stress"].shape == (3, 3)
    for name, spec in CORE_FIELDS.items():
        check_name(name)
        assert spec.name == name
        assert level_of(name) is level_of(name, str(spec.level)) is spec.level
        dtype = {Kind.BOOL: torch.bool, Kind.INTEGER: torch.int64}.get(spec.kind, torch.float32)
        assert as_field_dtype(name, torch.zeros(1, dtype=dtype)).dtype is dtype
    with pytest.raises(FieldError, match="has level 'node'; expected 'system', 'atom' or 'edge'"):
        level_of("x", "node")
    with pytest.raises(FieldError, match="'x' is not in the registry"):
        level_of("x")
    with pytest.raises(TypeError):
        CORE_FIELDS["x"] = CORE_FIELDS["forces"]
    for dtype in (torch.int32, torch.float64):
        assert as_field_dtype("neighbor_list_shifts", torch.zeros(1, 3, dtype=dtype)).dtype is dtype


@pytest.mark.parametrize("dtype", [">f4", ">f8", "<f4"])
def test_arrays_of_any_byte_order_and_stride(dtype):
    """Big-endian bytes and negative strides are converted, with equal values."""
    positions = np.arange(9, dtype=dtype).reshape(3, 3)[::-1]
    data = AtomicData(positions, np.array([8, 1, 1], dtype=">i4"), forces=positions[:, ::-1])
    assert data.positions.tolist() == positions.tolist()
    assert data.forces.tolist() == positions[:, ::-1].tolist()
    assert data.atomic_numbers.tolist() == [8, 1, 1]
    assert data.dtype is (torch.float64 if dtype == ">f8" else torch.float32)


def test_masked_entries_are_refused():
    """The numbers below a mask are no values; a mask without entries hides none."""
    forces = np.ma.masked_invalid([[0.0, 0.0, 1.0], [0.0, np.nan, 0.0], [1.0, 0.0, 0.0]])
    with pytest.raises(FieldError, match=r"'forces' is a masked array in which 1 of 9 .*filled"):
        water(forces=forces)
    with pytest.raises(FieldError, match=r"'energy' is a masked array.*presence records that"):
        water(energy=[np.ma.masked])
    assert water(forces=forces.filled(0.0)).forces.tolist()[1] == [0.0, 0.0, 0.0]
    assert water(forces=np.ma.array(np.ones((3, 3)))).forces.tolist() == [[1.0] * 3] * 3


def test_names_as_long_as_a_directory_may_be():
    check_name("x" * 255)
    for name in ("x" * 256, "ä" * 128):
        with pytest.raises(FieldError, match=r"has 256 bytes, expected at most 255.*shorter"):
            water(system={name: [1.0]})
