"""``zarrpipe export``: files of other programs, and a card."""

import json

import ase.io
import pytest

import zarrpipe as zp
from zarrpipe.cli import main
from zarrpipe.testing import numbered_batch


@pytest.fixture
def store(tmp_path):
    with zp.ZarrData(tmp_path / "run") as sink:
        sink.write(numbered_batch(range(20)))
    return tmp_path / "run"


def test_samples_of_a_condition_in_an_order(store, tmp_path, capsys):
    out = tmp_path / "out.xyz"
    words = [
        "--where",
        "energy > 4",
        "--sort",
        "energy",
        "--limit",
        "3",
        "--fields",
        "energy,serial",
    ]
    assert main(["export", str(store), str(out), *words]) == 0
    shown = capsys.readouterr()
    assert shown.out == f"{out}: 3 samples, extxyz\n"
    assert shown.err == ""
    frames = ase.io.read(out, ":")
    assert [atoms.get_potential_energy() for atoms in frames] == [19, 18, 17]
    assert [atoms.info["serial"] for atoms in frames] == [19, 18, 17]
    assert "forces" not in frames[0].calc.results


def test_what_is_left_out_is_listed(store, tmp_path, capsys):
    out = str(tmp_path / "out")
    assert main(["export", str(store), out, "--format", "extxyz"]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert shown[:2] == [f"{out}: 20 samples, extxyz", "not in it:"]
    assert shown[2].startswith("  neighbor_list  it has a row for each edge")
    assert main(["export", str(store), out, "--format", "extxyz", "--overwrite", "--json"]) == 0
    (written,) = json.loads(capsys.readouterr().out)["written"]
    assert (written["path"], written["format"], written["samples"]) == (out, "extxyz", 20)
    assert [*written["left_out"]] == ["neighbor_list"]


def test_a_split(store, tmp_path):
    out, shares = tmp_path / "val.xyz", "0.5, 0.5, 0"
    assert main(["export", str(store), str(out), "--split", "val", "--fractions", shares]) == 0
    module = zp.ZarrDataModule(store, split=(0.5, 0.5, 0.0))
    expected = module.val_dataset.system_field("energy").flatten().tolist()
    assert [one.get_potential_energy() for one in ase.io.read(out, ":")] == expected


def test_a_card(store, tmp_path, capsys):
    pytest.importorskip("mlcroissant")
    about = ["--license", "CC0-1.0", "--creator", "Ada", "--creator", "Ben"]
    assert main(["export", str(store), "--card", *about]) == 0
    path = tmp_path / "run.croissant.json"
    card = json.loads(path.read_text())
    assert card["license"] == "CC0-1.0"
    assert [one["name"] for one in card["creator"]] == ["Ada", "Ben"]
    assert capsys.readouterr().out.splitlines()[0] == f"{path}: 20 samples, croissant"


def test_errors(store, tmp_path, capsys):
    out = str(tmp_path / "out.xyz")
    with pytest.raises(SystemExit):
        main(["export", str(store)])
    assert "--card was not given" in capsys.readouterr().err
    for words, told in (
        (["--where", "energy >"], "is no expression"),
        (["--fields", "energies"], "did you mean 'energy'"),
        (["--fractions", "a,b", "--split", "val"], "expected numbers"),
        (["--format", "cif"], "expected one of extxyz"),
    ):
        assert main(["export", str(store), out, *words]) == 2
        shown = capsys.readouterr()
        assert told in shown.err, words
        assert (shown.out, shown.err.count("\n")) == ("", 1)
    assert not (tmp_path / "out.xyz").exists()
    assert main(["export", str(store), out]) == 0
    assert main(["export", str(store), out]) == 2
    assert "overwrite=True" in capsys.readouterr().err
