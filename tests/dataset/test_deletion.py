"""Samples that are deleted between two fits and inside of one."""

import shutil

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from zarrpipe import AtomicDataZarrWriter, ZarrDataModule, ZarrDataset
from zarrpipe.errors import StoreFormatError

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:The number of training batches"),
    pytest.mark.filterwarnings("ignore:.*`isinstance.treespec, LeafSpec.` is deprecated"),
]


class Energies(LightningModule):
    """Notes the samples of each step."""

    def __init__(self):
        super().__init__()
        self.net, self.seen = torch.nn.Linear(1, 1, dtype=torch.float64), []

    def training_step(self, batch, batch_idx):
        self.seen += batch.serial.ravel().tolist()
        return ((self.net(batch.energy) - batch.energy) ** 2).mean()

    def validation_step(self, batch, batch_idx):
        pass

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=1e-4)


class DeleteAt(Callback):
    """Deletes samples after the second batch."""

    def __init__(self, store, indices):
        self.store, self.indices = store, indices

    def on_train_batch_end(self, trainer, *_):
        if trainer.global_step == 2:
            delete(self.store, self.indices)


def delete(store, indices):
    with AtomicDataZarrWriter(store) as writer:
        writer.delete(indices)


def trainer(tmp_path, *callbacks, epochs):
    return Trainer(
        accelerator="cpu",
        max_epochs=epochs,
        default_root_dir=tmp_path,
        callbacks=list(callbacks),
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=bool(callbacks),
        limit_val_batches=0,
    )


def test_a_deletion_inside_of_a_fit_is_said_and_the_way_out_works(tmp_path, store):
    path = store[0]
    module = ZarrDataModule(path, batch_size=16, split=(0.8, 0.2, 0.0))
    saving = ModelCheckpoint(tmp_path / "saved", every_n_train_steps=2, save_top_k=-1)
    with pytest.raises(StoreFormatError) as caught:
        trainer(tmp_path, saving, DeleteAt(path, [0, 7, 11]), epochs=3).fit(Energies(), module)
    assert f"samples of {str(path)!r} were deleted or moved" in str(caught.value)
    assert "begin a new fit without ckpt_path" in str(caught.value)
    saved = str(next((tmp_path / "saved").iterdir()))

    # The way out, with a new data module and with the one that was there.
    left = sorted(set(range(40)) - {0, 7, 11})
    for again in (ZarrDataModule(path, batch_size=16, split=(0.8, 0.2, 0.0)), module):
        model = Energies.load_from_checkpoint(saved)
        trainer(tmp_path, epochs=1).fit(model, again)
        serials = [
            own.system_field("serial").ravel().tolist()
            for own in (again.train_dataset, again.val_dataset)
        ]
        assert sorted(model.seen) == serials[0]
        assert sorted(serials[0] + serials[1]) == left
        assert again.statistics.num_samples == len(serials[0])
    with pytest.raises(StoreFormatError, match=r"as they were; where samples were deleted.*begin"):
        trainer(tmp_path, epochs=3).fit(Energies(), module, ckpt_path=saved)


def test_a_batch_that_cannot_be_read_any_more_tells_the_way_out(store):
    module = ZarrDataModule(store[0], split=(1.0, 0.0, 0.0))
    module.setup("fit")
    damaged, rewritten = StoreFormatError("the array is damaged"), StoreFormatError("rewritten")
    module.on_exception(damaged)
    delete(store[0], [4])
    module.on_exception(rewritten)
    assert not hasattr(damaged, "__notes__")
    (note,) = rewritten.__notes__
    assert "were deleted or moved" in note
    assert "begin a new fit" in note
    assert len(module.train_dataset) == 39


def test_an_error_stays_what_it_is_where_the_store_is_gone(store):
    module = ZarrDataModule(store[0], split=(1.0, 0.0, 0.0))
    module.setup("fit")
    shutil.rmtree(store[0])
    error = StoreFormatError("rewritten")
    module.on_exception(error)
    assert not hasattr(error, "__notes__")


def test_between_fits_samples_may_be_deleted(tmp_path, store, data):
    module = ZarrDataModule(store[0], batch_size=16, split=(0.6, 0.4, 0.0))
    trainer(tmp_path, epochs=1).fit(Energies(), module)
    sides = {side: getattr(module, f"{side}_dataset").ids for side in ("train", "val")}
    gone = module.dataset.ids[[1, 2, 3, 5, 8, 13, 21]]
    delete(store[0], [1, 2, 3, 5, 8, 13, 21])
    data.append(store[0], data.batch(7, tag=1))  # as many as before
    trainer(tmp_path, epochs=1).fit(model := Energies(), module)
    every = ZarrDataset(store[0])
    for side, before in sides.items():
        kept = before[~np.isin(before, gone)]
        now = getattr(module, f"{side}_dataset").ids
        assert np.array_equal(now[: len(kept)], kept)
        assert np.isin(now, every.ids).all()
    assert sorted(model.seen) == sorted(module.train_dataset.system_field("serial").ravel())


def test_a_loop_of_ones_own_goes_on_with_what_is_left(store):
    module = ZarrDataModule(store[0], batch_size=8, split=(1.0, 0.0, 0.0))
    assert len(list(module.train_dataloader())) == 5
    delete(store[0], list(range(16)))
    with pytest.raises(StoreFormatError, match="were deleted or moved"):
        module.refresh()
    seen = [batch.serial.ravel().tolist() for batch in module.train_dataloader()]
    assert sorted(one for serials in seen for one in serials) == list(range(16, 40))
