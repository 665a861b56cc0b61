"""The code of docs/guides/export.md runs, and its table has every format."""

import re
from pathlib import Path

import pytest

from zarrpipe.formats.write.formats import FORMATS

PAGE = Path(__file__).parents[2] / "docs" / "guides" / "export.md"


def test_code_of_the_page_runs_in_order(tmp_path, monkeypatch):
    for library in ("dpdata", "mlcroissant"):
        pytest.importorskip(library)
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(), re.DOTALL | re.MULTILINE)
    assert len(blocks) == 7
    namespace: dict[str, object] = {"__name__": "export"}
    for place, block in enumerate(blocks):
        exec(compile(block, f"{PAGE.name} block {place}", "exec"), namespace)


def test_the_table_has_every_format_and_suffix():
    rows = re.findall(r"^\| `(\w+)` \| ([^|]*) \|", PAGE.read_text(), re.MULTILINE)
    table = {name: {*re.findall(r"\.\w+", suffixes)} for name, suffixes in rows}
    formats = {one.name: {*one.suffixes} for one in FORMATS.values()}
    assert {name: own for name, own in table.items() if name in formats} == formats
