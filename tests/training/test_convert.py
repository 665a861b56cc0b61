"""`convert`: a training loop is given what it makes of each batch, wherever batches come from."""

from typing import NamedTuple

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

import zarrpipe as zp

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:The number of training batches"),
    pytest.mark.filterwarnings("ignore:.*Checkpoint directory"),
    pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`"),
]


class Pair(NamedTuple):
    """The batch of some other library."""

    energy: torch.Tensor
    numbers: torch.Tensor


def as_pair(batch):
    return Pair(batch.energy.flatten(), batch.atomic_numbers)


class Model(LightningModule):
    """Notes the energies that it is given."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen = []

    def training_step(self, batch, _):
        assert isinstance(batch, Pair)
        self.seen.append(batch.energy.tolist())
        return self.weight**2

    def validation_step(self, batch, _):
        assert isinstance(batch, Pair)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.fixture
def store():
    place = {}
    with zp.ZarrData(place) as sink:
        for number in range(40):
            sink.write(zp.AtomicData(torch.rand(2, 3), [1, 8], energy=float(number)))
    return place


def fit(module, tmp_path, **settings):
    model, monitor = Model(), zp.DataMonitor()
    callbacks = [monitor, *settings.pop("callbacks", [])]
    checkpoint = settings.pop("ckpt_path", None)
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False}
    trainer = Trainer(
        accelerator="cpu", default_root_dir=tmp_path, callbacks=callbacks, **quiet, **settings
    )
    trainer.fit(model, module, ckpt_path=checkpoint)
    return model, monitor


@pytest.mark.parametrize("workers", [0, 1])
def test_each_loader_hands_out_what_convert_makes(store, workers):
    data = zp.ZarrDataModule(
        store, batch_size=8, convert=as_pair, split=(0.5, 0.5, 0.0), num_workers=workers
    )
    data.setup("fit")
    for loader, dataset in (
        (data.train_dataloader(), data.train_dataset),
        (data.val_dataloader(), data.val_dataset),
    ):
        pairs = list(loader)
        assert {type(pair) for pair in pairs} == {Pair}
        energies = torch.cat([pair.energy for pair in pairs]).tolist()
        assert sorted(energies) == sorted(dataset.read(range(len(dataset))).energy.flatten())
        assert all(pair.numbers.tolist() == [1, 8] * len(pair.energy) for pair in pairs)
    data.teardown("fit")


def test_a_fit_resumes_in_the_order_of_one_without_convert(store, tmp_path):
    def data(convert):
        return zp.ZarrDataModule(
            store, batch_size=4, convert=convert, seed=5, split=(1.0, 0.0, 0.0)
        )

    plain = data(None)
    plain.setup("fit")
    order = [batch.energy.flatten().tolist() for batch in plain.train_dataloader()]
    keep = ModelCheckpoint(tmp_path, every_n_train_steps=6, save_top_k=-1, filename="{step}")
    quick = {"limit_val_batches": 0, "enable_checkpointing": True}
    model, monitor = fit(data(as_pair), tmp_path, max_epochs=1, callbacks=[keep], **quick)
    assert model.seen == order
    assert (monitor.total.batches, monitor.total.samples, monitor.total.atoms) == (10, 40, 80)
    quick["enable_checkpointing"] = False
    path = tmp_path / "step=6.ckpt"
    resumed, _ = fit(data(as_pair), tmp_path, max_epochs=1, ckpt_path=path, **quick)
    assert resumed.seen == order[6:]


def test_what_cannot_be_called_is_refused(store):
    with pytest.raises(TypeError, match="convert is 'mace', expected a function of a Batch"):
        zp.ZarrDataModule(store, convert="mace")
