"""What is known of a store that grows, is emptied, replaced, half made or damaged meanwhile."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import zarr

import zarrpipe as zp
from zarrpipe.errors import ArgumentError
from zarrpipe.testing import numbered_batch
from zarrpipe.watch.watcher import Watcher


class Clock:
    """A clock that is set by hand."""

    now = 1000.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


def in_rounds(*rounds):
    return [zp.AtomicData([[0.0, 0.0, 0.0]] * 2, [1, 8], system={"round": [one]}) for one in rounds]


def test_growth_is_counted_by_interval_and_since_the_first_look(tmp_path, clock):
    watcher = Watcher([str(tmp_path)], clock)
    assert watcher.look().stores == ()
    assert "no store and no metrics.csv in" in watcher.look().notes[0]
    place = tmp_path / "run.zarr"
    with zp.ZarrData(place) as sink:
        sink.write(in_rounds(0, 0, 1))
        clock.now += 10
        (first,) = watcher.look().stores
        assert (first.samples, first.atoms, first.arrived) == (3, 6, 0)
        assert first.samples_per_s is None
        assert (first.rounds, first.last_round, first.last_round_samples) == (2, 1, 1)
        assert first.last_append == pytest.approx((place / "meta/atoms_ptr/c/0").stat().st_mtime)
        sink.write(in_rounds(1, 2, 2, 2))
        clock.now += 2
        (second,) = watcher.look().stores
        assert (second.samples, second.arrived, second.samples_per_s) == (7, 4, 2.0)
        assert (second.rounds, second.last_round, second.last_round_samples) == (3, 2, 3)
        assert second.last_append == clock.now
        clock.now += 6
        (third,) = watcher.look().stores
        assert (third.samples_per_s, third.samples_per_s_mean) == (0.0, 0.5)
        assert third.last_append == clock.now - 6
        assert third.growth == ((1010.0, 3.0), (1012.0, 7.0), (1018.0, 7.0))
        assert (third.writer.pid, third.writer.alive) == (os.getpid(), True)
        assert third.bytes_free == pytest.approx(shutil.disk_usage(place).free, rel=0.1)
    clock.now += 60
    (closed,) = watcher.look().stores
    assert closed.writer is None
    assert closed.bytes_stored == zp.info(place).bytes_stored


def test_what_is_drained_and_written_anew_is_counted(tmp_path, clock):
    place = tmp_path / "run.zarr"
    with zp.ZarrData(place) as sink:
        sink.write(in_rounds(0, 0, 0, 0, 0))
        watcher = Watcher([str(place)], clock)
        watcher.look()
        sink.drain()
        clock.now += 1
        (emptied,) = watcher.look().stores
        assert (emptied.samples, emptied.arrived, emptied.rounds) == (0, 0, 0)
        sink.write(in_rounds(4, 4))
        sink.drain()
        sink.write(in_rounds(5, 6, 6))
        clock.now += 1
        (anew,) = watcher.look().stores
        assert (anew.samples, anew.arrived) == (3, 3)
        assert (anew.last_round, anew.last_round_samples) == (6, 2)
        sink.drain()
        sink.write(in_rounds(7))
        clock.now += 1
        (again,) = watcher.look().stores
        assert (again.samples, again.arrived, again.problem) == (1, 4, "")


def test_deleted_samples_and_a_compacted_store_are_no_arrivals(tmp_path, clock):
    place = tmp_path / "run.zarr"
    with zp.ZarrData(place) as sink:
        sink.write(numbered_batch(range(40)))
    watcher = Watcher([str(place)], clock)
    before = watcher.look().stores[0]
    with zp.AtomicDataZarrWriter(place) as writer:
        writer.delete(np.arange(10))
    clock.now += 1
    (thinned,) = watcher.look().stores
    assert (thinned.samples, thinned.arrived) == (30, 0)
    assert thinned.atoms == int(zp.ZarrDataset(place).num_atoms.sum()) < before.atoms
    zp.compact(place)
    clock.now += 1
    (compacted,) = watcher.look().stores
    assert (compacted.samples, compacted.atoms, compacted.arrived) == (30, thinned.atoms, 0)


def test_a_store_that_is_half_made_gone_and_back(tmp_path, clock):
    place = tmp_path / "run.zarr"
    with zp.ZarrData(tmp_path / "whole.zarr") as sink:
        sink.write(numbered_batch(range(8)))
    place.mkdir()
    shutil.copy(tmp_path / "whole.zarr/zarr.json", place)
    watcher = Watcher([str(place)], clock)
    (half,) = watcher.look().stores
    assert half.problem != ""
    shutil.copytree(tmp_path / "whole.zarr", place, dirs_exist_ok=True)
    clock.now += 2
    (whole,) = watcher.look().stores
    assert (whole.problem, whole.samples, whole.arrived) == ("", 8, 8)
    shutil.rmtree(place)
    clock.now += 2
    (gone,) = watcher.look().stores
    assert "there is no Zarr store at" in gone.problem
    shutil.copytree(tmp_path / "whole.zarr", place)
    clock.now += 2
    (back,) = watcher.look().stores
    assert (back.problem, back.samples) == ("", 8)


def test_a_writer_that_was_killed(tmp_path):
    code = (
        "import os, signal, sys, zarrpipe as zp\n"
        "sink = zp.ZarrData(sys.argv[1])\n"
        "sink.write(zp.AtomicData([[0.0, 0.0, 0.0]], [1]))\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    place = tmp_path / "run.zarr"
    ended = subprocess.run([sys.executable, "-c", code, str(place)], check=False)
    assert ended.returncode == -signal.SIGKILL
    (store,) = Watcher([str(place)]).look().stores
    assert (store.samples, store.writer.alive) == (1, False)


def test_a_writer_that_closes_meanwhile_was_not_killed(tmp_path, monkeypatch):
    sink = zp.ZarrData(tmp_path / "run.zarr")
    sink.write(numbered_batch(range(2)))

    def closed_meanwhile(holder):
        sink.close()
        return False

    monkeypatch.setattr("zarrpipe.watch.store_watch.holder_lives", closed_meanwhile)
    assert Watcher([str(tmp_path)]).look().stores[0].writer is None


def test_watching_locks_and_writes_nothing(tmp_path, clock):
    place = tmp_path / "run.zarr"
    with zp.ZarrData(place) as sink:
        sink.write(numbered_batch(range(8)))

    def state():
        return {
            path: (path.stat().st_mtime_ns, path.stat().st_size, path.stat().st_ino)
            for path in tmp_path.rglob("*")
        }

    before = state()
    locks = [
        line for line in Path("/proc/locks").read_text().splitlines() if f" {os.getpid()} " in line
    ]
    watcher = Watcher([str(tmp_path)], clock)
    for _ in range(3):
        watcher.look()
        clock.now += 100
    assert state() == before
    after = [
        line for line in Path("/proc/locks").read_text().splitlines() if f" {os.getpid()} " in line
    ]
    assert after == locks
    with zp.ZarrData(place) as sink:  # the lock is free
        sink.write(numbered_batch(range(8, 9)))
        clock.now += 1
        assert watcher.look().stores[0].samples == 9


def test_other_groups_hidden_folders_and_what_stores_hold_are_left_out(tmp_path):
    zarr.create_group(tmp_path / "other.zarr").create_array("x", shape=(3,), dtype="f4")
    for name in ("a/b/run.zarr", ".hidden/run.zarr", "a/checkpoints/run.zarr"):
        with zp.ZarrData(tmp_path / name) as sink:
            sink.write(numbered_batch(range(2)))
    found = [one.store for one in Watcher([str(tmp_path)]).look().stores]
    assert found == [str(tmp_path / "a/b/run.zarr")]


def test_places_where_nothing_is_are_refused(tmp_path):
    (tmp_path / "frames.xyz").write_text("")
    for name, why in (("nothing", "does not exist"), ("frames.xyz", "is a file")):
        with pytest.raises(ArgumentError, match=f"{name} {why}: expected a store"):
            Watcher([str(tmp_path), str(tmp_path / name)])


def test_facts_are_plain_types(tmp_path):
    with zp.ZarrData(tmp_path / "run.zarr") as sink:
        sink.write(in_rounds(3, 3))
        facts = Watcher([str(tmp_path)]).look()
    plain = json.loads(json.dumps(facts.to_dict()))
    assert plain["stores"][0]["last_round_samples"] == 2
    assert "growth" not in plain["stores"][0]
    assert facts.to_dict(curves=True)["stores"][0]["growth"] == ((facts.time, 2),)
