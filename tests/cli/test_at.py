"""Commands that read take the name of a mark."""

import pytest

import zarrpipe as zp
from zarrpipe.cli import main


@pytest.fixture
def marked(samples):
    """Store with a mark at 30 of 60 samples."""
    with zp.ZarrData(samples.path) as sink:
        sink.mark("early", note="thirty")
        sink.write(samples.made)
    return samples.path


@pytest.mark.filterwarnings("ignore:the .* structures of a batch were in")
def test_commands_see_the_marked_samples(marked, printed, tmp_path):
    assert printed("head", marked, "--at", "early", "--json")["samples"] == 30
    assert printed("show", marked, "--json")["samples"] == 60
    assert printed("show", marked, "--at", "early", "--tail", "--json")["rows"][-1]["index"] == 29
    assert printed("stats", marked, "--at", "early", "--json")["num_samples"] == 30
    text = printed("export", marked, tmp_path / "x.xyz", "--at", "early")
    assert "30 samples" in text
    printed("split", marked, "-o", tmp_path / "split", "--at", "early")
    assert "mark early" in printed("info", marked)


def test_an_unknown_mark_is_one_line(samples, capsys):
    assert main(["show", str(samples.path), "--at", "nothing"]) == 2
    said = capsys.readouterr().err
    assert "has no mark 'nothing', it has none" in said
    assert len(said.splitlines()) == 1
