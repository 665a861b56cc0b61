"""The command `report`."""

import json

import numpy as np
import pytest

import zarrpipe as zp
from zarrpipe.cli import main


@pytest.fixture
def exploded(tmp_path):
    """Twenty pairs of atoms, of which the fifth are on top of each other."""
    with zp.ZarrData(tmp_path / "pairs") as sink:
        for place in range(20):
            far = 0.1 if place == 5 else 1.1 + place / 200
            sink.write(zp.AtomicData([[0.0] * 3, [0.0, 0.0, far]], [6, 8], energy=-1.0))
    return tmp_path / "pairs"


def test_findings_as_a_table(exploded, printed):
    shown = printed("report", exploded)
    assert f"findings in {exploded}:" in shown
    (line,) = [line for line in shown.splitlines() if line.strip().startswith("error")]
    assert line.split() == ["error", "1", "frame", "has", "blown", "up", "5"]
    assert "distances were searched in 20 of 20 samples" in shown


def test_json_has_every_number(exploded, printed):
    found = printed("report", exploded, "--json")
    expected = zp.report(str(exploded)).to_dict()
    assert found["findings"] == json.loads(json.dumps(expected["findings"]))
    assert found["structures"]["samples"] == expected["structures"]["samples"]


def test_options(exploded, printed, tmp_path):
    found = printed("report", exploded, "--where", "num_atoms < 2", "--json")
    assert found["samples"] == 0
    found = printed("report", exploded, "--samples", 1, "--seed", 3, "--json")
    assert found["findings"][0]["samples"] == [5]
    dataset = zp.ZarrDataset(exploded)
    zp.write_split(tmp_path / "val.npy", dataset, np.arange(4))
    zp.write_split(tmp_path / "train.npy", dataset, np.arange(4, 20))
    found = printed("report", exploded, "--splits", tmp_path, "--json")
    (one,) = [one for one in found["sections"] if one["name"] == "splits"]
    assert [row[:2] for row in one["tables"][0]["rows"]] == [
        ["train", "16"],
        ["val", "4"],
        ["test", "0"],
    ]


def test_two_stores(exploded, printed):
    found = printed("report", exploded, exploded, "--json")
    assert found["stores"] == [str(exploded)] * 2
    assert found["facts"]["A"]["samples"] == found["facts"]["B"]["samples"] == 20
    shown = printed("report", exploded, exploded)
    assert shown.count("blown up") == 2


def test_names_give_a_terminal_no_orders(tmp_path, printed, monkeypatch):
    with zp.ZarrData(tmp_path / "run") as sink:
        for place in range(20):
            fields = {"forces": np.ones((2, 3))} if place % 4 else {}
            own = {"kind": "bulk" if place % 4 else "\x1b]0;gone\x07slab"}
            positions = [[0.0] * 3, [0.0, 0.0, 1.1 + place / 200]]
            sink.write(zp.AtomicData(positions, [6, 8], energy=-1.0, system=own, **fields))
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setenv("TERM", "dumb")
    shown = printed("info", tmp_path / "run") + printed("report", tmp_path / "run")
    assert "without forces" in shown
    assert "?]0;gone?slab" in shown
    assert "\x1b]" not in shown
    assert "\x07" not in shown


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["nothing.zarr"], "no Zarr store"),
        (["{store}", "-o", "{folder}"], "expected a file"),
        (["{store}", "-o", "{folder}/none/report.html"], "a directory that is there"),
        (["{store}", "--plots", "{folder}/file"], "which is a file"),
        (["{store}", "--splits", "{folder}"], "which has no train.npy"),
        (["{store}", "--fractions", "a"], "expected numbers"),
    ],
)
def test_wrong_input_is_one_line(arguments, text, exploded, tmp_path, capsys):
    (tmp_path / "file").touch()
    filled = [one.format(store=exploded, folder=tmp_path) for one in arguments]
    assert main(["report", *filled]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    (line,) = shown.err.splitlines()
    assert text in line
