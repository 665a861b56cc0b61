"""`zarrpipe.ase.RecordingCalculator` around calculators that compute all or one thing at a time."""

import copy
import subprocess
import sys

import numpy as np
import pytest
import torch

import zarrpipe as zp
from zarrpipe.ase import RecordingCalculator
from zarrpipe.errors import ArgumentError, ArgumentTypeError, StoreFullError


@pytest.fixture(scope="module", autouse=True)
def parts(ase):
    for part in ("calculators.lj", "calculators.calculator", "md.verlet"):
        pytest.importorskip(f"ase.{part}")
    pytest.importorskip("ase.optimize")


@pytest.fixture
def copper(ase):
    atoms = ase.build.bulk("Cu", cubic=True)
    atoms.rattle(0.1, seed=3)
    return atoms


@pytest.fixture(scope="module")
def Stepwise(ase):  # as a code that computes energy and forces in runs of their own
    class Stepwise(ase.calculators.calculator.Calculator):
        implemented_properties = ("energy", "forces", "stress")
        scale, fails = 1.0, ()

        def calculate(self, atoms=None, properties=(), system_changes=()):
            super().calculate(atoms, properties, system_changes)
            for name in properties:
                shape = {"energy": (), "forces": (len(atoms), 3), "stress": (6,)}[name]
                value = self.scale * np.full(shape, atoms.positions.sum())
                self.results[name] = float(value) if name == "energy" else value
                if name in self.fails:
                    raise RuntimeError("not converged")

    return Stepwise


def test_dynamics_give_a_sample_for_each_structure_with_all_its_results(ase, copper):
    calc = ase.calculators.lj.LennardJones(sigma=2.3, epsilon=0.4, rc=5.0)
    seen = []

    def remember():
        one = copper.copy()
        one.calc = ase.calculators.lj.LennardJones(sigma=2.3, epsilon=0.4, rc=5.0)
        seen.append((one.positions, one.get_potential_energy(), one.get_forces(), one.get_stress()))

    with zp.ZarrData({}) as sink, RecordingCalculator(calc, sink) as copper.calc:
        dyn = ase.md.verlet.VelocityVerlet(copper, timestep=5 * ase.units.fs)
        dyn.attach(remember)
        dyn.attach(copper.get_potential_energy)
        dyn.attach(lambda: copper.get_potential_energy(force_consistent=True))
        dyn.run(3)
        batch = sink.read()
    positions, energy, forces, stress = zip(*seen, strict=True)
    assert batch.num_graphs == len(seen) == 4
    assert np.array_equal(batch.positions, np.concatenate(positions))
    assert batch.energy.flatten().tolist() == pytest.approx(list(energy), rel=1e-12)
    np.testing.assert_allclose(batch.forces, np.concatenate(forces), rtol=0, atol=1e-12)
    voigt = batch.stress[:, [0, 1, 2, 1, 0, 0], [0, 1, 2, 2, 2, 1]]
    np.testing.assert_allclose(voigt, np.stack(stress), rtol=0, atol=1e-12)


def test_an_optimiser_sees_and_calculates_the_same(ase, copper):
    found = []
    for recorded in (False, True):
        atoms, calc = copper.copy(), ase.calculators.emt.EMT()
        atoms.set_constraint(ase.constraints.FixAtoms([0]))
        with zp.ZarrData({}) as sink:
            atoms.calc = RecordingCalculator(calc, sink, fields=["forces"]) if recorded else calc
            ase.optimize.BFGS(atoms, logfile=None).run(fmax=0.01, steps=4)
            found.append((atoms.get_potential_energy(), atoms.positions.tolist()))
            if recorded:
                forces = sink.read().forces.reshape(5, 4, 3)
                raw = atoms.get_forces(apply_constraint=False)
                assert np.array_equal(forces[-1], raw), "constraints are not in the labels"
                assert np.abs(raw[0]).min() > 0
    assert found[0] == found[1]


def test_properties_that_are_computed_one_by_one_are_one_sample(copper, Stepwise):
    with zp.ZarrData({}) as sink:
        with RecordingCalculator(Stepwise(), sink) as copper.calc:
            copper.get_potential_energy()
            copper.get_forces()
            assert len(sink) == 0, "the stress may come"
            copper.positions += 0.5
            copper.get_forces()
            assert len(sink) == 1
            copper.get_potential_energy()
            copper.get_stress()
            assert len(sink) == 2, "it is complete"
            copper.get_forces()
        batch = sink.read()
    total = copper.positions.sum()
    assert batch.energy.flatten().tolist() == pytest.approx([total - 6, total])
    assert batch.present("stress").tolist() == [False, True]
    assert batch.present("forces").all()
    assert batch.forces[0, 0].item() == pytest.approx(total - 6)


def test_what_comes_after_a_flush_is_a_sample_of_its_own(copper, Stepwise):
    with zp.ZarrData({}) as sink:
        copper.calc = RecordingCalculator(Stepwise(), sink)
        copper.get_potential_energy()
        copper.calc.flush()
        copper.calc.flush()
        assert len(sink) == 1
        copper.get_forces()
        copper.calc.flush()
        assert sink.read().present("forces").tolist() == [False, True]


def test_the_same_structure_again(ase, copper, Stepwise):
    """Not recorded again with the same values, recorded with those of other parameters."""
    with zp.ZarrData({}) as sink:
        with RecordingCalculator(Stepwise(), sink, fields=["energy"]) as calc:
            copper.calc = calc
            copper.get_potential_energy()
            calc.reset()
            copper.get_potential_energy()
            assert len(sink) == 1
            calc.scale = 2.0
            calc.reset()
            copper.get_potential_energy()
        total = copper.positions.sum()
        assert sink.read().energy.flatten().tolist() == pytest.approx([total, 2 * total])
    with zp.ZarrData({}) as sink:  # of a calculator that computes all anew for what it lacks
        water, emt = ase.build.molecule("H2O"), ase.calculators.emt.EMT()
        water.calc = RecordingCalculator(emt, sink)
        water.get_forces()
        before = emt.results["energy"]
        with pytest.raises(NotImplementedError):  # without a cell
            water.get_stress()
        assert emt.results["energy"] is not before
        water.calc.flush()
        assert len(sink) == 1


def test_arrays_that_a_calculator_writes_into_again(copper, Stepwise):
    class InPlace(Stepwise):
        implemented_properties = ("forces",)

        def calculate(self, atoms=None, properties=(), system_changes=()):
            super().calculate(atoms, properties, system_changes)
            self.buffer = getattr(self, "buffer", np.zeros((4, 3)))
            self.buffer[:] = self.results["forces"]
            self.results["forces"] = self.buffer

    with zp.ZarrData({}) as sink:
        copper.calc = RecordingCalculator(InPlace(), sink)
        for scale in (1.0, 2.0, 2.0):
            copper.calc.scale = scale
            copper.calc.reset()
            copper.get_forces()
        total = copper.positions.sum()
        assert sink.read().forces[::4, 0].tolist() == pytest.approx([total, 2 * total])


def test_errors_pass_and_record_nothing(copper, Stepwise):
    with zp.ZarrData({}) as sink:
        with RecordingCalculator(Stepwise(), sink) as calc:
            copper.calc, calc.fails = calc, ("forces",)
            copper.get_potential_energy()
            with pytest.raises(RuntimeError, match="not converged"):
                copper.get_forces()
            assert "forces" in calc.results, "the calculator has left them behind"
            copper.get_stress()
            copper.positions += 1.0
            with pytest.raises(RuntimeError, match="not converged"):
                copper.get_forces()
            calc.fails = ()
            copper.positions += 1.0
            copper.get_forces()
        batch = sink.read()
    assert batch.num_graphs == 2
    assert batch.present("forces").tolist() == [False, True]
    assert batch.present("stress").tolist() == [True, False]
    assert np.array_equal(batch.positions[4:], copper.positions)


def test_a_property_that_is_missing_loses_no_label(copper, Stepwise):
    """As optimisers do, which ask for the free energy first."""

    class Partly(Stepwise):
        implemented_properties = ("energy", "free_energy")

        def calculate(self, atoms=None, properties=(), system_changes=()):
            super().calculate(atoms, ["energy"], system_changes)

    with zp.ZarrData({}) as sink:
        copper.calc = RecordingCalculator(Partly(), sink)
        with pytest.raises(NotImplementedError):
            copper.get_potential_energy(force_consistent=True)
        assert sink.read().energy.item() == copper.get_potential_energy()
        assert len(sink) == 1


def test_copies_and_questions_that_calculate_nothing(ase, copper):
    with zp.ZarrData({}) as sink:
        copper.calc = RecordingCalculator(ase.calculators.emt.EMT(), sink, fields=["energy"])
        copper.get_potential_energy()
        other = copper.copy()
        assert other.calc is None
        other.calc = copper.calc
        other.get_potential_energy()
        assert len(sink) == 1
        other.rattle(0.1, seed=5)
        assert other.calc.calculation_required(other, ["energy"])
        assert other.calc.get_property("energy", other, allow_calculation=False) is None
        assert len(sink) == 1
        other.get_potential_energy()
        assert np.array_equal(sink.read().positions[4:], other.positions)


def test_the_atoms_are_those_of_the_calculation(ase, copper, Stepwise):
    """Also where a call names none, and where the calculator does not keep them."""

    class Forgetful(Stepwise):
        implemented_properties = ("energy",)

        def calculate(self, atoms=None, properties=(), system_changes=()):
            super().calculate(atoms, properties, system_changes)
            self.atoms = None

    with zp.ZarrData({}) as sink, RecordingCalculator(Stepwise(), sink, fields=["energy"]) as calc:
        calc.get_property("energy", copper)
        calc.get_property("energy")
        calc.atoms.positions += 1.0
        calc.results.clear()
        calc.get_property("energy")
        assert np.array_equal(sink.read().positions[4:], copper.positions + 1.0)
    with zp.ZarrData({}) as sink:
        copper.calc = RecordingCalculator(Forgetful(), sink)
        copper.get_potential_energy()
        copper.positions += 1.0
        copper.get_potential_energy()
        assert np.array_equal(sink.read().positions[4:], copper.positions)
        assert len(sink) == 2


def test_results_that_are_the_same_object_for_another_structure(ase, copper):
    class Constant(ase.calculators.calculator.Calculator):
        implemented_properties = ("energy",)

        def calculate(self, atoms=None, properties=(), system_changes=()):
            super().calculate(atoms, properties, system_changes)
            self.results["energy"] = 0.0

    with zp.ZarrData({}) as sink:
        copper.calc = RecordingCalculator(Constant(), sink)
        for _ in range(3):
            copper.positions += 1.0
            copper.get_potential_energy()
        assert len(sink) == 3


def test_fields_of_the_atoms_and_other_names(ase, copper):
    copper.info["config_type"] = "bulk"
    with zp.ZarrData({}) as sink:
        copper.calc = RecordingCalculator(
            ase.calculators.emt.EMT(),
            sink,
            fields={"free_energy": "energy", "forces": "forces"},
            info=["config_type", "absent"],
            arrays=["momenta"],
            dtype=torch.float32,
        )
        copper.get_forces()
        copper.set_momenta(np.ones((4, 3)))
        copper.positions += 1
        free = copper.get_potential_energy(force_consistent=True)
        batch = sink.read()
    assert batch.energy[1].item() == pytest.approx(free)
    assert batch.forces.dtype is torch.float32
    assert batch.strings("config_type") == ["bulk", "bulk"]
    assert batch.present("momenta").tolist() == [False, True]
    assert "absent" not in batch


def test_it_is_the_calculator_inside(copper, Stepwise):
    inside = Stepwise(label="run/one")
    calc = RecordingCalculator(inside, sink := zp.ZarrData({}))
    assert calc.implemented_properties == ("energy", "forces", "stress")
    assert (calc.name, calc.label, calc.todict()) == (inside.name, "run/one", {})
    calc.label = "run/two"
    assert inside.label == "run/two"
    assert not hasattr(calc, "get_eigenvalues")
    assert repr(calc) == f"RecordingCalculator({inside!r}, {sink!r})"
    copper.calc = calc
    with pytest.raises(NotImplementedError):
        copper.get_magnetic_moments()
    with pytest.raises(TypeError, match="neither pickled nor copied"):
        copy.deepcopy(calc)
    assert len(sink) == 0


def test_frames_outlast_a_sink_that_is_full(copper, Stepwise):
    sink = zp.ZarrData({}, capacity=1)
    copper.calc = RecordingCalculator(Stepwise(), sink, fields=["energy"])
    copper.get_potential_energy()
    for _ in range(2):
        copper.positions += 1.0
        with pytest.raises(StoreFullError):
            copper.get_potential_energy()
    sink.resize(10)
    copper.calc.flush()
    total = copper.positions.sum()
    assert sink.read().energy.flatten().tolist() == pytest.approx([total - 24, total - 12, total])


def test_what_waits_is_written_when_it_is_collected(copper, Stepwise):
    sink = zp.ZarrData({})
    copper.calc = RecordingCalculator(Stepwise(), sink)
    copper.get_potential_energy()
    assert len(sink) == 0
    copper.calc = None
    assert sink.read().energy.item() == pytest.approx(copper.positions.sum())


def test_the_end_of_the_interpreter_says_what_it_loses(tmp_path):
    """Nothing of a calculator that gave all at once; what waits for the rest of its properties."""
    code = f"""
import zarrpipe as zp
from ase.build import molecule
from ase.calculators.emt import EMT
from zarrpipe.ase import RecordingCalculator

sink = zp.ZarrData({str(tmp_path / "s.zarr")!r})
for fields in (["energy", "forces"], ["energy", "stress"]):  # without a cell there is no stress
    water = molecule("H2O")
    water.calc = RecordingCalculator(EMT(), sink, fields=fields)
    water.get_forces()
"""
    ended = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0
    assert "UserWarning: 1 structures that EMT has calculated were not written: use" in ended.stderr
    assert "Traceback" not in ended.stderr
    assert len(zp.ZarrDataset(tmp_path / "s.zarr")) == 1


def test_what_cannot_be_recorded_is_refused(copper, Stepwise):
    with pytest.raises(ArgumentTypeError, match=r"calculator is a Atoms without results, expected"):
        RecordingCalculator(copper, {})
    with pytest.raises(
        ArgumentError, match=r"\['dipole'\], which Stepwise does not calculate, exp"
    ):
        RecordingCalculator(Stepwise(), {}, fields=["energy", "dipole"])
