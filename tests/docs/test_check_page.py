"""The code of docs/guides/check.md runs, and prints what stands there."""

import re
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs" / "guides" / "check.md"
BLOCK = re.compile(r"^```(python|text)\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def test_the_page_shows_what_is_printed(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    namespace = {}
    blocks = BLOCK.findall(PAGE.read_text())
    for kind, block in blocks:
        if kind == "python":
            exec(block, namespace)
        else:
            assert capsys.readouterr().out.replace(f"{tmp_path}/", "") == block
    assert [kind for kind, _ in blocks] == ["python", "text"] * 2
