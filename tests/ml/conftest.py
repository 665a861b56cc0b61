"""Small models, on one thread, with the libraries of the extras ``ml`` and ``mace``."""

import importlib
import warnings

import pytest
import torch

for library in ("ase", "torch_geometric", "torch_sim", "vesin"):
    with warnings.catch_warnings():  # theirs, on importing them
        warnings.simplefilter("ignore")
        pytest.importorskip(library, reason="the extras 'ml' and 'torch-sim' are not installed")


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
