"""NeighborList: the pairs that ASE finds, in the convention of a batch."""

import sys

import numpy as np
import pytest
import torch

from zarrpipe import AtomicData, Batch
from zarrpipe.adapters import from_ase
from zarrpipe.errors import ArgumentError, FieldError, MissingLibraryError
from zarrpipe.testing import assert_batches_equal
from zarrpipe.transforms import NeighborList
from zarrpipe.transforms import neighbors as module

CUTOFF = 4.2

for library in ("ase", "vesin"):
    pytest.importorskip(library)


def structures():
    from ase import Atoms  # noqa: PLC0415  optional
    from ase.build import bulk, fcc111, molecule  # noqa: PLC0415

    crystal = bulk("Cu", cubic=True) * (2, 1, 1)
    crystal.set_cell(crystal.cell[:] @ [[1.0, 0.1, 0], [0, 1, 0.2], [0, 0, 1]], scale_atoms=True)
    crystal.rattle(0.2, seed=1)
    crystal.positions[3] += 50  # not wrapped
    slab = fcc111("Al", (2, 1, 2))
    slab.rattle(0.1, seed=2)
    wire = Atoms("C2", [[0, 0, 0], [1, 2, 3.0]], cell=[3, 0, 0], pbc=[True, False, False])
    far = molecule("CH3CH2OH")
    far.positions += [1e5, -3e4, 7]
    return [
        molecule("H2O"),
        crystal,
        Atoms("He"),
        bulk("Cu"),
        slab,
        molecule("C6H6"),
        wire,
        far,
        Atoms("He2", [[0, 0, 0], [9.0, 0, 0]]),
    ]


def expected_of(atoms, cutoff):
    from ase.neighborlist import neighbor_list  # noqa: PLC0415

    first, second, images = neighbor_list("ijS", atoms, cutoff)
    return sorted(map(tuple, np.column_stack([first, second, images]).tolist()))


@pytest.mark.parametrize("order", [range(9), [0, 2, 8, 7], [1, 3], [2], [5, 4, 3, 2, 1, 0, 0]])
def test_the_edges_are_those_of_ase(order):
    chosen = [structures()[place] for place in order]
    batch = NeighborList(CUTOFF)(from_ase(chosen))
    Batch(batch.fields, batch.batch_ptr, batch.edge_ptr)  # checks that no edge leaves its system
    assert batch.neighbor_list_shifts.dtype == torch.float64
    for place, atoms in enumerate(chosen):
        one = batch.get_data(place)
        rows = torch.cat([one.neighbor_list, one.neighbor_list_shifts.long()], 1)
        assert sorted(map(tuple, rows.tolist())) == expected_of(atoms, CUTOFF), place
        assert one.neighbor_list[:, 0].diff().ge(0).all()


def test_vectors_of_edges_are_shorter_than_the_cutoff():
    batch = NeighborList(CUTOFF)(from_ase(structures()))
    owner = batch.batch_idx[batch.neighbor_list[:, 0]]
    first, second = batch.positions[batch.neighbor_list].unbind(1)
    vectors = second + torch.einsum("ei,eij->ej", batch.neighbor_list_shifts, batch.cell[owner])
    lengths = (vectors - first).norm(dim=1)
    assert CUTOFF - 0.3 < float(lengths.max()) < CUTOFF
    assert float(lengths.min()) > 0.5


def test_edges_of_a_system_do_not_depend_on_its_batch():
    search, every = NeighborList(CUTOFF), from_ase(structures())
    # A grid whose distances are the cutoff but for rounding: where it stands must not count.
    grid = torch.cartesian_prod(*[torch.arange(3.0, dtype=torch.float64) * CUTOFF] * 3)
    grid += torch.tensor([0.37, 1.13, 2.9], dtype=torch.float64)
    every = Batch.concatenate([every.without("cell", "pbc"), AtomicData(grid, [18] * 27)])
    whole = search(every)
    for order in ([9], [0, 9, 5], [7, 9, 9]):
        some = search(every.index_select(order))
        assert_batches_equal(some, whole.index_select(order))
    squares = (grid[None] - grid[:, None]).square().sum(2)
    at_cutoff = (squares - CUTOFF**2).abs() < 1e-6
    near = (squares < CUTOFF**2) & (squares > 0)
    assert 0 < int((near & at_cutoff).sum()) < int(at_cutoff.sum())
    assert torch.equal(whole.get_data(9).neighbor_list, near.nonzero())


def test_a_batch_without_systems_or_neighbours():
    batch = from_ase(structures())
    empty = NeighborList(CUTOFF)(batch.index_select([]))
    assert (empty.num_graphs, empty.num_edges, empty.edge_ptr.tolist()) == (0, 0, [0])
    alone = NeighborList(CUTOFF)(batch.index_select([2, 8]))
    assert (alone.num_edges, alone.edge_ptr.tolist()) == (0, [0, 0, 0])


def test_edges_are_replaced_and_present_for_all():
    plain = AtomicData([[0.0, 0, 0], [1, 0, 0]], [1, 1])
    edges = AtomicData([[0.0, 0, 0], [0, 1, 0]], [1, 1], neighbor_list=[[0, 1]])
    batch = Batch.from_data_list([plain, edges])
    before = batch.clone()
    found = NeighborList(2.0)(batch)
    assert found.neighbor_list.tolist() == [[0, 1], [1, 0], [2, 3], [3, 2]]
    assert found.partly_present == frozenset()
    assert found.neighbor_list_shifts.dtype == torch.float32
    assert_batches_equal(batch, before)
    with pytest.raises(FieldError, match=r"\['shifts'\] belong to edges that would be replaced"):
        NeighborList(2.0)(before.add_field("shifts", torch.zeros(1, 3)))


def test_many_molecules_that_are_far_apart_are_searched_one_by_one(monkeypatch):
    batch = from_ase([one for one in structures() if not one.pbc.any()])
    together = NeighborList(CUTOFF)(batch)
    monkeypatch.setattr(module, "_LARGEST", 1.0 + 1e5)
    monkeypatch.setattr(module, "_groups", lambda systems, _: np.split(systems, len(systems)))
    assert_batches_equal(NeighborList(CUTOFF)(batch), together)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e9])
def test_positions_that_would_end_the_process_are_refused(value):
    batch = from_ase(structures())
    batch.positions[batch.batch_ptr[4]] = value
    with pytest.raises(FieldError, match="the positions of system 4 of the batch"):
        NeighborList(CUTOFF)(batch)


def test_a_periodic_system_needs_its_cell():
    batch = from_ase(structures())
    with pytest.raises(FieldError, match="system 1 of the batch is periodic and the batch has no"):
        NeighborList(CUTOFF)(batch.without("cell"))
    for wrong in (0.0, float("nan")):
        cells = batch.clone()
        cells.cell[3] = wrong
        with pytest.raises(
            FieldError, match=r"system 3 of the batch has pbc=.*neighbor_list cannot be found"
        ):
            NeighborList(CUTOFF)(cells)


@pytest.mark.parametrize("cutoff", [0.0, -1.0, float("inf"), float("nan")])
def test_the_cutoff_is_checked_at_once(cutoff):
    with pytest.raises(ArgumentError, match="cutoff is"):
        NeighborList(cutoff)


def test_without_vesin_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "vesin", None)
    with pytest.raises(MissingLibraryError, match=r"pip install 'zarrpipe\[train\]'"):
        NeighborList(5.0)
