"""Lightning's counts beside a loader whose epochs differ in length: what is refused and said."""

import warnings

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import LambdaCallback, ModelCheckpoint
from lightning.pytorch.utilities import CombinedLoader

from zarrpipe.compat import FIT_LOOP_RESUME, PrivateName
from zarrpipe.dataset.zarr_dataset import ZarrDataset
from zarrpipe.errors import MissingLibraryError
from zarrpipe.training import lightning_resume as _counts
from zarrpipe.training.data_module import ZarrDataModule
from zarrpipe.training.loader import GraphLoader
from zarrpipe.training.sampler import GraphBatchSampler

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*Checkpoint directory"),
    pytest.mark.filterwarnings("ignore:Total length of `GraphLoader` across ranks is zero"),
    pytest.mark.filterwarnings("ignore:.*`isinstance.treespec, LeafSpec.` is deprecated"),
]


class Scheduled(LightningModule):
    """Asks how many steps there will be, and notes what it validates on."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1, dtype=torch.float64))
        self.validated = {}

    def training_step(self, batch, batch_idx):
        return ((self.weight - batch.energy) ** 2).mean()

    def validation_step(self, batch, batch_idx):
        self.validated.setdefault(self.current_epoch, []).extend(batch.serial.ravel().tolist())

    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), lr=0.01)
        steps = self.trainer.estimated_stepping_batches
        one = torch.optim.lr_scheduler.LinearLR(optimizer, total_iters=steps)
        return [optimizer], [{"scheduler": one, "interval": "step"}]


class After(Callback):
    """Does something once, after a step."""

    def __init__(self, step, action):
        self.step, self.action = step, action

    def on_train_batch_end(self, trainer, *_):
        if trainer.global_step == self.step:
            self.action()


def trainer_of(tmp_path, *callbacks, **settings):
    return Trainer(
        accelerator="cpu",
        default_root_dir=tmp_path,
        callbacks=list(callbacks),
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        **{"max_epochs": 3, "enable_checkpointing": False, **settings},
    )


def test_a_release_of_lightning_that_cannot_resume_is_said(tmp_path, store, monkeypatch):
    steps = []

    def fit(**settings):
        saver = ModelCheckpoint(tmp_path, save_last=True, every_n_train_steps=3)
        note = LambdaCallback(on_train_batch_start=lambda *_: steps.append(1))
        trainer = trainer_of(tmp_path, saver, note, enable_checkpointing=True, max_epochs=1)
        module = ZarrDataModule(store[0], batch_size=8, split=(1.0, 0.0, 0.0))
        trainer.fit(Scheduled(), module, **settings)

    gone = PrivateName("", "epoch_loop.gone", "", "")
    monkeypatch.setattr(_counts, "FIT_LOOP_RESUME", (*FIT_LOOP_RESUME, gone))
    fit()
    assert len(steps) == 5
    said = r"lightning \d+\.\d.* has no fit_loop.epoch_loop.gone, .*2\.6.* without ckpt_path$"
    with pytest.raises(MissingLibraryError, match=said):
        fit(ckpt_path=tmp_path / "last.ckpt")
    assert len(steps) == 5


TOLD = r"training comes to 21 steps, .* estimated_stepping_batches was 15: .*max_steps"


def test_a_schedule_that_ends_before_training_is_said_in_the_epoch_where_that_is_known(
    tmp_path, store, data
):
    path, _ = store

    def fit(**settings):
        module = ZarrDataModule(path, batch_size=8, split=(1.0, 0.0, 0.0))
        grow = After(1, lambda: data.append(path, data.batch(24, tag=1)))
        trainer_of(tmp_path, grow, **settings).fit(Scheduled(), module)

    with pytest.warns(UserWarning, match=TOLD) as told:
        fit()
    assert sum("estimated_stepping_batches" in str(one.message) for one in told) == 1
    with warnings.catch_warnings():
        warnings.filterwarnings("error", ".*estimated_stepping_batches")
        fit(max_epochs=-1, max_steps=30)


def test_a_resumed_run_knows_what_was_estimated_at_its_first_start(tmp_path, store, data):
    path, _ = store

    def fit(*callbacks, **settings):
        saver = ModelCheckpoint(tmp_path / "saved", every_n_train_steps=5, save_last=True)
        trainer = trainer_of(tmp_path, saver, *callbacks, enable_checkpointing=True)
        module = ZarrDataModule(path, batch_size=8, split=(1.0, 0.0, 0.0))
        trainer.fit(Scheduled(), module, **settings)

    def fail():
        raise OSError("the machine went away")

    with pytest.raises(OSError, match="went away"):
        fit(After(7, fail))
    data.append(path, data.batch(24, tag=1))
    with pytest.warns(UserWarning, match=TOLD):
        fit(ckpt_path=tmp_path / "saved" / "last.ckpt")


def test_a_validation_has_all_that_its_epoch_knows(tmp_path, store, data):
    path, _ = store
    module = ZarrDataModule(path, batch_size=4, split=(0.5, 0.5, 0.0))
    model = Scheduled()
    before = module.val_dataset.system_field("serial").ravel().tolist()
    grow = After(1, lambda: data.append(path, data.batch(60, tag=1)))
    with pytest.warns(UserWarning, match="estimated_stepping_batches"):
        trainer_of(tmp_path, grow, val_check_interval=2).fit(model, module)
    after = module.val_dataset.system_field("serial").ravel().tolist()
    assert len(after) > len(before) + 20
    assert set(model.validated[0]) == set(before)
    assert set(model.validated[1]) == set(model.validated[2]) == set(after)


@pytest.mark.parametrize("batching", [{"max_atoms": 9}, {"max_edges": 9}, {"balance": True}])
def test_epochs_of_different_length_are_fetched_each(tmp_path, store, batching):
    module = ZarrDataModule(store[0], **batching)
    trainer = trainer_of(tmp_path, reload_dataloaders_every_n_epochs=2)
    with pytest.raises(
        ValueError, match=r"reload_dataloaders_every_n_epochs is 2, .*expected 0 or"
    ):
        trainer.fit(Scheduled(), module)
    trainer_of(tmp_path, reload_dataloaders_every_n_epochs=2, max_epochs=1).fit(
        Scheduled(), ZarrDataModule(store[0], batch_size=8)
    )


@pytest.mark.parametrize("begun", [0, 2])
def test_a_state_may_leave_out_steps_that_are_not_finished(begun):
    def sampler():
        return GraphBatchSampler(range(23), batch_size=4, seed=3, rank=0, world_size=1)

    whole = [batch.tolist() for batch in sampler()]
    first, second = sampler(), sampler()
    steps = iter(first)
    for _ in range(begun):
        next(steps)
    second.load_state_dict(first.state_dict())
    taken = iter(second)
    next(taken), next(taken)
    assert second.step == begun + 2
    state = second.state_dict(unfinished=1)
    assert (state["step"], state["position"]) == (begun + 1, 4 * (begun + 1))
    third = sampler()
    third.load_state_dict(state)
    assert [batch.tolist() for batch in third] == whole[begun + 1 :]


class Cycled(LightningModule):
    """Notes the samples of each batch of two loaders, of which the shorter one begins again."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1, dtype=torch.float64))
        self.seen = []

    def training_step(self, batch, batch_idx):
        self.seen.append([batch[name].serial.ravel().tolist() for name in ("long", "short")])
        return ((self.weight - batch["long"].energy) ** 2).mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.01)


@pytest.mark.parametrize("saved", [2, 3, 5, 6, 9, 10, 15, 20])
def test_a_shorter_loader_that_begins_again_goes_on_where_it_was(tmp_path, store, saved):
    def fit(**settings):
        dataset = ZarrDataset(store[0])
        loaders = {
            name: GraphLoader(dataset, GraphBatchSampler(dataset, 4, index=range(count), seed=3))
            for name, count in (("long", 40), ("short", 12))
        }
        model = Cycled()
        saver = ModelCheckpoint(tmp_path / "saved", every_n_train_steps=saved, save_top_k=-1)
        trainer = trainer_of(tmp_path, saver, enable_checkpointing=True)
        combined = CombinedLoader(loaders, "max_size_cycle")
        trainer.fit(model, train_dataloaders=combined, **settings)
        return model.seen

    whole = fit()
    assert len(whole) == 30
    (path,) = (tmp_path / "saved").glob(f"*step={saved}.ckpt")
    assert fit(ckpt_path=path) == whole[saved:]
