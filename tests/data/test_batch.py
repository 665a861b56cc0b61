"""Batches against a naive reference: a list of dictionaries, one for each system."""

import copy
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from zarrpipe import AtomicData, Batch
from zarrpipe.data.csr import (
    pointers,
    position_of,
    positions_of,
    segment_rows,
    tensor_pointers,
    tensor_segment_rows,
)
from zarrpipe.data.fields import FieldSpec, Kind
from zarrpipe.data.levels import Level
from zarrpipe.data.schema import Schema
from zarrpipe.errors import (
    FieldError,
    SampleIndexError,
    SampleIndexTypeError,
    SchemaError,
    UnknownFieldError,
)
from zarrpipe.testing import assert_batches_equal, numbered_batch, random_batch

OWN = (
    FieldSpec("tag", Level.SYSTEM, Kind.INTEGER),
    FieldSpec("flags", Level.ATOM, Kind.BOOL, (2,)),
    FieldSpec("weights", Level.EDGE, shape=(3,)),
)


@st.composite
def batches(draw, least: int = 1, edges: bool | None = None) -> Batch:
    with_edges = draw(st.booleans()) if edges is None else edges
    own = OWN if with_edges else OWN[:2]
    fields = draw(st.lists(st.sampled_from(["energy", "forces", "cell", "pbc", *own]), unique=True))
    return random_batch(
        np.random.default_rng(draw(st.integers(0, 2**32))),
        draw(st.integers(least, 7)),
        edges=(0, 4) if with_edges else None,
        fields=fields,
        absent=draw(st.sampled_from([0.0, 0.4])),
    )


def naive(batch: Batch) -> list[dict[str, list]]:
    """Systems as dictionaries of nested lists, cut out of the batch one row at a time."""
    systems = []
    for number in range(batch.num_graphs):
        bounds = {
            Level.ATOM: batch.batch_ptr[number : number + 2].tolist(),
            Level.EDGE: batch.edge_ptr[number : number + 2].tolist(),
            Level.SYSTEM: [number, number + 1],
        }
        system = {}
        for name, level in batch.levels.items():
            if not bool(batch.present(name)[number]):
                continue
            rows = [batch[name][row].tolist() for row in range(*bounds[level])]
            if name == "neighbor_list":
                rows = [[end - bounds[Level.ATOM][0] for end in row] for row in rows]
            system[name] = rows
        systems.append(system)
    return systems


def as_lists(data: AtomicData) -> dict[str, list]:
    return {name: value.tolist() for name, value in data.fields.items()}


@given(batches())
def test_systems_of_a_batch(batch):
    expected = naive(batch)
    assert [as_lists(data) for data in batch.to_data_list()] == expected
    for number, data in enumerate(batch.to_data_list()):
        assert as_lists(batch.get_data(number - batch.num_graphs)) == as_lists(data)
        assert as_lists(batch[number]) == as_lists(data)
        assert data.num_nodes == batch.num_nodes_list[number]
        assert data.num_edges == batch.num_edges_list[number]


@given(batches())
def test_from_data_list_inverts_to_data_list(batch):
    again = Batch.from_data_list(batch.to_data_list())
    assert naive(again) == naive(batch)
    somewhere = {name for name in batch.fields if bool(batch.present(name).any())}
    assert set(again.fields) == somewhere
    if somewhere == set(batch.fields):
        assert_batches_equal(again, batch)


@given(batches(), st.data())
def test_index_select_picks_systems(batch, data):
    systems = naive(batch)
    count = len(systems)
    index = data.draw(st.lists(st.integers(-count, count - 1), max_size=9))
    expected = [systems[i] for i in index]
    for given_as in (list, tuple, torch.tensor, np.array):
        assert naive(batch.index_select(given_as(index))) == expected
    assert naive(batch[torch.tensor(index, dtype=torch.int32)]) == expected
    mask = data.draw(st.lists(st.booleans(), min_size=count, max_size=count))
    chosen = batch.index_select(torch.tensor(mask))
    assert naive(chosen) == [system for system, wanted in zip(systems, mask, strict=True) if wanted]
    part = slice(*data.draw(st.tuples(st.integers(-8, 8), st.integers(-8, 8), st.integers(1, 3))))
    assert naive(batch[part]) == systems[part]


@given(st.lists(batches(least=0), min_size=1, max_size=4))
def test_concatenate_is_list_addition(parts):
    whole = Batch.concatenate(parts)
    assert naive(whole) == [system for part in parts for system in naive(part)]
    assert whole.num_nodes_list == [count for part in parts for count in part.num_nodes_list]
    assert whole.num_edges_list == [count for part in parts for count in part.num_edges_list]


@given(batches())
def test_pointers_and_counts(batch):
    nodes = batch.num_nodes_list
    assert batch.batch_idx.tolist() == [i for i, count in enumerate(nodes) for _ in range(count)]
    assert batch.batch_ptr.tolist() == [sum(nodes[:i]) for i in range(len(nodes) + 1)]
    assert batch.num_nodes_per_graph.tolist() == nodes
    assert batch.num_edges_per_graph.tolist() == batch.num_edges_list
    assert (batch.num_graphs, len(batch)) == (len(nodes), len(nodes))
    assert batch.num_nodes == sum(nodes)
    assert batch.num_edges == sum(batch.num_edges_list)
    assert batch.batch_idx is batch.batch_idx


def helium(**fields) -> AtomicData:
    return AtomicData([[0.0, 0.0, 0.0]], [2], **fields)


def test_mixed_parts():
    pair = Batch.from_data_list([helium(energy=1.0), helium(energy=2.0)])
    mixed = Batch.concatenate([helium(), pair, helium(energy=3.0)])
    assert mixed.present("energy").tolist() == [False, True, True, True]
    assert mixed.energy[1:, 0].tolist() == [1.0, 2.0, 3.0]
    assert torch.isnan(mixed.energy[0]).all()
    assert mixed.present("positions").all()
    assert mixed.partly_present == {"energy"}
    filled = Batch.from_data_list([helium(), helium(system={"a": [3], "b": [True]})])
    assert (filled.a.tolist(), filled.b.tolist()) == ([0, 3], [False, True])


def test_presence():
    batch = Batch.from_data_list([helium(), helium(energy=2.0), helium(energy=3.0)])
    assert batch.index_select([2, 1]).partly_present == frozenset()
    assert batch.index_select([0]).present("energy").tolist() == [False]
    assert "energy" not in batch.get_data(0)
    with pytest.raises(FieldError, match="no system of the batch has field 'forces'"):
        batch.present("forces")
    batch.energy = torch.ones(3, 1)
    assert batch.partly_present == frozenset()
    assert batch.present("energy").tolist() == [True, True, True]
    part = Batch.from_data_list([helium(), helium(energy=2.0)])
    assert part.clone().present("energy").tolist() == [False, True]
    assert "energy" not in part.without("energy")
    assert part.without("energy").partly_present == frozenset()


@pytest.mark.parametrize("names", [("positions",), ("energy", "forces")])
def test_without_what_cannot_be_left_out(names):
    with pytest.raises(FieldError, match=f"'{names[-1]}' cannot be left out"):
        Batch.from_data_list([helium(energy=1.0)]).without(*names)


@pytest.mark.parametrize(
    ("parts", "match"),
    [
        ([], "an empty list makes no batch"),
        ([None], "a batch is made of AtomicData or Batch objects, not of a NoneType"),
        (
            [helium(system={"a": [1.0]}), helium(atom={"a": [1.0]})],
            "'a' of sample 1 is at level 'atom', samples before it have it at 'system'",
        ),
        (
            [helium(energy=1.0), helium(energy=torch.ones(1, 1))],
            r"'energy' of sample 1 has rows of shape \(1,\) and dtype torch.float32",
        ),
        (
            [helium(), helium(system={"a": [[1.0, 2.0]]}), helium(system={"a": [[1.0]]})],
            r"'a' of sample 2 has rows of shape \(1,\) .* before it \(2,\)",
        ),
    ],
)
def test_systems_that_do_not_fit_each_other(parts, match):
    with pytest.raises(FieldError, match=match):
        Batch.from_data_list(parts)


PTR = torch.tensor([0, 1, 3])
BASE = {"positions": torch.zeros(3, 3), "atomic_numbers": torch.ones(3, dtype=torch.int64)}


@pytest.mark.parametrize(
    ("fields", "options", "match"),
    [
        ({"positions": torch.zeros(3, 3)}, {}, "a batch needs the field 'atomic_numbers'"),
        (BASE, {"batch_ptr": torch.tensor([0, 3, 3])}, "batch_ptr goes from 3 to 3 at system 1"),
        (BASE, {"batch_ptr": torch.tensor([0, 4, 3])}, "goes from 4 to 3 at system 1, .* least 1"),
        (BASE, {"batch_ptr": torch.tensor([1, 3])}, "beginning with 0"),
        (BASE, {"batch_ptr": PTR.int()}, "dtype torch.int32, expected .* int64"),
        (BASE, {"batch_ptr": torch.zeros(0, dtype=torch.int64)}, "batch_ptr has shape"),
        (BASE, {"batch_ptr": PTR[None]}, r"batch_ptr has shape \(1, 3\)"),
        (
            BASE,
            {"batch_ptr": torch.tensor([0, 1, 2])},
            r"'positions' has shape \(3, 3\), .* 2 atoms",
        ),
        (BASE, {"edge_ptr": torch.tensor([0, 2])}, "edge_ptr has 2 entries and batch_ptr 3"),
        (BASE, {"edge_ptr": torch.tensor([0, 2, 1])}, "edge_ptr goes from 2 to 1 at system 1"),
        (BASE | {"energy": torch.zeros(3, 1)}, {}, r"'energy' has shape \(3, 1\), .* 2 systems"),
        (BASE | {"own": torch.zeros(3)}, {}, "'own' is not in the registry"),
        (
            BASE | {"neighbor_list": torch.tensor([[0, 0], [1, 0]])},
            {"edge_ptr": torch.tensor([0, 1, 2])},
            r"edge 1 is \[1, 0\], its system 1 has the atoms 1 to 2",
        ),
        (
            BASE | {"neighbor_list": torch.tensor([[1, 1]])},
            {"edge_ptr": torch.tensor([0, 1, 1])},
            r"edge 0 is \[1, 1\], its system 0 has the atoms 0 to 0",
        ),
        (BASE | {"neighbor_list": torch.tensor([[1, 1]])}, {}, r"\(1, 2\), .* each of 0 edges"),
        (
            BASE,
            {"present": {"positions": torch.ones(2).bool()}},
            "presence is given for 'positions'",
        ),
        (BASE, {"present": {"energy": torch.ones(2).bool()}}, "presence is given for 'energy'"),
        (
            BASE | {"energy": torch.zeros(2, 1)},
            {"present": {"energy": torch.ones(2)}},
            r"presence of 'energy' has dtype torch.float32 and shape \(2,\), expected bool and",
        ),
        (
            BASE | {"energy": torch.zeros(2, 1)},
            {"present": {"energy": torch.ones(3).bool()}},
            r"presence of 'energy' has dtype torch.bool and shape \(3,\)",
        ),
    ],
)
def test_refusals(fields, options, match):
    with pytest.raises(FieldError, match=match):
        Batch(fields, **{"batch_ptr": PTR} | options)


def test_refused_edges_and_names_change_nothing():
    batch = numbered_batch(range(4))
    before = batch.clone()
    with pytest.raises(FieldError, match="its system"):
        batch.neighbor_list = batch.neighbor_list + 1
    with pytest.raises(FieldError, match=r"'present' is taken by Batch.present"):
        batch.add_field("present", torch.ones(4), "system")
    with pytest.raises(FieldError, match=r"'forces' has shape \(1, 3\)"):
        batch.forces = torch.zeros(1, 3)
    assert_batches_equal(batch, before)


@pytest.mark.parametrize(
    ("index", "match"),
    [
        ([4], "system 4 of a batch of 4, expected -4 to 3"),
        ([0, -5], "system -5 of a batch of 4"),
        ([0.5], r"an index of dtype float64 and shape \(1,\): expected integers or bool"),
        (torch.ones(3, dtype=torch.bool), r"a mask of shape \(3,\) for a batch of 4"),
    ],
)
def test_indices_outside(index, match):
    with pytest.raises(IndexError, match=match):
        numbered_batch(range(4)).index_select(index)


@pytest.mark.parametrize("index", [4, -5])
def test_systems_outside(index):
    with pytest.raises(IndexError, match=f"system {index} of a batch of 4"):
        numbered_batch(range(4)).get_data(index)


def test_an_empty_batch():
    empty = numbered_batch(range(3)).index_select([])
    assert (empty.num_graphs, empty.num_nodes, empty.num_edges) == (0, 0, 0)
    assert empty.to_data_list() == []
    assert empty.batch_idx.tolist() == []
    assert_batches_equal(Batch.concatenate([empty, numbered_batch([5])]), numbered_batch([5]))


@pytest.mark.parametrize(
    "duplicate",
    [
        copy.copy,
        copy.deepcopy,
        lambda batch: pickle.loads(pickle.dumps(batch)),
        Batch.clone,
        Batch.cpu,
        Batch.detach,
        lambda batch: Batch.from_data_list(batch.to_data_list(), device="cpu"),
    ],
)
def test_copies(duplicate):
    rng = np.random.default_rng(1)
    batch = random_batch(rng, 6, edges=(0, 3), fields=("energy", *OWN), absent=0.4)
    assert_batches_equal(duplicate(batch), batch)


def test_moving():
    batch = random_batch(np.random.default_rng(1), 6, fields=("energy", "pbc"), absent=0.4)
    moved = batch.to("meta")
    tensors = [*moved.fields.values(), moved.batch_ptr, moved.edge_ptr, moved.present("energy")]
    assert {tensor.device.type for tensor in tensors} == {"meta"}
    wide = batch.to(dtype=torch.float64)
    assert (wide.energy.dtype, wide.pbc.dtype) == (torch.float64, torch.bool)
    assert wide.batch_ptr.dtype is torch.int64
    clone = batch.clone()
    batch.positions.zero_()
    batch.batch_ptr.zero_()
    assert clone.positions.abs().sum() > 0
    assert clone.batch_ptr[-1] == clone.num_nodes


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu():
    batch = numbered_batch(range(9))
    moved = batch.pin_memory().to("cuda", non_blocking=True)
    assert_batches_equal(moved, batch)
    chosen = moved.index_select([3, 1])
    assert chosen.device.type == "cuda"
    assert_batches_equal(chosen, batch.index_select([3, 1]))
    assert_batches_equal(Batch.from_data_list(moved.to_data_list()), batch)


def test_repr():
    assert repr(numbered_batch(range(4))).startswith(
        "Batch(num_graphs=4, num_nodes=10, num_edges=6"
    )


@given(st.lists(st.integers(0, 5), max_size=8), st.data())
def test_csr(counts, data):
    ptr = pointers(np.array(counts, dtype=np.int64))
    assert ptr.dtype == np.int64
    assert ptr.tolist() == [sum(counts[:i]) for i in range(len(counts) + 1)]
    starts = np.array(data.draw(st.lists(st.integers(0, 99), min_size=len(counts),
                                         max_size=len(counts))), dtype=np.int64)  # fmt: skip
    expected = [s + i for s, count in zip(starts, counts, strict=True) for i in range(count)]
    assert segment_rows(starts, ptr).tolist() == expected
    tensor = tensor_pointers(torch.tensor(counts, dtype=torch.int64))
    assert tensor.tolist() == ptr.tolist()
    assert tensor_segment_rows(torch.from_numpy(starts), tensor).tolist() == expected


@pytest.mark.parametrize(
    ("index", "match"),
    [
        ([3], "row 3 of an array of 3, expected -3 to 2"),
        ([0, -4], "row -4 of an array of 3"),
        (np.array([2**64 - 1], dtype=np.uint64), f"row {2**64 - 1} of an array of 3"),
        ([1, 10**30], f"row {10**30} of an array of 3"),
        (np.array([1], dtype=object), "dtype object"),
        ([True], r"a mask of shape \(1,\) for an array of 3: expected one bool for each row"),
        ([0.5], "dtype float64"),
        ([[0, 1]], r"shape \(1, 2\)"),
        ([[0], [1, 2]], r"\[\[0\], \[1, 2\]\] is no index"),
        ("all", "of kind str: expected integers or bool"),
        (None, "of kind NoneType"),
        ((i for i in range(2)), "of kind generator"),
        (slice(0.5, 2), "no slice of samples"),
        (torch.zeros(2, device="meta"), "is no index"),
    ],
)
def test_positions_outside(index, match):
    with pytest.raises(IndexError, match=match):
        positions_of(index, 3, "row", "an array")


@pytest.mark.parametrize(
    ("index", "expected"),
    [
        ([], []),
        ([2, -1, 0, 0], [2, 2, 0, 0]),
        (1, [1]),
        (np.int8(-3), [0]),
        (range(2), [0, 1]),
        (slice(None, None, -1), [2, 1, 0]),
        (slice(5, 9), []),
        (torch.tensor([1, -2], dtype=torch.int16), [1, 1]),
        ([True, False, True], [0, 2]),
        (torch.tensor([False, False, True]), [2]),
        (np.array([0, 2], dtype=np.uint64), [0, 2]),
    ],
)
def test_positions(index, expected):
    found = positions_of(index, 3, "row", "an array")
    assert (found.dtype, found.tolist()) == (np.int64, expected)


@pytest.mark.parametrize(
    "index", [1.0, "1", None, True, np.bool_(True), slice(0, 1), [0, 1], np.array([0, 1])]
)
def test_one_position_is_one_integer(index):
    with pytest.raises(
        SampleIndexTypeError, match="expected one integer, the number of a row of an array"
    ):
        position_of(index, 3, "row", "an array")


def test_one_position():
    assert [position_of(i, 3, "row", "an array") for i in (0, -1, torch.tensor(1))] == [0, 2, 1]
    with pytest.raises(SampleIndexError, match="row 0 of an array of 0, which is empty"):
        position_of(0, 0, "row", "an array")


class TestSchema:
    def test_of_a_batch(self):
        schema = Schema.of(random_batch(np.random.default_rng(0), 2, edges=(1, 2), fields=OWN))
        assert len(schema) == 7
        assert repr(schema).startswith("Schema(positions, atomic_numbers")
        assert {name: item.group for name, item in schema.items() if item.group == "custom"} == {
            "tag": "custom",
            "flags": "custom",
            "weights": "custom",
        }
        assert [item.name for item in schema.at(Level.EDGE)] == [
            "weights",
            "neighbor_list",
            "neighbor_list_shifts",
        ]
        assert np.isnan(schema["positions"].fill)
        assert schema["flags"].fill is False
        assert schema["tag"].fill == 0
        assert schema["positions"].unit == "Angstrom"

    @pytest.mark.parametrize(
        ("stored", "given_as", "fits"),
        [
            (torch.float64, torch.float32, True),
            (torch.float32, torch.float64, False),
            (torch.float32, torch.float16, True),
            (torch.float32, torch.int64, False),
            (torch.int64, torch.int32, True),
            (torch.int32, torch.int64, False),
            (torch.int32, torch.bool, True),
            (torch.uint8, torch.int8, False),
        ],
    )
    def test_casts(self, stored, given_as, fits):
        of = [Batch.from_data_list([helium(system={"a": torch.ones(1, dtype=dtype)})])
              for dtype in (stored, given_as)]  # fmt: skip
        if fits:
            Schema.of(of[0]).check(of[1])
        else:
            with pytest.raises(SchemaError, match=r"'a' has dtype .*the cast may lose information"):
                Schema.of(of[0]).check(of[1])

    def test_fractions_are_not_cast_to_integers(self):
        """The advice must not be to cut them off."""
        begun, later = (
            Batch.from_data_list([helium(system={"kelvin": [value]})]) for value in (300, 300.5)
        )
        advice = (
            r"begin with floats, such as \[300.0\], in a field of another name or in a new store"
        )
        with pytest.raises(SchemaError, match=rf"float32, the store has int64 .*{advice}$"):
            Schema.of(begun).check(later)

    @pytest.mark.parametrize(
        ("begun", "later", "advice"),
        [
            (1, [1], r"give a plain number for a system, \.reshape\(-1, 1\) of a batch$"),
            ([1], 1, r"give \[number\] for a system, \.reshape\(-1\) of a batch$"),
            ([1], [[1, 2]], "of its first write$"),
        ],
    )
    def test_rows_of_one_number_say_how_they_fit(self, begun, later, advice):
        """In a store, and in one list if rows of one shape or the other came first."""
        of = [helium(system={"round": value}) for value in (begun, later)]
        with pytest.raises(SchemaError, match=advice):
            Schema.of(Batch.from_data_list(of[:1])).check(Batch.from_data_list(of[1:]))
        if later != [[1, 2]]:
            with pytest.raises(FieldError, match=advice):
                Batch.from_data_list(of)


@pytest.mark.parametrize(
    ("habit", "name"),
    [("batch", "batch_idx"), ("ptr", "batch_ptr"), ("pos", "positions"), ("z", "atomic_numbers")],
)
def test_names_of_pyg_are_told(habit, name):
    batch = Batch.from_data_list([helium()])
    expected = rf"Batch has no field '{habit}' \(did you mean '{name}'\?\); it has .*positions"
    with pytest.raises(AttributeError, match=rf"{expected}.*, batch_idx, batch_ptr, edge_ptr$"):
        getattr(batch, habit)
    with pytest.raises(UnknownFieldError, match=expected):
        batch[habit]
    assert getattr(batch, name).shape[0] > 0
