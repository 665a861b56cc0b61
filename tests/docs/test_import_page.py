"""The options of docs/guides/import.md are those of the command."""

import re
from pathlib import Path

import pytest

from zarrpipe.cli import main

PAGE = Path(__file__).parents[2] / "docs" / "guides" / "import.md"

pytest.importorskip("ase.io")


def test_options_of_the_page_are_those_of_the_command(capsys):
    assert main(["import", "--help"]) == 0
    shown = capsys.readouterr().out
    options = set(re.findall(r"`[^`\n]*?(--[a-z][a-z-]+)", PAGE.read_text()))
    assert len(options) > 10
    for option in options:
        assert option in shown, option
