"""What a job of training_runs.py does: a Lightning run that notes all it sees.

A job has ``output``, a directory; ``module``, the arguments of ZarrDataModule; and it may have
``trainer`` and ``saving``, those of Trainer and ModelCheckpoint; ``world``, a number of ranks;
``resume``, a checkpoint; ``schedule``; ``grow``, stores that are appended to others after a batch;
``kill``, the batch at which and the moment when the process is killed, or raises; ``until``, the
number of samples of the last epoch; ``fits``, attributes of the fit loop for each of several fits.
"""

import hashlib
import json
import os
import signal
import time
from pathlib import Path

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from zarrpipe import ZarrData, ZarrDataModule, ZarrDataset
from zarrpipe.testing import numbered_batch

torch.set_num_threads(1)
with ZarrData({}) as _sink:  # brings in what reading needs, before any fork
    _sink.write(numbered_batch([1]))
    _sink.read()


def digest(value) -> str:
    """Hash of every bit of a nested state."""
    seen = hashlib.sha256()

    def add(part):
        if isinstance(part, torch.Tensor):
            seen.update(f"{part.dtype}{tuple(part.shape)}".encode())
            seen.update(part.detach().contiguous().numpy().tobytes())
        elif isinstance(part, dict):
            for name in sorted(part, key=repr):
                seen.update(repr(name).encode())
                add(part[name])
        elif isinstance(part, list | tuple):
            seen.update(b"[")
            for one in part:
                add(one)
        else:
            seen.update(repr(part).encode())

    add(value)
    return seen.hexdigest()


class Model(LightningModule):
    """A potential whose weights depend on every bit and on the order of what it is given."""

    def __init__(self, job, watch):
        super().__init__()
        self.job, self.watch = job, watch
        torch.manual_seed(7)
        self.net = torch.nn.Sequential(
            torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1)
        )

    def loss(self, batch):
        atoms = torch.cat([batch.positions, batch.atomic_numbers[:, None]], dim=1)
        sums = torch.zeros(batch.num_graphs, 4, dtype=atoms.dtype)
        sums = sums.index_add(0, batch.batch_idx, atoms).to(torch.float32)
        return ((self.net(sums) - batch.energy.to(torch.float32)) ** 2).mean()

    def on_after_batch_transfer(self, batch, dataloader_idx):
        if self.trainer.training:
            self.watch.on_after_batch_transfer(self.trainer)
        return batch

    def training_step(self, batch, batch_idx):
        return self.loss(batch)

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", self.loss(batch), sync_dist=True, batch_size=batch.num_graphs)

    def configure_optimizers(self):
        optimizer = torch.optim.AdamW(self.parameters(), lr=1e-2)
        if self.job.get("schedule") == "cycle":
            total = self.trainer.estimated_stepping_batches
            one = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.1, total_steps=total)
            return [optimizer], [{"scheduler": one, "interval": "step"}]
        return optimizer


class Watch(Callback):
    """Notes what happens, and does what the job says at some batch."""

    def __init__(self, job, note):
        self.job, self.note = job, note

    def at(self, trainer, place):
        wanted = self.job.get("kill")
        if wanted and [trainer.fit_loop.total_batch_idx, place] == wanted:
            os.kill(os.getpid(), signal.SIGKILL)
        if wanted and [trainer.fit_loop.total_batch_idx, f"{place}, raised"] == wanted:
            raise RuntimeError(f"raised at {wanted}")

    def on_train_start(self, trainer, *_):
        loader, loop = trainer.train_dataloader, trainer.fit_loop.epoch_loop
        steps = [len(loader), trainer.num_training_batches, loop.batch_progress.current.ready]
        self.note("begin", trainer.current_epoch, *steps, trainer.global_step)

    def on_train_epoch_start(self, trainer, *_):
        loader = trainer.train_dataloader
        steps = [len(loader), trainer.num_training_batches]
        self.note("epoch", trainer.current_epoch, loader.sampler.num_samples, *steps)

    def on_train_batch_start(self, trainer, module, batch, index):
        numbers = [trainer.fit_loop.total_batch_idx, trainer.current_epoch, index]
        self.note("train", *numbers, trainer.global_step, batch.serial.ravel().tolist())
        self.at(trainer, "start")

    def on_after_batch_transfer(self, trainer):
        self.at(trainer, "transfer")

    def on_before_optimizer_step(self, trainer, *_):
        self.at(trainer, "update")

    def on_validation_batch_end(self, trainer, module, outputs, batch, index, *_):
        if trainer.sanity_checking:
            return
        numbers = [trainer.fit_loop.total_batch_idx, trainer.current_epoch, index]
        self.note("val", *numbers, batch.serial.ravel().tolist())
        self.at(trainer, "validation")

    def on_train_batch_end(self, trainer, *_):
        grow = self.job.get("grow")
        done = [trainer.current_epoch, trainer.fit_loop.batch_idx]
        if grow and done == grow["at"]:
            if trainer.is_global_zero:
                for source, target in zip(grow["from"], grow["to"], strict=True):
                    with ZarrData(target, capacity=10_000) as sink:
                        sink.write(ZarrDataset(source).__getitems__(slice(None)))
            trainer.strategy.barrier()
        self.at(trainer, "end")

    def on_train_epoch_end(self, trainer, *_):
        self.note("ended", trainer.current_epoch, trainer.global_step)
        if "until" in self.job:
            self.note("time", time.monotonic())
            samples = trainer.train_dataloader.sampler.num_samples
            trainer.should_stop = samples == self.job["until"]


def train(job, rank):
    """One rank of a run; what it sees is noted line by line, so that a kill leaves it."""
    output = Path(job["output"])
    with (output / f"rank{rank}.jsonl").open("w") as lines:

        def note(*entry):
            lines.write(json.dumps(entry) + "\n")
            lines.flush()

        watch = Watch(job, note)
        model = Model(job, watch)
        several = {"strategy": "ddp", "devices": job["world"]} if "world" in job else {"devices": 1}
        saving = {"save_last": True, **job.get("saving", {"every_n_train_steps": 3})}
        trainer = Trainer(
            accelerator="cpu",
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            callbacks=[watch, ModelCheckpoint(output / "checkpoints", **saving)],
            **{"max_epochs": 3, **several, **job.get("trainer", {})},
        )
        module = ZarrDataModule(**job["module"])
        for again in job.get("fits", [{}]):
            for name, value in again.items():
                setattr(trainer.fit_loop, name, value)
            trainer.fit(model, module, ckpt_path=job.get("resume"))
        optimizer = trainer.optimizers[0]
        rate = optimizer.param_groups[0]["lr"]
        states = [digest(model.state_dict()), digest(optimizer.state_dict())]
        note("result", trainer.current_epoch, trainer.global_step, rate, *states)
