"""Write a part and train on the union of all parts, as one rank; say what the rank saw.

Run by test_two_hosts.py under torchrun: URL of the parent, number of ranks.
"""

import json
import os
import sys
from pathlib import Path

import lightning.pytorch as pl
import torch

import zarrpipe as zp
from reliability.numbered_systems import batch, system

SAMPLES = 20


class Model(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1, dtype=torch.float64))
        self.seen: list[list[int]] = []

    def training_step(self, given):
        numbers = [-round(energy) for energy in given.energy.reshape(-1).tolist()]
        forces = torch.cat([system(number).forces for number in numbers])
        assert torch.equal(given.forces, forces.to(given.forces.dtype))
        self.seen.append([self.current_epoch, *numbers])
        return ((self.weight - given.energy) ** 2).mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.01)


def main(url: str, ranks: int) -> None:
    rank = int(os.environ["RANK"])
    with zp.ZarrData(url, capacity=1000, part="auto") as sink:
        sink.write(batch(*range(1 + SAMPLES * rank, 1 + SAMPLES * (rank + 1))))
    trainer = pl.Trainer(
        accelerator="cpu",
        strategy="ddp",
        devices=1,
        num_nodes=ranks,
        max_epochs=2,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    model = Model()
    trainer.fit(model, zp.ZarrDataModule(url, batch_size=4, split=(1.0, 0.0, 0.0)))
    weight = model.weight.detach().numpy().tobytes().hex()
    network = str(Path("/proc/self/ns/net").readlink())
    said = {"network": network, "seen": model.seen, "weight": weight}
    sys.stdout.write(f"{json.dumps(said)}\n")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
