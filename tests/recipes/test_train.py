import csv
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

import train as recipe
import zarrpipe as zp
from stores import batch_of_frames, read_all, write_once
from xtb import Frames, ethanol, trajectory
from zarrpipe.ml import ForceField, WeightEMA

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / "configs"

pytestmark = [
    # Lightning 2.6: of its own command line and of torch 2.13
    pytest.mark.filterwarnings("ignore:.*LeafSpec.*"),
    pytest.mark.filterwarnings("ignore:validation has . sample"),
    pytest.mark.filterwarnings("ignore:LightningCLI's args parameter is intended:UserWarning"),
    pytest.mark.filterwarnings("ignore::jsonargparse._deprecated.JsonargparseDeprecationWarning"),
    # mace-torch and e3nn, while a model is built
    pytest.mark.filterwarnings("ignore:.*torch.jit.* is deprecated:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:The TorchScript type system doesn't support:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD:UserWarning"),
]

SMALL = {
    "schnet": {"features": 16, "interactions": 1, "gaussians": 8},
    "mace": {"channels": 4, "max_l": 0, "cutoff": 3.0},
}
STEPS = 12


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """Twenty labelled frames of ethanol."""
    path = tmp_path_factory.mktemp("data") / "ethanol.zarr"
    write_once(path, 20, lambda: trajectory(500.0, 20, 0, 2, 5))
    return path


@pytest.fixture(scope="module")
def other(tmp_path_factory):
    """Six frames of another trajectory."""
    path = tmp_path_factory.mktemp("data") / "other.zarr"
    write_once(path, 6, lambda: trajectory(600.0, 6, 1, 2, 5))
    return path


def arguments(store, out, *more, name="schnet"):
    """A fit of a few steps."""
    options = {
        "data.store": store,
        "data.batch_size": 4,
        "model.options": json.dumps(SMALL[name]),
        "trainer.max_steps": STEPS,
        "trainer.val_check_interval": 4,
        "trainer.log_every_n_steps": 2,
        "trainer.enable_progress_bar": False,
        "trainer.enable_model_summary": False,
        "out": out,
    }
    words = (f"--{key}={value}" for key, value in options.items())
    return ["fit", f"--config={CONFIGS / name}.yaml", *words, *more]


@pytest.fixture(scope="module")
def run(store, tmp_path_factory):
    """Directory of a short training run."""
    out = tmp_path_factory.mktemp("runs") / "whole"
    recipe.main(arguments(store, out))
    return out


def config_of(directory):
    return yaml.safe_load((directory / "config.yaml").read_text())


def metrics_of(directory):
    with (directory / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def logged(directory, name):
    """Steps and values of a metric."""
    return [(int(row["step"]), float(row[name])) for row in metrics_of(directory) if row[name]]


def test_a_run_has_a_directory_with_everything_of_it(run, store):
    assert sorted(path.name for path in run.iterdir() if path.suffix not in (".json", ".png")) == [
        "checkpoints",
        "config.yaml",
        "metrics.csv",
        "tensorboard",
    ]
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == [
        "best.ckpt",
        "last.ckpt",
    ]
    config = config_of(run)
    assert config["data"]["store"] == str(store)
    assert config["data"]["split"] == [0.8, 0.2, 0.0]  # chosen by the number of samples
    assert config["model"]["options"] == {**SMALL["schnet"], "cutoff": 5.0}
    assert (config["out"], config["run"], config["ckpt_path"]) == (str(run), None, None)
    (events,) = (run / "tensorboard").glob("events.*")
    assert b"val/forces_mae_meV_A" in events.read_bytes()


def test_what_is_logged(run):
    names = {name for row in metrics_of(run) for name, value in row.items() if value}
    for part in ("train", "val"):
        for label, unit in (("energy", "meV_atom"), ("forces", "meV_A")):
            assert {f"{part}/{label}_{kind}_{unit}" for kind in ("mae", "rmse", "max")} < names
    assert {"lr-AdamW", "train/loss", "data/wait", "train/device/items_per_sec"} < names
    assert [step for step, _ in logged(run, "val/forces_mae_meV_A")] == [3, 7, 11]
    rates = dict(logged(run, "train/device/items_per_sec"))
    systems = dict(logged(run, "train/device/samples_per_sec"))
    for step, rate in rates.items():
        assert rate == pytest.approx(9 * systems[step])  # nine atoms in a molecule


def test_a_killed_run_goes_on_in_its_directory_to_the_same_weights(
    run, store, tmp_path, monkeypatch
):
    out = tmp_path / "killed"

    def kill(field, batch, batch_idx):
        if field.trainer.global_step == 10:
            raise RuntimeError("killed")

    with monkeypatch.context() as patch:
        patch.setattr(ForceField, "on_train_batch_start", kill)
        with pytest.raises(RuntimeError, match="killed"):
            recipe.main(arguments(store, out))
    assert logged(out, "train/loss")[-1][0] == 9  # which comes again
    cli = recipe.main(["fit", "--run", str(out)])
    assert cli.trainer.global_step == STEPS
    assert Path(cli.trainer.log_dir) == out
    whole, resumed = (
        torch.load(one / "checkpoints" / "last.ckpt", weights_only=True) for one in (run, out)
    )
    for kind in ("state_dict", "current_model_state"):  # the average, and what is trained
        torch.testing.assert_close(whole[kind], resumed[kind], rtol=0, atol=0, equal_nan=True)
    for name in ("train/loss", "val/forces_mae_meV_A", "lr-AdamW"):
        assert logged(out, name) == logged(run, name)
    assert config_of(out) == {**config_of(run), "out": str(out)}


def test_another_start_leaves_a_run_as_it_is(run, store, capsys):
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    with pytest.raises(ValueError, match="holds a run"):
        recipe.main(arguments(store, run))
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


def errors(found, labels):
    difference = (found - labels).abs().double() * 1000
    return [
        float(difference.mean()),
        float(difference.square().mean().sqrt()),
        float(difference.max()),
    ]


def test_test_on_a_named_store_keeps_its_errors(run, other, capsys):
    recipe.main(["test", "--run", str(run), "--store", str(other)])
    field = ForceField.load_from_checkpoint(run / "checkpoints" / "best.ckpt").eval()
    batch = read_all(other)
    found = field.predict(batch)
    kept = json.loads((run / "test-other.json").read_text())
    assert (kept["samples"], kept["store"]) == (6, str(other))
    expected = {
        "energy": (errors(found.energy / 9, batch.energy / 9), "meV_atom"),
        "forces": (errors(found.forces, batch.forces), "meV_A"),
    }
    shown = capsys.readouterr().out
    for label, (values, unit) in expected.items():
        for kind, value in zip(("mae", "rmse", "max"), values, strict=True):
            assert kept[f"test/{label}_{kind}_{unit}"] == pytest.approx(value, rel=1e-4)
            assert f"{value:.4g}" in shown


def test_validate_is_of_the_runs_own_validation_samples(run):
    recipe.main(["validate", "--run", str(run)])
    kept = json.loads((run / "validate.json").read_text())
    best = min(value for _, value in logged(run, "val/forces_mae_meV_A"))
    assert kept["val/forces_mae_meV_A"] == pytest.approx(best, rel=1e-4)


def test_a_run_without_test_samples_says_so(run):
    with pytest.raises(ValueError, match=r"none of 20 samples.* is in the test split.*--store"):
        recipe.main(["test", "--run", str(run)])


def test_predictions_are_a_store_with_ids_labels_and_errors_by_eye(run, other):
    recipe.main(["predict", "--run", str(run), "--store", str(other)])
    written = run / "predictions-other.zarr"
    dataset, source = zp.ZarrDataset(written), zp.ZarrDataset(other)
    assert dataset.ids.tolist() == source.ids.tolist()
    batch, labels = read_all(written), read_all(other)
    field = ForceField.load_from_checkpoint(run / "checkpoints" / "best.ckpt").eval()
    expected = field.predict(labels)
    torch.testing.assert_close(batch["predicted_energy"], expected.energy)
    torch.testing.assert_close(batch["predicted_forces"], expected.forces)
    torch.testing.assert_close(batch.energy, labels.energy, rtol=0, atol=0)
    torch.testing.assert_close(batch.forces, labels.forces, rtol=0, atol=0)
    with pytest.raises(FileExistsError, match="predictions-other"):
        recipe.main(["predict", "--run", str(run), "--store", str(other)])


def test_figures_are_drawn_into_the_run(run, other):
    for given in ([], ["--store", str(other)]):
        recipe.main(["plot", "--run", str(run), *given])
    for name in ("learning_curves", "parity", "parity-other"):
        assert (run / f"{name}.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("count", "split"),
    [
        (20, [0.8, 0.2, 0.0]),
        (399, [0.8, 0.2, 0.0]),
        (400, [0.8, 0.1, 0.1]),
        (999, [0.8, 0.1, 0.1]),
        (1000, [0.9, 0.05, 0.05]),
    ],
)
def test_the_split_follows_from_the_number_of_samples(count, split):
    assert recipe.split_of(count) == split


def test_only_samples_that_meet_where_decide_the_split(store, monkeypatch, tmp_path):
    monkeypatch.setattr(recipe, "SMALL_SPLITS", ((10, (0.5, 0.5, 0.0)),))
    given = ["--trainer.max_steps=1", "--data.where=energy < -1e9"]
    with pytest.raises(RuntimeError, match="no sample to train on"):
        recipe.main(arguments(store, tmp_path / "none", *given))
    assert not (tmp_path / "none").exists()


def test_a_label_that_no_sample_has_cannot_choose_a_checkpoint(store, tmp_path):
    unlabelled = tmp_path / "energies.zarr"
    with zp.ZarrData(unlabelled) as sink:
        sink.write(read_all(store).without("forces"))
    with pytest.raises(ValueError, match=r"EarlyStopping.*val/forces_mae.*no sample.*forces"):
        recipe.main(arguments(unlabelled, tmp_path / "run"))
    assert not (tmp_path / "run").exists()


WRONG = {
    "no store": (["--data.store=nowhere.zarr"], "no Zarr store at .*nowhere.zarr"),
    "no config": (["--config=nowhere.yaml"], "File does not exist: .*nowhere.yaml"),
    "no option": (["--data.batchsize=3"], "data.batchsize"),
    "no number": (["--model.lr=quick"], "model.lr.*quick"),
    "no potential": (["--model.potential=nothing"], "'nothing' is neither"),
    "no option of a potential": (["--model.options.featurs=3"], "featurs, which SchNetPotential"),
    "no checkpoint": (["--ckpt_path=nowhere.ckpt"], "no checkpoint nowhere.ckpt"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_typed_in_wrongly_is_one_line_and_changes_nothing(
    name, store, tmp_path, monkeypatch, capsys
):
    given, words = WRONG[name]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["train.py", *arguments(store, "null", *given)])
    with pytest.raises(SystemExit) as ended:
        recipe.script()
    message = ended.value.code
    if isinstance(message, int):
        assert message == 2
        message = capsys.readouterr().err.splitlines()[-1]
    assert len(message.splitlines()) == 1
    assert message.startswith("train.py: ")
    assert re.search(words, message), message
    assert list(tmp_path.iterdir()) == []


def test_force_error_is_logged_in_mev_per_angstrom(store, tmp_path):
    cli = recipe.main(arguments(store, tmp_path / "run", "--trainer.max_steps=1"))
    everything = cli.datamodule.val_dataset
    batch = everything.__getitems__(range(len(everything)))
    forces = cli.model.predict(batch).forces
    expected = float((forces - batch.forces).abs().mean()) * 1000
    (found,) = cli.trainer.validate(cli.model, datamodule=cli.datamodule, verbose=False)
    assert found["val/forces_mae_meV_A"] == pytest.approx(expected, rel=1e-4)


@pytest.mark.slow
@pytest.mark.usefixtures("mace")
def test_a_committee_of_two_architectures_predicts_its_mean_and_deviation(
    run, store, other, tmp_path
):
    out = tmp_path / "mace"
    recipe.main(arguments(store, out, "--model.lr=0.1", name="mace"))
    to = tmp_path / "both.zarr"
    given = ["--store", str(other), "--to", str(to)]
    recipe.main(["predict", "--committee", str(run), str(out), *given])
    labels, batch = read_all(other), read_all(to)
    first, second = (
        ForceField.load_from_checkpoint(one / "checkpoints" / "best.ckpt").eval().predict(labels)
        for one in (run, out)
    )
    torch.testing.assert_close(batch["predicted_energy"], (first.energy + second.energy) / 2)
    torch.testing.assert_close(batch["energy_std"], (first.energy - second.energy).abs() / 2)
    spread = (first.forces - second.forces).double().norm(dim=-1) / 2
    torch.testing.assert_close(batch["forces_std"].double(), spread, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.usefixtures("mace")
def test_an_average_of_weights_leaves_atomic_numbers_alone(store, tmp_path):
    cli = recipe.main(arguments(store, tmp_path / "run", name="mace"))
    assert any(isinstance(one, WeightEMA) for one in cli.trainer.callbacks)
    saved = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)
    state, trained = saved["state_dict"], saved["current_model_state"]
    assert state["potential.network.atomic_numbers"].tolist() == [1, 6, 8]
    for name, value in trained.items():
        if not value.is_floating_point() or name in ("reference", "scale"):
            torch.testing.assert_close(state[name], value, rtol=0, atol=0, equal_nan=True)


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["lightning", "torchrun"])
def test_two_ranks_share_one_directory(store, tmp_path, launcher):
    options = ["--trainer.devices=2", "--trainer.strategy=ddp", "--trainer.max_steps=4"]
    command = [*arguments(store, "null", *options), "--trainer.num_sanity_val_steps=0"]
    words = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2"]
    first = [sys.executable] if launcher == "lightning" else words
    (tmp_path / "runs" / "ethanol-schnet" / "checkpoints").mkdir(parents=True)
    subprocess.run(
        [*first, str(ROOT / "recipes" / "train.py"), *command],
        cwd=tmp_path,
        check=True,
        capture_output=True,
        timeout=300,
    )
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == [
        "ethanol-schnet",
        "ethanol-schnet-2",
    ]
    directory = tmp_path / "runs" / "ethanol-schnet-2"
    assert config_of(directory)["out"] == "runs/ethanol-schnet-2"
    assert (directory / "checkpoints" / "last.ckpt").is_file()
    assert logged(directory, "train/loss")
    assert [path.name for path in (tmp_path / "runs" / "ethanol-schnet").iterdir()] == [
        "checkpoints"
    ]


def test_reference_energies_come_from_the_training_data_once(store, tmp_path):
    cli = recipe.main(arguments(store, tmp_path / "run", "--trainer.max_steps=1"))
    expected = cli.datamodule.statistics.reference_energies
    assert sorted(expected) == [1, 6, 8]
    for number, energy in expected.items():
        assert float(cli.model.reference[number]) == energy


def test_frames_keep_their_values_in_a_batch():
    numbers = ethanol().numbers.astype(np.int64)
    rng = np.random.default_rng(0)
    frames = Frames(
        numbers, rng.normal(size=(3, 9, 3)), rng.normal(size=3), rng.normal(size=(3, 9, 3))
    )
    batch = batch_of_frames(frames)
    assert batch.energy.dtype == torch.float64
    assert batch.batch_ptr.tolist() == [0, 9, 18, 27]
    np.testing.assert_array_equal(batch.get_data(1).positions, frames.positions[1].astype("f4"))
    np.testing.assert_array_equal(batch.get_data(2).forces, frames.forces[2].astype("f4"))
    assert batch.energy.flatten().tolist() == frames.energies.tolist()
