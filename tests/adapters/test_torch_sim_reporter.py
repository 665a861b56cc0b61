"""`zarrpipe.torch_sim.SinkReporter` in the runners of torch-sim, with a Lennard-Jones model."""

import numpy as np
import pytest
import torch

import zarrpipe as zp
from zarrpipe.errors import ArgumentError, FieldError
from zarrpipe.torch_sim import SinkReporter, from_torch_sim

pytestmark = pytest.mark.filterwarnings(
    "ignore:(Optimize has|All systems have) reached .*max.* steps.*:UserWarning"
)


@pytest.fixture(scope="module")
def torch_sim(torch_sim):
    pytest.importorskip("torch_sim.models.lennard_jones")
    return torch_sim


@pytest.fixture
def argon(ase):
    """Three crystals of 4, 8 and 4 atoms."""
    systems = [
        ase.build.bulk("Ar", cubic=True, a=5.1),
        ase.build.bulk("Ar", cubic=True, a=5.2).repeat((2, 1, 1)),
        ase.build.bulk("Ar", cubic=True, a=5.3),
    ]
    for seed, atoms in enumerate(systems):
        atoms.rattle(0.05, seed=seed)
    return systems


@pytest.fixture
def model(torch_sim):
    return lennard_jones(torch_sim)


def lennard_jones(torch_sim, **options):
    options = {"compute_forces": True, "compute_stress": True, "dtype": torch.float64} | options
    return torch_sim.models.lennard_jones.LennardJonesModel(
        sigma=3.405, epsilon=0.0104, cutoff=8.0, device=torch.device("cpu"), **options
    )


def integrate(torch_sim, systems, model, reporter, steps, **options):
    integrator = torch_sim.Integrator.nve if hasattr(torch_sim, "Integrator") else torch_sim.nve
    return torch_sim.integrate(
        systems,
        model,
        integrator=integrator,
        n_steps=steps,
        temperature=100,
        timestep=0.002,
        trajectory_reporter=reporter,
        **options,
    )


def optimize(torch_sim, systems, model, reporter, steps, **options):
    fire = (
        torch_sim.Optimizer.fire if hasattr(torch_sim, "Optimizer") else torch_sim.optimizers.fire
    )
    return torch_sim.optimize(
        systems,
        model,
        optimizer=fire,
        max_steps=steps,
        trajectory_reporter=reporter,
        **options,
    )


def labels(model, batch):
    """What the model says of the structures of a batch."""
    return model(zp.adapters.to_torch_sim(batch))


def tuples(batch):
    return list(
        zip(batch.step.flatten().tolist(), batch.system_number.flatten().tolist(), strict=True)
    )


def test_dynamics_by_value(torch_sim, argon, model):
    with zp.ZarrData({}) as sink:
        reporter = SinkReporter(sink, state_frequency=2)
        final = integrate(torch_sim, argon, model, reporter, 4)
        batch = sink.read()
    has_first = hasattr(torch_sim, "Integrator")  # torch-sim 0.6 reports the first state too
    steps = [0, 2, 4] if has_first else [2, 4]
    assert tuples(batch) == [(step, number) for step in steps for number in (0, 1, 2)]
    assert batch.num_nodes_list == [4, 8, 4] * len(steps)
    last = batch.index_select(range(batch.num_graphs - 3, batch.num_graphs))
    assert torch.equal(last.positions, final.positions)
    assert torch.equal(last.cell, final.cell.mT)
    assert torch.equal(last.energy[:, 0], final.energy)
    assert torch.equal(last.forces, final.forces)
    assert torch.equal(last.velocities, final.velocities)
    assert batch.pbc.all()
    assert {*batch.fields} == {
        *("positions", "atomic_numbers", "cell", "pbc", "energy", "forces", "velocities"),
        *("step", "system_number"),
    }
    expected = labels(model, batch)
    torch.testing.assert_close(batch.energy[:, 0], expected["energy"])
    torch.testing.assert_close(batch.forces, expected["forces"])


def test_whole_batches_are_written(torch_sim, argon, model):
    written = []

    class Sink:
        def write(self, batch):
            written.append(batch)

    integrate(torch_sim, argon, model, SinkReporter(Sink()), 3)
    assert {batch.num_graphs for batch in written} == {3}
    assert [batch.step[0].item() for batch in written][-3:] == [1, 2, 3]


def test_a_stress_that_is_asked_for_has_the_sign_of_ase(torch_sim, argon, model):
    """Tension is positive, as it is the derivative of the energy by strain."""
    with zp.ZarrData({}) as sink:
        reporter = SinkReporter(sink, fields=["energy", "stress", "momenta", "atomic_masses"])
        final = integrate(torch_sim, argon, model, reporter, 2)
        batch = sink.read().index_select([-3, -2, -1])
    assert torch.equal(batch.momenta, final.momenta)
    assert torch.equal(batch.atomic_masses, final.masses)
    assert "forces" not in batch
    torch.testing.assert_close(batch.stress, labels(model, batch)["stress"])
    double = 1 if hasattr(torch_sim, "Integrator") else 2  # a fault of torch-sim 0.3's model
    for number in range(3):
        energies = []
        for strain in (-1e-5, 1e-5):
            (atoms,) = zp.adapters.to_ase(batch.get_data(number))
            atoms.set_cell(atoms.cell.array * (1 + strain), scale_atoms=True)
            energies.append(labels(model, zp.adapters.from_ase(atoms))["energy"].item())
        slope = (energies[1] - energies[0]) / 2e-5 / abs(np.linalg.det(batch.cell[number]))
        assert batch.stress[number].trace().item() == pytest.approx(double * slope, rel=1e-4)


@pytest.mark.parametrize("batched", [False, True])
def test_systems_keep_their_numbers_in_an_autobatcher(torch_sim, argon, model, batched):
    batcher = torch_sim.BinningAutoBatcher(
        model, memory_scales_with="n_atoms", max_memory_scaler=9
    )  # two batches
    with zp.ZarrData({}) as sink:
        reporter = SinkReporter(sink)
        integrate(torch_sim, argon, model, reporter, 2, autobatcher=batcher if batched else False)
        batch = sink.read()
    numbers = batch.system_number.flatten()
    assert sorted(set(tuples(batch))) == sorted(tuples(batch))
    assert {number for _, number in tuples(batch)} == {0, 1, 2}
    a = batch.cell[:, 1, 1]
    torch.testing.assert_close(a, torch.tensor([5.1, 5.2, 5.3]).double()[numbers])


def test_an_optimisation_that_swaps_systems(torch_sim, argon, model):
    batcher = torch_sim.InFlightAutoBatcher(
        model, memory_scales_with="n_atoms", max_memory_scaler=9
    )

    def converged(state, last_energy=None):
        del last_energy
        return torch.ones(state.n_systems, dtype=torch.bool)

    with zp.ZarrData({}) as sink:
        optimize(
            torch_sim,
            argon,
            model,
            SinkReporter(sink, state_frequency=2),
            50,
            autobatcher=batcher,
            convergence_fn=converged,
            steps_between_swaps=3,
        )
        batch = sink.read()
    numbers = batch.system_number.flatten()
    assert set(numbers.tolist()) == {0, 1, 2}
    assert len(set(tuples(batch))) == batch.num_graphs
    assert "velocities" not in batch, "those of the optimiser are no velocities of atoms"
    a = torch.tensor([5.1, 5.2, 5.3]).double()
    torch.testing.assert_close(batch.cell[:, 1, 1], a[numbers])
    torch.testing.assert_close(batch.energy[:, 0], labels(model, batch)["energy"])


def test_static_calculations_and_what_a_model_does_not_compute(torch_sim, argon):
    model = lennard_jones(torch_sim, compute_stress=False)
    functions = {"half": lambda state: state.energy / 2}
    with zp.ZarrData({}) as sink:
        shown = torch_sim.static(
            argon, model, trajectory_reporter=SinkReporter(sink, properties=functions)
        )
        batch = sink.read()
    assert "stress" not in batch, "torch-sim fills it with NaN"
    torch.testing.assert_close(batch.energy[:, 0], labels(model, batch)["energy"])
    assert torch.equal(batch.half, batch.energy / 2)
    assert [one["half"].tolist() for one in shown] == batch.half[:, None].tolist()
    assert tuples(batch) == [(0, 0), (0, 1), (0, 2)]


def test_two_runs_with_one_reporter(torch_sim, argon, model):
    with zp.ZarrData({}) as sink, SinkReporter(sink) as reporter:
        integrate(torch_sim, argon[:2], model, reporter, 2)
        before = len(sink)
        integrate(torch_sim, argon[2:], model, reporter, 2)
        batch = sink.read()
        batcher = torch_sim.BinningAutoBatcher(
            model, memory_scales_with="n_atoms", max_memory_scaler=9
        )
        integrate(torch_sim, argon, model, reporter, 1, autobatcher=batcher)
        torch_sim.static(argon, model, trajectory_reporter=reporter)
        assert tuples(sink.read())[-3:] == [(0, 0), (0, 1), (0, 2)]
    assert (
        tuples(batch)[before:] == [(step, 0) for step in (0, 1, 2)][-(batch.num_graphs - before) :]
    )
    assert set(tuples(batch)[:before]) >= {(1, 0), (1, 1), (2, 0), (2, 1)}


def test_what_cannot_be_is_refused(torch_sim, argon, model):
    state = torch_sim.initialize_state(argon, torch.device("cpu"), torch.float64)
    with pytest.raises(FieldError, match=r"SimState has no \['energy'\]; it has \['atomic_masses"):
        SinkReporter({}, fields=["energy"]).report(state, 1)
    with pytest.raises(
        FieldError, match="fields has 'stress', SimState has none, and no model was"
    ):
        SinkReporter({}, fields=["stress"]).report(state, 1)
    plain = lennard_jones(torch_sim, compute_stress=False)
    with pytest.raises(FieldError, match="and the model computes none: make the model with comp"):
        SinkReporter({}, fields=["stress"]).report(state, 1, plain)
    with pytest.raises(ArgumentError, match="state_frequency"):
        SinkReporter({}, 0)
    reporter = SinkReporter({})
    reporter.reopen_trajectories([4, 2])
    with pytest.raises(ArgumentError, match=r"has 3 systems, the present .* has 2: call finish"):
        reporter.report(state, 1, model)


def test_it_is_a_reporter_of_torch_sim(torch_sim):
    reporter = SinkReporter({})
    assert isinstance(reporter, torch_sim.TrajectoryReporter)
    assert isinstance(reporter, SinkReporter)
    assert type(reporter).__name__ == "SinkReporter"


def test_chosen_fields_of_a_state(torch_sim, argon):
    state = torch_sim.initialize_state(argon, torch.device("cpu"), torch.float64)
    assert {*from_torch_sim(state, fields=["atomic_masses"]).fields} == {
        *("positions", "atomic_numbers", "cell", "pbc", "atomic_masses")
    }
