"""The other libraries, skipped where they are not installed; some warn when they are imported."""

import importlib
import warnings
from types import ModuleType

import numpy as np
import pytest


def load(name: str) -> ModuleType:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip(name)


@pytest.fixture(scope="session")
def ase() -> ModuleType:
    for part in (
        "build",
        "calculators.emt",
        "calculators.singlepoint",
        "constraints",
        "io",
        "spacegroup",
    ):
        load(f"ase.{part}")
    return importlib.import_module("ase")


@pytest.fixture(scope="session")
def pyg() -> ModuleType:
    return load("torch_geometric.data")


@pytest.fixture(scope="session")
def torch_sim() -> ModuleType:
    return load("torch_sim")


@pytest.fixture(scope="session")
def mace() -> ModuleType:
    load("mace.tools.torch_geometric.dataloader")
    return load("mace.data")


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(7)
