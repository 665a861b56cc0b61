"""Train on two processes while a third one samples into the same store.

    python recipes/live.py

A sampler labels ethanol by GFN2-xTB, at four temperatures, and appends every hundred frames. Two
ranks train beside it: each epoch begins with what is committed by then, the same samples on both,
and training ends after the first epoch that has them all. Nothing has to be set for that but
``zarrpipe.ZarrDataModule``. 10,000 samples take about ten minutes on two cores, which three
processes share; ``torchrun --nproc-per-node 2 recipes/live.py`` does the same.

``runs/live`` gets the store, ``epochs.jsonl`` and ``committed.jsonl`` with what happened when, the
metrics of training, and ``growth.png``. A second run goes on with the store, so that it trains on
what there is; ``--samples`` says how many there are to be at the end.
"""

import contextlib
import json
import time
from collections.abc import Iterator
from itertools import islice
from multiprocessing import get_context
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np

from xtb import Frames, gather, start_worker, walk

# ruff: noqa: PLC0415  the sampler imports this module: it imports torch where it is used

TEMPERATURES = (500.0, 600.0, 700.0, 800.0)
"""In K; a trajectory each."""

FRAMES = 25
"""Of each trajectory in an append."""

START = 400
"""Samples that are there before training begins."""

_POLL, _PATIENCE = 0.2, 120.0


def main(
    out: Path = Path("runs/live"),
    samples: int = 10_000,
    seed: int = 0,
    stride: int = 4,
    batch_size: int = 16,
    devices: int = 2,
) -> None:
    """Sample and train at the same time.

    Parameters
    ----------
    out
        Directory of the results.
    samples
        How many samples the store has in the end.
    seed
        Seed of the trajectories and of the network.
    stride
        Steps of 0.5 fs between frames.
    batch_size
        Samples of a batch of each rank.
    devices
        Number of training processes.
    """
    from lightning.fabric.utilities.rank_zero import rank_zero_only

    store, sampler = out / "ethanol.zarr", None
    if rank_zero_only.rank == 0:  # Lightning, or torchrun, runs this script once for each rank
        out.mkdir(parents=True, exist_ok=True)
        for name in ("epochs", "committed"):
            (out / f"{name}.jsonl").unlink(missing_ok=True)
        sampler = get_context("spawn").Process(
            target=sample, args=(store, samples, seed, stride, out / "committed.jsonl")
        )
        sampler.start()
    try:
        train(store, out, samples, batch_size, devices, seed, sampler)
    except BaseException:
        if sampler is not None:
            sampler.terminate()
        raise
    if sampler is not None:
        sampler.join()
        if sampler.exitcode:
            raise SystemExit(f"the sampler ended with exit code {sampler.exitcode}: see above")
        from growth import summarise

        summarise(out)


def sample(store: Path, samples: int, seed: int, stride: int, log: Path) -> None:
    """Append labelled frames until the store has so many samples; note when it had how many."""
    start_worker()
    import zarrpipe as zp
    from stores import batch_of_frames

    with zp.ZarrData(store, capacity=max(samples, 1)) as sink:
        frames = rounds(seed + len(sink), stride)  # a store that is continued gets other frames
        note(log, committed=len(sink))
        while len(sink) < samples:
            found = next(frames)
            batch = batch_of_frames(found)
            sink.write(batch, np.arange(len(found.energies)) < samples - len(sink))
            note(log, committed=len(sink))


def rounds(seed: int, stride: int) -> Iterator[Frames]:
    """Some frames of each trajectory, in turn, without end."""
    seeds = np.random.SeedSequence(seed).generate_state(len(TEMPERATURES)).tolist()
    walks = [walk(kelvin, one, stride) for kelvin, one in zip(TEMPERATURES, seeds, strict=True)]
    while True:
        yield gather(frame for one in walks for frame in islice(one, FRAMES))


def train(
    store: Path,
    out: Path,
    samples: int,
    batch_size: int,
    devices: int,
    seed: int,
    sampler: BaseProcess | None,
) -> None:
    """Train on what the store has until an epoch has all of it."""
    import lightning.pytorch as pl
    import torch
    from lightning.pytorch.loggers import CSVLogger

    import zarrpipe as zp
    from growth import Growth
    from zarrpipe.ml import ForceField

    torch.set_num_threads(1)
    wait_for(store, min(START, samples), sampler)
    trainer = pl.Trainer(
        accelerator="cpu",
        strategy="ddp" if devices > 1 else "auto",
        devices=devices,
        max_epochs=-1,
        callbacks=[Growth(samples, out / "epochs.jsonl", sampler), zp.DataMonitor()],
        logger=CSVLogger(out, name=None, version="metrics"),
        enable_checkpointing=False,
        enable_progress_bar=False,
        log_every_n_steps=10,
        enable_model_summary=False,
    )
    data = zp.ZarrDataModule(store, batch_size=batch_size, split=(0.95, 0.05, 0.0), seed=seed)
    trainer.fit(ForceField(lr=3e-3, seed=seed), data)


def wait_for(store: Path, samples: int, sampler: BaseProcess | None) -> None:
    """Return once the store has so many samples.

    Raises
    ------
    RuntimeError
        If nothing was added for two minutes, or the sampler has ended before.
    """
    import zarrpipe as zp
    from zarrpipe.errors import StoreNotFoundError

    seen, since = 0, time.monotonic()
    while seen < samples:
        ended = sampler is not None and not sampler.is_alive()
        with contextlib.suppress(StoreNotFoundError):
            if len(zp.ZarrDataset(store)) > seen:
                seen, since = len(zp.ZarrDataset(store)), time.monotonic()
        if seen < samples and (ended or time.monotonic() - since > _PATIENCE):
            raise RuntimeError(f"the sampler has left {seen} samples in {store}: see its error")
        time.sleep(_POLL)


def note(path: Path, **facts: Any) -> None:
    """Add a line of JSON with the time."""
    with path.open("a") as file:
        file.write(json.dumps({"time": time.monotonic(), **facts}) + "\n")


if __name__ == "__main__":
    from jsonargparse import auto_cli

    auto_cli(main, as_positional=False)
