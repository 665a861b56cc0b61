"""Real Lightning runs with transforms: draws by sample, validation without, and YAML."""

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from zarrpipe import ZarrDataModule, ZarrDataset
from zarrpipe.errors import ArgumentTypeError
from zarrpipe.transforms import (
    Compose,
    ConvertUnits,
    GaussianNoise,
    NeighborList,
    RandomRotation,
    sample_keys,
)

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:The number of training batches"),
    pytest.mark.filterwarnings("ignore:.*Checkpoint directory"),
]
FIELDS = ["serial", "energy", "forces"]
AUGMENT = [RandomRotation(), GaussianNoise(0.1)]
CONVERT = ConvertUnits(length="nm")


class SampleFindings(LightningModule):
    """Notes the positions of each sample by epoch, and learns a little."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(3, dtype=torch.float64))
        self.trained, self.validated = {}, {}

    def note(self, where, batch):
        for one in batch.to_data_list():
            where.setdefault(self.current_epoch, {})[int(one.serial)] = one.positions

    def training_step(self, batch, batch_idx):
        self.note(self.trained, batch)
        return ((batch.positions * self.weight).sum(1) - batch.forces[:, 0]).square().mean()

    def validation_step(self, batch, batch_idx):
        self.note(self.validated, batch)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.01)


class Kill(Callback):
    def __init__(self, step):
        self.step = step

    def on_train_batch_end(self, trainer, *_):
        if trainer.global_step == self.step:
            raise InterruptedError


def fit(module, tmp_path, *callbacks, **settings):
    model = SampleFindings()
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    saving = {"enable_checkpointing": any(isinstance(one, ModelCheckpoint) for one in callbacks)}
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=2,
        default_root_dir=tmp_path,
        callbacks=list(callbacks),
        **quiet,
        **saving,
    )
    try:
        trainer.fit(model, module, **settings)
    except InterruptedError:
        module.teardown("fit")
    return model


def module_of(path, **settings):
    given = {"batch_size": 7, "split": (0.7, 0.3, 0.0), "seed": 5, "fields": FIELDS}
    given |= {"train_transform": AUGMENT, "transform": CONVERT}
    return ZarrDataModule(path, **{**given, **settings})


def drawn(path, epoch, transforms, seed=5):
    """Positions of each sample by its serial, made one by one."""
    dataset, transform = ZarrDataset(path, FIELDS), Compose(transforms)
    made = {}
    for row in range(len(dataset)):
        keys = sample_keys(seed, epoch, dataset.ids_of([row]))
        one = transform(dataset.__getitems__([row]), keys)
        made[int(one.serial)] = one.positions
    return made


def assert_among(got, expected):
    assert got
    for serial, positions in got.items():
        assert torch.equal(positions, expected[serial]), serial


@pytest.mark.parametrize(
    "settings",
    [
        {},
        pytest.param({"num_workers": 1, "batch_size": 3}, marks=pytest.mark.slow),
        {"prefetch": 2, "max_atoms": 16},
        {"resident": True},
    ],
)
def test_training_draws_by_sample_and_validation_does_not(tmp_path, store, settings):
    model = fit(module_of(store[0], **settings), tmp_path)
    plain = drawn(store[0], 0, [CONVERT])
    for epoch in range(2):
        assert_among(model.trained[epoch], drawn(store[0], epoch, [*AUGMENT, CONVERT]))
        assert_among(model.validated[epoch], plain)
        both = model.trained[epoch].keys() | model.validated[epoch].keys()
        assert sorted(both) == list(range(40))
    first, second = model.trained[0], model.trained[1]
    assert all(not torch.equal(first[serial], second[serial]) for serial in first)


@pytest.mark.parametrize("step", [2, 6])
def test_a_killed_run_draws_on_as_if_it_had_not_been(tmp_path, store, step):
    whole = fit(module_of(store[0]), tmp_path)
    saving, again = (ModelCheckpoint(tmp_path / "saved", every_n_train_steps=1) for _ in range(2))
    killed = fit(module_of(store[0]), tmp_path, saving, Kill(step))
    resumed = fit(module_of(store[0]), tmp_path, again, ckpt_path=saving.best_model_path)
    assert torch.equal(resumed.weight, whole.weight)
    assert not torch.equal(killed.weight, whole.weight)
    for epoch, seen in resumed.trained.items():
        assert_among(seen, whole.trained[epoch])
    assert sum(map(len, resumed.trained.values())) < sum(map(len, whole.trained.values()))


def test_random_ones_on_every_side_are_the_same_in_each_validation(tmp_path, store):
    model = fit(module_of(store[0], transform=AUGMENT, train_transform=None), tmp_path)
    fixed = drawn(store[0], 0, AUGMENT)
    for epoch in range(2):
        assert_among(model.trained[epoch], drawn(store[0], epoch, AUGMENT))
        assert_among(model.validated[epoch], fixed)


def test_a_function_of_ones_own_augments_training_alone(store, transforms):
    module = module_of(store[0], train_transform=transforms.shifted, transform=None)
    plain = ZarrDataset(store[0], FIELDS).__getitems__(range(40))
    for loader, by in ((module.train_dataloader(), 1), (module.val_dataloader(), 0)):
        for batch in loader:
            expected = plain.index_select(batch.serial.ravel())
            assert torch.equal(batch.positions, expected.positions + by)


def test_what_is_no_transform_is_refused_at_once():
    with pytest.raises(ArgumentTypeError, match=r"train_transform is the class .*RandomRotation"):
        ZarrDataModule("nowhere", train_transform=RandomRotation)


CONFIG = """
data:
  store: {store}
  batch_size: 8
  fields: [serial, energy, forces]
  split: [0.7, 0.3, 0.0]
  train_transform:
    - class_path: zarrpipe.transforms.RandomRotation
    - class_path: zarrpipe.transforms.GaussianNoise
      init_args: {{scale: 0.1}}
  transform:
    class_path: zarrpipe.transforms.Compose
    init_args:
      transforms:
        - class_path: zarrpipe.transforms.NeighborList
          init_args: {{cutoff: 2.5}}
        - class_path: zarrpipe.transforms.ConvertUnits
          init_args: {{energy: kcal/mol, fields: {{forces: eV/Angstrom}}}}
"""


@pytest.mark.filterwarnings("ignore")  # jsonargparse's own deprecations, which LightningCLI uses
def test_a_configuration_file_says_the_transforms(tmp_path, store, monkeypatch):
    for library in ("jsonargparse", "vesin"):
        pytest.importorskip(library)
    from lightning.pytorch.cli import LightningCLI  # noqa: PLC0415  needs jsonargparse

    config = tmp_path / "given.yaml"
    config.write_text(CONFIG.format(store=store[0]))
    monkeypatch.chdir(tmp_path)
    quiet = {"logger": False, "enable_progress_bar": False, "enable_checkpointing": False}
    cli = LightningCLI(
        SampleFindings,
        ZarrDataModule,
        args=["fit", f"--config={config}"],
        trainer_defaults={"accelerator": "cpu", "max_epochs": 1, **quiet},
        seed_everything_default=0,
    )
    neighbours, convert = NeighborList(2.5), cli.datamodule.transform.transforms[1]
    assert convert.factors["energy"] == pytest.approx(23.0605, rel=1e-5)
    assert convert.factors["forces"] == 1.0
    assert_among(cli.model.trained[0], drawn(store[0], 0, AUGMENT, seed=0))
    assert_among(cli.model.validated[0], drawn(store[0], 0, []))
    saved = (tmp_path / "config.yaml").read_text()
    assert "zarrpipe.transforms.GaussianNoise" in saved
    batch = next(iter(cli.datamodule.val_dataloader()))
    rows = np.flatnonzero(np.isin(np.arange(40), batch.serial.ravel().numpy()))
    expected = neighbours(ZarrDataset(store[0], FIELDS).__getitems__(rows))
    assert torch.equal(batch.neighbor_list, expected.neighbor_list)
    assert batch.num_edges > 0
    torch.testing.assert_close(batch.energy, expected.energy * convert.factors["energy"])
