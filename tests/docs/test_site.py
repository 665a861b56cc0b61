"""The site has every public name, and builds without a warning."""

import importlib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import zarrpipe

ROOT = Path(__file__).parents[2]
API = ROOT / "docs" / "reference" / "api"
DIRECTIVE = re.compile(r"^\.\. (?:auto|py:)(?:class|function|data):: (\S+)$", re.MULTILINE)
NEQUIP = "zarrpipe.nequip"
"""Cannot be imported without NequIP; its names are read from its source."""


def documented() -> list[str]:
    return [name for page in API.glob("*.md") for name in DIRECTIVE.findall(page.read_text())]


def names_of(module: str) -> list[str]:
    """Public names of a module, by the module that defines them."""
    if module == NEQUIP:
        source = (ROOT / "zarrpipe" / "nequip" / "__init__.py").read_text()
        return [f"{module}.{name}" for name in re.findall(r'"(\w+)"', source.split("__all__")[1])]
    names = getattr(importlib.import_module(module), "__all__", ())
    return [f"{module}.{name}" for name in names]


def item(name: str) -> object:
    module, _, attribute = name.rpartition(".")
    return name if module == NEQUIP else getattr(importlib.import_module(module), attribute)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch_sim, where it is imported
@pytest.mark.parametrize(
    "module",
    [
        "zarrpipe",
        NEQUIP,
        *(f"zarrpipe.{name}" for name in zarrpipe._MODULES if name != "errors"),
    ],
)
def test_every_public_name_has_its_place(module):
    there = [item(name) for name in documented()]
    names = names_of(module)
    assert names
    missing = [name for name in names if item(name) not in there]
    assert not missing


def test_no_name_is_documented_twice():
    names = documented()
    assert len(names) == len(set(names)) > 100
    assert ".. automodule:: zarrpipe.errors\n" in (API / "errors.md").read_text()


@pytest.mark.slow
def test_the_site_builds_without_a_warning(tmp_path):
    pytest.importorskip("sphinx")
    for library in ("furo", "myst_parser", "sphinx_copybutton", "sphinx_design"):
        pytest.importorskip(library)
    command = [sys.executable, "-m", "sphinx", "--fail-on-warning", "--keep-going", "--nitpicky"]
    shown = subprocess.run(
        [*command, "--builder", "html", "docs", str(tmp_path / "site")],
        cwd=ROOT,
        env={**os.environ, "PYTHONWARNINGS": "default"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert shown.returncode == 0, shown.stderr
    page = (tmp_path / "site" / "reference" / "api" / "sink.html").read_text()
    assert 'id="zarrpipe.ZarrData.write"' in page
    assert "LightningDataModule.prepare_data" not in page
