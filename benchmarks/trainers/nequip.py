"""NequIP: the same model from a store, and from its own dataset of the same structures."""

from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import ase.io
import torch
from nequip.data import AtomicDataDict
from nequip.data.dataset import ASEDataset
from nequip.data.transforms import (
    AddNaNStressTransform,
    ChemicalSpeciesToAtomTypeMapper,
    NeighborListTransform,
)
from nequip.train import NequIPLightningModule
from nequip.utils.global_state import set_global_state
from torch.utils.data import DataLoader

import zarrpipe as zp
from benchmarks.trainers.run import Pair, take_turns
from benchmarks.trainers.structures import crystals
from zarrpipe.nequip import ZarrDataModule
from zarrpipe.transforms import NeighborList

TYPES = ["Cu", "Ag", "Au"]
CUTOFF = 5.0
BATCH = 5

MODEL = {
    "_target_": "nequip.model.NequIPGNNModel",
    "seed": 1,
    "model_dtype": "float64",
    "type_names": TYPES,
    "r_max": CUTOFF,
    "l_max": 1,
    "parity": True,
    "num_layers": 3,
    "num_features": 16,
    "radial_mlp_depth": 1,
    "radial_mlp_width": 16,
    "avg_num_neighbors": 40.0,
    "per_type_energy_scales": 1.0,
    "per_type_energy_shifts": 0.0,
}
LOSS = {
    "_target_": "nequip.train.EnergyForceStressLoss",
    "coeffs": {"total_energy": 1.0, "forces": 1.0, "stress": 1.0},
    "ignore_nan": {"stress": True},
}


def pair(
    work: Path,
    steps: int,
    samples: int = 100,
    *,
    model: Mapping[str, Any] = MODEL,
    vesin: bool = True,
) -> Pair:
    """Train both sides; ours finds neighbours by vesin, or as NequIP does it."""
    set_global_state()
    cutoff = model["r_max"]
    structures = crystals(samples)
    ase.io.write(work / "structures.traj", structures)  # keeps every digit
    with zp.ZarrData(work / "structures.zarr") as sink:
        sink.write(structures)
    mapper, neighbors = ChemicalSpeciesToAtomTypeMapper(TYPES), NeighborListTransform(cutoff)
    own = [mapper, neighbors, AddNaNStressTransform()]
    data = ZarrDataModule(
        work / "structures.zarr",
        batch_size=BATCH,
        split=(1.0, 0.0, 0.0),
        transform=NeighborList(cutoff) if vesin else None,
        transforms=[mapper] if vesin else own,
    )
    data.setup("fit")
    theirs = DataLoader(
        ASEDataset(str(work / "structures.traj"), own),
        batch_sampler=zp.GraphBatchSampler(zp.ZarrDataset(work / "structures.zarr"), BATCH),
        collate_fn=AtomicDataDict.batched_from_list,
    )
    release = f"nequip {version('nequip')}"
    runs = take_turns(steps, (data.train_dataloader(), stepper(model)), (theirs, stepper(model)))
    return Pair("nequip", release, *runs)


def module(model: Mapping[str, Any]) -> NequIPLightningModule:
    """NequIP's Lightning module with a model of this configuration."""
    return NequIPLightningModule(
        model=dict(model),
        num_datasets={"train": 1, "val": 1, "test": 1, "predict": 1},
        loss=LOSS,
        optimizer={"_target_": "torch.optim.Adam", "lr": 0.01},
    )


def stepper(model: Mapping[str, Any]) -> Callable[[dict[str, torch.Tensor]], float]:
    """A step of NequIP's Lightning module, without a trainer."""
    trained = module(model)
    optimizer = trained.configure_optimizers()

    def step(batch: dict[str, torch.Tensor]) -> float:
        target = trained.process_target(batch, 0)
        loss = trained.loss(trained(batch), target)["weighted_sum"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return float(loss.detach())

    return step
