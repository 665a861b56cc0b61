"""copy and bench: what they print, and what copy leaves."""

import json
import subprocess
import sys

import zarrpipe as zp
from zarrpipe.cli import main
from zarrpipe.testing import assert_batches_equal


def test_copy(samples, printed, tmp_path, capsys):
    target = tmp_path / "copy"
    said = printed("copy", samples.path, target)
    assert said == f"{target}: 30 samples of {samples.path}\n"
    one, other = (zp.ZarrDataset(place).read(range(30)) for place in (samples.path, target))
    assert_batches_equal(other, one)
    assert main(["copy", str(samples.path), str(target)]) == 2
    assert "holds 30 samples" in capsys.readouterr().err
    shown = printed("copy", samples.path, target, "--overwrite", "--no-verify", "--json")
    assert shown == {"source": str(samples.path), "target": str(target), "samples": 30}
    assert main(["copy", str(tmp_path / "nowhere"), str(tmp_path / "other")]) == 2
    assert not (tmp_path / "other").exists()


def test_copy_verifies_unless_told(samples, tmp_path, capsys):
    chunk = samples.path / "core" / "positions" / "c" / "0" / "0"
    content = bytearray(chunk.read_bytes())
    content[0] ^= 1
    chunk.write_bytes(bytes(content))
    arguments = ["copy", str(samples.path), str(tmp_path / "copy")]
    assert main(arguments) == 2
    assert "do not have the structures" in capsys.readouterr().err
    assert not (tmp_path / "copy").exists()
    assert main([*arguments, "--no-verify"]) == 0


def test_bench(samples, printed):
    options = ["--workers", "0", "--seconds", "0.3", "--step-ms", "1", "--repeats", "1"]
    shown = printed("bench", samples.path, *options, "--batch-size", "5", "--json")
    assert (shown["num_samples"], shown["batch_size"]) == (30, 5)
    warm = [one for one in shown["readings"] if one["pages"] == "warm"]
    assert [one["step_ms"] for one in warm] == [0.0, 1.0]
    assert shown["headroom"]["0"] == warm[0]["batches_per_s"]["median"] / 1000
    said = printed("bench", samples.path, *options, "--busy")
    assert said.startswith(f"{samples.path}: batches of 32, of 30 of the 30 samples\n")
    assert "\ntraining:\n  in process: batches come " in said


def test_bench_starts_its_processes_from_the_shell(samples):
    command = [sys.executable, "-m", "zarrpipe", "bench", str(samples.path), "--json"]
    options = ["--workers", "1", "--seconds", "0.5", "--repeats", "1"]
    done = subprocess.run([*command, *options], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert {one["workers"] for one in json.loads(done.stdout)["readings"]} == {0, 1}
