"""`zarrpipe.ase.Observer` in molecular dynamics and optimisers, compared with what ASE says."""

import numpy as np
import pytest
import torch

import zarrpipe as zp
from zarrpipe.ase import Observer
from zarrpipe.errors import ArgumentError, FieldError, StoreFullError


@pytest.fixture(scope="module", autouse=True)
def parts(ase):
    for part in ("calculators.lj", "filters", "md.langevin", "md.verlet", "optimize", "units"):
        pytest.importorskip(f"ase.{part}")


@pytest.fixture
def copper(ase):
    atoms = ase.build.bulk("Cu", cubic=True)
    atoms.rattle(0.1, seed=3)
    atoms.calc = ase.calculators.emt.EMT()
    return atoms


class Counting:
    """Base of calculators that count their calculations."""

    count = 0

    def calculate(self, *args, **kwargs):
        self.count += 1
        super().calculate(*args, **kwargs)


def counting(kind):
    return type(kind.__name__, (Counting, kind), {})()


def dynamics(ase, atoms):
    return ase.md.langevin.Langevin(
        atoms,
        timestep=5 * ase.units.fs,
        temperature_K=300,
        friction=0.01,
        fixcm=False,
        rng=np.random.RandomState(5),
    )


def test_every_frame_of_dynamics_by_value(ase, copper):
    dyn, frames = dynamics(ase, copper), []

    def remember():
        shown = [copper.get_positions(), copper.get_potential_energy(), copper.get_forces()]
        shown += [copper.get_momenta(), copper.get_velocities(), copper.get_temperature()]
        frames.append((*shown, dyn.get_time()))

    fields = ["energy", "forces", "step", "time", "temperature", "momenta", "velocities"]
    with zp.ZarrData({}) as sink:
        dyn.attach(Observer(sink, copper, dyn, fields=fields), interval=2)
        dyn.attach(remember, interval=2)
        dyn.run(6)
        batch = sink.read()
    positions, energy, forces, momenta, velocities, temperature, time = zip(*frames, strict=True)
    assert batch.num_graphs == 4
    assert np.array_equal(batch.positions, np.concatenate(positions))
    assert batch.energy.flatten().tolist() == list(energy)
    assert np.array_equal(batch.forces, np.concatenate(forces))
    assert np.array_equal(batch.momenta, np.concatenate(momenta))
    assert np.array_equal(batch.velocities, np.concatenate(velocities))
    assert batch.temperature.flatten().tolist() == list(temperature)
    assert batch.time.flatten().tolist() == [one / ase.units.fs for one in time]
    assert batch.time.flatten().tolist() == pytest.approx([0, 10, 20, 30])
    assert batch.step.flatten().tolist() == [0, 2, 4, 6]
    assert batch.step.dtype is torch.int64
    assert "stress" not in batch


def test_a_run_that_goes_on_writes_no_frame_twice(ase, copper):
    dyn = dynamics(ase, copper)
    with zp.ZarrData({}) as sink:
        dyn.attach(Observer(sink, copper, dyn, fields=["energy", "step"]))
        dyn.run(2)
        dyn.run(2)
        assert sink.read().step.flatten().tolist() == [0, 1, 2, 3, 4]


def test_a_stress_that_the_calculator_holds_is_taken(ase):
    argon = ase.build.bulk("Ar", cubic=True, a=5.3)
    argon.rattle(0.1, seed=1)
    argon.calc = ase.calculators.lj.LennardJones(sigma=3.4, epsilon=0.01, rc=6.0)
    with zp.ZarrData({}) as sink:
        argon.get_forces()
        Observer(sink, argon)()
        stress = sink.read().stress[0].numpy()
    voigt = stress[[0, 1, 2, 1, 0, 0], [0, 1, 2, 2, 2, 1]]
    np.testing.assert_array_equal(voigt, argon.get_stress())


def test_forces_are_those_without_constraints(ase, copper):
    copper.set_constraint(ase.constraints.FixAtoms([0, 1]))
    dyn = dynamics(ase, copper)
    with zp.ZarrData({}) as sink:
        dyn.attach(Observer(sink, copper, dyn))
        dyn.run(1)
        forces = sink.read().forces.reshape(2, 4, 3)[1].numpy()
    assert np.all(copper.get_forces()[:2] == 0)
    assert np.abs(forces[:2]).min() > 1e-3
    np.testing.assert_array_equal(forces, copper.get_forces(apply_constraint=False))


@pytest.mark.parametrize("kind", ["BFGS", "FIRE", "LBFGS"])
def test_an_optimiser_calculates_as_often_as_without(ase, copper, kind):
    optimiser, counts = getattr(ase.optimize, kind), []
    for observed in (False, True):
        atoms = copper.copy()
        atoms.calc = counting(ase.calculators.emt.EMT)
        with optimiser(atoms, logfile=None) as run, zp.ZarrData({}) as sink:
            if observed:
                run.attach(Observer(sink, atoms, run, fields=["energy", "forces", "step"]))
            run.run(fmax=1e-3, steps=5)
            counts.append((atoms.calc.count, len(sink)))
    assert counts[0][0] == counts[1][0] > 0
    assert counts[1][1] == 6


def test_a_filter_of_the_cell(ase, copper):
    copper.calc = ase.calculators.lj.LennardJones(sigma=2.3, epsilon=0.4, rc=5.0)
    moving = ase.filters.FrechetCellFilter(copper)
    with ase.optimize.BFGS(moving, logfile=None) as run, zp.ZarrData({}) as sink:
        run.attach(Observer(sink, moving, run))
        run.run(fmax=1e-6, steps=3)
        batch = sink.read()
    assert batch.num_graphs == 4
    assert np.array_equal(batch.cell[-1], copper.cell.array)
    assert not np.array_equal(batch.cell[0], batch.cell[-1])


def test_what_is_missing_is_said_once_and_never_calculated(ase, copper):
    copper.calc = counting(ase.calculators.emt.EMT)
    with zp.ZarrData({}) as sink:
        observer = Observer(sink, copper)
        with pytest.warns(UserWarning, match="without energy and forces: the calculator .EMT. doe"):
            observer()
        copper.rattle(0.1)
        observer()
        assert copper.calc.count == 0
        assert "energy" not in sink.read()
        copper.get_forces()
        observer()
        assert sink.read().present("forces").tolist() == [False, False, True]


def test_what_is_missing_is_calculated_if_asked(ase, copper):
    copper.calc = counting(ase.calculators.emt.EMT)
    with zp.ZarrData({}) as sink:
        Observer(sink, copper, calculate=True)()
        assert copper.calc.count == 1
        assert sink.read().energy.tolist() == [[copper.get_potential_energy()]]


def test_own_fields_and_other_results(copper):
    copper.info["trajectory"] = "run-3"
    copper.set_tags([1, 2, 3, 4])
    copper.get_forces()
    with zp.ZarrData({}) as sink:
        Observer(
            sink,
            copper,
            fields={"free_energy": "energy", "energies": "energies"},
            info=["trajectory"],
            arrays={"tags": "layer"},
            dtype=torch.float32,
        )()
        batch = sink.read()
    assert batch.strings("trajectory") == ["run-3"]
    assert batch.layer.tolist() == [1, 2, 3, 4]
    assert batch.energy.dtype is torch.float32
    assert batch.energy.item() == pytest.approx(copper.get_potential_energy(force_consistent=True))
    np.testing.assert_allclose(batch.energies, copper.get_potential_energies(), rtol=1e-6)
    assert batch.levels["energies"] == "atom"
    assert "forces" not in batch


def test_fields_of_the_run_by_other_names(ase, copper):
    dyn = dynamics(ase, copper)
    names = {"energy": "energy", "step": "md_step", "velocities": "velocities"}
    with zp.ZarrData({}) as sink:
        dyn.attach(Observer(sink, copper, dyn, fields=names))
        dyn.run(1)
        batch = sink.read()
    assert batch.md_step.flatten().tolist() == [0, 1]
    assert np.array_equal(batch.velocities[4:], copper.get_velocities())
    assert "step" not in batch


def test_every_third_call(copper):
    copper.get_forces()
    with zp.ZarrData({}) as sink:
        observer = Observer(sink, copper, interval=3)
        for count in range(7):
            copper.positions[0, 0] = count
            copper.get_forces()
            observer()
        assert sink.read().positions[::4, 0].tolist() == [0, 3, 6]


def test_a_sink_with_a_buffer_and_a_full_one(ase, copper, tmp_path):
    dyn = dynamics(ase, copper)
    with zp.ZarrData(tmp_path / "frames.zarr", capacity=4, buffer=100) as sink:
        dyn.attach(Observer(sink, copper, dyn, fields=["energy", "forces", "step"]))
        dyn.run(3)
        assert len(sink) == 4
    assert zp.ZarrDataset(tmp_path / "frames.zarr").read([3, 0]).step.flatten().tolist() == [3, 0]
    dyn = dynamics(ase, copper)
    with zp.ZarrData({}, capacity=2) as sink:
        dyn.attach(Observer(sink, copper, dyn))
        with pytest.raises(StoreFullError):
            dyn.run(5)
        assert len(sink) == 2


def test_what_cannot_be_is_refused_before_the_run(ase, copper):
    optimiser = ase.optimize.BFGS(copper, logfile=None)
    with pytest.raises(ArgumentError, match=r"'time', and dyn is BFGS without get_time: give the"):
        Observer({}, copper, optimiser, fields=["time"])
    with pytest.raises(ArgumentError, match="'step', and dyn is NoneType without nsteps"):
        Observer({}, copper, fields=["step"])
    with pytest.raises(ArgumentError, match=r"\['dipole', 'enrgy'\], which EMT does not .*energy"):
        Observer({}, copper, fields=["dipole", "enrgy"])
    with pytest.raises(FieldError, match=r"none of 1 Atoms has 'run' in \.info"):
        Observer({}, copper, info=["run"])
    with pytest.raises(ArgumentError, match="interval"):
        Observer({}, copper, interval=0)
