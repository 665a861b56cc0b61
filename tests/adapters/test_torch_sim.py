from dataclasses import dataclass

import numpy as np
import pytest
import torch

import zarrpipe as zp
from zarrpipe.adapters import as_batch, from_ase, to_torch_sim
from zarrpipe.compat import torch_sim_pbc_is_bool
from zarrpipe.data.levels import Level
from zarrpipe.errors import FieldError

CELLS = torch.tensor(
    [
        [[4.0, 0.0, 0.0], [1.0, 3.0, 0.0], [0.5, 0.7, 5.0]],
        [[6.0, 0.1, 0.2], [0.3, 7.0, 0.4], [0.5, 0.6, 8.0]],
    ]
)
"""Lattice vectors as rows."""


def state_fields(**more):
    return {
        "positions": torch.arange(15.0).reshape(5, 3),
        "masses": torch.tensor([1.0, 12.0, 16.0, 63.5, 65.4]),
        "cell": CELLS.mT.clone(),
        "pbc": True,
        "atomic_numbers": torch.tensor([1, 6, 8, 29, 30], dtype=torch.int32),
        "system_idx": torch.tensor([0, 0, 0, 1, 1]),
        **more,
    }


def directions(state):
    """The pbc of a state, which is one bool before torch-sim 0.4.1."""
    return torch.as_tensor(state.pbc).expand(3).tolist()


@pytest.fixture(scope="session")
def md_states(torch_sim):
    """A state with fields of its own at every level."""

    @dataclass
    class OwnState(torch_sim.SimState):
        momenta: torch.Tensor
        forces: torch.Tensor
        tags: torch.Tensor
        energy: torch.Tensor
        stress: torch.Tensor
        dt: torch.Tensor
        reference_cell: torch.Tensor
        constant_volume: bool
        chain: object
        _atom_attributes = torch_sim.SimState._atom_attributes | {"momenta", "forces", "tags"}
        _system_attributes = torch_sim.SimState._system_attributes | {
            "energy",
            "stress",
            "dt",
            "reference_cell",
        }
        _global_attributes = torch_sim.SimState._global_attributes | {"constant_volume", "chain"}

    return OwnState


def own_state(md_states):
    return md_states(
        **state_fields(
            momenta=torch.arange(15.0).reshape(5, 3) + 100,
            forces=torch.arange(15.0).reshape(5, 3) + 200,
            tags=torch.tensor([0, 1, 2, 3, 4]),
            energy=torch.tensor([-1.0, -2.0]),
            stress=torch.arange(18.0).reshape(2, 3, 3),
            dt=torch.tensor([0.5, 0.25]),
            reference_cell=CELLS.mT + 1,
            constant_volume=True,
            chain=object(),
        )
    )


def test_a_plain_state_by_value(torch_sim):
    batch = as_batch(torch_sim.SimState(**state_fields()))
    assert batch.batch_ptr.tolist() == [0, 3, 5]
    assert torch.equal(batch.positions, torch.arange(15.0).reshape(5, 3))
    assert torch.equal(batch.cell, CELLS), "columns in torch-sim are rows here"
    assert batch.pbc.tolist() == [[True] * 3] * 2
    assert batch.atomic_numbers.tolist() == [1, 6, 8, 29, 30]
    assert batch.atomic_masses.tolist() == pytest.approx([1.0, 12.0, 16.0, 63.5, 65.4])
    assert "system_idx" not in batch


def test_every_declared_field_is_carried_at_its_level(md_states):
    batch = as_batch(own_state(md_states))
    assert batch.momenta[:, 0].tolist() == [100.0, 103.0, 106.0, 109.0, 112.0]
    assert batch.forces[4].tolist() == [212.0, 213.0, 214.0]
    assert batch.energy.tolist() == [[-1.0], [-2.0]]
    assert batch.stress[1].tolist() == [[9.0, 10.0, 11.0], [12.0, 13.0, 14.0], [15.0, 16.0, 17.0]]
    assert batch.tags.tolist() == [0, 1, 2, 3, 4]
    assert batch.dt.tolist() == [[0.5], [0.25]]
    assert torch.equal(batch.reference_cell, CELLS + 1)
    assert batch.constant_volume.tolist() == [[True], [True]]
    assert "chain" not in batch
    levels = {name: str(batch.levels[name]) for name in ("tags", "dt", "constant_volume")}
    assert levels == {"tags": "atom", "dt": "system", "constant_volume": "system"}


def test_the_state_of_an_integrator_and_its_velocities(torch_sim, ase):
    """One step of molecular dynamics on a Lennard-Jones crystal, as a walker would be sunk."""
    lennard_jones = pytest.importorskip("torch_sim.models.lennard_jones")
    atoms = ase.build.bulk("Ar", "fcc", a=5.3, cubic=True)
    state = torch_sim.io.atoms_to_state([atoms, atoms.repeat((2, 1, 1))], "cpu", torch.float64)
    model = lennard_jones.LennardJonesModel(
        sigma=3.405,
        epsilon=0.0104,
        cutoff=8.0,
        dtype=torch.float64,
        device=torch.device("cpu"),
        compute_forces=True,
        compute_stress=True,
    )
    dt = torch.tensor(0.1, dtype=torch.float64)
    if hasattr(torch_sim, "nve_step"):
        moved = torch_sim.nve_step(torch_sim.nve_init(state, model, kT=0.01), model, dt=dt)
    else:  # torch-sim 0.3
        init, step = torch_sim.nve(model=model, dt=dt, kT=0.01)
        moved = step(init(state, seed=1))
    batch = as_batch(moved)
    assert batch.num_nodes_list == [4, 8]
    assert torch.equal(batch.momenta, moved.momenta)
    assert torch.equal(batch.forces, moved.forces)
    assert torch.equal(batch.energy[:, 0], moved.energy)
    velocities = batch.momenta / batch.atomic_masses[:, None]
    assert torch.equal(velocities, moved.velocities)


def test_atoms_that_are_not_grouped_by_system_are_sorted(torch_sim):
    state = torch_sim.SimState(**state_fields())
    # Assignment refuses this from torch-sim 0.6 on.
    object.__setattr__(state, "system_idx", torch.tensor([1, 0, 1, 0, 0]))
    batch = as_batch(state)
    assert batch.atomic_numbers.tolist() == [6, 29, 30, 1, 8]
    assert batch.batch_ptr.tolist() == [0, 3, 5]
    assert batch.positions[3].tolist() == [0.0, 1.0, 2.0]


def test_a_pbc_for_each_direction(torch_sim):
    state = torch_sim.SimState(**state_fields())
    state.pbc = torch.tensor([True, False, True])
    assert as_batch(state).pbc.tolist() == [[True, False, True]] * 2


def test_a_list_of_states(torch_sim):
    batch = as_batch([torch_sim.SimState(**state_fields()), torch_sim.SimState(**state_fields())])
    assert batch.num_nodes_list == [3, 2, 3, 2]


def test_there_and_back(torch_sim):
    state = torch_sim.SimState(**state_fields())
    back = to_torch_sim(as_batch(state))
    for name in ("positions", "masses", "cell", "system_idx"):
        assert torch.equal(getattr(back, name), getattr(state, name)), name
    assert back.atomic_numbers.tolist() == state.atomic_numbers.tolist()
    assert directions(back) == [True] * 3


def test_from_ase_gives_the_state_that_torch_sim_makes_itself(torch_sim, ase):
    systems = [ase.build.bulk("Cu"), ase.build.bulk("NaCl", "rocksalt", a=5.64)]
    expected = torch_sim.io.atoms_to_state(systems, torch.device("cpu"), torch.float64)
    found = to_torch_sim(from_ase(systems))
    for name in ("positions", "masses", "cell", "system_idx"):
        torch.testing.assert_close(getattr(found, name), getattr(expected, name))
    assert directions(found) == directions(expected) == [True] * 3
    for atoms, back in zip(systems, found.to_atoms(), strict=True):
        np.testing.assert_allclose(back.cell.array, atoms.cell.array)


def test_systems_without_cell_masses_or_pbc(torch_sim, ase):
    del torch_sim
    bare = zp.AtomicData(positions=[[0.0, 0.0, 0.0]], atomic_numbers=[1])
    state = to_torch_sim(zp.Batch.from_data_list([bare, bare]))
    assert directions(state) == [False] * 3
    assert state.cell.abs().sum() == 0
    assert state.masses.tolist() == pytest.approx([ase.data.atomic_masses[1]] * 2)


def test_what_some_systems_lack_is_not_nan(torch_sim):
    del torch_sim
    bare = zp.AtomicData(positions=[[0.0, 0.0, 0.0]], atomic_numbers=[1])
    full = zp.AtomicData(
        positions=[[0.0, 0.0, 0.0]], atomic_numbers=[1], cell=CELLS[0], atomic_masses=[2.0]
    )
    state = to_torch_sim(zp.Batch.from_data_list([bare, full]))
    assert state.cell[0].abs().sum() == 0
    assert torch.equal(state.cell[1], CELLS[0].T)
    assert state.masses.tolist() == pytest.approx([1.008, 2.0])


def atom_with_pbc(*pbc):
    return zp.AtomicData(positions=[[0.0, 0.0, 0.0]], atomic_numbers=[1], pbc=[pbc])


def test_systems_that_differ_in_pbc_are_refused(torch_sim):
    del torch_sim
    batch = zp.Batch.from_data_list([atom_with_pbc(*[True] * 3), atom_with_pbc(*[False] * 3)])
    with pytest.raises(FieldError, match=r"pbc \[\[False, .*\], \[True, .*\]\], and a state .*one"):
        to_torch_sim(batch)


def test_systems_that_are_periodic_in_some_directions(torch_sim):
    batch = zp.Batch.from_data_list([atom_with_pbc(True, True, False)] * 2)
    if torch_sim_pbc_is_bool(torch_sim.SimState):
        with pytest.raises(FieldError, match=r"pbc \[\[True, True, False\]\].*one bool for all"):
            to_torch_sim(batch)
    else:
        assert directions(to_torch_sim(batch)) == [True, True, False]


def test_extras_are_fields_and_the_generator_is_not(torch_sim):
    if not hasattr(torch_sim.SimState, "rng"):
        pytest.skip("torch-sim before 0.6 has no extras")
    tags, charges = torch.arange(5.0), torch.tensor([1.0, 2.0])
    state = torch_sim.SimState(**state_fields(tag=tags, charge=charges), _rng=7)
    batch = as_batch(state)
    assert torch.equal(batch.tag, tags)
    assert torch.equal(batch.charge, charges[:, None])
    assert batch.levels["tag"] is Level.ATOM
    assert "_rng" not in batch
