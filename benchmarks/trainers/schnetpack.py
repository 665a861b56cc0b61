"""SchNetPack: a SchNet on batches of a store, and on those of its own ASE database and loader.

Both sides find neighbour lists when a batch is read: ours by vesin, and SchNetPack's by matscipy,
as its examples do.
"""

from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import schnetpack
import torch
from ase import Atoms
from schnetpack.atomistic import Atomwise, Forces, PairwiseDistances, Strain
from schnetpack.data import ASEAtomsData, AtomsLoader
from schnetpack.nn import CosineCutoff, GaussianRBF
from schnetpack.representation import SchNet
from schnetpack.transform import CastTo64, MatScipyNeighborList

import zarrpipe as zp
from benchmarks.trainers.run import Pair, take_turns
from benchmarks.trainers.structures import crystals
from zarrpipe.schnetpack import ZarrDataModule

STRUCTURES, BATCH, CUTOFF, SEED = 200, 8, 5.0, 3
WEIGHTS = {"energy": 0.01, "forces": 0.9, "stress": 100.0}
UNITS = {"energy": "eV", "forces": "eV/Ang", "stress": "eV/Ang/Ang/Ang"}


def pair(work: Path, steps: int) -> Pair:
    """Train the same model from a store and from SchNetPack's own dataset, in float64."""
    structures = crystals(STRUCTURES)
    with zp.ZarrData(work / "crystals.zarr") as sink:
        sink.write(structures)
    data = ZarrDataModule(
        work / "crystals.zarr",
        cutoff=CUTOFF,
        dtype="float64",
        batch_size=BATCH,
        seed=SEED,
        split=(1.0, 0.0, 0.0),
    )
    data.setup("fit")
    theirs = AtomsLoader(
        own_dataset(work / "crystals.db", structures),
        batch_sampler=Lists(zp.GraphBatchSampler(data.train_dataset, BATCH, seed=SEED)),
    )
    runs = take_turns(steps, (data.train_dataloader(), trained()), (theirs, trained()))
    return Pair("SchNetPack", version("schnetpack"), *runs)


class Lists:
    """The batches of a sampler as lists of plain numbers, as ASE's databases take them."""

    def __init__(self, sampler: zp.GraphBatchSampler) -> None:
        self.sampler = sampler

    def __iter__(self) -> Iterator[list[int]]:
        for batch in self.sampler:
            yield batch.tolist()

    def __len__(self) -> int:
        return len(self.sampler)


def own_dataset(path: Path, structures: Sequence[Atoms]) -> ASEAtomsData:
    """SchNetPack's database of structures with its labels."""
    dataset = ASEAtomsData.create(str(path), distance_unit="Ang", property_unit_dict=UNITS)
    dataset.add_systems(
        [
            {
                "energy": torch.tensor([atoms.get_potential_energy()]).double().numpy(),
                "forces": atoms.get_forces(),
                "stress": atoms.get_stress(voigt=False)[None],
            }
            for atoms in structures
        ],
        list(structures),
    )
    dataset.transforms = [MatScipyNeighborList(CUTOFF), CastTo64()]
    return dataset


def network() -> torch.nn.Module:
    """A SchNet of three layers and 128 features, with energy, forces and stress."""
    return schnetpack.model.NeuralNetworkPotential(
        representation=SchNet(
            n_atom_basis=128,
            n_interactions=3,
            radial_basis=GaussianRBF(n_rbf=20, cutoff=CUTOFF),
            cutoff_fn=CosineCutoff(CUTOFF),
        ),
        input_modules=[Strain(), PairwiseDistances()],
        output_modules=[Atomwise(n_in=128, output_key="energy"), Forces(calc_stress=True)],
    )


def trained() -> Callable[[Any], float]:
    """A training step of SchNetPack's task, with its own weights and optimizer."""
    torch.manual_seed(SEED)
    outputs = [
        schnetpack.task.ModelOutput(name, torch.nn.MSELoss(), weight, metrics={})
        for name, weight in WEIGHTS.items()
    ]
    task = schnetpack.AtomisticTask(network(), outputs, torch.optim.Adam, {"lr": 1e-3})
    task.double().train()
    optimizer = task.configure_optimizers()

    def step(batch: Any) -> float:
        optimizer.zero_grad()
        targets = {name: batch[name] for name in WEIGHTS}
        loss = task.loss_fn(task.predict_without_postprocessing(batch), targets)
        loss.backward()
        optimizer.step()
        return float(loss.detach())

    return step
