"""The recipes are scripts that import each other: their folder goes on the path, as they run."""

import sys
import warnings
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "recipes"))

for library in ("ase", "jsonargparse", "tblite", "torch_geometric", "torch_sim", "vesin"):
    with warnings.catch_warnings():  # theirs, on importing them
        warnings.simplefilter("ignore")
        pytest.importorskip(library, reason="the extra 'dev' is not installed")


@pytest.fixture(autouse=True)
def _quick(one_thread):
    """Every test of this folder trains something small."""
