"""ASE, and the small files of `extxyz_files`."""

import importlib
import sys
from pathlib import Path
from types import ModuleType

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # extxyz_files, which the tests import


@pytest.fixture(scope="session")
def ase() -> ModuleType:
    for part in ("build", "calculators.singlepoint", "io.extxyz"):
        pytest.importorskip(f"ase.{part}")
    return importlib.import_module("ase")
