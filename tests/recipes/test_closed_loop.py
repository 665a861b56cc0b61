import csv
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest
import torch

import zarrpipe as zp
from closed_loop import read_settings
from records import Row, read_rows, write_rows
from rounds import open_arm
from seeds import markdown, summary
from settings import Settings
from stability import intact
from stores import batch_of_frames, read_all, write_once
from walkers import Band, Walkers, explore
from xtb import Frames, ethanol, label, start_worker, trajectory
from zarrpipe.ml import Committee, ForceField, Prediction, TorchSimModel
from zarrpipe.ml.committee import force_deviation

LOOP = Path(__file__).parents[2] / "recipes" / "closed_loop.py"
TINY = {
    "labels": (8, 12, 16),
    "members": 2,
    "steps": 40,
    "batch_size": 4,
    "walkers": 4,
    "snapshots": 3,
    "stride": 4,
    "burn_in": 5,
    "trust": 1000.0,
    "known_quantile": 0.0,
    "test_frames": 4,
    "options": {"features": 8, "interactions": 1, "gaussians": 12},
}


@pytest.fixture(scope="module")
def oracle():
    """Worker process, as the loop has two: one thread, so that labels are the same each time."""
    with ProcessPoolExecutor(1, get_context("spawn"), initializer=start_worker) as pool:
        yield pool


@pytest.fixture(scope="module")
def test_dir(tmp_path_factory):
    """Test set that the tiny loops share."""
    settings = Settings(test_dir=tmp_path_factory.mktemp("test"), **TINY)
    for kelvin in (500, 800):
        write_once(
            settings.test_store(kelvin), 4, lambda kelvin=kelvin: trajectory(kelvin, 4, 0, 2, 5)
        )
    return settings.test_dir


@pytest.fixture(scope="module")
def whole(tmp_path_factory, test_dir, oracle):
    """Directory of a tiny loop that nobody stopped, and its rows."""
    out = tmp_path_factory.mktemp("whole")
    return out, run_arm(out, test_dir, oracle)


def run_arm(out, test_dir, oracle, stop_at=None, name="committee", **changes):
    """Run an arm in this process; a KeyboardInterrupt stands for a kill at a stage's end."""
    settings = Settings(out=out, test_dir=test_dir, **(TINY | changes))
    said, rows = [], []

    def say(stage):
        said.append(stage)
        if len(said) == stop_at:
            raise KeyboardInterrupt

    with open_arm(settings, name, oracle, say) as arm:
        arm.run(rows.append)
    return rows


def labelled(out, name="committee"):
    return read_all(out / name / "labelled.zarr")


def test_rounds_bring_the_labels_that_were_asked_for(whole):
    out, rows = whole
    assert [row.labels for row in rows] == [8, 12, 16]
    assert read_rows(out / "committee" / "metrics.csv")[-1].labels == 16
    batch = labelled(out)
    numbers = batch.atomic_numbers[:9].numpy()
    for index in (0, 9, 15):
        system = batch.get_data(index)
        energy, forces = label(numbers, system.positions.double().numpy())
        assert float(system.energy) == pytest.approx(energy, abs=1e-4)
        np.testing.assert_allclose(system.forces.numpy(), forces, atol=1e-3)
    with zp.ZarrData(out / "committee" / "candidates.zarr") as candidates:
        assert len(candidates) == 0


@pytest.mark.parametrize(
    "stop_at", [pytest.param(stage, marks=pytest.mark.slow) for stage in (1, 3, 6)] + [4]
)
def test_a_loop_that_was_stopped_ends_as_one_that_was_not(
    tmp_path, test_dir, oracle, whole, stop_at
):
    with pytest.raises(KeyboardInterrupt):
        run_arm(tmp_path, test_dir, oracle, stop_at=stop_at)
    run_arm(tmp_path, test_dir, oracle)
    expected, found = labelled(whole[0]), labelled(tmp_path)
    assert torch.equal(found.positions, expected.positions)
    assert torch.equal(found.energy, expected.energy)


@pytest.mark.slow
def test_labels_that_were_half_written_are_completed(tmp_path, test_dir, oracle, whole):
    expected = labelled(whole[0])
    with pytest.raises(KeyboardInterrupt):  # in round 1, after the candidates were drained
        run_arm(tmp_path, test_dir, oracle, stop_at=4)
    with zp.ZarrData(tmp_path / "committee" / "labelled.zarr") as store:
        store.write(expected.index_select(slice(8, 10)))
    run_arm(tmp_path, test_dir, oracle)
    assert torch.equal(labelled(tmp_path).positions, expected.positions)


def test_both_arms_start_from_the_same_labels(tmp_path, test_dir, oracle, whole):
    rows = run_arm(tmp_path, test_dir, oracle, name="random", labels=(8, 12))
    first, second = labelled(whole[0]), labelled(tmp_path, "random")
    assert torch.equal(first.positions[: 8 * 9], second.positions[: 8 * 9])
    assert not torch.equal(first.positions[8 * 9 : 12 * 9], second.positions[8 * 9 :])
    assert rows[0].mae_500 == whole[1][0].mae_500
    assert rows[1].share > 0.9


class Failing:
    """Oracle that does not converge where the first coordinate is negative."""

    def map(self, function, numbers, positions, chunksize):
        return [None if frame[0, 0] < 0 else (0.0, np.zeros_like(frame)) for frame in positions]


def test_frames_that_fail_are_replaced_by_others(tmp_path):
    frames = np.random.default_rng(0).normal(size=(12, 2, 3)).astype("f4").astype("f8")
    frames[:, 0, 0] = np.where(np.arange(12) % 3 == 0, -1.0, 1.0)  # 8 of 12 converge
    found = batch_of_frames(Frames(np.array([1, 1]), frames, np.zeros(12), np.zeros((12, 2, 3))))
    with open_arm(Settings(out=tmp_path, **TINY), "random", Failing(), print) as arm:
        got = arm.label(found, 6, seed=0).positions.view(-1, 2, 3)
        every = arm.label(found, 12, seed=0)
    good = {row.tobytes() for row in frames[np.arange(12) % 3 > 0].astype("f4")}
    chosen = {row.numpy().tobytes() for row in got}
    assert len(chosen) == len(got) == 6
    assert chosen <= good
    assert every.num_graphs == 8


@pytest.mark.slow
def test_killed_from_outside_it_goes_on(tmp_path, test_dir):
    options = [f"--{key}={list(v) if isinstance(v, tuple) else v}" for key, v in TINY.items()]
    command = [sys.executable, "-W", "ignore", str(LOOP), "--arms=committee", f"--out={tmp_path}"]
    command += [f"--test_dir={test_dir}", *options]
    table = tmp_path / "committee" / "metrics.csv"
    first = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 300
    while not table.exists() and time.monotonic() < deadline:
        time.sleep(0.005)
    os.kill(first.pid, signal.SIGKILL)
    first.communicate(
        timeout=300
    )  # its output ends with the last process of the arm, whose parent is gone
    done = len(read_rows(table))
    finished = subprocess.run(command, capture_output=True, text=True, check=True)
    assert 1 <= done < 3
    assert len(finished.stdout.splitlines()) == 5, finished.stdout
    batch = labelled(tmp_path)
    assert batch.num_graphs == 16
    assert len({tuple(row.tolist()) for row in batch.positions.view(16, -1)}) == 16
    for name in ("metrics.csv", "learning_curve.png", "parity.png"):
        assert (tmp_path / name).stat().st_size > 0


class Springs(torch.nn.Module):
    """Member of a committee that pulls each atom to a point on the x axis."""

    def __init__(self, centre):
        super().__init__()
        self.centre, self.cutoff = centre, 3.0

    def predict(self, batch, **_):
        forces = -batch.positions + torch.tensor([self.centre, 0.0, 0.0])
        energy = 0.5 * forces.square().sum(-1).new_zeros(batch.num_graphs, 1)
        return Prediction(energy, forces)


def test_deviation_is_the_largest_norm_of_the_standard_deviation():
    batch = zp.Batch(
        {"positions": torch.zeros(3, 3), "atomic_numbers": torch.ones(3, dtype=torch.int64)},
        torch.tensor([0, 2, 3]),
    )
    forces = torch.zeros(2, 3, 3)
    forces[0, 1] = torch.tensor([2.0, 0.0, 4.0])
    torch.testing.assert_close(force_deviation(forces, batch), torch.tensor([5.0**0.5, 0.0]))


def test_band_excludes_both_levels_and_what_is_no_number():
    values = torch.tensor([0.1, 0.2, 0.5, 1.0, torch.nan])
    assert Band(0.1, 1.0).mask(values).tolist() == [False, True, True, False, False]


def test_a_walker_that_leaves_the_trusted_region_restarts_from_the_pool(tmp_path):
    numbers = torch.tensor([6, 1])
    pool = torch.tensor([[[0.0, 0.0, 0.0], [1.1, 0.0, 0.0]]])
    walkers = Walkers.start(numbers, pool, torch.full((3,), 300.0), seed=0)
    committee = TorchSimModel(Committee([Springs(0.0), Springs(1.0)]))  # deviation 0.5 everywhere
    with zp.ZarrData(tmp_path / "sink") as sink:
        walk = explore(
            committee, walkers, sink, Band(0.1, 0.4), pool, snapshots=2, stride=2, seed=1
        )
        assert (walk.visited, walk.selected, walk.restarts, len(sink)) == (6, 0, 12, 0)
        assert torch.equal(walk.walkers.positions, pool.expand(3, 2, 3))
        walk = explore(
            committee, walkers, sink, Band(0.1, 0.6), pool, snapshots=2, stride=2, seed=1
        )
        assert (walk.visited, walk.selected, walk.restarts, len(sink)) == (6, 6, 0, 6)
        torch.testing.assert_close(
            sink.read().positions[6 * 1 :][:6].view(3, 2, 3), walk.walkers.positions
        )


def test_exploration_is_a_function_of_its_seed(tmp_path):
    numbers = torch.tensor(ethanol().numbers)
    pool = torch.tensor(ethanol().positions).float()[None]
    walkers = Walkers.start(numbers, pool, torch.linspace(500, 800, 3), seed=0)
    members = [ForceField(options={"cutoff": 5.0}, seed=seed) for seed in (0, 1)]
    committee = TorchSimModel(Committee(members))
    torch.manual_seed(5)
    found = []
    for number, seed in enumerate((1, 1, 2)):
        with zp.ZarrData(tmp_path / str(number)) as sink:
            explore(committee, walkers, sink, Band(-1, 100), pool, snapshots=2, stride=3, seed=seed)
            found.append(sink.read().positions)
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


def test_intact_sees_a_broken_and_a_formed_bond():
    rest = ethanol().positions
    broken, formed = rest.copy(), rest.copy()
    broken[3] += 2.0 * (rest[3] - rest[2])  # the hydrogen of the hydroxyl group
    formed[7] = rest[8] + [0.0, 0.0, 0.75]  # two hydrogens of a methyl group
    found = intact(np.stack([rest, broken, formed]), ethanol().numbers)
    assert found.tolist() == [True, False, False]


def test_write_once_completes_a_store_that_was_cut_off(tmp_path):
    frames = Frames(np.array([1, 1]), np.ones((3, 2, 3)), np.arange(3.0), np.zeros((3, 2, 3)))
    with zp.ZarrData(tmp_path / "a.zarr") as store:
        store.write(batch_of_frames(frames).index_select([0]))
    calls = []
    for _ in range(2):
        write_once(tmp_path / "a.zarr", 3, lambda: calls.append(1) or frames)
    assert calls == [1]
    assert read_all(tmp_path / "a.zarr").energy.flatten().tolist() == [0.0, 1.0, 2.0]


def row(arm="committee", number=0, mae=40.0):
    return Row(arm, number, 30, mae, 80.0, 0.5, 2.0, 0.25, 3, 1.0, 2.0, 3.5)


def test_a_table_reads_as_it_was_written(tmp_path):
    rows = [row(), row("random", 1, 41.25)]
    write_rows(tmp_path / "metrics.csv", rows)
    assert read_rows(tmp_path / "metrics.csv") == rows
    with (tmp_path / "metrics.csv").open() as file:
        assert next(csv.DictReader(file))["mae_500"] == "40.0"


def test_summary_gives_mean_and_spread_of_the_last_round():
    rows = [row(number=0, mae=100.0), row(number=1, mae=40.0), row(number=1, mae=44.0)]
    table = summary(rows, [{"committee": 1.0}, {"committee": 0.5}])
    cells = dict(zip(*table, strict=True))
    assert cells["force MAE 500 K (meV/Å)"] == "42.0 ± 2.8"
    assert cells["intact after 10 ps at 500 K"] == "0.75 ± 0.35"
    assert markdown(table).splitlines()[1] == "| --- | --- | --- | --- | --- | --- | --- |"


def test_settings_come_from_the_command_line():
    settings = read_settings(["--labels=[5,9]", "--seed=3", "--out=here", "--arms=random"])
    assert (settings.labels, settings.seed, settings.names) == ((5, 9), 3, ("random",))
    assert settings.out == Path("here")
    assert settings.seed_of("start", 1) != Settings(seed=4).seed_of("start", 1)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"labels": (2, 3)}, r"labels=\(2, 3\), expected numbers that rise, from 3 or more on"),
        ({"labels": (30, 30)}, "expected numbers that rise"),
        ({"labels": ()}, "expected numbers that rise"),
        ({"steps": 0}, "steps=0, expected at least 1"),
    ],
)
def test_settings_out_of_range_are_named_before_anything_runs(changes, match):
    with pytest.raises(ValueError, match=match):
        Settings(**changes)
