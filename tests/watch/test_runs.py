"""What is known of a run, by logs that are appended to, rewritten, replaced and half written."""

import csv
import os
import time

import pytest
import yaml
from lightning.pytorch.loggers import CSVLogger

import zarrpipe as zp
from zarrpipe.testing import numbered_batch
from zarrpipe.watch.csv_tail import CsvTail
from zarrpipe.watch.facts import State, thinned
from zarrpipe.watch.run_watch import PATIENCE, RunWatch
from zarrpipe.watch.watcher import Watcher

FORCES, ENERGY = "val/forces_mae_meV_A", "val/energy_mae_meV_atom"


@pytest.fixture
def log(tmp_path):
    (tmp_path / "run").mkdir()
    return tmp_path / "run" / "metrics.csv"


def look(run):
    return run.look(time.time())


@pytest.mark.filterwarnings("ignore:Experiment logs directory")
def test_a_log_of_lightning_whose_columns_come_one_after_the_other(log):
    run, logger = RunWatch(log), CSVLogger(log.parent, name="", version="")
    assert look(run).state is State.WAITING

    def add(step, **values):
        logger.log_metrics({name.replace("__", "/"): value for name, value in values.items()}, step)
        logger.save()

    add(0, data__num_samples=79.0)
    add(9, epoch=0, train__loss=0.8)
    facts = look(run)
    assert (facts.epoch, facts.step, facts.num_samples, facts.loss.last) == (0, 9, 79, 0.8)
    assert facts.state is State.RUNNING
    add(10, data__wait=0.02, data__samples_per_s=33.0)
    for place, error in enumerate((400.0, 250.0, 300.0)):
        add(19 + place, epoch=place, **{FORCES: error, ENERGY: 50.0 - place})
    add(30, epoch=2, train__loss=0.5, **{"lr-AdamW": 1e-3})
    facts = look(run)
    assert (facts.epoch, facts.step, facts.num_samples) == (2, 30, 79)
    assert (facts.wait, facts.samples_per_s, facts.learning_rate) == (0.02, 33.0, 1e-3)
    assert (facts.loss.last, facts.loss.best, facts.loss.recent) == (0.5, 0.5, (0.8, 0.5))
    forces, energy = facts.errors
    assert (forces.name, forces.unit, forces.last, forces.best) == (FORCES, "meV/Å", 300.0, 250.0)
    assert forces.curve == ((19.0, 400.0), (20.0, 250.0), (21.0, 300.0))
    assert (energy.name, energy.unit, energy.last) == (ENERGY, "meV/atom", 48.0)
    assert facts.last_line == log.stat().st_mtime


def test_an_incomplete_last_line_waits(log):
    log.write_text("epoch,step\n0,10\n0,2")
    tail = CsvTail(log)
    assert tail.read().rows == ({"epoch": "0", "step": "10"},)
    assert tail.read().rows == ()
    with log.open("a") as file:
        file.write("0\n1,30\n")
    assert [row["step"] for row in tail.read().rows] == ["20", "30"]


def test_what_was_read_is_not_read_again(log):
    log.write_text("step,x\n" + "".join(f"{step},1\n" for step in range(1000)))
    tail = CsvTail(log)
    assert len(tail.read().rows) == 1000
    with log.open("a") as file:
        file.write("1000,2\n")
    found = tail.read()
    assert (found.anew, found.rows) == (False, ({"step": "1000", "x": "2"},))


def test_a_file_in_its_place_is_read_anew(log):
    log.write_text("step,x\n1,1\n2,2\n")
    tail = CsvTail(log)
    tail.read()
    beside = log.with_suffix(".new")
    beside.write_text("step,x\n1,1\n3,3\n4,4\n")
    beside.replace(log)
    found = tail.read()
    assert (found.anew, [row["step"] for row in found.rows]) == (True, ["1", "3", "4"])
    log.write_text("step,x,y\n1,1,\n3,3,\n4,4,9\n")  # the same inode
    assert [row.get("y") for row in tail.read().rows] == ["", "", "9"]


@pytest.mark.parametrize(
    ("before", "after", "replaced"),
    [
        ("step,x\n" + "5,5\n" * 50, "step,y\n" + "5,5\n" * 51, False),  # another column
        ("step,x\n1,1\n", "step,x\n1,7\n2,2\n", False),  # other rows
        ("step,x\n1,1\n" + "5,5\n" * 50, "step,x\n7,7\n" + "5,5\n" * 51, True),  # far ahead
    ],
)
def test_each_change_of_what_was_read_is_seen(log, before, after, replaced):
    log.write_text(before)
    tail = CsvTail(log)
    tail.read()
    beside = log.with_suffix(".new") if replaced else log
    beside.write_text(after)
    beside.replace(log)
    found = tail.read()
    assert found.anew
    assert len(found.rows) == after.count("\n") - 1


def test_a_file_that_has_become_shorter_is_believed_at_the_second_look(log):
    log.write_text("step,x\n1,1\n2,2\n3,3\n")
    run = RunWatch(log)
    assert look(run).step == 3
    log.write_text("step,x,y\n1")  # a rewrite begins
    assert look(run).step == 3
    log.write_text("step,x,y\n1,1,\n2,2,\n3,3,\n4,4,4\n")
    assert look(run).step == 4
    log.write_text("step,x,y\n1,1,\n")  # a run that is resumed at step 1
    assert look(run).step == 4
    assert look(run).step == 1
    log.unlink()
    assert look(run).state is State.WAITING


def test_large_logs_are_read_in_blocks(log, monkeypatch):
    monkeypatch.setattr("zarrpipe.watch.csv_tail._BLOCK", 64)
    log.write_text("step,val/forces_mae\n" + "".join(f"{n},{n}.5\n" for n in range(500)))
    facts = look(RunWatch(log))
    assert (facts.step, facts.errors[0].last, facts.errors[0].best) == (499, 499.5, 0.5)


def test_lines_that_are_no_rows_are_left_out(log):
    log.write_bytes(b"step,val/forces_mae\n1,2.0\n\xff\x00,nan\n2\n3,inf\n4,1.0,7\n5,\n6,1.5\n")
    facts = look(RunWatch(log))
    assert (facts.step, facts.errors[0].curve) == (6, ((1.0, 2.0), (6.0, 1.5)))


def test_whether_a_run_goes_on(log):
    log.write_text("epoch,step\n0,98\n")
    run, now = RunWatch(log), log.stat().st_mtime
    assert run.look(now + PATIENCE - 1).state is State.RUNNING
    assert run.look(now + PATIENCE + 1).state is State.SILENT
    config = {"data": {"store": "run.zarr"}, "trainer": {"max_steps": 100, "max_epochs": -1}}
    log.with_name("config.yaml").write_text(yaml.safe_dump(config))
    facts = run.look(now + 1)
    assert (facts.state, facts.max_steps, facts.stores) == (State.RUNNING, 100, ("run.zarr",))
    with log.open("a") as file:
        file.write("0,99\n")
    assert run.look(now + 1).state is State.ENDED
    config["trainer"] = {"max_epochs": 1}
    log.with_name("config.yaml").write_text(yaml.safe_dump(config))
    os.utime(log.with_name("config.yaml"), (1, 1))
    assert run.look(now + 1).state is State.RUNNING
    assert run.look(time.time() + PATIENCE + 1).state is State.ENDED


def test_hyperparameters_name_the_store_where_there_is_no_config(log):
    log.write_text("step,data/ended\n1,0.0\n")
    options = "options: !!python/tuple [1, 2]\ncut: !!python/object:os.Cut {}\n"
    plan = {"data": {"store": ["/data/run.zarr"]}, "trainer": {"max_steps": -1, "max_epochs": 7}}
    log.with_name("hparams.yaml").write_text(options + yaml.safe_dump(plan))
    run = RunWatch(log)
    facts = look(run)
    assert (facts.stores, facts.state, facts.max_steps) == (
        ("/data/run.zarr",),
        State.RUNNING,
        None,
    )
    with log.open("a") as file:
        file.write("1,1.0\n")
    assert look(run).state is State.ENDED
    with log.open("a") as file:
        file.write("2,0.0\n")  # it goes on
    assert look(run).state is State.RUNNING


def test_a_run_whose_lines_come_rarely_is_given_more_time(log):
    run = RunWatch(log)
    for when in (1000, 1300):
        log.write_text(f"step\n{when}\n")
        os.utime(log, (when, when))
        run.look(when)
        run.look(when)
    assert run.look(1300 + 1000).state is State.RUNNING
    assert run.look(1300 + 1600).state is State.SILENT


def test_arms_of_a_closed_loop_are_runs_and_their_joint_table_is_none(tmp_path):
    header = "arm,round,labels,mae_500,mae_800,largest_500"
    rows = {"committee": ["committee,0,60,80.0,140.0,1", "committee,1,120,50.0,90.0,1"]}
    rows["random"] = ["random,0,60,80.0,140.0,1"]
    for arm, lines in rows.items():
        (tmp_path / arm).mkdir()
        (tmp_path / arm / "metrics.csv").write_text("\n".join([header, *lines, ""]))
    joint = "\n".join([header, *rows["committee"], *rows["random"], ""])
    (tmp_path / "metrics.csv").write_text(joint)
    committee, random = Watcher([str(tmp_path)]).look().runs
    assert (committee.run, committee.round, committee.num_samples) == (
        str(tmp_path / "committee"),
        1,
        120,
    )
    assert [(one.name, one.last, one.best) for one in committee.errors] == [
        ("mae_500", 50.0, 50.0),
        ("mae_800", 90.0, 90.0),
    ]
    assert (random.round, random.errors[0].curve) == (0, ((0.0, 80.0),))


def test_the_store_of_a_config_is_watched_wherever_the_run_was_started(tmp_path, monkeypatch):
    with zp.ZarrData(tmp_path / "runs/ethanol.zarr") as sink:
        sink.write(numbered_batch(range(3)))
    (tmp_path / "runs/one").mkdir()
    config = {"data": {"store": ["runs/ethanol.zarr"]}}
    (tmp_path / "runs/one/config.yaml").write_text(yaml.safe_dump(config))
    (tmp_path / "runs/one/metrics.csv").write_text("step\n1\n")
    (store,) = Watcher([str(tmp_path / "runs/one")]).look().stores
    assert (store.store, store.samples) == (str(tmp_path / "runs/ethanol.zarr"), 3)
    monkeypatch.chdir(tmp_path)
    assert [one.samples for one in Watcher(["runs/one"]).look().stores] == [3]
    both = Watcher(["runs", str(tmp_path / "runs/one")]).look()  # by two names
    assert [one.store for one in both.stores] == ["runs/ethanol.zarr"]
    assert [one.run for one in both.runs] == ["runs/one"]
    (tmp_path / "runs/one/config.yaml").write_text("data: {store: [")  # half written
    assert Watcher(["runs/one"]).look().stores == ()


def test_columns_of_nequip(log):
    names = ["step", "val0_epoch/forces_mae", "val0_epoch/total_energy_mae"]
    names += ["val0_epoch/per_atom_energy_mae", "train_loss_step/forces_mse"]
    names += ["train_loss_step/weighted_sum", "train_loss_epoch/weighted_sum"]
    with log.open("w", newline="") as file:
        csv.writer(file).writerows([names, [1, 0.2, 9.0, 0.1, 0.5, 0.7, 0.8]])
    facts = look(RunWatch(log))
    assert [one.name for one in facts.errors] == [names[1], names[3]]
    assert facts.loss.name == "train_loss_step/weighted_sum"


def test_long_curves_keep_their_ends():
    points = []
    for step in range(5000):
        points.append((float(step), 0.0))
        thinned(points)
    assert len(points) <= 400
    assert (points[0][0], points[-1][0]) == (0.0, 4999.0)
    assert points == sorted(points)
