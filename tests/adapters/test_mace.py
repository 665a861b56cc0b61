import numpy as np
import pytest
import torch

from zarrpipe.adapters import as_batch, from_mace
from zarrpipe.errors import FieldError

Z_TABLE = (1, 8, 29)


@pytest.fixture
def configurations(mace, ase, rng):
    """Water with energy and forces, and copper with energy and stress."""
    make = mace.utils.Configuration
    water, copper = ase.build.molecule("H2O"), ase.build.bulk("Cu")
    forces = rng.normal(size=(3, 3))
    first = make(
        atomic_numbers=water.numbers,
        positions=water.positions,
        properties={"energy": -14.0, "forces": forces, "total_charge": 1.0},
        property_weights={"energy": 1.0, "forces": 1.0, "stress": 0.0, "virials": 0.0}
        | {"dipole": 0.0, "charges": 0.0, "polarizability": 0.0},
        cell=np.zeros((3, 3)),
        pbc=(False, False, False),
    )
    second = make(
        atomic_numbers=copper.numbers,
        positions=copper.positions,
        properties={"energy": -3.5, "stress": np.arange(6.0), "virials": np.arange(6.0) + 10},
        property_weights={"energy": 1.0, "forces": 0.0, "stress": 1.0, "virials": 2.0}
        | {"dipole": 0.0, "charges": 0.0, "polarizability": 0.0},
        cell=copper.cell.array,
        pbc=(True, True, True),
    )
    return [first, second], forces


@pytest.fixture
def systems(mace, configurations):
    table = mace.AtomicData.from_config.__globals__["AtomicNumberTable"](Z_TABLE)
    made = [
        mace.AtomicData.from_config(one, z_table=table, cutoff=3.0) for one in configurations[0]
    ]
    return made, table


def check(batch, forces, edges):
    assert batch.atomic_numbers.tolist() == [8, 1, 1, 29]
    assert batch.energy.flatten().tolist() == pytest.approx([-14.0, -3.5])
    np.testing.assert_allclose(batch.forces[:3].double(), forces, rtol=1e-6)
    assert batch.present("forces").tolist() == [True, False]
    assert batch.forces[3].isnan().all()
    assert batch.present("stress").tolist() == [False, True]
    assert batch.stress[0].isnan().all()
    assert batch.stress[1].tolist() == [[0.0, 5.0, 4.0], [5.0, 1.0, 3.0], [4.0, 3.0, 2.0]]
    assert batch.virial[1, 0].tolist() == [10.0, 15.0, 14.0]
    assert batch.charge.flatten().tolist() == [1.0, 0.0]
    assert batch.spin.flatten().tolist() == [1.0, 1.0]
    assert batch.pbc.tolist() == [[False] * 3, [True] * 3]
    assert batch.num_edges_list == edges
    absent = {"dipole", "charges", "polarizability", "head", "weight", "node_attrs", "rcell"}
    assert not absent & set(batch.fields)


def test_single_systems_by_value(systems, configurations):
    made, table = systems
    check(as_batch(made, z_table=table), configurations[1], [one.num_edges for one in made])


def test_a_batch_of_the_loader_by_value(mace, systems, configurations):
    made, table = systems
    dataloader = pytest.importorskip("mace.tools.torch_geometric.dataloader")
    (loaded,) = dataloader.DataLoader(made, batch_size=2, shuffle=False)
    batch = as_batch(loaded, z_table=table.zs)
    check(batch, configurations[1], [one.num_edges for one in made])
    copper = configurations[0][1]
    np.testing.assert_allclose(batch.cell[1].double(), copper.cell, rtol=1e-6)


def test_edge_vectors_are_those_of_mace(mace, systems):
    made, table = systems
    blocks = pytest.importorskip("mace.modules.utils")
    expected, _ = blocks.get_edge_vectors_and_lengths(
        made[1].positions, made[1].edge_index, made[1].shifts
    )
    batch = as_batch(made[1], z_table=table)
    lattice = batch.neighbor_list_shifts @ batch.cell[0]
    first, second = batch.neighbor_list.T
    found = batch.positions[second] + lattice - batch.positions[first]
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(batch.shifts, made[1].shifts)


def test_what_is_left_out_can_be_kept_and_own_fields_come_along(systems):
    made, _ = systems
    for one in made:
        one.atomic_numbers = torch.tensor(Z_TABLE)[one.node_attrs.argmax(1)]
        one.tag = torch.arange(one.num_nodes)
    batch = as_batch(made, keep=["energy_weight", "head", "polarizability"])
    assert batch.tag.tolist() == [0, 1, 2, 0]
    assert batch.atomic_numbers.tolist() == [8, 1, 1, 29]
    assert batch.energy_weight.tolist() == [[1.0], [1.0]]
    assert batch.levels["head"] == "system"
    assert batch.present("polarizability").all()
    assert batch.polarizability.tolist() == torch.zeros(2, 3, 3).tolist()


def test_elements_must_be_known(systems):
    made, _ = systems
    with pytest.raises(FieldError, match="z_table"):
        as_batch(made[0])
    with pytest.raises(FieldError, match=r"z_table has 2 elements .* node_attrs has 3 columns"):
        from_mace(made[0], z_table=[1, 8])
