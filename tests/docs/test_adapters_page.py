"""The code of docs/guides/adapters.md runs, and says what it says it says."""

import importlib.util
import re
import warnings
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[2] / "docs" / "guides" / "adapters.md"


@pytest.mark.filterwarnings("ignore:Writing into .traj:UserWarning")
def test_code_of_the_page_runs_in_order(tmp_path, monkeypatch):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for library in ("ase", "torch_sim", "torch_geometric"):
            pytest.importorskip(library)
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(), re.DOTALL | re.MULTILINE)
    assert len(blocks) == 8
    namespace: dict[str, object] = {"__name__": "adapters"}
    for place, block in enumerate(blocks):
        if importlib.util.find_spec("pymatgen") or not block.startswith("# needs pymatgen"):
            exec(compile(block, f"{PAGE.name} block {place}", "exec"), namespace)
