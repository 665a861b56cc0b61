"""A fit takes what it needs from the data, and says what is wrong before it trains or at once."""

import copy
import warnings

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from ase.build import bulk
from ase.calculators.emt import EMT
from ase.calculators.singlepoint import SinglePointCalculator

import zarrpipe as zp
from zarrpipe.errors import NonFiniteLossError
from zarrpipe.ml import ForceField, Prediction, WeightEMA, force_field, load
from zarrpipe.ml.from_data import default_cutoff, finds_edges
from zarrpipe.ml.non_finite import reason
from zarrpipe.training.statistics import mean_neighbors
from zarrpipe.transforms import Compose, ConvertUnits, NeighborList

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*Checkpoint directory"),
    pytest.mark.filterwarnings("ignore:.*torch.jit.script.* is deprecated:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:The TorchScript type system doesn't support:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD:UserWarning"),
    pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`"),
    pytest.mark.filterwarnings("ignore:validation has . sample"),
    pytest.mark.filterwarnings("ignore:You defined a `validation_step`"),
    pytest.mark.filterwarnings("ignore:You're using the WeightAveraging callback"),
]

SMALL = {"features": 12, "interactions": 2, "gaussians": 12}


def alloys(count, seed=0, elements=("Cu", "Au")):
    """Rattled cells of four atoms with energy, forces and stress of EMT."""
    rng = np.random.default_rng(seed)
    for _ in range(count):
        atoms = bulk("Cu", "fcc", 3.8, cubic=True)
        atoms.symbols = rng.choice(elements, 4)
        atoms.set_cell(atoms.cell @ (np.eye(3) + rng.normal(scale=0.02, size=(3, 3))), True)
        atoms.positions += rng.normal(scale=0.08, size=(4, 3))
        atoms.calc = EMT()
        found = {name: atoms.calc.get_property(name, atoms) for name in ("energy", "forces")}
        found["stress"] = atoms.get_stress()
        atoms.calc = SinglePointCalculator(atoms, **found)
        yield atoms


def stored(atoms):
    place = {}
    with zp.ZarrData(place) as sink:
        sink.write(list(atoms))
    return place


def fit(field, data, steps=10, **settings):
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False}
    quiet |= {"enable_checkpointing": False, "accelerator": "cpu"}
    trainer = pl.Trainer(max_steps=steps, **{**quiet, **settings})
    trainer.fit(field, datamodule=data)
    return trainer


def test_a_fit_takes_what_is_not_given_from_the_training_data(tmp_path):
    store = stored(alloys(40))
    data = zp.ZarrDataModule(store, batch_size=8, split=(0.8, 0.2, 0.0))
    field = ForceField("schnet", SMALL)
    trainer = fit(field, data, 2)
    facts = data.statistics
    assert field.cutoff == field.hparams["options"]["cutoff"] == 5.0
    assert float(field.scale) == pytest.approx(facts.forces_rms)
    for number in (29, 79):
        assert float(field.reference[number]) == facts.reference_energies[number]
    assert field.reference.isnan().sum() == len(field.reference) - 2
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    again = ForceField.load_from_checkpoint(tmp_path / "a.ckpt")
    batch = data.dataset.read([0, 1])
    torch.testing.assert_close(again.predict(batch), field.predict(batch))
    other = zp.ZarrDataModule(stored(alloys(30, 1, ("Cu", "Ag", "Au"))), split=(1.0, 0.0, 0.0))
    with pytest.raises(ValueError, match=r"no reference energy of Ag, .* but of Cu, Au"):
        fit(again, other, 1, limit_val_batches=0)  # what a checkpoint has is kept


@pytest.mark.usefixtures("mace")
def test_mace_gets_its_elements_and_neighbours_and_resumes_with_them(tmp_path):
    store = stored(alloys(40))
    options = {"channels": 2, "max_l": 0, "cutoff": 3.5}

    def run(steps, place, **settings):
        data = zp.ZarrDataModule(place, batch_size=8, split=(0.8, 0.2, 0.0))
        field = ForceField("mace", options)
        return field, data, fit(field, data, steps, **settings)

    field, data, trainer = run(3, store)
    found = field.hparams["options"]
    assert found["elements"] == [29, 79]
    expected = mean_neighbors(data.train_dataset, 3.5)
    assert found["mean_neighbors"] == pytest.approx(expected, abs=1e-3)
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    with zp.ZarrData(store) as sink:  # an element more: the checkpoint's model stays as it was
        sink.write(list(alloys(5, 2, ("Ag",))))
    resumed = ForceField("mace", options)
    more = zp.ZarrDataModule(
        store, batch_size=8, split=(1.0, 0.0, 0.0), where="not has_element('Ag')"
    )
    trainer = pl.Trainer(
        max_steps=3,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        limit_val_batches=0,
    )
    trainer.validate(resumed, datamodule=more, ckpt_path=tmp_path / "a.ckpt", verbose=False)
    batch = data.dataset.read([0, 1])
    torch.testing.assert_close(resumed.predict(batch), field.predict(batch))


def test_errors_of_every_label_are_logged_in_milli(tmp_path):
    data = zp.ZarrDataModule(stored(alloys(40)), batch_size=8, split=(0.6, 0.2, 0.2))
    field = ForceField("schnet", SMALL)
    trainer = fit(field, data, 4, max_epochs=1)
    logged = dict(trainer.callback_metrics)
    (tested,) = trainer.test(field, datamodule=data, verbose=False)
    samples = data.test_dataset
    batch = samples.read(range(len(samples)))
    found = field.predict(batch, stress=True)
    energy = (found.energy - batch.energy) / 4
    for name, error in (
        ("energy_{}_meV_atom", energy),
        ("forces_{}_meV_A", found.forces - batch.forces),
        ("stress_{}_meV_A3", found.stress - batch.stress),
    ):
        kinds = {
            "mae": error.abs().mean(),
            "rmse": error.square().mean().sqrt(),
            "max": error.abs().max(),
        }
        for kind, value in kinds.items():
            assert tested["test/" + name.format(kind)] == pytest.approx(1e3 * float(value), 1e-3)
            assert "val/" + name.format(kind) in logged
            assert "train/" + name.format(kind) in logged
    assert "train/loss" in logged


def test_training_lowers_the_errors_of_energy_forces_and_stress():
    data = zp.ZarrDataModule(stored(alloys(24)), batch_size=4, split=(1.0, 0.0, 0.0))
    field = ForceField("schnet", SMALL, lr=5e-3)
    data.setup("fit")
    batch = data.dataset.read(range(24))
    fit(field, data, 1, limit_val_batches=0)

    def errors():
        found = field.predict(batch, stress=True)
        energy = (found.energy - batch.energy).abs().mean() / 4
        stress = (found.stress - batch.stress).abs().mean()
        return [float(x) for x in (energy, (found.forces - batch.forces).abs().mean(), stress)]

    before = errors()
    fit(field, data, 250, limit_val_batches=0)
    assert all(after < 0.5 * first for after, first in zip(errors(), before, strict=True))


def test_a_store_with_holes_trains_without_nan():
    atoms = list(alloys(24))
    for number, one in enumerate(atoms):
        for label, modulus in (("energy", 4), ("forces", 3), ("stress", 2)):
            if number % modulus == 0:
                one.calc.results.pop(label)
    data = zp.ZarrDataModule(stored(atoms), batch_size=2, split=(0.8, 0.2, 0.0))
    field = ForceField("schnet", SMALL)
    trainer = fit(field, data, 30)
    assert all(parameter.isfinite().all() for parameter in field.parameters())
    assert torch.isfinite(trainer.callback_metrics["val/forces_mae_meV_A"])


def test_a_loss_that_is_not_finite_names_the_samples():
    atoms = list(alloys(12))
    atoms[7].calc.results["stress"] = np.full(6, np.nan)
    place = {}
    with zp.ZarrData(place) as sink, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        sink.write(atoms)
    data = zp.ZarrDataModule(place, batch_size=12, split=(1.0, 0.0, 0.0))
    field = ForceField(
        "schnet", {**SMALL, "cutoff": 4.0}, scale=1.0, reference={"Cu": 0.0, "Au": 0.0}
    )
    with pytest.raises(NonFiniteLossError, match="stress of sample 7 of the dataset has NaN"):
        fit(field, data, 1, limit_val_batches=0)


def test_labels_that_are_not_finite_are_found_before_training():
    atoms = list(alloys(12))
    for number in (3, 7):
        atoms[number].calc.results["forces"] = np.full((4, 3), np.nan)
    place = {}
    with zp.ZarrData(place) as sink, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        sink.write(atoms)
    data = zp.ZarrDataModule(place, split=(1.0, 0.0, 0.0))
    with pytest.raises(ValueError, match="field 'forces' has 24 values that are NaN") as caught:
        fit(ForceField("schnet", SMALL), data, 1, limit_val_batches=0)
    assert "samples of the dataset with such labels: 3, 7 (2 in all)" in caught.value.__notes__


def test_dense_crystals_have_a_shorter_cutoff():
    crystal = bulk("C", "diamond", 3.57, cubic=True)
    dataset = zp.ZarrDataset(stored([crystal]))
    cutoff = default_cutoff(dataset)
    assert cutoff == 4.0
    assert mean_neighbors(dataset, cutoff) <= 60.0 < mean_neighbors(dataset, cutoff + 0.5)


def test_a_model_that_diverged_is_told_from_bad_labels():
    data = zp.ZarrDataModule(stored(alloys(4)), batch_size=4, split=(1.0, 0.0, 0.0))
    field = ForceField("schnet", {**SMALL, "cutoff": 4.0})
    with torch.no_grad():
        next(field.parameters()).fill_(torch.nan)
    with pytest.raises(NonFiniteLossError, match=r"although all labels are.*samples .* lower lr"):
        fit(field, data, 1, limit_val_batches=0)


def test_an_element_that_only_validation_has_is_said_before_training():
    val = [*alloys(12), *alloys(2, 3, ("Ag",))]
    data = zp.ZarrDataModule(
        stored(alloys(20, 1)), split=(1.0, 0.0, 0.0), val_store=stored(val), batch_size=4
    )
    said = r"""2 of 14 validation samples have Ag.*data\.where="not \(has_element\('Ag'\)\)"""
    with pytest.raises(ValueError, match=said):
        fit(ForceField("schnet", SMALL), data, 1)
    data = zp.ZarrDataModule(
        stored(alloys(20, 1)),
        split=(1.0, 0.0, 0.0),
        val_store=stored(val),
        batch_size=4,
        where="not (has_element('Ag'))",
    )
    assert fit(ForceField("schnet", SMALL), data, 1).global_step == 1


def test_few_validation_samples_are_said_before_training():
    data = zp.ZarrDataModule(
        stored(alloys(20, 1)), split=(1.0, 0.0, 0.0), val_store=stored(alloys(3))
    )
    with pytest.warns(UserWarning, match="validation has 3 samples.*expected ten or more"):
        fit(ForceField("schnet", SMALL), data, 1)


def test_a_store_without_labels_is_refused_before_training():
    place = {}
    with zp.ZarrData(place) as sink, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        sink.write([atoms.copy() for atoms in alloys(20)])
    data = zp.ZarrDataModule(place, split=(1.0, 0.0, 0.0))
    with pytest.raises(ValueError, match=r"no training sample of .* has a label that the"):
        fit(ForceField("schnet", SMALL), data, 1, limit_val_batches=0)


@pytest.mark.parametrize("workers", [0, 1])
def test_neighbour_lists_of_the_data_module_give_the_same_training(monkeypatch, workers):
    store, weights = stored(alloys(12)), []
    for transform in (None, NeighborList(4.0)):
        data = zp.ZarrDataModule(
            store,
            batch_size=4,
            split=(1.0, 0.0, 0.0),
            transform=transform,
            num_workers=workers if transform else 0,
        )
        field = ForceField("schnet", {**SMALL, "cutoff": 4.0})
        if transform is not None:
            monkeypatch.setattr(force_field, "find_edges", None)  # nothing searches any more
        fit(field, data, 4, limit_val_batches=0)
        weights.append(torch.cat([parameter.flatten() for parameter in field.parameters()]))
    torch.testing.assert_close(weights[0], weights[1])


def test_neighbour_lists_of_another_cutoff_are_not_used():
    assert finds_edges(NeighborList(4.0), 4.0)
    assert finds_edges(Compose([NeighborList(3.0), NeighborList(4.0)]), 4.0)
    assert not finds_edges(Compose([NeighborList(4.0), NeighborList(3.0)]), 4.0)
    assert not finds_edges(None, 4.0)


@pytest.mark.parametrize("workers", [0, 1])
def test_neighbour_lists_of_the_data_module_serve_validation_and_test(workers):
    store = stored(alloys(24))
    found = []
    for transform in (None, NeighborList(4.0)):
        data = zp.ZarrDataModule(
            store, batch_size=4, split=(0.5, 0.0, 0.5), transform=transform, num_workers=workers
        )
        field = ForceField("schnet", {**SMALL, "cutoff": 4.0})
        trainer = fit(field, data, 1, limit_val_batches=0)
        found += trainer.test(field, datamodule=data, verbose=False)
    assert found[0] == pytest.approx(found[1], rel=1e-4)


def test_neighbour_lists_of_another_cutoff_than_the_checkpoints_are_left(tmp_path):
    """A checkpoint is loaded after the model was configured, and decides the cutoff."""
    store = stored(alloys(24))
    data = zp.ZarrDataModule(store, batch_size=4, split=(0.5, 0.0, 0.5))
    field = ForceField("schnet", {**SMALL, "cutoff": 4.0})
    trainer = fit(field, data, 1, limit_val_batches=0)
    (expected,) = trainer.test(field, datamodule=data, verbose=False)
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    other = ForceField("schnet", {**SMALL, "cutoff": 5.0})
    lists = zp.ZarrDataModule(
        store, batch_size=4, split=(0.5, 0.0, 0.5), transform=NeighborList(5.0)
    )
    trainer = pl.Trainer(accelerator="cpu", logger=False, enable_progress_bar=False)
    (found,) = trainer.test(other, datamodule=lists, ckpt_path=tmp_path / "a.ckpt", verbose=False)
    assert found == pytest.approx(expected, rel=1e-4)


def test_a_batch_with_forces_alone_gives_every_weight_a_gradient():
    atoms = list(alloys(4))
    for one in atoms:
        one.calc.results = {"forces": one.calc.results["forces"]}
    data = zp.ZarrDataModule(stored(atoms), batch_size=4, split=(1.0, 0.0, 0.0))

    class Gradients(pl.Callback):
        def on_after_backward(self, trainer, pl_module):
            assert [name for name, p in pl_module.named_parameters() if p.grad is None] == []

    fit(ForceField("schnet", SMALL), data, 1, limit_val_batches=0, callbacks=[Gradients()])


def test_a_copy_of_a_force_field_that_has_predicted():
    field = ForceField("schnet", {**SMALL, "cutoff": 4.0})
    batch = zp.ZarrDataset(stored(alloys(2))).read([0, 1])
    found = field.predict(batch, differentiable=True)
    torch.testing.assert_close(copy.deepcopy(field).predict(batch).energy, found.energy.detach())


def test_numpy_values_are_kept_in_checkpoints_as_pythons(tmp_path):
    options = {**SMALL, "cutoff": np.float64(4.0)}
    reference = {"Cu": np.float32(-1.5), "Au": np.float64(-2.5)}
    field = ForceField("schnet", options, reference=reference)
    data = zp.ZarrDataModule(stored(alloys(8)), split=(1.0, 0.0, 0.0))
    trainer = fit(field, data, 1, limit_val_batches=0)
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    (again,) = load(tmp_path / "a.ckpt").members
    assert (again.cutoff, float(again.reference[29]), float(again.reference[79])) == (4, -1.5, -2.5)


REFUSED = [
    ({}, {"fields": ["energy", "forces"]}, {}, "fields leaves out 'cell'"),
    ({}, {"fields": ["cell", "pbc"]}, {}, "no training sample of .* has a label that the loss"),
    ({}, {"where": "not has(energy)"}, {}, "no sample to train on"),
    (
        {},
        {"transform": ConvertUnits(energy="meV")},
        {},
        "converts units, and a ForceField",
    ),
    (
        {"reference": {"Cu": 0.0}},
        {},
        {},
        "no reference energy of Au, which .* but of Cu",
    ),
    ({}, {}, {"precision": "bf16-true"}, "trainer.precision is 'bf16-true', which rounds"),
]


@pytest.mark.parametrize(("model", "data", "trainer", "said"), REFUSED)
def test_what_cannot_be_trained_is_refused_before_training(model, data, trainer, said):
    module = zp.ZarrDataModule(stored(alloys(12)), split=(1.0, 0.0, 0.0), **data)
    with pytest.raises((ValueError, RuntimeError), match=said):
        fit(ForceField("schnet", SMALL, **model), module, 1, limit_val_batches=0, **trainer)


def test_a_fit_needs_a_data_module_of_zarrpipe():
    batch = zp.ZarrDataset(stored(alloys(2))).read([0, 1])
    trainer = pl.Trainer(max_steps=1, accelerator="cpu", logger=False, enable_checkpointing=False)
    with pytest.raises(TypeError, match=r"trained on a ZarrDataModule.*got NoneType"):
        trainer.fit(ForceField("schnet", {**SMALL, "cutoff": 4.0}), [batch])


def test_labels_of_validation_that_are_not_finite_are_found_before_training():
    val = list(alloys(12, 1))
    val[5].calc.results["stress"] = np.full(6, np.inf)
    place = {}
    with zp.ZarrData(place) as sink, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        sink.write(val)
    data = zp.ZarrDataModule(stored(alloys(8)), split=(1.0, 0.0, 0.0), val_store=place)
    with pytest.raises(ValueError, match=r"validation samples have .*: 5 \(1 in all\)"):
        fit(ForceField("schnet", SMALL), data, 1)


def test_a_label_that_does_not_count_is_not_blamed():
    batch = zp.ZarrDataset(stored(alloys(2))).read([0, 1])
    batch.stress[1] = torch.nan
    forces = torch.zeros_like(batch.forces)
    forces[5] = torch.nan
    diverged = Prediction(batch.energy, forces, batch.stress.nan_to_num(0.0))
    said = reason(batch, diverged, ["energy", "forces"], [7, 9], 3)
    assert "Training has diverged" in said
    assert "sample 9 of the dataset" in said
    said = reason(batch, diverged, ["forces", "stress"], [7, 9], 3)
    assert "the stress of sample 9 of the dataset has NaN" in said
    finite = Prediction(batch.energy, batch.forces, batch.stress.nan_to_num(0.0))
    assert "too large to be squared" in reason(batch, finite, ["energy"], [7, 9], 3)


def test_the_average_of_weights_forgets_the_first_ones():
    data = zp.ZarrDataModule(stored(alloys(12)), batch_size=4, split=(1.0, 0.0, 0.0))
    trace = []

    class Trace(pl.Callback):
        def on_train_batch_end(self, trainer, pl_module, *_):
            trace.append(next(pl_module.parameters()).detach().clone())

    average = WeightEMA(0.5)
    fit(ForceField("schnet", SMALL), data, 6, limit_val_batches=0, callbacks=[Trace(), average])
    expected = trace[0]
    for number, weights in enumerate(trace[1:], start=1):
        keep = min(0.5, (1 + number) / (10 + number))
        expected = keep * expected + (1 - keep) * weights
    found = next(average._average_model.module.parameters())
    torch.testing.assert_close(found, expected)
    with pytest.raises(ValueError, match=r"decay is 1\.5"):
        WeightEMA(1.5)
