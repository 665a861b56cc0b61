"""MACE: its own training step on batches of a store, and on those of its own loader.

Both sides find neighbour lists when a batch is read: ours by vesin, and MACE's data by matscipy, as
its ``HDF5Dataset`` does. Here MACE's structures are in memory, so that it reads no file.
"""

from collections.abc import Callable, Iterable
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from ase import Atoms
from mace import data as mace_data
from mace import modules
from mace.modules.models import o3
from mace.tools import AtomicNumberTable, set_default_dtype
from mace.tools.torch_geometric.dataloader import DataLoader
from mace.tools.train import take_step

import zarrpipe as zp
from benchmarks.trainers.run import Pair, take_turns
from benchmarks.trainers.structures import crystals
from zarrpipe.mace import EpochLoader, MACEDataModule

STRUCTURES, BATCH, R_MAX, SEED = 200, 8, 5.0, 3
KEYS = mace_data.KeySpecification(
    info_keys={"energy": "energy", "stress": "stress"}, arrays_keys={"forces": "forces"}
)
OUTPUT = {"forces": True, "virials": False, "stress": True}


def pair(work: Path, steps: int) -> Pair:
    """Train the same model from a store and from MACE's own data, in float64."""
    set_default_dtype("float64")
    structures = crystals(STRUCTURES)
    with zp.ZarrData(work / "crystals.zarr") as sink:
        sink.write(structures)
    data = MACEDataModule(
        work / "crystals.zarr", R_MAX, batch_size=BATCH, seed=SEED, split=(1.0, 0.0, 0.0)
    )
    data.setup("fit")
    ours = EpochLoader(data)
    order = zp.GraphBatchSampler(data.train_dataset, BATCH, seed=SEED)
    theirs = DataLoader(OwnData(structures, data.z_table), batch_sampler=order)
    start = data.model_arguments()
    runs = take_turns(steps, (ours, trained(start)), (theirs, trained(start)))
    return Pair("MACE", version("mace-torch"), *runs)


class OwnData(torch.utils.data.Dataset[Any]):
    """MACE's data of structures, made when they are asked for."""

    def __init__(self, structures: Iterable[Atoms], z_table: Iterable[int]) -> None:
        self.configs = []
        for atoms in structures:
            atoms.info |= {"energy": atoms.get_potential_energy(), "stress": atoms.get_stress()}
            atoms.arrays["forces"] = atoms.get_forces()
            self.configs.append(mace_data.config_from_atoms(atoms, KEYS))
        self.z_table = AtomicNumberTable(list(z_table))

    def __len__(self) -> int:
        return len(self.configs)

    def __getitem__(self, index: int) -> mace_data.AtomicData:
        return mace_data.AtomicData.from_config(self.configs[index], self.z_table, R_MAX)


def trained(start: dict[str, Any]) -> Callable[[Any], float]:
    """MACE's own step, of a model with its own weights and optimizer."""
    torch.manual_seed(SEED)
    model = network(start)
    step = partial(
        take_step,
        model=model,
        loss_fn=modules.WeightedEnergyForcesStressLoss(1.0, 100.0, 1.0),
        optimizer=torch.optim.Adam(model.parameters(), lr=0.01),
        ema=None,
        output_args=OUTPUT,
        max_grad_norm=10.0,
        device=torch.device("cpu"),
    )
    return lambda batch: step(batch=batch)[0].item()


def network(start: dict[str, Any]) -> torch.nn.Module:
    """A MACE of two layers and 16 channels."""
    return modules.ScaleShiftMACE(
        **start,
        num_bessel=8,
        num_polynomial_cutoff=5,
        max_ell=2,
        interaction_cls=modules.interaction_classes["RealAgnosticResidualInteractionBlock"],
        interaction_cls_first=modules.interaction_classes["RealAgnosticInteractionBlock"],
        num_interactions=2,
        hidden_irreps=o3.Irreps("16x0e + 16x1o"),
        MLP_irreps=o3.Irreps("16x0e"),
        correlation=2,
        gate=torch.nn.functional.silu,
        radial_MLP=[32, 32],
    )
