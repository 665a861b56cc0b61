"""Small models, on one thread, with the libraries of the extras ``train`` and ``mace``."""

import warnings

import pytest

for library in ("ase", "torch_geometric", "torch_sim", "vesin"):
    with warnings.catch_warnings():  # theirs, on importing them
        warnings.simplefilter("ignore")
        pytest.importorskip(library, reason="the extras 'train' and 'torch-sim' are not installed")


@pytest.fixture(autouse=True)
def _quick(one_thread):
    """Every test of this folder trains something small."""
