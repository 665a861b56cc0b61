"""The command ``watch``: its views, pipes, interrupts and what is typed in wrongly."""

import contextlib
import io
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request

import pytest
from rich.console import Console

import zarrpipe as zp
from zarrpipe.cli import main
from zarrpipe.watch.facts import SILENT, Facts, Metric, RunFacts, State, StoreFacts, Writer
from zarrpipe.watch.terminal import view
from zarrpipe.watch.texts import line

LOG = "epoch,step,data/num_samples,data/wait,val/forces_mae_meV_A\n1,19,95,0.02,300.25\n"


@pytest.fixture
def run(samples):
    """A folder with a store and a run beside it."""
    directory = samples.path.parent / "trained"
    directory.mkdir()
    (directory / "metrics.csv").write_text(LOG)
    return samples.path.parent


def test_once(run, printed):
    facts = printed("watch", run, "--once", "--interval", 0.1, "--json")
    (store,), (trained,) = facts["stores"], facts["runs"]
    assert (store["store"], store["samples"], store["samples_per_s"]) == (str(run / "run"), 30, 0.0)
    assert (store["rounds"], store["last_round"], store["last_round_samples"]) == (3, 2, 10)
    assert (trained["epoch"], trained["num_samples"], trained["wait"]) == (1, 95, 0.02)
    assert trained["errors"][0]["label"] == "forces MAE"
    text = printed("watch", run, "--once", "--interval", 0.1)
    assert text.count("\n") == 1
    assert "30 samples, 0.0 samples/s; " in text
    assert "running, epoch 1, step 19, N 95, wait 2.0%, forces MAE 300.2 meV/Å" in text


def test_a_line_says_that_a_writer_was_killed():
    store = StoreFacts("/a/new.zarr", samples=3, writer=Writer("node1", 77, 0.0, alive=True))
    killed = StoreFacts("/a/old.zarr", samples=5, writer=Writer("node1", 78, 0.0, alive=False))
    assert line(Facts(1000.0, 900.0, 0.0, (store, killed)), "12:00:00") == (
        "12:00:00; /a/new.zarr: 3 samples, - samples/s; "
        "/a/old.zarr: 5 samples, - samples/s, writer 78 was killed"
    )


@contextlib.contextmanager
def watching(*arguments):
    """A process of the command."""
    command = [sys.executable, "-m", "zarrpipe", "watch", *map(str, arguments)]
    kinds = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, text=True, **kinds) as process:
        try:
            yield process
        finally:
            process.kill()


def test_a_pipe_gets_a_line_each_interval_until_an_interrupt(run):
    with watching(run, "--interval", 0.1, "--json", "--serve", "--port", 0) as process:
        first = json.loads(process.stdout.readline())
        with zp.ZarrData(run / "run") as sink:
            sink.write(zp.AtomicData([[0.0, 0.0, 0.0]], [1], energy=-1.0))
            while (facts := json.loads(process.stdout.readline()))["stores"][0]["arrived"] == 0:
                pass
        assert facts["stores"][0]["writer"]["pid"] == os.getpid()
        url = process.stderr.readline().split()[1]
        with urllib.request.urlopen(f"{url}facts.json") as answer:
            assert json.load(answer)["stores"][0]["samples"] == 31
        process.send_signal(signal.SIGINT)
        rest, errors = process.communicate(timeout=60)
        assert (process.returncode, errors) == (0, "")
        for line in rest.splitlines():
            json.loads(line)
    assert first["stores"][0]["samples"] == 30


def test_it_ends_when_the_reader_of_its_pipe_leaves(run):
    with watching(run, "--interval", 0.1) as process:
        assert "30 samples" in process.stdout.readline()
        process.stdout.close()
        assert process.wait(timeout=60) == 0
        assert process.stderr.read() == ""


def test_wrong_input(run, tmp_path, capsys):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        for arguments, way_out in (
            ([tmp_path / "nothing"], "give the folder that it will be made in"),
            ([run / "trained" / "metrics.txt"], "does not exist: expected a store"),
            ([run, "--serve", "--port", port], f"port {port} of 127.0.0.1: is taken"),
            ([run, "--serve", "--once"], "it goes on, and --once ends: give one"),
            ([run, "--port", "70000"], "watch --help says more"),
            ([run, "--interval", "0"], "watch --help says more"),
            ([], "Missing argument"),
        ):
            with contextlib.suppress(SystemExit):
                assert main(["watch", *map(str, arguments)]) == 2
            shown = capsys.readouterr()
            assert (shown.out, shown.err.count("\n")) == ("", 1)
            assert way_out in shown.err


def shown(facts, width=150):
    """What a terminal shows of facts."""
    console = Console(file=io.StringIO(), width=width, force_terminal=False)
    console.print(view(facts, "runs"))
    return console.file.getvalue()


def test_a_terminal_shows_tables():
    store = StoreFacts(
        "run.zarr", samples=12_400, atoms=111_600, samples_per_s=14.25, samples_per_s_mean=9.5,
        rounds=4, last_round=3, last_round_samples=100, bytes_stored=2_500_000,
        bytes_free=40_000_000_000, writer=Writer("node1", 77, 0.0, alive=True), last_append=995.0,
    )  # fmt: skip
    killed = StoreFacts("old.zarr", writer=Writer("node1", 78, 0.0, alive=False))
    curve = ((1.0, 400.0), (2.0, 100.0))
    forces = Metric("val/forces_mae_meV_A", "meV/Å", 100.0, 90.0, curve)
    run = RunFacts(
        "trained", state=State.SILENT, epoch=3, step=120, max_steps=200, num_samples=11_780,
        samples_per_s=33.3, wait=0.015, learning_rate=1e-3, errors=(forces,), last_line=400.0,
    )  # fmt: skip
    text = shown(Facts(1000.0, 900.0, 0.004, (store, killed), (run,), ("a note",)))
    lines = [" ".join(line.split()) for line in text.splitlines()]
    assert "run.zarr 12,400 14.2 9.5 111,600 3 (100) 2.5 MB 40 GB 77 on node1 5 s ago" in lines
    assert "old.zarr 0 - - 0 - - - 78 was killed -" in lines
    assert "trained 3 120 of 200 11,780 33.3 1.5% 0.001 10 min ago silent" in lines
    assert SILENT in lines
    assert "forces MAE 100 90 meV/Å █▁" in lines
    assert lines[-1] == "a note"
    assert "0.4% of a core" in lines[0]


def test_names_are_neither_markup_nor_commands_of_the_terminal():
    text = shown(Facts(1.0, 0.0, 0.0, (StoreFacts("[red]a[/red]\x1b[2J.zarr", problem="\x1bc"),)))
    assert "[red]a[/red]?[2J.zarr" in text
    assert "\x1b" not in text


def test_a_terminal_is_redrawn(run):
    pty = pytest.importorskip("pty")
    leader, follower = pty.openpty()
    command = [sys.executable, "-m", "zarrpipe", "watch", str(run), "--interval", "0.1"]
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "150", "LINES": "40"}
    with subprocess.Popen(command, stdout=follower, stderr=follower, env=environment) as process:
        os.close(follower)
        text, until = b"", time.monotonic() + 60
        while text.count(b"of a core") < 3 and time.monotonic() < until:
            text += os.read(leader, 1 << 16)
        process.send_signal(signal.SIGINT)
        with contextlib.suppress(OSError):  # the terminal is gone
            while more := os.read(leader, 1 << 16):
                text += more
        assert process.wait(timeout=60) == 0
    os.close(leader)
    assert b"forces MAE" in text
    assert b"\x1b[?25h" in text  # the cursor is back
