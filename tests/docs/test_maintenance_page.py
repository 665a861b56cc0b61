"""The code of docs/guides/maintenance.md runs, and says what it says it says."""

import re
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs" / "guides" / "maintenance.md"


def test_code_of_the_page_runs_in_order(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(), re.DOTALL | re.MULTILINE)
    assert len(blocks) == 4
    namespace: dict[str, object] = {"__name__": "maintenance"}
    for place, block in enumerate(blocks):
        exec(compile(block, f"{PAGE.name} block {place}", "exec"), namespace)
