"""The code of docs/reference/import_formats.md runs; its table has every format, no other."""

import re
from pathlib import Path

import pytest

from zarrpipe.formats.read.sources import FORMATS

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "import_formats.md"

pytest.importorskip("ase.db")


def test_code_of_the_page_runs_in_order(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    namespace = {"__name__": "page"}
    found = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(), re.DOTALL | re.MULTILINE)
    assert len(found) == 2
    for place, block in enumerate(found):
        exec(compile(block, f"{PAGE.name} block {place}", "exec"), namespace)


def test_the_table_has_all_formats():
    rows = re.findall(r"^\| `([\w-]+)` \|", PAGE.read_text(), re.MULTILINE)
    assert rows == [row.name for row in FORMATS if row.name != "pyg-trusted"]
    assert "`--format pyg-trusted`" in PAGE.read_text()
