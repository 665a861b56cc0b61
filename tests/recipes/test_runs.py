"""Directories of runs: names, claims, what a run that did not begin leaves, and metrics.csv."""

import csv
from pathlib import Path

import pytest
import runs
from lightning.pytorch.utilities import rank_zero_only

from zarrpipe.errors import ArgumentError


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def begin(directory):
    """What a run has that was trained."""
    (directory / "config.yaml").write_text("seed_everything: 0\n")
    (directory / "metrics.csv").write_text("step,loss\n1,2.0\n")
    (directory / "checkpoints").mkdir()


def names(directory):
    return sorted(path.name for path in directory.iterdir()) if directory.exists() else None


def test_each_start_has_a_directory_of_its_own():
    found = [runs.claim(None, "data/water.zarr", "schnet").directory for _ in range(3)]
    assert [str(one) for one in found] == [
        "runs/water-schnet",
        "runs/water-schnet-2",
        "runs/water-schnet-3",
    ]
    assert str(runs.claim(None, ["a.zarr", "b.zarr"], "own.Model").directory) == "runs/a-model"


def test_a_directory_with_a_run_is_refused_and_stays_as_it_is():
    first = runs.claim("mine", "water.zarr", "schnet")
    begin(first.directory)
    before = names(first.directory)
    with pytest.raises(ArgumentError, match=r"mine holds a run.*--out.*--run mine"):
        runs.claim("mine", "water.zarr", "schnet")
    assert names(first.directory) == before
    Path("file").write_text("")
    with pytest.raises(ArgumentError, match="file holds a run or a file"):
        runs.claim("file", "water.zarr", "schnet")


@pytest.mark.parametrize("name", ["metrics.csv", "checkpoints", "tensorboard"])
def test_files_of_a_run_without_a_config_are_not_written_over(name):
    Path("old", name).mkdir(parents=True)
    with pytest.raises(ArgumentError, match="old holds a run"):
        runs.claim("old", "water.zarr", "schnet")
    assert names(Path("old")) == [name]


def test_a_directory_with_files_of_others_can_be_taken_and_keeps_them():
    Path("mine").mkdir()
    Path("mine", "slurm.out").write_text("queued")
    claim = runs.claim("mine", "water.zarr", "schnet")
    Path("mine", "tensorboard").mkdir()
    claim.release()
    assert names(Path("mine")) == ["slurm.out"]


def test_a_run_that_did_not_begin_leaves_nothing():
    claim = runs.claim(None, "water.zarr", "schnet")
    assert names(Path("runs/water-schnet")) == ["config.yaml"]
    claim.release()
    assert not Path("runs").exists()


def test_a_run_that_logged_something_stays():
    claim = runs.claim("mine", "water.zarr", "schnet")
    begin(claim.directory)
    claim.release()
    assert names(Path("mine")) == ["checkpoints", "config.yaml", "metrics.csv"]


def test_other_ranks_make_no_directory(monkeypatch):
    begin_here = runs.claim(None, "water.zarr", "schnet").directory
    monkeypatch.setattr(rank_zero_only, "rank", 1)
    assert runs.claim(None, "water.zarr", "schnet").directory == begin_here
    assert str(runs.claim("other", "water.zarr", "schnet").directory) == "other"
    assert names(Path("runs")) == ["water-schnet"]
    monkeypatch.setattr(rank_zero_only, "rank", 0)
    monkeypatch.setenv("NODE_RANK", "1")
    assert str(runs.claim("other", "water.zarr", "schnet").directory) == "other"
    assert not Path("other").exists()


def test_the_best_checkpoint_or_else_the_last():
    begin(runs.claim("mine", "water.zarr", "schnet").directory)
    run = runs.find("mine")
    with pytest.raises(ArgumentError, match=r"no best.ckpt and no last.ckpt.*validated"):
        run.checkpoint()
    last, best = (Path("mine/checkpoints", name) for name in ("last.ckpt", "best.ckpt"))
    last.write_text("")
    assert run.checkpoint() == run.last() == last
    best.write_text("")
    assert (run.checkpoint(), run.last()) == (best, last)
    assert runs.of_checkpoint(last).directory == Path("mine")
    assert runs.of_checkpoint("elsewhere/last.ckpt") is None


def test_a_directory_without_a_run_is_named():
    Path("empty").mkdir()
    with pytest.raises(ArgumentError, match=r"no training run in empty.*config\.yaml"):
        runs.find("empty")
    runs.claim("claimed", "water.zarr", "schnet")
    with pytest.raises(ArgumentError, match="no training run in claimed"):
        runs.find("claimed")


def rows(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def log(directory, *metrics):
    logger = runs.MetricsLogger(directory, name="", version="", flush_logs_every_n_steps=1)
    for step, values in metrics:
        logger.log_metrics(values, step)
    logger.finalize("success")


def test_metrics_of_a_run_that_goes_on_are_kept_but_for_steps_that_come_again(tmp_path):
    log(tmp_path, (9, {"loss": 3.0}), (19, {"loss": 2.0}), (29, {"loss": 1.0}))
    runs.drop_after(tmp_path / "metrics.csv", 20)
    log(tmp_path, (29, {"loss": 1.5}), (29, {"error": 7.0}))
    assert rows(tmp_path / "metrics.csv") == [
        {"error": "", "loss": "3.0", "step": "9"},
        {"error": "", "loss": "2.0", "step": "19"},
        {"error": "", "loss": "1.5", "step": "29"},
        {"error": "7.0", "loss": "", "step": "29"},
    ]


def test_metrics_are_on_the_disk_as_soon_as_they_are_logged(tmp_path):
    logger, _ = runs.loggers(tmp_path)
    logger.log_metrics({"loss": 3.0}, 12)
    assert rows(tmp_path / "metrics.csv") == [{"loss": "3.0", "step": "12"}]
