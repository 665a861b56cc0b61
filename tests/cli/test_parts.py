"""Commands on a parent of parts: what one store has, over all of them."""

import json

import pytest

import zarrpipe as zp
from zarrpipe.cli import main


@pytest.fixture
def parent(tmp_path, samples):
    for part, chosen in (("2", slice(0, 20)), ("10", slice(20, 30))):
        with zp.ZarrData(tmp_path / "parts", part=part) as sink:
            sink.write(samples.made[chosen])
    return tmp_path / "parts"


def test_info_lists_the_parts(parent, printed):
    shown = printed("info", parent, "--json")
    assert list(shown["parts"]) == ["2", "10"]
    assert shown["parts"]["10"]["elements"] == zp.info(parent / "part-10").elements
    assert [one["samples"] for one in shown["parts"].values()] == [20, 10]
    lines = printed("info", parent).splitlines()
    assert lines[0] == f"{parent}: 30 samples in 2 parts"
    assert [line.split()[:2] for line in lines[2:]] == [["2", "20"], ["10", "10"], ["all", "30"]]


def test_check_looks_at_each_part(parent, printed, capsys):
    shown = printed("check", parent, "--json")
    assert {name: one["samples"] for name, one in shown["parts"].items()} == {"2": 20, "10": 10}
    assert printed("check", parent).count("findings: none") == 2
    (parent / "part-10" / "core" / "positions" / "c" / "0" / "0").unlink()
    code = main(["check", str(parent), "--json"])
    found = json.loads(capsys.readouterr().out)["parts"]
    assert code == zp.check(parent / "part-10").exit_code != 0
    assert found["2"]["findings"] == []
    assert found["10"]["findings"] != []


@pytest.mark.parametrize("command", ["show", "head"])
def test_the_union_is_shown_as_one_store(parent, samples, printed, command):
    of_parts = printed(command, parent, "--json")
    of_one = printed(command, samples.path, "--json")
    assert of_parts.pop("stores") != of_one.pop("stores")
    assert of_parts == of_one


def test_statistics_are_those_of_one_store(parent, samples, printed):
    of_parts, of_one = (printed("stats", one, "--json") for one in (parent, samples.path))
    assert of_parts.pop("stores") != of_one.pop("stores")
    for name, value in of_one.items():
        expected = value if value is None else pytest.approx(value, rel=1e-9)
        assert of_parts[name] == expected


def test_merge_export_report_and_watch(parent, samples, tmp_path, printed):
    printed("merge", parent, tmp_path / "whole")
    printed("export", parent, tmp_path / "out.extxyz")
    whole, one = zp.ZarrDataset(tmp_path / "whole"), zp.ZarrDataset(samples.path)
    assert whole.ids.tolist() == one.ids.tolist()
    assert (tmp_path / "out.extxyz").read_text().count("Lattice") == 0
    assert (tmp_path / "out.extxyz").read_text().count("Properties=") == 30
    assert zp.report(parent).to_dict()["samples"] == 30
    watched = [one["samples"] for one in printed("watch", parent, "--once", "--json")["stores"]]
    assert sorted(watched) == [10, 20]
