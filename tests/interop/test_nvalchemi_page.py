"""The code of docs/guides/nvalchemi.md runs."""

import re
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[2] / "docs" / "guides" / "nvalchemi.md"

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:nvalchemi")


def test_the_code_of_the_page_runs(nvalchemi, tmp_path, monkeypatch):
    assert nvalchemi
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(), re.DOTALL | re.MULTILINE)
    assert len(blocks) == 1
    for block in blocks:
        exec(block, {})
