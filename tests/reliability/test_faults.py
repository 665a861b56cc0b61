"""Some of the operations fail or are the last; and what faults leave wrong is seen."""

import errno
import os
from pathlib import Path

import pytest

from reliability import faults
from reliability.faults import Trial, attempt, points
from reliability.interpose import Faults, Killed, Mode
from reliability.model import State
from reliability.places import PLACES
from reliability.report import Findings, Order
from reliability.scenarios import SCENARIOS, new_hand
from zarrpipe.store.write.array_writer import ZarrArrayWriter

pytest.importorskip("fsspec", reason="the extra 'fsspec' is not installed")


def test_some_points_of_some_methods(tmp_path, seed, quick):
    count = 18 if quick else 48
    found = faults.run(Order(tmp_path, seed, count=count))
    assert found.defects == []
    assert found.done["points"] >= count - 8


@pytest.mark.slow
def test_points_of_a_deletion(tmp_path):
    found = faults.run(Order(tmp_path, seed=1, count=12, only="delete on a"))
    assert found.defects == []


@pytest.mark.parametrize("kind", PLACES)
def test_operations_are_met_one_by_one(tmp_path, kind):
    """Each kind of store is watched where it changes, and not where it is only looked at."""
    place = PLACES[kind](tmp_path / "place")
    scenario = SCENARIOS["write"]
    prepared = scenario.prepare(place)
    hand, state = scenario.begin(place, prepared)
    counted = Faults()
    with place.meeting(counted):
        assert attempt(hand, scenario.step(place, state), (errno.EIO,)) is None
    changes = [name for name, change in counted.met if change]
    assert set(changes) >= ({"os.pwrite", "os.rename"} if kind == "plain" else set())
    assert len(changes) > 8
    assert {mode for _, mode in points(counted)} >= {Mode.FAIL, Mode.FULL, Mode.KILL}
    hand("close", {})


@pytest.mark.parametrize("mode", [Mode.FAIL, Mode.KILL])
def test_a_fault_strikes_where_it_is_told_to(tmp_path, mode):
    place = PLACES["plain"](tmp_path / "place")
    faults_here = Faults(mode, at=1, code=errno.ENOSPC)
    with place.meeting(faults_here):
        folder = Path(place.folder)
        (folder / "first").mkdir()
        expected = Killed if mode is Mode.KILL else OSError
        with pytest.raises(expected, match=r"os\.mkdir"):
            (folder / "second").mkdir()
        assert not (folder / "second").exists()
        if mode is Mode.KILL:  # the dead do nothing any more
            with pytest.raises(Killed):
                (folder / "first").rmdir()
        else:
            (folder / "second").mkdir()
    assert (folder / "first").exists()


def test_half_of_a_write_is_done(tmp_path):

    place = PLACES["plain"](tmp_path / "place")
    path = Path(place.folder) / "file"
    path.write_bytes(bytes(64))
    with path.open("r+b") as file, place.meeting(Faults(Mode.TEAR, at=0)), pytest.raises(Killed):
        os.pwrite(file.fileno(), b"x" * 64, 0)
    assert path.read_bytes() == b"x" * 32 + bytes(32)


def test_what_an_append_loses_is_seen(tmp_path, monkeypatch):
    """A writer that writes the chunks of pointers from the first to the last."""
    monkeypatch.setattr(ZarrArrayWriter, "commit", ZarrArrayWriter.write)
    found = Findings()
    scenario, place = SCENARIOS["write"], PLACES["memory"](tmp_path / "place")
    prepared = scenario.prepare(place)
    place.keep()
    trial = Trial(place, scenario, "write", found)
    counted = Faults()
    trial.make(prepared, counted)
    last = max(number for number, (_, change) in enumerate(counted.met) if change)
    trial.make(prepared, Faults(Mode.FAIL, last, errno.EIO))
    assert [kind for kind, _ in found.defects] == ["torn"]


def test_an_error_that_is_not_the_disks_is_unclear(tmp_path):
    place = PLACES["memory"](tmp_path / "place")
    SCENARIOS["write"].prepare(place)
    told = attempt(new_hand(place), ("delete", {"indices": [10_000]}), (errno.EIO,))
    assert told.startswith("unclear: SampleIndexError")
    trial, found = Trial(place, SCENARIOS["write"], "delete", Findings()), State((1, 2))
    assert trial.judge("here", found, ("flush", {}), told) is None
    assert [kind for kind, _ in trial.found.defects] == ["unclear", "torn"]
