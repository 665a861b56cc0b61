"""How a store grew while it was trained on: what a trainer notes, and what is made of the notes."""

import json
import time
from itertools import pairwise
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch

from figures import panels, plain_ticks

ERROR = "val/forces_mae_meV_A"


class Growth(pl.Callback):
    """Notes and prints what each epoch begins with, and ends training once that is everything.

    Parameters
    ----------
    samples
        How many samples are everything.
    notes
        File that gets a line of JSON an epoch.
    sampler
        Process whose failure ends training; None on ranks that have not started it.
    """

    def __init__(self, samples: int, notes: Path, sampler: BaseProcess | None) -> None:
        self.samples, self.notes, self.sampler = samples, notes, sampler
        self._begun = 0.0
        self._before = 0

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """See that all ranks have the same samples."""
        self._begun = time.monotonic()
        counts = pl_module.all_gather(torch.tensor(_held(trainer))).reshape(-1).tolist()
        if len(set(counts)) > 1:
            raise RuntimeError(f"the ranks train on {counts} samples")

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Note the epoch; stop after the first with all samples."""
        held = _held(trainer)
        failed = self.sampler is not None and bool(self.sampler.exitcode)
        failed = trainer.strategy.reduce_boolean_decision(failed, all=False)
        trainer.should_stop = held >= self.samples or failed
        if not trainer.is_global_zero:
            return
        error = float(trainer.callback_metrics.get(ERROR, torch.nan))
        facts = {
            "epoch": trainer.current_epoch,
            "samples": held,
            "trained": trainer.train_dataloader.sampler.num_samples,
            "begun": self._begun,
            "ended": time.monotonic(),
            "error": error,
        }
        with self.notes.open("a") as file:
            file.write(json.dumps(facts) + "\n")
        new, self._before = held - self._before, held
        print(
            f"epoch {trainer.current_epoch:>3}: {held:>6,} samples, {new:>5,} of them new, "
            f"force MAE {error:5.1f} meV/\u00c5",
            flush=True,
        )


def _held(trainer: pl.Trainer) -> int:
    """Samples of the store, those for validation included, that the epoch knows of."""
    return len(trainer.datamodule.dataset)


def summarise(out: Path) -> None:
    """Print how the store grew and draw it.

    Raises
    ------
    RuntimeError
        If an epoch began without samples that were committed before.
    """
    epochs = [json.loads(line) for line in (out / "epochs.jsonl").read_text().splitlines()]
    commits = [json.loads(line) for line in (out / "committed.jsonl").read_text().splitlines()]
    for before, after in pairwise(epochs):
        there = max((c["committed"] for c in commits if c["time"] < before["ended"]), default=0)
        if after["samples"] < there:
            raise RuntimeError(f"epoch {after['epoch']} has {after['samples']} samples of {there}")
    took = epochs[-1]["ended"] - epochs[0]["begun"]
    print(
        f"{len(epochs)} epochs in {took:.0f} s, from {epochs[0]['samples']:,} samples to "
        f"{epochs[-1]['samples']:,}; each began with all that were committed before"
    )
    _draw(epochs, commits, out / "growth.png")


def _draw(epochs: list[dict[str, Any]], commits: list[dict[str, Any]], path: Path) -> None:
    """The store and the epochs against time, and the error against what was trained on."""
    figure, (grown, learnt) = panels(1, 2, (9.0, 3.8))
    start = commits[0]["time"]
    minutes = [(commit["time"] - start) / 60 for commit in commits]
    grown.plot(minutes, [c["committed"] for c in commits], color="#888888", label="committed")
    for number, epoch in enumerate(epochs):
        span = [(epoch[when] - start) / 60 for when in ("begun", "ended")]
        name = None if number else "in the epoch"
        grown.plot(
            span, [epoch["samples"]] * 2, color="#1f6fb4", lw=3, solid_capstyle="butt", label=name
        )
    grown.set(xlabel="time (min)", ylabel="samples")
    grown.legend(frameon=False, fontsize=9)
    learnt.plot([e["trained"] for e in epochs], [e["error"] for e in epochs], "o-", color="#1f6fb4")
    learnt.set(xlabel="training samples of the epoch", ylabel="force MAE (meV/\u00c5)")
    learnt.set_yscale("log")
    plain_ticks(learnt)
    figure.savefig(path, dpi=150)
