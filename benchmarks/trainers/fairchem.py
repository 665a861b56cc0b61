"""fairchem's own loss on a small eSCN-MD, from a store, and by its own LMDB data and collater.

fairchem's models find edges themselves, so nothing but reading and collation differs.
"""

from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from ase import Atoms
from ase.db import connect
from fairchem.core.datasets.ase_datasets import AseDBDataset
from fairchem.core.datasets.collaters.mt_collater import MTCollater
from fairchem.core.datasets.mt_concat_dataset import ConcatDataset
from fairchem.core.models.base import HydraModel
from fairchem.core.modules.loss import DDPMTLoss, L2NormLoss, MAELoss, PerAtomMAELoss
from fairchem.core.modules.normalization.normalizer import Normalizer
from fairchem.core.units.mlip_unit.mlip_unit import OutputSpec, Task, compute_loss

import zarrpipe as zp
from benchmarks.trainers.run import Pair, take_turns
from benchmarks.trainers.structures import crystals

BATCH, SEED = 8, 3
NAMES = {"energy": "omat_energy", "forces": "omat_forces", "stress": "omat_stress"}
CONFIG = {
    "transforms": {"common_transform": {"dataset_name": "omat"}, "stress_reshape_transform": {}},
    "key_mapping": NAMES,
}
TASK_CONFIG = {
    name: {"level": "atom" if label == "forces" else "system", "datasets": ["omat"]}
    for label, name in NAMES.items()
}
SHAPES = {"energy": [1], "forces": [3], "stress": [9]}


def pair(work: Path, steps: int) -> Pair:
    """Train both sides."""
    structures = crystals(BATCH * steps)
    with zp.ZarrData(work / "store") as sink:
        sink.write(structures)
    settings = {"batch_size": BATCH, "split": (1.0, 0.0, 0.0), "seed": SEED}
    names = {"dataset": "omat", "dataset_name": "omat.train", "key_mapping": NAMES}
    data, order = (
        zp.fairchem.ZarrDataModule(work / "store", **names, **settings) for _ in range(2)
    )
    for one in (data, order):
        one.setup("fit")
    batches = [batch.tolist() for batch in order.train_dataloader().sampler]
    own = torch.utils.data.DataLoader(
        ConcatDataset(
            {"omat.train": own_data(work, structures, CONFIG)},
            {"type": "explicit", "ratios": {"omat.train": 1.0}},
        ),
        batch_sampler=batches,
        collate_fn=MTCollater(TASK_CONFIG, []),
    )
    ours, theirs = take_turns(steps, (data.train_dataloader(), trained()), (own, trained()))
    return Pair("fairchem-core", version("fairchem-core"), ours, theirs)


def own_data(work: Path, structures: Sequence[Atoms], config: dict[str, Any]) -> AseDBDataset:
    """Structures in fairchem's own kind of data set, an ASE database of LMDB."""
    path = work / "own.aselmdb"
    with connect(path) as database:
        for atoms in structures:
            database.write(atoms, data=atoms.info)
    return AseDBDataset({"src": str(path), **config})


def model() -> HydraModel:
    """An eSCN-MD of one layer with energies, and forces and stress by derivatives."""
    torch.manual_seed(SEED)
    backbone = {
        "model": "fairchem.core.models.uma.escn_md.eSCNMDBackbone",
        "max_num_elements": 90,
        "sphere_channels": 8,
        "hidden_channels": 8,
        "edge_channels": 8,
        "num_distance_basis": 16,
        "lmax": 1,
        "mmax": 1,
        "num_layers": 1,
        "cutoff": 4.0,
        "max_neighbors": 100,
        "otf_graph": True,
        "direct_forces": False,
        "regress_forces": True,
        "regress_stress": True,
        "use_dataset_embedding": False,
    }
    head = {"module": "fairchem.core.models.uma.escn_md.MLP_EFS_Head", "prefix": "omat"}
    return HydraModel(backbone, {"efs": head}, pass_through_head_outputs=True)


def tasks() -> list[Task]:
    """Energies per atom, forces and stress, with fairchem's losses."""
    losses = {"energy": PerAtomMAELoss(), "forces": L2NormLoss(), "stress": MAELoss()}
    return [
        Task(
            name=name,
            level=TASK_CONFIG[name]["level"],
            property=label,
            out_spec=OutputSpec(SHAPES[label], "float32"),
            normalizer=Normalizer(0.0, 1.0),
            datasets=["omat"],
            loss_fn=DDPMTLoss(losses[label], coefficient=10.0 if label == "forces" else 1.0),
        )
        for label, name in NAMES.items()
    ]


def trained() -> Callable[[Any], float]:
    """A step of fairchem's loss on a model of its own."""
    network, wanted = model(), tasks()
    optimizer = torch.optim.AdamW(network.parameters(), lr=5e-3)

    def step(batch: Any) -> float:
        torch.manual_seed(SEED)  # the model turns its edges by random angles
        loss = torch.stack([*compute_loss(wanted, network(batch), batch).values()]).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return float(loss)

    return step
