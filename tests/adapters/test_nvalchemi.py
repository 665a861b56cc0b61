"""The adapter on stand-ins with the attributes of nvalchemi 0.2; tests/interop has the library."""

import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch

import zarrpipe as zp
from zarrpipe.adapters import as_batch, from_nvalchemi, to_nvalchemi


def stand_in(module, name, **attributes):
    """Class as if it were defined in `module`."""
    return type(name, (), {"__module__": module, **attributes})


FakeBatch = stand_in(
    "nvalchemi.data.batch",
    "Batch",
    device=torch.device("cpu"),
    to_dict=lambda self: dict(self.tensors),
)
FakeData = stand_in("nvalchemi.data.atomic_data", "AtomicData", num_nodes=2, num_edges=0)


def fake_batch(tensors, keys, nodes, edges):
    batch = FakeBatch()
    batch.tensors, batch.keys = tensors, keys
    batch.num_nodes_list, batch.num_edges_list = nodes, edges
    return batch


TENSORS = {
    "positions": torch.arange(15.0).reshape(5, 3),
    "atomic_numbers": torch.tensor([1, 2, 3, 4, 5]),
    "velocities": torch.zeros(5, 3),
    "neighbor_list": torch.tensor([[0, 1], [1, 2], [3, 4]], dtype=torch.int32),
    "neighbor_list_shifts": torch.ones(3, 3, dtype=torch.int32),
    "energy": torch.tensor([[1.0], [2.0]]),
    "own": torch.arange(10.0).reshape(5, 2),
    "fmax": torch.tensor([[0.1], [0.2]]),
    "neighbor_matrix": torch.zeros(5, 7, dtype=torch.int64),
    "num_neighbors": torch.zeros(5, dtype=torch.int64),
    "step": 3,
}
KEYS = {
    "node": {"positions", "atomic_numbers", "velocities", "own"},
    "edge": {"neighbor_list", "neighbor_list_shifts"},
    "system": {"energy", "fmax"},
}


@pytest.mark.parametrize("keys", [KEYS, None])
def test_a_batch_by_value(keys):
    """Without `keys` the number of rows decides for a field of the user's own."""
    batch = as_batch(fake_batch(TENSORS, keys, [3, 2], [2, 1]))
    assert batch.batch_ptr.tolist() == [0, 3, 5]
    assert batch.edge_ptr.tolist() == [0, 2, 3]
    assert batch.neighbor_list.tolist() == [[0, 1], [1, 2], [3, 4]]
    assert batch.neighbor_list_shifts.dtype is torch.int32
    assert batch.energy.tolist() == [[1.0], [2.0]]
    assert torch.equal(batch.own, TENSORS["own"])
    assert batch.fmax.flatten().tolist() == pytest.approx([0.1, 0.2])
    assert {name: str(batch.levels[name]) for name in ("own", "fmax")} == {
        "own": "atom",
        "fmax": "system",
    }
    assert not {"neighbor_matrix", "num_neighbors", "step"} & set(batch.fields)


def test_no_edges_and_buffers_that_are_longer_than_the_data():
    tensors = {
        "positions": torch.cat([TENSORS["positions"], torch.zeros(4, 3)]),
        "atomic_numbers": torch.cat([TENSORS["atomic_numbers"], torch.zeros(4).long()]),
        "energy": torch.tensor([[1.0], [2.0], [0.0]]),
    }
    keys = {"node": {"positions", "atomic_numbers"}, "edge": set(), "system": {"energy"}}
    batch = as_batch(fake_batch(tensors, keys, [3, 2], []))
    assert batch.num_edges == 0
    assert batch.num_nodes == 5
    assert batch.energy.tolist() == [[1.0], [2.0]]


def test_fields_at_levels_of_the_users_own():
    """One has as many rows as there are atoms, and is not taken for a field of atoms."""
    own = {
        "order": torch.arange(5.0),
        "ends": torch.tensor([[0, 1]] * 5),
        "rotor": torch.ones(2, 1),
    }
    batch = fake_batch({**TENSORS, **own, "pairs": torch.ones(13)}, KEYS, [3, 2], [2, 1])
    batch.level_keys = {"atoms": KEYS["node"], "edges": KEYS["edge"], "system": KEYS["system"]}
    batch.level_keys |= {"bond": {"order", "ends"}, "frame": {"rotor"}, "atom_pair": {"pairs"}}
    kinds = {"bond": "segmented", "frame": "uniform", "atom_pair": "product"}
    parents = {"atom_pair": ("atoms", "atoms")}
    attr_map = SimpleNamespace(level_kind=kinds.get, product_parents=parents)
    batch._storage = SimpleNamespace(attr_map=attr_map)
    ptr = {"bond": [0, 1, 5], "atom_pair": [0, 9, 13]}
    batch.level_ptr = lambda name: torch.tensor(ptr[name], dtype=torch.int32)
    found = from_nvalchemi(batch, index_of={"ends": "atom"})
    assert found.level_ptr("bond").tolist() == [0, 1, 5]
    assert found.order.tolist() == [0.0, 1.0, 2.0, 3.0, 4.0]
    assert found.ends.tolist() == [[0, 1], *[[3, 4]] * 4]
    assert found.roles["ends"].index_of == "atom"
    assert [found.levels[name] for name in ("order", "rotor", "pairs")] == [*kinds]
    assert as_batch(batch).ends.tolist() == [[0, 1]] * 5


def test_single_systems():
    data = FakeData()
    data.positions = torch.ones(2, 3)
    data.node_properties = {
        "positions": data.positions,
        "atomic_numbers": torch.tensor([1, 8]),
        "own": torch.tensor([5.0, 6.0]),
        "neighbor_matrix": torch.zeros(2, 4),
    }
    data.edge_properties = {}
    data.system_properties = {"energy": torch.tensor([[3.0]]), "bar": torch.ones(1, 4)}
    data.system_properties["charge"] = torch.tensor([[-1]])
    batch = as_batch([data, data])
    assert batch.charge.tolist() == [[-1.0]] * 2
    assert batch.num_nodes_list == [2, 2]
    assert batch.own.tolist() == [5.0, 6.0, 5.0, 6.0]
    assert batch.energy.tolist() == [[3.0], [3.0]]
    assert batch.levels["bar"] == "system"


class Recorder:
    """Takes what the adapter hands to nvalchemi's AtomicData."""

    def __init__(self, **fields):
        self.fields = fields
        self.own = {}

    def add_node_property(self, name, value):
        self.own[name] = ("node", value)

    def add_edge_property(self, name, value):
        self.own[name] = ("edge", value)

    def add_system_property(self, name, value):
        self.own[name] = ("system", value)


def test_the_way_back(monkeypatch):
    library = ModuleType("nvalchemi.data")
    library.AtomicData = Recorder
    library.Batch = stand_in("x", "Batch", from_data_list=staticmethod(list))
    monkeypatch.setitem(sys.modules, "nvalchemi", ModuleType("nvalchemi"))
    monkeypatch.setitem(sys.modules, "nvalchemi.data", library)
    one = zp.AtomicData(
        positions=[[0.0] * 3, [1.0] * 3],
        atomic_numbers=[1, 2],
        energy=torch.tensor([[1.5]], dtype=torch.float64),
        neighbor_list=torch.tensor([[0, 1]]),
        atom={"own": [1.0, 2.0]},
        edge={"length": [1.7]},
        system={"bar": [[4.0]]},
    )
    other = zp.AtomicData(positions=[[2.0] * 3], atomic_numbers=[3])
    first, second = to_nvalchemi(zp.Batch.from_data_list([one, other]))
    assert first.fields["positions"].tolist() == [[0.0] * 3, [1.0] * 3]
    assert first.fields["energy"].dtype is torch.float32
    assert first.fields["neighbor_list"].tolist() == [[0, 1]]
    assert {name: level for name, (level, _) in first.own.items()} == {
        "own": "node",
        "length": "edge",
        "bar": "system",
    }
    assert second.fields["energy"].isnan().all()
    assert second.fields["neighbor_list"].shape == (0, 2)
