"""The recipes are scripts that import each other: their folder goes on the path, as they run."""

import importlib
import sys
import warnings
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[2] / "recipes"))

for library in ("ase", "jsonargparse", "tblite", "torch_geometric", "torch_sim", "vesin"):
    with warnings.catch_warnings():  # theirs, on importing them
        warnings.simplefilter("ignore")
        pytest.importorskip(library, reason="the extra 'recipes' is not installed")


@pytest.fixture(autouse=True)
def _one_thread():
    """Networks this small are several times slower with more."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def mace():
    """mace-torch, imported, or a skipped test."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pytest.importorskip("mace", reason="the extra 'mace' is not installed")
        importlib.import_module("mace.modules")
