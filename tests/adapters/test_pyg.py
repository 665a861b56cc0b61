import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import zarrpipe as zp
from zarrpipe.adapters import as_batch, from_pyg, to_pyg
from zarrpipe.errors import FieldError


def graph(pyg, count, edges, first=0.0, **more):
    """A graph whose numbers all say which atom or edge they belong to."""
    index = torch.arange(first, first + count)
    edge_index = torch.tensor(edges, dtype=torch.int64).reshape(-1, 2).t().contiguous()
    return pyg.Data(
        z=torch.arange(1, count + 1),
        pos=torch.stack([index, index + 0.25, index + 0.5], 1),
        edge_index=edge_index,
        **more,
    )


def labelled(pyg, count, edges, first):
    return graph(
        pyg,
        count,
        edges,
        first,
        energy=torch.tensor([first]),
        force=torch.full((count, 3), first),
        cell=torch.arange(9.0).reshape(3, 3) + first,
        pbc=torch.tensor([True, False, first > 5]),
        stress=torch.arange(9.0).reshape(1, 3, 3) - first,
        cell_offsets=torch.full((len(edges), 3), first),
        x=torch.arange(count * 2.0).reshape(count, 2),
        edge_attr=torch.arange(len(edges) * 4.0).reshape(-1, 4) + first,
        temperature=torch.tensor(300.0 + first),
        direction=torch.tensor([[1.0, first, 3.0, 4.0]]),
        step=int(first),
        name="water",
    )


@pytest.fixture
def pair(pyg):
    first = labelled(pyg, 3, [[0, 1], [1, 2], [2, 0], [0, 2]], 1.0)
    second = labelled(pyg, 2, [[0, 1], [1, 0], [1, 1]], 10.0)
    return [first, second]


def check_pair(batch):
    assert batch.batch_ptr.tolist() == [0, 3, 5]
    assert batch.edge_ptr.tolist() == [0, 4, 7]
    assert batch.positions[:, 0].tolist() == [1.0, 2.0, 3.0, 10.0, 11.0]
    assert batch.atomic_numbers.tolist() == [1, 2, 3, 1, 2]
    edges = [[0, 1], [1, 2], [2, 0], [0, 2], [3, 4], [4, 3], [4, 4]]
    assert batch.neighbor_list.tolist() == edges
    assert batch.neighbor_list_shifts[:, 0].tolist() == [1.0] * 4 + [10.0] * 3
    assert batch.energy.tolist() == [[1.0], [10.0]]
    assert batch.forces[:, 1].tolist() == [1.0] * 3 + [10.0] * 2
    assert batch.cell[1].tolist() == (torch.arange(9.0).reshape(3, 3) + 10.0).tolist()
    assert batch.pbc.tolist() == [[True, False, False], [True, False, True]]
    assert batch.stress[1].tolist() == (torch.arange(9.0).reshape(3, 3) - 10.0).tolist()
    assert batch.x.tolist() == [[0.0, 1.0], [2.0, 3.0], [4.0, 5.0], [0.0, 1.0], [2.0, 3.0]]
    assert batch.edge_attr[4].tolist() == [10.0, 11.0, 12.0, 13.0]
    assert batch.temperature.tolist() == [[301.0], [310.0]]
    assert batch.direction.tolist() == [[1.0, 1.0, 3.0, 4.0], [1.0, 10.0, 3.0, 4.0]]
    assert batch.step.tolist() == [[1], [10]]
    assert {"x": "atom", "edge_attr": "edge", "direction": "system"}.items() <= {
        **batch.levels
    }.items()
    assert "name" not in batch


def test_a_collated_batch_by_value(pyg, pair):
    check_pair(as_batch(pyg.Batch.from_data_list(pair)))


def test_single_graphs_by_value(pair):
    check_pair(as_batch(pair))


def test_a_batch_from_a_loader_with_follow_batch(pyg, pair):
    loader = pytest.importorskip("torch_geometric.loader")
    (batch,) = loader.DataLoader(pair, batch_size=2, follow_batch=["x"])
    check_pair(as_batch(batch))


def test_a_graph_without_edges(pyg):
    data = pyg.Data(z=torch.tensor([1]), pos=torch.zeros(1, 3))
    batch = as_batch(data)
    assert batch.num_edges == 0
    assert "neighbor_list" not in batch
    without = as_batch(graph(pyg, 2, []))
    assert without.neighbor_list.shape == (0, 2)


def test_the_vector_of_an_edge_is_the_same_on_both_sides(ase, pyg):
    """A triclinic crystal, edges by ASE: r = pos[j] + S @ cell - pos[i]."""
    neighbours = pytest.importorskip("ase.neighborlist")
    atoms = ase.build.bulk("Cu")
    atoms.rattle(0.1, seed=3)
    first, second, shift, vector = neighbours.neighbor_list("ijSD", atoms, 4.0)
    data = pyg.Data(
        z=torch.from_numpy(atoms.numbers),
        pos=torch.from_numpy(atoms.positions),
        edge_index=torch.from_numpy(np.stack([first, second])),
        cell_offsets=torch.from_numpy(shift),
        cell=torch.from_numpy(atoms.cell.array)[None],
    )
    batch = as_batch(pyg.Batch.from_data_list([data, data]))
    owner = torch.repeat_interleave(torch.arange(2), batch.num_edges_per_graph)
    shifts = batch.neighbor_list_shifts.double()
    lattice = torch.einsum("ei,eij->ej", shifts, batch.cell[owner])
    found = batch.positions[batch.neighbor_list[:, 1]] + lattice
    found = found - batch.positions[batch.neighbor_list[:, 0]]
    np.testing.assert_allclose(found.numpy(), np.concatenate([vector, vector]), atol=1e-12)


@pytest.mark.parametrize(
    ("y", "name", "shape"),
    [
        (torch.tensor([2.5]), "energy", (1, 1)),
        (torch.tensor([[2.5]]), "energy", (1, 1)),
        (torch.tensor(2.5), "energy", (1, 1)),
        (torch.tensor([3]), "y", (1, 1)),
        (torch.ones(1, 19), "y", (1, 19)),
        (torch.ones(3, 2), "y", (3, 2)),
    ],
)
def test_y_is_the_energy_only_if_it_is_one_float_per_graph(pyg, y, name, shape):
    batch = as_batch(graph(pyg, 3, [], y=y))
    assert batch[name].shape == shape
    assert ("energy" in batch) is (name == "energy")
    assert batch[name].flatten().tolist() == y.flatten().tolist()


def test_y_beside_an_energy_stays_y_and_names_can_say_otherwise(pyg):
    data = graph(pyg, 3, [], y=torch.tensor([2.5]), energy=torch.tensor([1.0]))
    assert as_batch(data).y.tolist() == [[2.5]]
    dipole = graph(pyg, 3, [], y=torch.ones(1, 3), coords=torch.zeros(3, 3))
    assert from_pyg(dipole, names={"y": "dipole"}).dipole.shape == (1, 3)
    renamed = pyg.Data(species=torch.tensor([6]), coords=torch.ones(1, 3), neg_dy=torch.ones(1, 3))
    batch = from_pyg(renamed, names={"species": "atomic_numbers", "coords": "positions"})
    assert batch.atomic_numbers.tolist() == [6]
    assert batch.forces.tolist() == [[1.0, 1.0, 1.0]]


def test_rows_of_nodes_and_edges_alike_go_by_the_name(pyg):
    ring = graph(pyg, 3, [[0, 1], [1, 2], [2, 0]], edge_w=torch.ones(3), w=torch.ones(3))
    batch = as_batch(ring)
    assert (batch.levels["edge_w"], batch.levels["w"]) == ("edge", "atom")


def test_the_rows_of_each_graph_decide_the_level_not_their_sum(pyg):
    """Two graphs of 2 and 4 atoms, each with 3 own rows: 6 rows, and 6 atoms."""
    graphs = [graph(pyg, n, [], own=torch.full((3, 2), float(n))) for n in (2, 4)]
    batch = as_batch(pyg.Batch.from_data_list(graphs))
    assert batch.levels["own"] == "system"
    assert batch.own.shape == (2, 3, 2)
    assert batch.own[1].flatten().tolist() == [4.0] * 6


def test_levels_can_be_said_where_isolated_atoms_leave_it_open(pyg):
    graphs = [graph(pyg, 1, [], own=torch.tensor([[float(i)]])) for i in range(3)]
    batch = pyg.Batch.from_data_list(graphs)
    assert as_batch(batch).levels["own"] == "atom"
    said = as_batch(batch, levels={"own": "system"})
    assert said.levels["own"] == "system"
    assert said.own.tolist() == [[0.0], [1.0], [2.0]]


def test_edges_that_were_built_on_the_batch_are_grouped_by_system(pyg):
    batch = pyg.Batch.from_data_list([graph(pyg, 2, []), graph(pyg, 2, [])])
    batch.edge_index = torch.tensor([[2, 0, 3, 1], [3, 1, 2, 0]])
    batch.edge_attr = torch.tensor([20.0, 0.0, 30.0, 10.0])
    found = as_batch(batch)
    assert found.edge_ptr.tolist() == [0, 2, 4]
    assert found.neighbor_list.tolist() == [[0, 1], [1, 0], [2, 3], [3, 2]]
    assert found.edge_attr.tolist() == [0.0, 10.0, 20.0, 30.0]


def test_a_batch_vector_without_a_collation(pyg):
    data = graph(pyg, 4, [[0, 1], [3, 2]], own=torch.ones(2, 5), flat=torch.ones(2))
    data.batch = torch.tensor([0, 0, 1, 1])
    found = as_batch(data)
    assert found.batch_ptr.tolist() == [0, 2, 4]
    assert found.own.shape == (2, 5)


def test_gradients_are_not_carried(pyg):
    data = graph(pyg, 2, [])
    data.pos.requires_grad_()
    assert not as_batch(data).positions.requires_grad


def test_numbers_take_the_kind_that_the_registry_has(pyg):
    """Integers and whole floats, as other libraries have them, where no value changes."""
    data = graph(pyg, 3, [[0, 1]], charge=-1, spin=torch.tensor([2]), own=7)
    data.z, data.pbc = data.z.float(), torch.tensor([1.0, 0.0, 1.0])
    batch = as_batch([data, data])
    assert batch.charge.tolist() == [[-1.0]] * 2
    assert batch.spin.tolist() == [[2.0]] * 2
    assert batch.charge.dtype is batch.spin.dtype is batch.positions.dtype is torch.float32
    assert batch.atomic_numbers.tolist() == [1, 2, 3] * 2
    assert batch.pbc.tolist() == [[True, False, True]] * 2
    assert batch.own.dtype is torch.int64
    data.z[1] = 2.5
    with pytest.raises(FieldError, match=r"'atomic_numbers' has dtype torch\.float32"):
        as_batch(data)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, 1e30])
def test_floats_that_are_no_integers_stay_floats(pyg, bad):
    data = graph(pyg, 3, [[0, 1]])
    data.z = torch.tensor([1.0, bad, 2.0])
    with pytest.raises(FieldError, match=r"'atomic_numbers' has dtype torch\.float32"):
        as_batch(data)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"z": None}, r"lacks \['atomic_numbers'\] .*it has \['edge_index', 'pos'\]"),
        ({"sample_index": torch.tensor([4])}, "'sample_index' holds indices of nodes"),
        ({"forces": torch.zeros(3, 3), "force": torch.zeros(3, 3)}, "both mean 'forces'"),
        ({"forces": torch.zeros(2, 3)}, r"field 'forces' has shape \(2, 3\)"),
        ({"stress": torch.zeros(1, 6)}, r"field 'stress' has shape \(1, 6\)"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(pyg, change, message):
    data = graph(pyg, 3, [[0, 1]])
    for key, value in change.items():
        data[key] = value
    with pytest.raises(FieldError, match=message):
        as_batch(data)


def test_rows_of_nothing_and_scattered_nodes_are_refused(pyg):
    batch = pyg.Batch.from_data_list([graph(pyg, 2, []), graph(pyg, 3, [])])
    batch.own = torch.ones(7)
    with pytest.raises(FieldError, match=r"'own' has shape \(7,\).*5 nodes, 0 edges nor 2 graphs"):
        as_batch(batch)
    data = graph(pyg, 3, [])
    data.batch = torch.tensor([0, 1, 0])
    with pytest.raises(FieldError, match="sort them by 'batch'"):
        as_batch(data)


def test_a_heterogeneous_graph_has_no_adapter(pyg):
    with pytest.raises(TypeError, match="HeteroData"):
        as_batch(pyg.HeteroData())


def test_there_and_back_and_single_graphs_out_of_it(pyg, pair):
    batch = as_batch(pair)
    back = to_pyg(batch)
    assert isinstance(back, pyg.Batch)
    assert back.edge_index.shape == (2, 7)
    single = back.to_data_list()[1]
    assert single.edge_index.tolist() == pair[1].edge_index.tolist()
    assert single.energy.tolist() == [[10.0]]
    assert single.cell.shape == (1, 3, 3)
    check_pair(as_batch(back))


def test_what_does_not_come_back_from_pyg(pyg):
    """Row numbers of own fields count within their graph, and own levels have no pointers."""
    del pyg
    systems = [
        zp.AtomicData(
            torch.zeros(count, 3),
            [6] * count,
            other_levels={"bond": {"bond_atoms": [[0, 1]] * 3, "bond_order": [1.0, 2.0, 3.0]}},
            index_of={"bond_atoms": "atom"},
            system={"kind": f"of {count}"},
        )
        for count in (2, 4)
    ]
    batch = to_pyg(zp.Batch.from_data_list(systems))
    assert batch.bond_atoms.tolist() == [[0, 1]] * 6
    assert batch[1].bond_order.tolist() == [1.0, 2.0, 3.0]
    back = from_pyg(batch, levels={"kind": "system"})
    assert back.strings("kind") == ["of 2", "of 4"]
    assert back.bond_order.tolist() == [[1.0, 2.0, 3.0]] * 2, "a row of three for each graph"


def test_a_field_that_some_system_lacks_is_filled(pyg):
    del pyg
    with_energy = zp.AtomicData(positions=[[0.0] * 3], atomic_numbers=[1], energy=1.0)
    without = zp.AtomicData(positions=[[0.0] * 3], atomic_numbers=[1])
    back = to_pyg(zp.Batch.from_data_list([with_energy, without]))
    assert back.energy[0] == 1.0
    assert back.energy[1].isnan()


@given(
    sizes=st.lists(st.tuples(st.integers(1, 5), st.integers(0, 6)), min_size=1, max_size=4),
    seed=st.integers(0, 2**32 - 1),
)
def test_any_batch_survives_the_round_trip(pyg, sizes, seed):
    del pyg
    generator = torch.Generator().manual_seed(seed)

    def random(*shape):
        return torch.randn(*shape, generator=generator)

    systems = [
        zp.AtomicData(
            positions=random(n, 3),
            atomic_numbers=torch.randint(1, 90, (n,), generator=generator),
            forces=random(n, 3),
            energy=random(1, 1).double(),
            cell=random(1, 3, 3),
            neighbor_list=torch.randint(0, n, (e, 2), generator=generator),
            neighbor_list_shifts=random(e, 3),
        )
        for n, e in sizes
    ]
    batch = zp.Batch.from_data_list(systems)
    back = as_batch(to_pyg(batch))
    assert torch.equal(back.batch_ptr, batch.batch_ptr)
    assert torch.equal(back.edge_ptr, batch.edge_ptr)
    assert set(back.fields) == set(batch.fields)
    for name, value in batch.fields.items():
        assert value.dtype is back[name].dtype
        assert torch.equal(value, back[name]), name
