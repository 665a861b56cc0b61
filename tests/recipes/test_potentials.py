import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, molecule
from ase.neighborlist import neighbor_list
from force_field import ForceField, ForceFieldCalculator
from potentials import neighbours

from zarrpipe.adapters import from_ase

pytestmark = [
    # mace-torch and e3nn, while a model is built
    pytest.mark.filterwarnings("ignore:.*torch.jit.script.* is deprecated:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:The TorchScript type system doesn't support:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD:UserWarning"),
]

MOLECULES = ("CH3CH2OH", "H2O", "CH4")


def force_field(name, **options):
    if name == "mace":
        options = {"elements": [1, 6, 8, 14], "channels": 4} | options
    field = ForceField(name, {"cutoff": 4.0} | options, seed=3).double()
    field.set_reference({1: -13.0, 6: -1000.0, 8: -2000.0})
    return field


def systems(names=MOLECULES):
    rng = np.random.default_rng(0)
    found = [molecule(name) for name in names]
    for atoms in found:
        atoms.positions += rng.normal(scale=0.1, size=atoms.positions.shape)
    return found


@pytest.mark.parametrize("name", ["schnet", "mace"])
@pytest.mark.usefixtures("mace")
def test_forces_are_minus_the_gradient_of_the_energy(name):
    field, (atoms,) = force_field(name), systems(["CH3CH2OH"])
    _, forces = field.energy_and_forces(from_ase(atoms))
    step = 1e-4
    for atom, axis in [(0, 0), (2, 1), (8, 2)]:
        moved = [atoms.copy(), atoms.copy()]
        moved[0].positions[atom, axis] += step
        moved[1].positions[atom, axis] -= step
        energies, _ = field.energy_and_forces(from_ase(moved))
        slope = float(energies[0] - energies[1]) / (2 * step)
        assert slope == pytest.approx(-float(forces[atom, axis]), abs=1e-5)


@pytest.mark.parametrize("name", ["schnet", "mace"])
@pytest.mark.usefixtures("mace")
def test_a_batch_of_several_gives_what_each_gives_alone(name):
    field, found = force_field(name), systems()
    energy, forces = field.energy_and_forces(from_ase(found))
    alone = [field.energy_and_forces(from_ase(atoms)) for atoms in found]
    torch.testing.assert_close(energy, torch.cat([e for e, _ in alone]))
    torch.testing.assert_close(forces, torch.cat([f for _, f in alone]), rtol=1e-5, atol=1e-8)


def test_energy_contains_the_reference_energies():
    field, batch = force_field("schnet"), from_ase(systems())
    total, _ = field.energy_and_forces(batch)
    field.set_reference({1: 0.0, 6: 0.0, 8: 0.0})
    interaction, _ = field.energy_and_forces(batch)
    expected = torch.tensor([[-4078.0], [-2026.0], [-1052.0]], dtype=torch.float64)
    torch.testing.assert_close(total - interaction, expected)


def test_neighbours_of_molecules_are_all_pairs_within_the_cutoff():
    found = systems()
    batch = from_ase(found)
    before = batch.positions.clone()
    edges = neighbours(batch, 2.0)
    expected, start = set(), 0
    for atoms in found:
        near = (atoms.get_all_distances() < 2.0) & ~np.eye(len(atoms), dtype=bool)
        expected |= {(int(i) + start, int(j) + start) for i, j in zip(*near.nonzero(), strict=True)}
        start += len(atoms)
    assert sorted(map(tuple, edges.index.T.tolist())) == sorted(expected)
    assert torch.equal(edges.shifts, torch.zeros(len(expected), 3, dtype=torch.float64))
    assert torch.equal(batch.positions, before)


def test_neighbours_of_crystals_follow_the_cell():
    crystals = [bulk("Si"), bulk("Si", cubic=True)]
    edges = neighbours(from_ase(crystals), 4.0)
    positions = torch.cat([torch.tensor(atoms.positions) for atoms in crystals])
    receiver, sender = edges.index
    lengths = (positions[sender] + edges.shifts - positions[receiver]).norm(dim=-1)
    expected = np.concatenate([neighbor_list("d", atoms, 4.0) for atoms in crystals])
    np.testing.assert_allclose(np.sort(lengths.numpy()), np.sort(expected), atol=1e-10)


@pytest.mark.usefixtures("mace")
def test_a_crystal_has_the_same_energy_per_atom_in_a_larger_cell():
    field = force_field("mace")
    field.set_reference({14: -100.0})
    energy, forces = field.energy_and_forces(from_ase([bulk("Si"), bulk("Si").repeat((2, 1, 1))]))
    assert float(energy[1]) == pytest.approx(2 * float(energy[0]), abs=1e-6)
    torch.testing.assert_close(forces, torch.zeros_like(forces), atol=1e-6, rtol=0)


def test_dynamics_that_blew_up_is_named():
    with pytest.raises(ValueError, match=r"1e\+06 Angstrom.*blown up"):
        neighbours(from_ase([Atoms("H2", [[0, 0, 0], [1e6, 0, 0]])]), 5.0)


@pytest.mark.usefixtures("mace")
def test_unknown_potential_and_unknown_element_are_named():
    with pytest.raises(ValueError, match=r"'shnet' is neither one of \['mace', 'schnet'\]"):
        ForceField("shnet")
    with pytest.raises(ValueError, match=r"elements \[17\] were not in the training data"):
        force_field("schnet").energy_and_forces(from_ase(molecule("CH3Cl")))
    with pytest.raises(ValueError, match=r"elements \[16\] are unknown"):
        force_field("mace").energy_and_forces(from_ase([molecule("SH2")]))


def test_weights_follow_the_seed_and_leave_the_global_state_alone():
    torch.manual_seed(11)
    expected = torch.rand(3)
    torch.manual_seed(11)
    first, again, other = ForceField(seed=1), ForceField(seed=1), ForceField(seed=2)
    assert torch.equal(torch.rand(3), expected)
    weights = [torch.cat([p.flatten() for p in f.parameters()]) for f in (first, again, other)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_ase_calculator_gives_the_energy_and_forces_of_the_field():
    field, (atoms,) = force_field("schnet"), systems(["CH3CH2OH"])
    energy, forces = field.energy_and_forces(from_ase(atoms))
    atoms.calc = ForceFieldCalculator(field)
    assert atoms.get_potential_energy() == float(energy)
    np.testing.assert_array_equal(atoms.get_forces(), forces.numpy())
