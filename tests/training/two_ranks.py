"""Train on two CPU processes and write which samples each rank saw: store, output, checkpoint.

Run by test_ddp.py; Lightning starts it a second time for the second rank.
"""

import json
import sys
from pathlib import Path

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from zarrpipe.dataset.zarr_dataset import ZarrDataset
from zarrpipe.sink import ZarrData
from zarrpipe.training.data_module import ZarrDataModule


class Model(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1, dtype=torch.float64))
        self.seen, self.validated = [], []

    def training_step(self, batch, batch_idx):
        self.seen.append([self.current_epoch, batch.serial.tolist()])
        return ((self.weight - batch.energy) ** 2).mean()

    def validation_step(self, batch, batch_idx):
        if not self.trainer.sanity_checking:
            self.validated.append([self.current_epoch, batch.serial.tolist()])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Grow(Callback):
    """Rank 0 doubles the store in the first epoch, while the other may look at it."""

    def __init__(self, store: str) -> None:
        self.store = store

    def on_train_batch_end(self, trainer, *_):
        if trainer.is_global_zero and trainer.global_step == 1:
            batch = ZarrDataset(self.store).__getitems__(range(20))
            batch.serial = batch.serial + 1000
            batch.positions = batch.positions + 1.0
            with ZarrData(self.store, capacity=1000) as sink:
                sink.write(batch)


def main(store: str, output: str) -> None:
    model = Model()
    saver = ModelCheckpoint(output, every_n_train_steps=7, save_top_k=-1, filename="{step}")
    trainer = Trainer(
        accelerator="cpu",
        strategy="ddp",
        devices=2,
        max_epochs=2,
        callbacks=[Grow(store), saver],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    module = ZarrDataModule(store, batch_size=3, split=(0.8, 0.2, 0.0))
    trainer.fit(model, module)
    seen = {"train": model.seen, "val": model.validated, "N": len(module.dataset)}
    seen["splits"] = [
        side.system_field("serial").ravel().tolist()
        for side in (module.train_dataset, module.val_dataset)
    ]
    (Path(output) / f"rank{trainer.global_rank}.json").write_text(json.dumps(seen))


if __name__ == "__main__":
    main(*sys.argv[1:])
