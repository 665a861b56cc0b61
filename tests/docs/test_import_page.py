"""The code of docs/guides/import.md runs and prints what it shows; it has every option."""

import re
from pathlib import Path

import pytest

from zarrpipe.cli import main

PAGE = Path(__file__).parents[2] / "docs" / "guides" / "import.md"

pytest.importorskip("ase.io")


def blocks(kind):
    found = re.findall(r"^```(\w*)\n(.*?)^```$", PAGE.read_text(), re.DOTALL | re.MULTILINE)
    return [text for name, text in found if name == kind]


def test_code_of_the_page_runs_in_order(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    namespace = {"__name__": "page"}
    found = blocks("python")
    assert len(found) == 3
    for place, block in enumerate(found):
        exec(compile(block, f"{PAGE.name} block {place}", "exec"), namespace)
    assert capsys.readouterr().out == blocks("")[1]
    assert main(["import", "--dry-run", "frames.xyz", "again.zarr"]) == 0
    assert capsys.readouterr().out == blocks("")[1]


def test_options_of_the_page_are_those_of_the_command(capsys):
    assert main(["import", "--help"]) == 0
    shown = capsys.readouterr().out
    options = set(re.findall(r"`[^`\n]*?(--[a-z][a-z-]+)", PAGE.read_text()))
    assert len(options) > 10
    for option in options:
        assert option in shown, option
