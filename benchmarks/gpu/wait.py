"""The wait for data of a small MACE that trains from a store, neighbour lists found on the fly."""

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

import zarrpipe as zp
from benchmarks.gpu.device import synchronize
from benchmarks.keeping import kept
from benchmarks.rows import Row
from benchmarks.settings import Settings
from zarrpipe.training.flow import Flow

BATCH, R_MAX, SEED = 64, 5.0, 0
WARM_UP = 5
WAYS: dict[str, dict[str, Any]] = {
    "no workers": {},
    "prefetch=2": {"prefetch": 2},
    "two workers": {"num_workers": 2},
}
SECONDS = 35
"""Most seconds of each training, beside its start."""


def rows(settings: Settings, device: torch.device) -> Iterator[Row]:
    """Share of the wait, milliseconds of a step and samples/s, by the way batches are read."""
    count, steps = settings.size.samples["structures"] // 5, 8 * settings.size.rounds
    store = written(settings.work, count)
    for name, options in WAYS.items():
        flow = trained(store, device, min(BATCH, count), steps, **options)
        case = f"MACE, batches of {min(BATCH, count)}, {name}"
        seconds = flow.seconds / flow.batches
        yield Row.single("gpu", case, "wait", 100 * flow.wait, "%")
        yield Row.single("gpu", case, "step", 1e3 * seconds, "ms")
        yield Row.single("gpu", case, "throughput", flow.samples / flow.seconds, "samples/s")


def written(work: Path, count: int) -> Path:
    """Store of labelled crystals of 4 to 32 atoms, kept for the next run."""
    from benchmarks.trainers.structures import crystals  # noqa: PLC0415  ASE, which may be missing

    def write(place: Path) -> None:
        with zp.ZarrData(place / "store.zarr") as sink:
            sink.write(crystals(count, SEED))

    return kept(work, f"crystals-{count}", f"crystals {count} {SEED}", write) / "store.zarr"


def trained(store: Path, device: torch.device, batch_size: int, steps: int, **options: Any) -> Flow:
    """What `DataMonitor` has counted in a training, after its first steps."""
    data = zp.mace.MACEDataModule(
        store, R_MAX, batch_size=batch_size, split=(1.0, 0.0, 0.0), seed=SEED, **options
    )
    data.setup("fit")
    monitor = zp.DataMonitor(every_n_steps=1)
    trainer = Trainer(
        accelerator="gpu" if device.type == "cuda" else device.type,
        devices=1,
        max_epochs=-1,
        max_steps=WARM_UP + steps,
        max_time={"seconds": SECONDS},
        callbacks=[Synchronized(device), monitor, WarmUp(monitor)],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    torch.manual_seed(SEED)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of Lightning and MACE, when they begin
        trainer.fit(Model(data), data)
    return monitor.total


class Model(LightningModule):  # type: ignore[misc]  # lightning is not followed
    """A MACE of two layers and 16 channels, trained on energies and forces."""

    def __init__(self, data: Any) -> None:
        super().__init__()
        from benchmarks.trainers.mace import network  # noqa: PLC0415  MACE, which may be missing

        self.network = network(data.model_arguments())

    def training_step(self, batch: Any, _: int) -> torch.Tensor:
        """Mean squares of the errors per atom, and of the forces."""
        found = self.network(batch.to_dict(), training=True)
        energies = (found["energy"] - batch.energy) / batch.ptr.diff()
        return energies.square().mean() + (found["forces"] - batch.forces).square().mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """As MACE's default."""
        return torch.optim.Adam(self.parameters(), lr=0.01)


class Synchronized(Callback):  # type: ignore[misc]
    """Lets a step end when the device has done it, so that no wait hides behind the device."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def on_train_batch_end(self, *_: Any) -> None:
        """Wait for the device."""
        synchronize(self.device)


class WarmUp(Callback):  # type: ignore[misc]
    """Lets a monitor, which stands before it, forget the first steps."""

    def __init__(self, monitor: zp.DataMonitor) -> None:
        self.monitor = monitor

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        """Begin to count anew after the last step that does not count."""
        if trainer.global_step == WARM_UP:
            self.monitor.total = Flow()
