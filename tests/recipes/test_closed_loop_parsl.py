import importlib
import json
import multiprocessing
import os
import subprocess
import sys
import time
from pathlib import Path
from runpy import run_path

import numpy as np
import pytest

pytest.importorskip("parsl", reason="the extra 'parsl' is not installed")

import parsl_pool
import zarrpipe as zp
from closed_loop_parsl import CONFIGS, Settings, check_same_run, cost, read_settings
from parsl_tasks import checkpoint, label

psutil = pytest.importorskip("psutil", reason="Parsl needs it")
LOOP = Path(__file__).parents[2] / "recipes" / "closed_loop_parsl.py"
DEADLINE = 900.0
"""Seconds for a run of half a minute: machines are slow, and busy."""

TINY = {
    "workers": 2,
    "queue": 4,
    "rounds": 3,
    "walkers": 3,
    "frames": 3,
    "stride": 4,
    "steps": 15,
    "batch_size": 4,
    "timeout": 10.0,
    "retries": 1,
    "trust": 1000.0,
    "calculator": "parsl_calculators.Faulty",
    "calculator_options": {},
}


def command(out, **changes):
    options = {"out": out, **TINY, **changes}
    given = [
        f"--{name}={json.dumps(value) if isinstance(value, dict) else value}"
        for name, value in options.items()
    ]
    return [sys.executable, "-W", "ignore", str(LOOP), *given]


def start(out, log, **changes):
    """Start the loop; what it prints goes to a file, as its workers keep a pipe open."""
    paths = [str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(paths)}
    environment["ZARRPIPE_TEST_RUN"] = str(out)
    with log.open("a") as file:
        return subprocess.Popen(
            command(out, **changes), stdout=file, stderr=subprocess.STDOUT, env=environment
        )


def finish(process, log):
    assert process.wait(DEADLINE) == 0, log.read_text()
    return log.read_text()


def labels(out):
    """Everything that decides a label, by round, walker and frame."""
    batch = zp.ZarrDataset(out / "labelled.zarr").__getitems__(slice(None))
    keys = [batch[name].flatten().tolist() for name in ("round", "walker", "frame")]
    systems = [batch.get_data(index) for index in range(batch.num_graphs)]
    rows = [
        tuple(
            getattr(one, name).numpy().tobytes()
            for name in ("atomic_numbers", "positions", "energy", "forces", "deviation")
        )
        for one in systems
    ]
    found = list(zip(zip(*keys, strict=True), rows, strict=True))
    assert len({key for key, _ in found}) == len(found), "a label is there twice"
    return dict(found)


def aside(out):
    """Why structures have no label, by round, walker and frame."""
    batch = zp.ZarrDataset(out / "set_aside.zarr").__getitems__(slice(None))
    keys = [batch[name].flatten().tolist() for name in ("round", "walker", "frame")]
    names = batch.categories("status")
    kinds = [names[code] for code in batch["status"].flatten().tolist()]
    found = list(zip(zip(*keys, strict=True), kinds, strict=True))
    assert len({key for key, _ in found}) == len(found)
    return dict(found)


def family(marker):
    """Processes that a run, known by a variable of its environment, has left."""
    found = []
    for one in psutil.process_iter():
        try:
            if one.environ().get("ZARRPIPE_TEST_RUN") == str(marker):
                found.append(one)
        except psutil.Error:
            continue
    return found


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """Labels of a run whose workers nobody kills, and those that it has set aside."""
    out = tmp_path_factory.mktemp("undisturbed")
    said = finish(start(out / "run", out / "log"), out / "log")
    assert "the trainer waited for data" in said
    return labels(out / "run"), aside(out / "run")


@pytest.mark.slow
def test_killed_workers_change_no_label_and_lose_none(tmp_path, undisturbed):
    killed = tmp_path / "killed"
    killed.mkdir()
    faults = {"calculator_options": {"killed": str(killed)}, "workers": 3, "queue": 5}
    finish(start(tmp_path / "run", tmp_path / "log", **faults), tmp_path / "log")
    assert len(list(killed.iterdir())) >= 3
    expected, set_aside = undisturbed
    assert labels(tmp_path / "run") == expected
    assert aside(tmp_path / "run") == set_aside
    assert len(expected) + len(set_aside) == 3 * 3 * 3
    assert not expected.keys() & set_aside.keys()
    reasons = {status.partition(":")[0] for status in set_aside.values()}
    assert reasons <= {"no convergence", "ZeroDivisionError", "worker lost", "timeout"}
    assert len(reasons) >= 2


@pytest.mark.slow
def test_a_killed_main_process_leaves_nothing_behind_and_goes_on(tmp_path, undisturbed):
    out, log = tmp_path / "run", tmp_path / "log"
    process = start(out, log, config_options={"patience": 60})  # the pools end after that
    assert family(out)
    deadline = time.monotonic() + DEADLINE
    while time.monotonic() < deadline:
        try:
            if len(zp.ZarrDataset(out / "labelled.zarr")) >= 8:
                break
        except zp.errors.StoreNotFoundError:
            pass
        assert process.poll() is None, log.read_text()
        time.sleep(0.05)
    process.kill()
    process.wait()
    _, alive = psutil.wait_procs(family(out), DEADLINE)
    assert not alive
    before = labels(out)
    assert 8 <= len(before) <= len(undisturbed[0])
    finish(start(out, log), log)
    assert labels(out) == undisturbed[0]
    assert before.items() <= labels(out).items()
    assert aside(out) == undisturbed[1]


def test_labels_say_why_they_are_none(monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parent)
    numbers, positions = np.array([6, 8]), np.array([[0.0, 0, 0], [0, 0, 1.2]])
    status, energy, forces = label("ase.calculators.emt.EMT", {}, numbers, positions, 60.0)
    assert status == "ok"
    assert np.isfinite(energy)
    np.testing.assert_allclose(forces.sum(0), 0.0, atol=1e-9)
    failing = "parsl_calculators.NotConverging"
    status, energy, forces = label(failing, {}, numbers, positions, 60.0)
    assert status == "no convergence"
    assert np.isnan(energy)
    assert np.isnan(forces).all()


def test_a_worker_killed_while_it_waits_leaves_no_queue_locked(monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parent)
    wait_for_item = importlib.import_module("parsl_calculators").wait_for_item
    spawn = multiprocessing.get_context("spawn")
    items, taken = parsl_pool.queue(), parsl_pool.queue()
    waiting = spawn.Process(target=wait_for_item, args=(items, taken))
    waiting.start()
    deadline = time.monotonic() + DEADLINE
    while items._rlock.acquire(block=False):  # until the process has it
        items._rlock.release()
        assert time.monotonic() < deadline
        assert waiting.is_alive()
        time.sleep(0.01)
    assert not items._rlock.acquire(timeout=0.05)
    waiting.kill()
    waiting.join()
    other = spawn.Process(target=wait_for_item, args=(items, taken))
    other.start()
    items.put("task")
    assert taken.get(timeout=DEADLINE) == "task"
    other.join(DEADLINE)
    assert other.exitcode == 0


def test_a_lost_worker_counts_less_than_a_failure():
    errors = importlib.import_module("parsl.executors.high_throughput.errors")
    assert cost(errors.WorkerLost(0, "host"), None) == 0.25
    assert cost(ValueError(), None) == 1.0


def test_the_directory_of_another_run_is_refused(tmp_path):
    check_same_run(Settings(out=tmp_path, seed=1))
    check_same_run(Settings(out=tmp_path, seed=1, workers=9, rounds=99))
    with pytest.raises(SystemExit, match="other values of seed"):
        check_same_run(Settings(out=tmp_path, seed=2))


@pytest.mark.parametrize("wrong", [{"queue": 0}, {"patience": 100.0, "timeout": 60.0}])
def test_wrong_settings_are_one_line(wrong):
    with pytest.raises(SystemExit, match="expected"):
        Settings(**wrong)


@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")  # Parsl, as it lists addresses
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_the_configs_are_what_the_loop_needs(tmp_path):
    for name in ("local", "slurm"):
        config = run_path(str(CONFIGS / f"{name}.py"))["config"](tmp_path, 3)
        assert {executor.label for executor in config.executors} == {"work", "train"}
        assert config.run_dir == str(tmp_path)
        assert config.usage_tracking == 0
    settings = read_settings(["--workers=3", f"--config={CONFIGS / 'slurm.py'}"])
    assert settings.workers == 3
    assert Path(settings.config).name == "slurm.py"
    assert checkpoint(tmp_path, 2, 1).name == "round-2-member-1.ckpt"
