"""Worker processes: equal batches, errors with their place, and nothing that outlives its need."""

import contextlib
import gc
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from zarrpipe.dataset.zarr_dataset import ZarrDataset
from zarrpipe.training.epoch.batch_plan import BatchIndices
from zarrpipe.training.loader import GraphLoader
from zarrpipe.training.sampler import GraphBatchSampler
from zarrpipe.training.workers.pool import Workers


@pytest.fixture(autouse=True)
def _nobody_is_left():
    yield
    assert multiprocessing.active_children() == []


@contextlib.contextmanager
def loading(path, workers, transform=None, *, batch_size=4, fields=None, **settings):
    dataset = ZarrDataset(path, fields, transform)
    sampler = GraphBatchSampler(dataset, batch_size, **settings)
    loader = GraphLoader(dataset, sampler, num_workers=workers)
    yield loader
    loader.close()


def gone(pid):
    try:
        state = Path(f"/proc/{pid}/stat").read_text().split()[2]
    except (FileNotFoundError, ProcessLookupError):
        return True
    return state == "Z"


def wait_until_gone(pids):
    deadline = time.monotonic() + 120
    while not all(map(gone, pids)):
        assert time.monotonic() < deadline, f"of {pids} some are still there"
        time.sleep(0.01)


@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.slow), 3])
@pytest.mark.parametrize("name", ["same", "shifted", "widened"])
def test_batches_and_their_order_are_those_without_workers(store, data, transforms, workers, name):
    transform = getattr(transforms, name)
    with loading(store[0], 0, transform) as here, loading(store[0], workers, transform) as loader:
        for _ in range(2):
            for batch, expected in zip(loader, here, strict=True):
                data.same(batch, expected)


@pytest.mark.slow
def test_spawned_workers_give_the_same_batches(store, data):
    dataset = ZarrDataset(store[0])
    workers = Workers(1, "spawn")
    batches = [BatchIndices(np.arange(start, start + 8)) for start in range(0, 40, 8)]
    for batch, item in zip(workers.read(dataset, iter(batches)), batches, strict=True):
        data.same(batch, dataset.read(item.samples))
    workers.close()


def test_batches_that_are_kept_do_not_change(store, data):
    with loading(store[0], 2, batch_size=1) as loader, loading(store[0], 0, batch_size=1) as here:
        for batch, expected in zip(list(loader), list(here), strict=True):
            data.same(batch, expected)


def test_batches_may_be_changed_in_place(store):
    with loading(store[0], 1, batch_size=2) as loader:
        for batch in loader:
            batch.positions.zero_()
            batch.batch_ptr.zero_()
        again = next(iter(loader))
        assert again.positions.abs().min() > 0


def test_more_workers_than_batches(store):
    with loading(store[0], 3, batch_size=40) as loader:
        assert [batch.num_graphs for batch in loader] == [40]


def test_an_iteration_may_be_left_at_any_batch(store, data, transforms):
    with loading(store[0], 0) as here, loading(store[0], 2, transforms.slow) as loader:
        expected = [batch.serial.tolist() for batch in here]
        for leave in (0, 1, 5, 9):
            loader.sampler.set_epoch(0)
            for step, batch in enumerate(loader):
                assert batch.serial.tolist() == expected[step]
                if step == leave:
                    break
        loader.sampler.set_epoch(0)
        assert [batch.serial.tolist() for batch in loader] == expected


def test_an_iteration_that_another_one_followed_says_so(store):
    with loading(store[0], 1) as loader:
        first = iter(loader)
        next(first)
        next(iter(loader))
        with pytest.raises(RuntimeError, match="iterated over again"):
            next(first)


def test_an_iteration_of_a_closed_loader_says_so(store):
    with loading(store[0], 1) as loader:
        batches = iter(loader)
        next(batches)
        loader.close()
        loader.close()
        with pytest.raises(RuntimeError, match="was closed"):
            next(batches)
        assert len(list(loader)) == 10


def test_what_a_transform_raises_arrives_with_its_traceback(store, transforms):
    with loading(store[0], 2, transforms.fails_at_seven, shuffle=False) as loader:
        batches = iter(loader)
        assert next(batches).serial.ravel().tolist() == [0, 1, 2, 3]
        with pytest.raises(KeyError, match="seven") as caught:
            next(batches)
        assert "in fails_at_seven" in caught.value.__notes__[0]
        assert loader.state_dict()["step"] == 1
        assert next(iter(loader)).num_graphs == 4


def test_an_exception_that_does_not_pickle_arrives_as_text(store, transforms):
    with loading(store[0], 1, transforms.fails_oddly) as loader:
        with pytest.raises(RuntimeError, match="cannot be pickled") as caught:
            next(iter(loader))
        assert "Unpicklable: this and that" in caught.value.__notes__[0]


def test_a_transform_has_to_give_a_batch(store, transforms):
    with (
        loading(store[0], 1, transforms.gives_a_list) as loader,
        pytest.raises(TypeError, match="returned a list, expected the Batch"),
    ):
        next(iter(loader))


def test_a_transform_that_cannot_travel_is_said_before_anything_starts(store):
    with loading(store[0], 1, lambda batch: batch) as loader:
        with pytest.raises((pickle.PicklingError, AttributeError)) as caught:
            next(iter(loader))
        assert "not a lambda" in caught.value.__notes__[0]


def test_a_store_that_is_gone_is_said(store, tmp_path):
    with loading(store[0], 1) as loader:
        store[0].rename(tmp_path / "moved")
        with pytest.raises(FileNotFoundError, match="store"):
            next(iter(loader))


@pytest.mark.parametrize(
    ("name", "message"), [("exits", "ended with exit code 3"), ("is_killed", "killed by SIGKILL")]
)
def test_a_worker_that_dies_is_named_and_the_next_iteration_has_new_ones(
    store, transforms, name, message
):
    with loading(store[0], 2, getattr(transforms, name)) as loader:
        for _ in range(2):
            with pytest.raises(RuntimeError, match=rf"zarrpipe-worker-\d \(\d+\) .*{message}"):
                next(iter(loader))
            assert multiprocessing.active_children() == []


def test_a_worker_that_is_killed_between_batches_is_noticed(store):
    with loading(store[0], 2, batch_size=1) as loader:
        batches = iter(loader)
        next(batches)
        for process in multiprocessing.active_children():
            os.kill(process.pid, signal.SIGKILL)
        with pytest.raises(RuntimeError, match="SIGKILL"):
            list(batches)
        assert len(list(loader)) == 40


def test_a_loader_that_is_let_go_of_ends_its_workers(store):
    dataset = ZarrDataset(store[0])
    loader = GraphLoader(dataset, GraphBatchSampler(dataset, 4), num_workers=2)
    next(iter(loader))
    pids = [process.pid for process in multiprocessing.active_children()]
    assert len(pids) == 2
    del loader
    wait_until_gone(pids)


def draws(loader):
    return torch.stack([batch.draws[0] for batch in loader])


def test_random_numbers_depend_on_the_batch_and_not_on_the_worker(store, transforms):
    seen = []
    for workers in (1, 2):
        with loading(store[0], workers, transforms.with_draws) as loader:
            seen.append(torch.stack([draws(loader), draws(loader)]))
            loader.sampler.set_epoch(1)
            for step, _ in enumerate(loader):
                if step == 3:
                    state = loader.state_dict()
                    break
            loader.load_state_dict(state)
            assert torch.equal(draws(loader), seen[0][1, 4:])
    assert torch.equal(*seen)
    for column in seen[0].reshape(-1, 3).T:
        assert len(column.unique()) == 20


def test_ranks_draw_other_random_numbers(store, transforms):
    seen = []
    for rank in (0, 1):
        with loading(store[0], 1, transforms.with_draws, rank=rank, world_size=2) as loader:
            seen.append(draws(loader))
    assert not torch.isin(seen[0], seen[1]).any()


def test_many_epochs_open_no_more_files(store):
    gc.collect()  # of earlier tests
    with loading(store[0], 1) as loader:
        list(loader)
        before = len(list(Path("/proc/self/fd").iterdir()))
        for _ in range(5):
            next(iter(loader))
        loader.close()
        list(loader)
        assert len(list(Path("/proc/self/fd").iterdir())) == before


SCRIPT = """
import multiprocessing, sys, time
from zarrpipe.dataset.zarr_dataset import ZarrDataset
from zarrpipe.training.loader import GraphLoader
from zarrpipe.training.sampler import GraphBatchSampler

if __name__ == "__main__":
    dataset = ZarrDataset(sys.argv[1])
    loader = GraphLoader(dataset, GraphBatchSampler(dataset, 4), num_workers=2)
    {first}
    for batch in loader:
        print(*[process.pid for process in multiprocessing.active_children()], flush=True)
        {then}
"""


@pytest.fixture
def start(tmp_path, store):
    def start(then, first="pass"):
        script = tmp_path / "script.py"
        script.write_text(SCRIPT.format(then=then, first=first))
        return subprocess.Popen(
            [sys.executable, "-W", "error", str(script), str(store[0])],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    return start


@pytest.mark.parametrize(
    ("then", "first"), [("break", "list(loader)"), pytest.param("pass", "", marks=pytest.mark.slow)]
)
def test_a_script_ends_without_a_word(start, then, first):
    script = start(then, first)
    out, errors = script.communicate(timeout=300)
    assert (script.returncode, errors) == (0, "")
    wait_until_gone([int(pid) for pid in out.split()])


def test_no_worker_outlives_a_main_process_that_was_killed(start):
    with start("time.sleep(600)") as script:
        pids = [int(pid) for pid in script.stdout.readline().split()]
        assert len(pids) == 2
        script.kill()
        wait_until_gone(pids)


def test_control_c_reaches_the_main_process_alone(start):
    with start("time.sleep(600)") as script:
        pids = [int(pid) for pid in script.stdout.readline().split()]
        os.killpg(script.pid, signal.SIGINT)
        _, errors = script.communicate(timeout=300)
        assert script.returncode == -signal.SIGINT
        assert errors.count("Traceback") == errors.count("KeyboardInterrupt") == 1
        wait_until_gone(pids)
