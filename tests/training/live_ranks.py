"""A sampler that appends, and a trainer on two CPU processes beside it, until it has seen all.

Run by test_live.py: ``sample STORE FIRST COUNT OUTPUT`` waits for the first epoch that is begun by
``train STORE COUNT OUTPUT``, and half way for one that has some of its samples. Lightning starts
the latter a second time for the second rank.
"""

import json
import sys
import time
from pathlib import Path

import torch
from lightning.pytorch import LightningModule, Trainer

import zarrpipe as zp
from zarrpipe.testing import numbered_batch

AT_ONCE, PAUSE = 100, 0.04


def sample(store: str, first: str, count: str, output: str) -> None:
    """Append `count` samples from number `first` on, and note when how many were committed."""
    wait_for(Path(output, "begun"))
    committed, noted = int(first), []
    with zp.ZarrData(store) as sink:
        while committed < int(first) + int(count):
            if committed == int(first) + int(count) // 2:
                wait_for(Path(output, "grown"))
            sink.write(numbered_batch(range(committed, committed + AT_ONCE)))
            committed += AT_ONCE
            noted.append([time.monotonic(), committed])
            time.sleep(PAUSE)
    Path(output, "sampler.json").write_text(json.dumps(noted))


def wait_for(file: Path) -> None:
    while not file.exists():
        time.sleep(PAUSE)


class Model(LightningModule):
    """Notes the samples of each epoch, how many it counts, and when it ended; stops at `count`."""

    def __init__(self, count: int, output: str) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1, dtype=torch.float64))
        self.count, self.output = count, output
        self.epochs: list[dict] = []

    def on_train_epoch_start(self) -> None:
        samples = self.trainer.train_dataloader.sampler.num_samples
        self.epochs.append({"samples": samples, "steps": 0, "seen": []})
        name = "grown" if samples > self.epochs[0]["samples"] else "begun"
        Path(self.output, name).touch()

    def training_step(self, batch, batch_idx):
        self.epochs[-1]["steps"] += 1
        self.epochs[-1]["seen"] += batch.serial.ravel().tolist()
        return ((self.weight - batch.energy * 1e-6) ** 2).mean()

    def on_train_epoch_end(self) -> None:
        self.epochs[-1]["ended"] = time.monotonic()
        self.trainer.should_stop = self.epochs[-1]["samples"] == self.count

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.01)


def train(store: str, count: str, output: str) -> None:
    """Train until an epoch has `count` samples."""
    model = Model(int(count), output)
    trainer = Trainer(
        accelerator="cpu",
        strategy="ddp",
        devices=2,
        max_epochs=1000,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(model, zp.ZarrDataModule(store, batch_size=64, split=(1.0, 0.0, 0.0)))
    Path(output, f"rank{trainer.global_rank}.json").write_text(json.dumps(model.epochs))


if __name__ == "__main__":
    torch.set_num_threads(1)
    {"sample": sample, "train": train}[sys.argv[1]](*sys.argv[2:])
