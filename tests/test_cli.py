"""The command line: what it prints, what it asks, and how it ends."""

import io
import json
import subprocess
import sys

import pytest
import zarr

import zarrpipe as zp
from zarrpipe.cli import main
from zarrpipe.testing import assert_batches_equal, numbered_batch


@pytest.fixture
def store(tmp_path):
    with zp.ZarrData(tmp_path / "run") as sink:
        sink.write(numbered_batch(range(20)))
    return tmp_path / "run"


def opened(store, path):
    return zarr.open_array(store / path, mode="r+")


def test_a_good_store(store, capsys):
    assert main(["check", str(store)]) == 0
    shown = capsys.readouterr()
    assert shown.out.splitlines()[0] == str(store)
    assert shown.out.splitlines()[-1] == "good"
    assert "20 samples (0 deleted), 60 atoms, 30 edges" in shown.out
    assert shown.err == ""


def test_a_damaged_store(store, capsys):
    opened(store, "core/atomic_numbers")[0] = 99
    assert main(["check", str(store)]) == 1
    shown = capsys.readouterr()
    assert shown.out.splitlines()[-1] == "DAMAGED: 1 error"
    assert "meta/ids: 1 sample (0) with another structure" in shown.out


def test_json(store, capsys):
    opened(store, "core/forces")[0] = float("nan")
    assert main(["check", "--json", str(store)]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["samples"] == 20
    assert [(item["kind"], item["severity"]) for item in report["findings"]] == [
        ("sums", "warning"),  # which are those of what stood there before
        ("not-finite", "warning"),
    ]


def test_a_repair_says_what_it_does_and_asks(store, capsys, monkeypatch):
    opened(store, "meta/atoms_ptr")[10] = 0
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n"))
    assert main(["check", str(store), "--repair"]) == 2
    assert "repeat with --yes" in capsys.readouterr().err
    assert opened(store, "meta/atoms_ptr")[10] == 0
    for answer, code in (("no\n", 2), ("y\n", 0)):
        terminal = io.StringIO(answer)
        monkeypatch.setattr(terminal, "isatty", lambda: True)
        monkeypatch.setattr(sys, "stdin", terminal)
        assert main(["check", str(store), "--repair"]) == code
        shown = capsys.readouterr()
        assert "to be done:\n  compute the entries again" in shown.err
    assert "done:\n  wrote 1 entry (10) of meta/atoms_ptr" in shown.out
    assert_batches_equal(zp.ZarrData(store).read(), numbered_batch(range(20)))


def test_a_repair_without_asking(store, capsys):
    opened(store, "core/atomic_numbers")[0] = 99
    assert main(["check", str(store), "--repair", "--yes"]) == 1
    assert main(["check", str(store), "--repair", "--drop", "--yes", "--json"]) == 0
    shown = capsys.readouterr().out
    assert '"deleted 1 sample (0)"' in shown
    assert main(["check", str(store), "--repair", "--yes"]) == 0


def test_what_cannot_be_opened(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    for place in ("nothing", "file"):
        assert main(["check", str(tmp_path / place)]) == 2
        shown = capsys.readouterr()
        assert shown.out == ""
        assert shown.err.startswith("zarrpipe: ")
        assert shown.err.count("\n") == 1
    assert not (tmp_path / "nothing").exists()


@pytest.mark.parametrize(
    "arguments", [[], ["check"], ["chek", "x"], ["check", "x", "--drop"], ["check", "x", "--rep"]]
)
def test_wrong_arguments(arguments, capsys):
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    assert "usage: zarrpipe" in capsys.readouterr().err


def test_as_a_module(store):
    done = subprocess.run(
        [sys.executable, "-m", "zarrpipe", "check", str(store)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.endswith("good\n")
