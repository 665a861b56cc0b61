"""A store with what files of other programs find hard, and its samples by value."""

import importlib
import warnings
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

import zarrpipe as zp

PAIRS = zp.Level.product("pair", "atom", "atom")


def system(rng: np.random.Generator, count: int, **fields: Any) -> zp.AtomicData:
    """System of `count` atoms of C, H, O and Cu."""
    numbers = torch.from_numpy(rng.choice([1, 6, 8, 29], size=count))
    return zp.AtomicData(torch.from_numpy(rng.normal(size=(count, 3))), numbers, **fields)


def crystal(rng: np.random.Generator) -> zp.AtomicData:
    """System that has everything: labels, own fields of every kind, edges, levels."""
    stress = 0.01 * rng.normal(size=(3, 3))
    stress += stress.T
    cell = 5.0 * np.eye(3) + 0.3 * rng.normal(size=(3, 3))
    rows = {name: torch.from_numpy(rng.normal(size=(3, 3))) for name in ("forces", "momenta")}
    return system(
        rng,
        3,
        energy=-34.567890123456789,
        **rows,
        cell=torch.from_numpy(cell),
        pbc=torch.tensor([True, True, True]),
        stress=torch.from_numpy(stress),
        virial=torch.from_numpy(-np.linalg.det(cell) * stress),
        dipole=torch.from_numpy(rng.normal(size=3)),
        charge=torch.tensor([[2.0]], dtype=torch.float64),
        charges=torch.from_numpy(rng.normal(size=3)),
        atomic_masses=torch.tensor([2.014, 12.0, 15.9], dtype=torch.float64),
        neighbor_list=[[0, 1], [2, 0]],
        atom={
            "hirshfeld": torch.from_numpy(rng.normal(size=(3, 2, 2))),
            "group": torch.tensor([1, 2, 250], dtype=torch.uint8),
            "magmoms": torch.tensor([0.5, -0.5, 0.0], dtype=torch.float64),
        },
        system={
            "config_type": "bulk phase",
            "mp_id": "0012",
            "temperature": torch.tensor([0.1], dtype=torch.float32),
            "round": torch.tensor([3]),
            "is_relaxed": torch.tensor([True]),
            "k_points": torch.tensor([[4, 4, 2]]),
            "polar": torch.from_numpy(rng.normal(size=(1, 2, 3))),
        },
        other_levels={
            zp.Level.uniform("run"): {"run_id": [7]},
            "bond": {"bond_atoms": [[0, 1], [1, 2]]},
            PAIRS: {"hessian": torch.rand(9)},
        },
        index_of={"bond_atoms": "atom"},
    )


def systems() -> list[zp.AtomicData]:
    """Samples with mixed periodicity and with labels that some lack."""
    rng = np.random.default_rng(14)
    slab = system(
        rng,
        2,
        forces=torch.from_numpy(rng.normal(size=(2, 3))),
        cell=torch.from_numpy(np.diag([4.0, 5.0, 30.0])),
        pbc=torch.tensor([True, True, False]),
        stress=torch.from_numpy(0.01 * np.eye(3)),
        neighbor_list=[[1, 0]],
        system={"config_type": 'a "b" = {c}\\d\n', "mp_id": "T", "round": torch.tensor([-1])},
    )
    atom = system(rng, 1, energy=-13.6, system={"config_type": "IsolatedAtom", "mp_id": ""})
    boxed = system(
        rng,
        4,
        energy=float("nan"),
        cell=torch.from_numpy(20.0 * np.eye(3)),
        pbc=torch.tensor([False, False, False]),
    )
    return [crystal(rng), slab, atom, boxed, system(rng, 2)]


@pytest.fixture(scope="session")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The store of `systems`, with a unit of an own field."""
    path = tmp_path_factory.mktemp("out") / "store"
    config = zp.ZarrWriteConfig(units={"temperature": "K"})
    with zp.ZarrData(path, config=config) as sink:
        sink.write(systems())
    return path


@pytest.fixture(scope="session")
def samples(place: Path) -> list[zp.AtomicData]:
    """The samples as the store has them."""
    dataset = zp.ZarrDataset(place)
    return [dataset[index] for index in range(len(dataset))]


def library(name: str) -> ModuleType:
    """A library, or a skip where it is not installed; some warn when they are imported."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pytest.importorskip(name)
        return importlib.import_module(name)
