"""The code of the guide on notebooks runs; the guide on `watch` names its options and columns."""

import re
from pathlib import Path

import pytest

import zarrpipe as zp
from zarrpipe.cli import main
from zarrpipe.watch.facts import State

GUIDES = Path(__file__).parents[2] / "docs" / "guides"


@pytest.mark.filterwarnings("ignore:chemiscope.show only displays a widget:UserWarning")
def test_code_of_the_guide_on_notebooks_runs(tmp_path, monkeypatch):
    pytest.importorskip("chemiscope")
    pytest.importorskip("ase")
    monkeypatch.chdir(tmp_path)
    text = (GUIDES / "notebooks.md").read_text()
    found = re.findall(r"^```python\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    assert len(found) == 2
    namespace: dict[str, object] = {"__name__": "page"}
    for place, block in enumerate(found):
        exec(compile(block, f"notebooks.md block {place}", "exec"), namespace)
    for name in re.findall(r"`viewer`|`(chemiscope|py3dmol|ase)` \|", text):
        assert not name or name in (zp.AtomicData.view.__doc__ or "")


def test_the_guide_on_watch_is_that_of_the_command(capsys):
    text = (GUIDES / "watch.md").read_text()
    assert main(["watch", "--help"]) == 0
    shown = capsys.readouterr().out
    options = set(re.findall(r"--[a-z]+", text))
    assert options == {"--serve", "--port", "--once", "--json", "--interval"}
    assert all(option in shown for option in options)
    (states,) = re.findall(r"^\| state \| (.*) \|$", text, re.MULTILINE)
    assert all(state in states for state in State if state is not State.WAITING)
