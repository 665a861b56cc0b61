"""info, stats, head and show: what they print is what is in the store."""

import json
import math

import numpy as np
import pytest

import zarrpipe as zp
from zarrpipe.cli import main


def max_force(one):
    return one.forces.norm(dim=1).max().item()


def test_info(samples, printed):
    assert printed("info", samples.path, "--json") == zp.info(samples.path).to_dict() | {
        "rounds": {"0": 10, "1": 10, "2": 10}
    }
    assert printed("info", samples.path) == f"{zp.info(samples.path)}\n"


def test_head(samples, printed):
    shown = printed("head", samples.path, "-n", 4, "--json")
    assert (shown["samples"], shown["matching"], shown["stores"]) == (30, 30, [str(samples.path)])
    assert shown["units"] == {"energy": "eV", "max_force": "eV/Angstrom"}
    assert [row["index"] for row in shown["rows"]] == [0, 1, 2, 3]
    table = zp.ZarrDataset(samples.path).to_pandas(["formula"])
    for row, one in zip(shown["rows"], samples.made, strict=False):
        assert [*row] == [
            *("index", "formula", "num_atoms", "energy", "max_force", "config_type", "round")
        ]
        assert row["formula"] == table.formula[row["index"]]
        assert row["num_atoms"] == one.num_nodes
        assert row["energy"] == one.energy.item()
        assert row["config_type"] == ("bulk", "slab")[row["index"] % 2]
        assert row["round"] == 0
    forces = [row["max_force"] for row in shown["rows"]]
    assert forces[3] is None
    assert forces[:3] == pytest.approx([max_force(one) for one in samples.made[:3]], rel=1e-14)
    assert len(printed("head", samples.path, "--json")["rows"]) == 10


def test_the_table_is_plain_text_with_units(samples, printed):
    lines = printed("head", samples.path, "-n", 5).splitlines()
    assert lines[0] == "5 of 30 samples"
    assert lines[1].split("  ")[-5:-2] != []
    assert "energy (eV)" in lines[1]
    assert "max_force (eV/Angstrom)" in lines[1]
    assert "-" in lines[5].split()
    assert len(lines) == 7
    assert not set("".join(lines)) & set("│─╭\x1b")
    ends = [line.index("energy (eV)") + len("energy (eV)") for line in lines[1:2]]
    assert all(line[ends[0] - 1].isdigit() and line[ends[0]] == " " for line in lines[2:])


@pytest.mark.parametrize("tail", [False, True])
def test_show_sorts_what_meets_a_condition(samples, printed, tail):
    options = ["--where", "round > 0 and config_type == 'slab'", "--sort", "max_force"]
    shown = printed(
        "show", samples.path, *options, *(["--tail"] if tail else []), "-n", 3, "--json"
    )
    candidates = [place for place in range(10, 30) if place % 2]
    candidates.sort(key=lambda place: max_force(samples.made[place]), reverse=not tail)
    assert [row["index"] for row in shown["rows"]] == candidates[:3]
    assert (shown["matching"], shown["samples"]) == (10, 30)
    text = printed("show", samples.path, *options, "-n", 3)
    assert text.splitlines()[0] == "3 of the 10 that match, of 30 samples"


def test_show_the_last_samples_and_chosen_fields(samples, printed):
    options = ["--tail", "--limit", 2, "--fields", "moment, config_type"]
    shown = printed("show", samples.path, *options, "--json")
    assert [row["index"] for row in shown["rows"]] == [28, 29]
    assert shown["rows"][1]["moment"] == samples.made[29]["moment"][0].tolist()
    assert [*shown["rows"][0]] == ["index", "moment", "config_type"]
    numbers = " ".join(f"{value:.8g}" for value in samples.made[29]["moment"][0].tolist())
    assert numbers in printed("show", samples.path, *options)


def test_show_has_the_column_that_it_sorts_by(samples, printed):
    for column in ("num_edges", "energy_per_atom"):
        shown = printed("show", samples.path, "--sort", column, "--json")
        assert column in shown["rows"][0]
    shown = printed("show", samples.path, "--sort", "abs(energy)", "-n", 1, "--json")
    energies = [one.energy.item() if "energy" in one else 0.0 for one in samples.made]
    assert shown["rows"][0]["index"] == int(np.argmax(np.abs(energies)))


def test_show_nothing(samples, printed):
    shown = printed("show", samples.path, "--where", "round > 9")
    assert shown.splitlines()[0] == "0 of the 0 that match, of 30 samples"
    assert printed("head", samples.path, "-n", 0, "--json")["rows"] == []


def test_several_stores_are_taken_as_one(samples, printed, tmp_path):
    with zp.ZarrData(tmp_path / "more") as sink:
        sink.write(samples.made[0])
    shown = printed("show", samples.path, tmp_path / "more", "--tail", "-n", 1, "--json")
    assert [row["index"] for row in shown["rows"]] == [30]
    assert shown["rows"][0]["energy"] == samples.made[0].energy.item()


def test_a_url(samples, printed):
    url = samples.path.as_uri()
    assert printed("head", url, "--json")["samples"] == 30
    assert printed("info", url, "--json")["samples"] == 30


def test_stats(samples, printed):
    data = zp.ZarrDataModule(samples.path, split=(1.0, 0.0, 0.0))
    expected, shown = data.statistics, printed("stats", samples.path, "--json")
    assert shown["num_samples"] == 30
    assert shown["element_counts"] == {
        symbol: expected.element_counts[number] for symbol, number in (("H", 1), ("C", 6), ("O", 8))
    }
    for symbol, number in (("H", 1), ("C", 6), ("O", 8)):
        assert shown["reference_energies"][symbol] == expected.reference_energies[number]
    for name in ("energy_per_atom_mean", "energy_per_atom_std", "forces_rms"):
        assert shown[name] == getattr(expected, name)
    sizes = {str(size): count for size, count in expected.size_histogram.items()}
    assert shown["size_histogram"] == sizes
    text = printed("stats", samples.path)
    assert f"{expected.forces_rms:.6g}" in text
    assert f"{expected.reference_energies[8]:.6g}" in text


def test_stats_of_some_samples(samples, printed):
    data = zp.ZarrDataModule(samples.path, split=(0.5, 0.3, 0.2), where="has(energy)")
    data.setup("fit")
    options = ["--fractions", "0.5,0.3,0.2", "--where", "has(energy)", "--json"]
    shown = printed("stats", samples.path, "--split", "train", *options)
    assert shown["num_samples"] == len(data.train_dataset)
    assert shown["forces_rms"] == pytest.approx(data.statistics.forces_rms, rel=1e-12)
    shown = printed("stats", samples.path, "--split", "val", *options)
    assert shown["num_samples"] == len(data.val_dataset)
    every = [one for place, one in enumerate(samples.made) if place >= 20]
    squares = np.concatenate([one.forces.numpy().ravel() for one in every]) ** 2
    shown = printed("stats", samples.path, "--where", "round == 2", "--json")
    assert shown["num_samples"] == 10
    assert shown["forces_rms"] == pytest.approx(math.sqrt(squares.mean()), rel=1e-12)


def test_stats_by_a_field_and_of_an_index_file(samples, printed, tmp_path):
    dataset = zp.ZarrDataset(samples.path)
    zp.write_split(tmp_path / "some.npy", dataset, [2, 5, 9, 14])
    options = ["--split", tmp_path / "some.npy"]
    shown = printed("stats", samples.path, *options, "--json")
    assert shown["num_samples"] == 4
    assert shown["num_atoms"] == sum(samples.made[place].num_nodes for place in (2, 5, 9, 14))
    shown = printed("stats", samples.path, *options, "--where", "round == 1", "--json")
    assert shown["num_atoms"] == samples.made[14].num_nodes
    parts = [
        printed("stats", samples.path, "--split", name, "--by", "round", "--json")["num_samples"]
        for name in ("train", "val", "test")
    ]
    assert sum(parts) == 30
    assert all(part % 10 == 0 for part in parts)


def test_stats_without_labels(printed, tmp_path):
    with zp.ZarrData(tmp_path / "bare") as sink:
        sink.write(zp.AtomicData([[0.0] * 3], [1]))
    shown = printed("stats", tmp_path / "bare", "--json")
    assert (shown["num_samples"], shown["forces_rms"], shown["reference_energies"]) == (1, None, {})
    assert printed("stats", tmp_path / "bare").splitlines()[-1].split() == ["H", "1", "-"]
    shown = printed("stats", tmp_path / "bare", "--where", "num_atoms > 3", "--json")
    assert shown["num_samples"] == 0


def test_a_store_that_is_not_local(samples, printed, tmp_path):
    pytest.importorskip("fsspec")
    url = f"memory://{tmp_path.name}/run"
    assert printed("merge", samples.path, url, "--json")["samples"] == 30
    local, far = (printed("info", place, "--json") for place in (samples.path, url))
    for name in ("samples", "elements", "labels", "rounds", "categories", "repeated", "writer"):
        assert far[name] == local[name], name
    assert far["bytes_stored"] is None
    assert "bytes not counted" in printed("info", url)
    assert printed("stats", url) == printed("stats", samples.path)
    for command in (["head"], ["show", "--where", "round == 1"]):
        here, there = (
            printed(command[0], place, *command[1:], "--json") for place in (samples.path, url)
        )
        assert {**here, "stores": None} == {**there, "stores": None}


def test_a_field_that_is_called_index(tmp_path, capsys):
    with zp.ZarrData(tmp_path / "run") as sink:
        sink.write(zp.AtomicData([[0.0] * 3], [1], system={"index": [5]}))
    assert main(["show", str(tmp_path / "run"), "--fields", "index,formula", "--json"]) == 0
    shown = capsys.readouterr()
    assert json.loads(shown.out)["rows"] == [{"index": 0, "formula": "H"}]
    assert "the field 'index' is left out" in shown.err


def test_an_empty_store(printed, tmp_path):
    with zp.ZarrData(tmp_path / "run") as sink:
        sink.write(zp.AtomicData([[0.0] * 3], [1]))
        sink.zero()
    assert "fields:" not in printed("info", tmp_path / "run")
    assert printed("head", tmp_path / "run").splitlines()[0] == "0 of 0 samples"
    assert printed("stats", tmp_path / "run", "--json")["num_samples"] == 0
