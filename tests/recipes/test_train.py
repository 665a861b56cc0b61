from pathlib import Path

import numpy as np
import pytest
import torch
from stores import batch_of_frames, read_all, write_once
from train import main as train
from xtb import Frames, ethanol, trajectory

from zarrpipe.ml import ForceField

CONFIGS = Path(__file__).parents[2] / "configs"

pytestmark = [
    # Lightning 2.6: of its own command line and of torch 2.13
    pytest.mark.filterwarnings("ignore:.*LeafSpec.*"),
    pytest.mark.filterwarnings("ignore:validation has . sample"),
    pytest.mark.filterwarnings("ignore:LightningCLI's args parameter is intended:UserWarning"),
    pytest.mark.filterwarnings("ignore::jsonargparse._deprecated.JsonargparseDeprecationWarning"),
    # mace-torch and e3nn, while a model is built
    pytest.mark.filterwarnings("ignore:.*torch.jit.script.* is deprecated:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:The TorchScript type system doesn't support:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD:UserWarning"),
]


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """Twenty labelled frames of ethanol."""
    path = tmp_path_factory.mktemp("data") / "ethanol.zarr"
    write_once(path, 20, lambda: trajectory(500.0, 20, 0, 2, 5))
    return path


def arguments(subcommand, name, store, directory, *more):
    options = {
        "data.store": store,
        "data.batch_size": 4,
        "data.split": [0.6, 0.2, 0.2],
        "trainer.default_root_dir": directory,
        "trainer.enable_progress_bar": False,
        "trainer.logger": False,
        "trainer.callbacks": "null",
        "trainer.enable_checkpointing": False,
    }
    return [
        subcommand,
        f"--config={CONFIGS / name}.yaml",
        *(f"--{key}={value}" for key, value in options.items()),
        *more,
    ]


@pytest.mark.usefixtures("mace")
@pytest.mark.parametrize("name", ["schnet", "mace"])
@pytest.mark.slow
def test_fit_from_a_config_then_predict_from_its_checkpoint(store, tmp_path, name):
    fit = ["--threads=2", "--trainer.max_steps=3", "--trainer.check_val_every_n_epoch=1"]
    cli = train(arguments("fit", name, store, tmp_path, *fit))
    assert cli.trainer.global_step == 3
    assert torch.get_num_threads() == 2
    cli.trainer.save_checkpoint(tmp_path / "last.ckpt")
    there = tmp_path / "predict"
    train(arguments("predict", name, store, there, f"--ckpt_path={tmp_path / 'last.ckpt'}"))
    found = torch.load(there / "predictions.pt", weights_only=True)
    field = ForceField.load_from_checkpoint(tmp_path / "last.ckpt")
    expected = field.predict(read_all(store))
    energies, forces, _ = zip(*(part.values() for part in found), strict=True)
    torch.testing.assert_close(torch.cat(energies), expected.energy)
    torch.testing.assert_close(torch.cat(forces), expected.forces, rtol=1e-4, atol=1e-5)


def test_force_error_is_logged_in_mev_per_angstrom(store, tmp_path):
    cli = train(arguments("fit", "schnet", store, tmp_path, "--trainer.max_steps=1"))
    everything = cli.datamodule.test_dataset
    batch = everything.__getitems__(range(len(everything)))
    forces = cli.model.predict(batch).forces
    expected = float((forces - batch.forces).abs().mean()) * 1000
    (logged,) = cli.trainer.test(cli.model, datamodule=cli.datamodule, verbose=False)
    assert logged["test/forces_mae_meV_A"] == pytest.approx(expected, rel=1e-4)


def test_reference_energies_come_from_the_training_data_once(store, tmp_path):
    cli = train(arguments("fit", "schnet", store, tmp_path, "--trainer.max_steps=1"))
    expected = cli.datamodule.statistics.reference_energies
    assert sorted(expected) == [1, 6, 8]
    for number, energy in expected.items():
        assert float(cli.model.reference[number]) == energy
    cli.model.set_reference({1: 5.0})
    cli.trainer.fit(cli.model, cli.datamodule)
    assert float(cli.model.reference[1]) == 5.0


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
