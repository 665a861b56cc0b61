"""What a force field predicts: derivatives of one energy, for molecules and crystals."""

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, molecule
from ase.neighborlist import neighbor_list

from zarrpipe.adapters import from_ase
from zarrpipe.ml import Committee, ForceField, ForceFieldCalculator, TorchSimModel, load
from zarrpipe.ml.committee import force_deviation
from zarrpipe.ml.potentials import find_edges

pytestmark = [
    # mace-torch and e3nn, while a model is built
    pytest.mark.filterwarnings("ignore:.*torch.jit.script.* is deprecated:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:The TorchScript type system doesn't support:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD:UserWarning"),
]

MOLECULES = ("CH3CH2OH", "H2O", "CH4")


def force_field(name, seed=3, **options):
    options = {"cutoff": 4.0} | options
    if name == "mace":
        options = {"elements": ["H", "C", 8, "Si"], "channels": 4, "mean_neighbors": 8.0} | options
    field = ForceField(name, options, seed=seed, scale=2.0).double()
    field.set_reference({1: -13.0, 6: -1000.0, 8: -2000.0, 14: -100.0})
    return field


def systems(names=MOLECULES):
    rng = np.random.default_rng(0)
    found = [molecule(name) for name in names]
    for atoms in found:
        atoms.positions += rng.normal(scale=0.1, size=atoms.positions.shape)
    return found


def crystals():
    rng = np.random.default_rng(1)
    found = [bulk("Si"), bulk("Si", cubic=True)]
    for atoms in found:
        atoms.set_cell(atoms.cell @ (np.eye(3) + rng.normal(scale=0.03, size=(3, 3))), True)
        atoms.positions += rng.normal(scale=0.1, size=atoms.positions.shape)
    return found


@pytest.mark.parametrize("name", ["schnet", "mace"])
@pytest.mark.usefixtures("mace")
def test_forces_are_minus_the_gradient_of_the_energy(name):
    field, (atoms,) = force_field(name), systems(["CH3CH2OH"])
    forces = field.predict(from_ase(atoms)).forces
    step = 1e-4
    for atom, axis in [(0, 0), (2, 1), (8, 2)]:
        moved = [atoms.copy(), atoms.copy()]
        moved[0].positions[atom, axis] += step
        moved[1].positions[atom, axis] -= step
        energies = field.predict(from_ase(moved)).energy
        slope = float(energies[0] - energies[1]) / (2 * step)
        assert slope == pytest.approx(-float(forces[atom, axis]), abs=1e-5)


@pytest.mark.parametrize("name", ["schnet", "mace"])
@pytest.mark.usefixtures("mace")
def test_stress_is_the_derivative_by_strain_over_the_volume(name):
    """As ASE has it: positive where a larger cell has more energy."""
    field, both = force_field(name), crystals()
    stress = field.predict(from_ase(both), stress=True).stress
    torch.testing.assert_close(stress, stress.mT)
    step = 1e-5
    for number, atoms in enumerate(both):
        for row, column in [(0, 0), (1, 2), (2, 2)]:
            strain = np.zeros((3, 3))
            strain[row, column] += step / 2
            strain[column, row] += step / 2
            moved = [atoms.copy(), atoms.copy()]
            moved[0].set_cell(atoms.cell @ (np.eye(3) + strain), scale_atoms=True)
            moved[1].set_cell(atoms.cell @ (np.eye(3) - strain), scale_atoms=True)
            energies = field.predict(from_ase(moved)).energy
            slope = float(energies[0] - energies[1]) / (2 * step) / atoms.get_volume()
            assert float(stress[number, row, column]) == pytest.approx(slope, rel=1e-4, abs=1e-7)


def test_a_system_without_a_cell_has_no_stress():
    (water,), silicon = systems(["H2O"]), crystals()[0]
    prediction = force_field("schnet").predict(from_ase([water, silicon]), stress=True)
    assert prediction.stress[0].isnan().all()
    assert prediction.stress[1].isfinite().all()
    assert prediction.forces.isfinite().all()


@pytest.mark.parametrize("name", ["schnet", "mace"])
@pytest.mark.usefixtures("mace")
def test_a_batch_of_several_gives_what_each_gives_alone(name):
    field, found = force_field(name), [*systems(), *crystals()]
    together = field.predict(from_ase(found), stress=True)
    alone = [field.predict(from_ase(atoms), stress=True) for atoms in found]
    torch.testing.assert_close(together.energy, torch.cat([one.energy for one in alone]))
    torch.testing.assert_close(
        together.forces, torch.cat([one.forces for one in alone]), rtol=1e-5, atol=1e-8
    )
    torch.testing.assert_close(
        together.stress, torch.cat([one.stress for one in alone]), equal_nan=True
    )


def test_energy_is_the_references_and_the_scaled_potential():
    field, batch = force_field("schnet"), from_ase(systems())
    total = field.predict(batch)
    field.set_reference({1: 0.0, 6: 0.0, 8: 0.0})
    interaction = field.predict(batch)
    expected = torch.tensor([[-4078.0], [-2026.0], [-1052.0]], dtype=torch.float64)
    torch.testing.assert_close(total.energy - interaction.energy, expected)
    field.scale.fill_(1.0)
    plain = field.predict(batch)
    torch.testing.assert_close(interaction.energy, 2.0 * plain.energy)
    torch.testing.assert_close(interaction.forces, 2.0 * plain.forces)


def test_edges_are_all_pairs_within_the_cutoff():
    found = [*systems(), bulk("Si"), bulk("Si", cubic=True)]
    batch = from_ase(found)
    edges = find_edges(batch, 3.0)
    receiver, sender = edges.pairs
    vectors = batch.positions[sender] - batch.positions[receiver]
    cells = batch.cell[batch.batch_idx[receiver]]
    lengths = (vectors + (edges.shifts[:, None] @ cells)[:, 0]).norm(dim=-1)
    expected = np.concatenate([neighbor_list("d", atoms, 3.0) for atoms in found])
    np.testing.assert_allclose(np.sort(lengths.numpy()), np.sort(expected), atol=1e-10)


@pytest.mark.usefixtures("mace")
def test_a_crystal_has_the_same_energy_per_atom_in_a_larger_cell():
    found = force_field("mace").predict(from_ase([bulk("Si"), bulk("Si").repeat((2, 1, 1))]))
    assert float(found.energy[1]) == pytest.approx(2 * float(found.energy[0]), abs=1e-6)
    torch.testing.assert_close(found.forces, torch.zeros_like(found.forces), atol=1e-6, rtol=0)


def test_dynamics_that_blew_up_is_named():
    atoms = Atoms("H2", [[0, 0, 0], [1e7, 0, 0]])
    with pytest.raises(ValueError, match=r"leave out what has blown up"):
        force_field("schnet").predict(from_ase([atoms]))


@pytest.mark.usefixtures("mace")
def test_unknown_names_and_elements_are_named():
    with pytest.raises(ValueError, match=r"'shnet' is neither one of mace, schnet"):
        ForceField("shnet")
    with pytest.raises(ValueError, match=r"elements Cl were not in the training data"):
        force_field("schnet").predict(from_ase(molecule("CH3Cl")))
    field = force_field("mace")
    field.set_reference({16: 0.0})
    with pytest.raises(ValueError, match=r"elements S are unknown to a MACE built for H, C, O, Si"):
        field.predict(from_ase([molecule("SH2")]))
    with pytest.raises(ValueError, match="'Ci' is no symbol"):
        force_field("mace", elements=["H", "Ci"])
    with pytest.raises(ValueError, match="mace potential has no elements, cutoff, mean_neighbors"):
        ForceField("mace").predict(from_ase(molecule("H2O")))


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"loss": "l2"}, "loss is 'l2', expected one of mae, mse, huber"),
        ({"huber_delta": 0.0}, "huber_delta is 0.0, expected more than 0"),
        ({"energy_weight": -1.0}, "energy_weight is -1.0, expected 0 or more"),
        ({"energy_weight": 0, "forces_weight": 0, "stress_weight": 0}, "all weights of the loss"),
    ],
)
def test_a_wrong_loss_is_refused(given, said):
    with pytest.raises(ValueError, match=said):
        ForceField(**given)


def test_weights_follow_the_seed_and_leave_the_global_state_alone():
    torch.manual_seed(11)
    expected = torch.rand(3)
    torch.manual_seed(11)
    fields = [ForceField(options={"cutoff": 4.0}, seed=seed) for seed in (1, 1, 2)]
    assert torch.equal(torch.rand(3), expected)
    weights = [torch.cat([p.flatten() for p in field.parameters()]) for field in fields]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_a_committee_has_the_mean_and_the_deviation_of_its_members():
    members = [force_field("schnet", seed=seed, cutoff=3.0 + seed) for seed in (0, 1, 2)]
    batch = from_ase([*systems(), *crystals()])
    alone = [member.predict(batch, stress=True) for member in members]
    mean, spread = Committee(members).predict(batch, stress=True)
    for name in ("energy", "forces", "stress"):
        stacked = torch.stack([getattr(one, name) for one in alone])
        torch.testing.assert_close(getattr(mean, name), stacked.mean(0), equal_nan=True)
        torch.testing.assert_close(
            getattr(spread, name), stacked.std(0, correction=0), equal_nan=True
        )
    forces = torch.stack([one.forces for one in alone])
    atoms = spread.forces.norm(dim=-1)
    expected = torch.stack([part.max() for part in atoms.split(batch.num_nodes_list)])
    torch.testing.assert_close(force_deviation(forces, batch), expected)
    with pytest.raises(ValueError, match="members is empty"):
        Committee([])


def test_ase_calculator_gives_what_the_field_predicts():
    field, (water,), silicon = force_field("schnet"), systems(["H2O"]), crystals()[0]
    for atoms in (water, silicon):
        found = field.predict(from_ase(atoms), stress=atoms is silicon)
        atoms.calc = ForceFieldCalculator(field)
        assert atoms.get_potential_energy() == float(found.energy)
        np.testing.assert_array_equal(atoms.get_forces(), found.forces.numpy())
        if atoms is silicon:
            np.testing.assert_allclose(atoms.get_stress(voigt=False), found.stress[0], rtol=1e-12)
    assert "stress" not in water.calc.results
    assert "energy_std" not in silicon.calc.results


def test_ase_calculator_of_a_committee_says_how_far_it_agrees():
    members = [force_field("schnet", seed=seed) for seed in (0, 1)]
    (water,) = systems(["H2O"])
    mean, spread = Committee(members).predict(from_ase(water))
    water.calc = ForceFieldCalculator(Committee(members))
    np.testing.assert_allclose(water.get_forces(), mean.forces.numpy())
    assert water.calc.results["energy_std"] == pytest.approx(float(spread.energy))
    expected = spread.forces.norm(dim=-1).numpy()
    np.testing.assert_allclose(water.calc.results["forces_std"], expected)


def test_torch_sim_model_gives_what_the_field_predicts():
    ts = pytest.importorskip("torch_sim")
    both = crystals()
    field = force_field("schnet")
    state = ts.io.atoms_to_state(both, torch.device("cpu"), torch.float64)
    expected = field.predict(from_ase(both), stress=True)
    found = TorchSimModel(field, compute_stress=True)(state)
    torch.testing.assert_close(found["energy"], expected.energy.flatten())
    torch.testing.assert_close(found["forces"], expected.forces)
    torch.testing.assert_close(found["stress"], expected.stress)
    assert "stress" not in TorchSimModel(field)(state)


def test_checkpoints_that_are_not_there_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.ckpt is neither a checkpoint nor"):
        load(tmp_path / "none.ckpt")
    with pytest.raises(FileNotFoundError, match=r"with best\.ckpt or last\.ckpt in its folder"):
        load(tmp_path)
