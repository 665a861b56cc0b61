"""MatGL: a TensorNet on batches of a store, and on those of MatGL's own dataset and collation.

MatGL makes the graphs of all structures before training and holds them in memory; ours finds
neighbour lists when a batch is read.
"""

from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import matgl
import torch
from ase import Atoms
from matgl.ext.ase import Atoms2Graph
from matgl.graph.data import MGLDataset, collate_fn_pes
from matgl.models import TensorNet
from matgl.utils.constants import EV_PER_ANG3_TO_GPA
from matgl.utils.training import PotentialLightningModule
from torch.utils.data import DataLoader

import zarrpipe as zp
from benchmarks.trainers.run import Pair, take_turns
from benchmarks.trainers.structures import crystals
from zarrpipe.matgl import ZarrDataModule

STRUCTURES, BATCH, CUTOFF, SEED = 200, 8, 5.0, 3


def pair(work: Path, steps: int) -> Pair:
    """Train the same model from a store and from MatGL's own dataset, in float64."""
    matgl.set_default_dtype("float", 64)
    structures = crystals(STRUCTURES)
    with zp.ZarrData(work / "crystals.zarr") as sink:
        sink.write(structures)
    data = ZarrDataModule(
        work / "crystals.zarr", cutoff=CUTOFF, batch_size=BATCH, seed=SEED, split=(1.0, 0.0, 0.0)
    )
    data.setup("fit")
    theirs = DataLoader(
        own_dataset(work, structures, data.element_types),
        batch_sampler=zp.GraphBatchSampler(data.train_dataset, BATCH, seed=SEED),
        collate_fn=collate_fn_pes,
    )
    runs = take_turns(steps, (data.train_dataloader(), trained(data)), (theirs, trained(data)))
    return Pair("MatGL", version("matgl"), *runs)


def own_dataset(work: Path, structures: list[Atoms], elements: tuple[str, ...]) -> MGLDataset:
    """MatGL's dataset of structures with its labels."""
    labels = {
        "energies": [atoms.get_potential_energy() for atoms in structures],
        "forces": [atoms.get_forces().tolist() for atoms in structures],
        "stresses": [
            (atoms.get_stress(voigt=False) * EV_PER_ANG3_TO_GPA).tolist() for atoms in structures
        ],
    }
    converter = Atoms2Graph(elements, CUTOFF)
    return MGLDataset(
        structures=structures,
        labels=labels,
        converter=converter,
        root=str(work / "MGLDataset"),
        save_cache=False,
    )


def trained(data: ZarrDataModule) -> Callable[[Any], float]:
    """A training step of MatGL's module, with its own weights and optimizer."""
    torch.manual_seed(SEED)
    model = TensorNet(
        element_types=data.element_types,
        units=16,
        num_rbf=8,
        cutoff=CUTOFF,
        is_intensive=False,
        dtype=torch.float64,
    )
    module = PotentialLightningModule(model, stress_weight=0.01, lr=0.01, **data.normalization)
    module.double().train()
    (optimizer,), _ = module.configure_optimizers()

    def step(batch: Any) -> float:
        optimizer.zero_grad()
        losses, _ = module.step(batch)
        losses["Total_Loss"].backward()
        optimizer.step()
        return float(losses["Total_Loss"].detach())

    return step
