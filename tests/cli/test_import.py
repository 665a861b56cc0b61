"""``zarrpipe import``: options, what is printed, and exit codes."""

import io
import json
import sys

import pytest

import zarrpipe as zp
from zarrpipe.cli import main

pytest.importorskip("ase.io")

ROWS = "O 0 0 0 0.1 0.2 0.3\nH 0.96 0 0 0 0 0\nH -0.24 0.93 0 -0.1 -0.2 -0.3\n"


def frame(comment, forces="REF_forces"):
    return f"3\nProperties=species:S:1:pos:R:3:{forces}:R:3 {comment}\n{ROWS}"


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "frames.xyz"
    path.write_text("".join(frame(f"REF_energy={-i - 1.5} config_type=a") for i in range(4)))
    return path


def test_a_file_by_one_command(file, tmp_path, capsys):
    store = tmp_path / "out.zarr"
    assert main(["import", str(file), str(store)]) == 0
    shown = capsys.readouterr()
    assert shown.out.splitlines() == [
        "1 source, 4 frames",
        "  energy       from info['REF_energy'], eV",
        "  forces       from arrays['REF_forces'], eV/Angstrom",
        "  config_type  from info['config_type'], text",
        "4 samples written",
    ]
    assert shown.err == ""
    batch = zp.ZarrDataset(store).read([3, 0])
    assert batch.energy.tolist() == [[-4.5], [-1.5]]
    assert batch.strings("config_type") == ["a", "a"]


def test_options(tmp_path):
    path, store = tmp_path / "a.xyz", tmp_path / "s.zarr"
    stress = 'stress="10 0 0 0 20 0 0 0 30" energy=-1.0 REF_energy=-2.0 time=5.0 junk=1'
    path.write_text(frame(f'{stress} Lattice="9 0 0 0 9 0 0 0 9"') * 2)
    options = ["--energy", "REF_energy", "--label", "model=energy", "--ignore", "junk"]
    options += ["--units", "stress=GPa", "--units", "time=fs", "--stress-sign", "pressure"]
    options += ["--source-fields"]
    assert main(["import", *options, str(path), str(store)]) == 0
    dataset = zp.ZarrDataset(store)
    sample = dataset[1]
    assert (sample.energy.item(), sample["model"].item()) == (-2.0, -1.0)
    assert sample.stress[0, 2, 2].item() == pytest.approx(-30 / 160.21766208)
    assert dataset.schema["time"].unit == "fs"
    assert "junk" not in dataset.schema
    assert dataset.read([1]).strings("source") == [str(path)]
    assert sample["source_index"].item() == 1


def test_several_keys_and_none(tmp_path):
    path, store = tmp_path / "a.xyz", tmp_path / "s.zarr"
    path.write_text(frame("energy=-1.0") + frame("REF_energy=-2.0"))
    assert main(["import", str(path), str(store), "--energy", "REF_energy,energy"]) == 0
    assert zp.ZarrDataset(store).read([0, 1]).energy.tolist() == [[-1.0], [-2.0]]
    again = tmp_path / "t.zarr"
    assert main(["import", str(path), str(again), "--energy", "none", "--forces", "none"]) == 0
    assert not {"energy", "forces"} & {*zp.ZarrDataset(again).schema}


def test_json(file, tmp_path, capsys):
    assert main(["import", "--json", str(file), str(tmp_path / "s.zarr")]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["samples"] == 4
    assert report["fields"]["energy"] == {
        "keys": ["info:REF_energy"], "level": "system", "unit": "eV", "factor": 1.0
    }  # fmt: skip
    assert report["sources"] == [{"path": str(file), "format": "extxyz", "frames": 4}]


def test_frames_that_cannot_be_read_give_exit_code_1(file, tmp_path, capsys):
    file.write_text(file.read_text() + frame("REF_energy=1.0").replace("0.96", "x"))
    assert main(["import", str(file), str(tmp_path / "s.zarr")]) == 1
    assert f"{file}, frame 4, line 21: ValueError" in capsys.readouterr().out
    assert main(["import", "--strict", str(file), str(tmp_path / "t.zarr")]) == 2
    assert "frame 4, line 21" in capsys.readouterr().err


def test_a_dry_run_and_resume(file, tmp_path, capsys):
    store = tmp_path / "s.zarr"
    assert main(["import", "--dry-run", str(file), str(store)]) == 0
    assert capsys.readouterr().out.splitlines()[0] == "1 source, 4 frames"
    assert not store.exists()
    for samples in ("4 samples written", "0 samples written, after 4 that were there"):
        assert main(["import", "--resume", str(file), str(store)]) == 0
        assert capsys.readouterr().out.splitlines()[-1] == samples
    assert len(zp.ZarrDataset(store)) == 4


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--units", "stress"], "'stress' is not of the form NAME=UNIT"),
        (["--units", "energy=furlong"], "'furlong' of 'furlong' is not a known unit"),
        (["--units", "energy=eV", "--units", "energy=Ry"], "energy is given as 'eV' and as 'Ry'"),
        (["--label", "energy"], "'energy' is not of the form FIELD=KEY"),
        (["--energy", "nothing"], "no frame that was looked at has it"),
        (["--format", "xzy"], "expected one of"),
        (["--stress-sign", "up"], "expected one of tension, pressure"),
        (["--if-exists", "maybe"], "expected one of append, error, replace"),
        (["--processes", "0"], "processes is 0, expected"),
    ],
)
def test_wrong_options_are_one_line_and_change_nothing(file, tmp_path, capsys, options, words):
    try:
        code = main(["import", *options, str(file), str(tmp_path / "s.zarr")])
    except SystemExit as error:
        code = error.code
    assert code == 2
    shown = capsys.readouterr()
    assert words in shown.err
    assert shown.err.count("\n") == 1
    assert not (tmp_path / "s.zarr").exists()


def test_what_is_not_clear_is_one_line(tmp_path, capsys):
    path = tmp_path / "a.xyz"
    path.write_text(frame("energy=-1.0 REF_energy=-2.0"))
    assert main(["import", str(path), str(tmp_path / "s.zarr")]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "--label energy=energy" in error
    assert "--label energy=REF_energy" in error


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError(28, "No space left on device"), "No space left"),
        (KeyboardInterrupt(), "interrupted"),
    ],
)
def test_what_stops_an_import_says_how_to_go_on(file, tmp_path, capsys, monkeypatch, error, words):
    def failing(self, batch):
        raise error

    monkeypatch.setattr(zp.ZarrData, "write", failing)
    assert main(["import", str(file), str(tmp_path / "s.zarr")]) == 2
    shown = capsys.readouterr().err
    assert words in shown
    assert "--resume" in shown
    monkeypatch.undo()
    assert main(["import", "--resume", str(file), str(tmp_path / "s.zarr")]) == 0
    assert len(zp.ZarrDataset(tmp_path / "s.zarr")) == 4


def test_standard_input(tmp_path, monkeypatch):
    class Input:
        buffer = io.BytesIO(frame("REF_energy=-1.5").encode())

    monkeypatch.setattr(sys, "stdin", Input)
    assert main(["import", "-", str(tmp_path / "s.zarr")]) == 0
    assert zp.ZarrDataset(tmp_path / "s.zarr")[0].energy.item() == -1.5
