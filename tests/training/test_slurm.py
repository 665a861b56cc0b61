"""Several SLURM tasks that are not ranks of one run are refused, and nothing else is."""

import pytest
import torch

import zarrpipe as zp
from zarrpipe.errors import ArgumentError
from zarrpipe.training.ranks import check_slurm_tasks


@pytest.fixture
def data(data):
    """A data module on a store of 20 samples."""
    store = {}
    with zp.ZarrData(store) as sink:
        sink.write(data.batch(20))
    return zp.ZarrDataModule(store, batch_size=4)


def in_step(monkeypatch, tasks, number=1):
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", str(tasks))
    monkeypatch.setenv("SLURM_NTASKS", str(tasks))
    monkeypatch.setenv("SLURM_PROCID", str(number))


def test_tasks_that_would_train_the_same_are_refused(data, monkeypatch):
    in_step(monkeypatch, 4)
    with pytest.raises(ArgumentError, match=r"task 1 of 4 of a SLURM step.*strategy='ddp'"):
        data.setup("fit")
    data.setup("test")
    monkeypatch.delenv("SLURM_STEP_NUM_TASKS")
    data.setup("fit")
    assert len(data.train_dataloader()) > 0


@pytest.mark.parametrize(
    "variables",
    [
        {},
        {"SLURM_NTASKS": "4", "SLURM_PROCID": "0"},  # a batch script, or an interactive shell
        {"SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0"},
        {"SLURM_STEP_NUM_TASKS": "", "SLURM_PROCID": "0"},
    ],
)
def test_one_task_trains(variables, monkeypatch):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    check_slurm_tasks()


def test_ranks_of_one_run_train(monkeypatch, tmp_path):
    in_step(monkeypatch, 4, 0)
    rendezvous = f"file://{tmp_path / 'rendezvous'}"
    torch.distributed.init_process_group("gloo", init_method=rendezvous, rank=0, world_size=1)
    try:
        check_slurm_tasks()
    finally:
        torch.distributed.destroy_process_group()
