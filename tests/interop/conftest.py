"""nvalchemi, skipped where it is not installed; it warns when it is imported without a GPU."""

import importlib
import sys
import warnings
from pathlib import Path
from types import ModuleType

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # seeded_systems, which the tests import


@pytest.fixture(scope="session")
def nvalchemi() -> ModuleType:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pytest.importorskip("nvalchemi")
        importlib.import_module("nvalchemi.dynamics.hooks")
        return importlib.import_module("nvalchemi.data")
