"""The code of docs/guides/recipes.md runs; its commands are looked at in tests/recipes."""

import re
import warnings
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "guides" / "recipes.md").read_text()


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)


def test_code_of_the_page_runs(tmp_path, monkeypatch):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for library in ("ase", "torch_geometric", "torch_sim", "vesin"):
            pytest.importorskip(library)
    monkeypatch.chdir(tmp_path)
    found = blocks("python")
    assert len(found) == 1
    for block in found:
        exec(compile(block, "recipes.md", "exec"), {"__name__": "page"})
