"""Simulate and train on the same ranks: each writes a part of a store, then all train on them.

    torchrun --nproc-per-node 2 recipes/ranks.py

Every rank runs its share of the trajectories of ethanol at GFN2-xTB and writes them into its own
part of ``runs/ranks/ethanol.zarr``. Then all ranks train together (DDP). A run that was stopped
goes on, on any number of ranks: trajectories that are stored are not run again, whichever rank
stored them, and training resumes from its last checkpoint.
"""

import os
from pathlib import Path

import numpy as np

from xtb import start_worker, trajectory

# ruff: noqa: PLC0415  torch is imported after the number of its threads is set

TEMPERATURES = (500.0, 600.0, 700.0, 800.0)
"""In K; the trajectories take turns."""


def main(
    out: Path = Path("runs/ranks"),
    trajectories: int = 16,
    frames: int = 25,
    epochs: int = 3,
    seed: int = 0,
    batch_size: int = 16,
) -> None:
    """Simulate, then train.

    Parameters
    ----------
    out
        Directory of the store and the checkpoints.
    trajectories
        Number of trajectories of all ranks together.
    frames
        Frames of each, 10 fs apart.
    epochs
        Epochs of training.
    seed
        Seed of the trajectories and of the network.
    batch_size
        Samples of a batch of each rank.
    """
    rank, world_size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    simulate(out / "ethanol.zarr", range(rank, trajectories, world_size), frames, seed)
    train(out, epochs, seed, batch_size, world_size)


def simulate(store: Path, numbers: range, frames: int, seed: int) -> None:
    """Run trajectories that no part has yet, each into the part of this rank."""
    start_worker()
    import zarrpipe as zp
    from stores import batch_of_frames

    done = stored_trajectories(store)
    with zp.ZarrData(store, part="auto") as sink:
        for number in numbers:
            if number in done:
                continue
            kelvin = TEMPERATURES[number % len(TEMPERATURES)]
            batch = batch_of_frames(trajectory(kelvin, frames, seed + number))
            batch = batch.add_field("trajectory", np.full(batch.num_graphs, number), "system")
            sink.write(batch, batch_id=f"trajectory-{number}")
        print(f"part {sink.part}: {len(sink)} frames", flush=True)


def stored_trajectories(store: Path) -> set[int]:
    """Numbers of the trajectories that are stored; a batch is stored whole or not at all."""
    import zarrpipe as zp
    from zarrpipe.errors import StoreNotFoundError

    try:
        dataset = zp.ZarrDataset(store)
    except StoreNotFoundError:
        return set()
    return {*dataset.to_dict(["trajectory"])["trajectory"]} if len(dataset) else set()


def train(out: Path, epochs: int, seed: int, batch_size: int, world_size: int) -> None:
    """Train on all parts, from the last checkpoint if there is one."""
    import lightning.pytorch as pl
    import torch

    import zarrpipe as zp
    from zarrpipe.ml import ForceField

    torch.set_num_threads(1)
    trainer = pl.Trainer(
        accelerator="cpu",
        strategy="ddp" if world_size > 1 else "auto",
        devices=world_size,
        max_epochs=epochs,
        callbacks=[pl.callbacks.ModelCheckpoint(out / "checkpoints", save_last=True)],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    data = zp.ZarrDataModule(
        out / "ethanol.zarr", batch_size=batch_size, split=(0.9, 0.1, 0.0), seed=seed
    )
    last = out / "checkpoints" / "last.ckpt"
    trainer.fit(ForceField(lr=3e-3, seed=seed), data, ckpt_path=last if last.exists() else None)
    if trainer.is_global_zero:
        error = trainer.callback_metrics["val/forces_mae_meV_A"].item()
        print(f"{len(data.dataset)} frames of {world_size} ranks: {error:.1f} meV/A", flush=True)


if __name__ == "__main__":
    from jsonargparse import auto_cli

    auto_cli(main, as_positional=False)
