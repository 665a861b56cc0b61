"""nvalchemi, skipped where it is not installed; it warns when it is imported without a GPU."""

import importlib
import warnings
from types import ModuleType

import pytest


@pytest.fixture(scope="session")
def nvalchemi() -> ModuleType:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pytest.importorskip("nvalchemi")
        importlib.import_module("nvalchemi.dynamics.hooks")
        return importlib.import_module("nvalchemi.data")
