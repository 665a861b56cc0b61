"""The guide on `watch` names its options and columns."""

import re
from pathlib import Path

from zarrpipe.cli import main
from zarrpipe.watch.facts import State

PAGE = Path(__file__).parents[2] / "docs" / "guides" / "watch.md"


def test_the_guide_is_that_of_the_command(capsys):
    text = PAGE.read_text()
    assert main(["watch", "--help"]) == 0
    shown = capsys.readouterr().out
    options = set(re.findall(r"--[a-z]+", text))
    assert options == {"--serve", "--port", "--once", "--json", "--interval"}
    assert all(option in shown for option in options)
    (states,) = re.findall(r"^\| state \| (.*) \|$", text, re.MULTILINE)
    assert all(state in states for state in State if state is not State.WAITING)
