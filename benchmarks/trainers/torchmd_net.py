"""TorchMD-Net's `LNNP` trained from a store, and by TorchMD-Net's own memory-mapped data set."""

import warnings
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from ase import Atoms
from torch_geometric.data import Data
from torch_geometric.loader import DataLoader
from torchmdnet.datasets.memdataset import MemmappedDataset
from torchmdnet.module import LNNP
from torchmdnet.scripts.train import get_argparse

import zarrpipe as zp
from benchmarks.trainers.run import Pair, take_turns
from benchmarks.trainers.structures import molecules
from zarrpipe.adapters import from_ase

BATCH = 8
CUTOFF = 5.0


class Mapped(MemmappedDataset):
    """Structures in TorchMD-Net's own files: energies in float64, the rest in float32."""

    def __init__(self, root: Path, structures: list[Atoms]) -> None:
        self.structures = structures
        super().__init__(str(root), properties=("y", "neg_dy"))

    def sample_iter(self, mol_ids: bool = False) -> Iterator[Data]:
        """Each structure, as the base class stores it."""
        for one in self.structures:
            yield Data(
                z=torch.from_numpy(one.numbers),
                pos=torch.from_numpy(one.positions),
                y=torch.tensor([[one.get_potential_energy()]], dtype=torch.float64),
                neg_dy=torch.from_numpy(one.get_forces()),
            )


def written(store: Path, structures: list[Atoms]) -> Path:
    """A store of the structures in the dtypes of `Mapped`."""
    batch = from_ase(structures, dtype=torch.float64)
    for name in ("positions", "forces"):
        batch.add_field(name, batch[name].float())
    with zp.ZarrData(store) as sink:
        sink.write(batch)
    return store


def hparams(**given: Any) -> dict[str, Any]:
    """Hyperparameters of a small TensorNet with energy and forces, over TorchMD-Net's defaults."""
    small = {
        "model": "tensornet",
        "embedding_dimension": 32,
        "num_layers": 1,
        "num_rbf": 16,
        "derivative": True,
        "precision": 64,
        "cutoff_upper": CUTOFF,
        "lr": 3e-3,
    }
    return {**vars(get_argparse().parse_args([])), **small, **given}


def step_of(model: LNNP) -> Callable[[Any], float]:
    """One step of `LNNP`'s own loss and optimiser."""
    (optimiser,), _ = model.configure_optimizers()

    def step(batch: Any) -> float:
        loss = model.training_step(batch, 0)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        return float(loss)

    return step


def pair(work: Path, steps: int) -> Pair:
    """Train both sides."""
    structures = molecules(BATCH * steps)
    store = written(work / "store", structures)
    settings = {"batch_size": BATCH, "cutoff": CUTOFF, "split": (1.0, 0.0, 0.0), "seed": 3}
    data, order = (zp.torchmd_net.ZarrDataModule(store, **settings) for _ in range(2))
    for one in (data, order):
        one.setup("fit")
    batches = [batch.tolist() for batch in order.train_dataloader().sampler]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of PyG's loader
        own = DataLoader(Mapped(work / "own", structures), batch_sampler=batches)
    models = []
    for _ in range(2):
        torch.manual_seed(0)
        models.append(LNNP(hparams()))
    ours, theirs = take_turns(
        steps, (data.train_dataloader(), step_of(models[0])), (own, step_of(models[1]))
    )
    return Pair("torchmd-net", version("torchmd-net"), ours, theirs)
