"""A rank on a host of its own: it writes its part, then trains on the union of both; see the test.

``python rank_of_two_hosts.py URL OUT`` with the variables that torchrun sets.
"""

import json
import os
import sys
from pathlib import Path

import lightning
import torch
from torch import nn

import zarrpipe as zp
from zarrpipe.testing import numbered_batch

SAMPLES, EPOCHS = 24, 2


class Watched(lightning.LightningModule):
    """A linear model of the energy that notes which samples its rank was given."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(1, 1)
        self.seen = []

    def training_step(self, batch, _):
        self.seen.append([self.current_epoch, batch["serial"].flatten().tolist()])
        atoms = batch.num_nodes_per_graph.float().reshape(-1, 1)
        return (self.layer(atoms) - batch["energy"].float()).square().mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=1e-5)


def main(url, out):
    rank = int(os.environ["RANK"])
    with zp.ZarrData(url, part=str(rank)) as sink:
        for first in range(0, SAMPLES, 8):
            numbers = [100 * rank + number for number in range(first, first + 8)]
            sink.write(numbered_batch(numbers))
    torch.distributed.init_process_group("gloo")
    torch.distributed.barrier()  # both parts are there
    torch.manual_seed(0)
    model = Watched()
    data = zp.ZarrDataModule(
        url, batch_size=4, split=(1.0, 0.0, 0.0), seed=1, cache_dir=out / "cache"
    )
    trainer = lightning.Trainer(
        accelerator="cpu",
        devices=1,
        num_nodes=2,
        strategy="ddp",
        max_epochs=EPOCHS,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
    )
    trainer.fit(model, datamodule=data)
    weights = [value.flatten().tolist() for value in model.state_dict().values()]
    told = {
        "seen": model.seen,
        "weights": weights,
        "network": str(Path("/proc/self/ns/net").readlink()),
    }
    (out / f"rank-{rank}.json").write_text(json.dumps(told))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
