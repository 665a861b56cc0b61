"""Every campaign, tiny, through the command line or as a function; each finds nothing."""

import json

import numpy as np
import pytest

from reliability import __main__ as command
from reliability import disk, live, parties, readers
from reliability.readers import WAYS, Reader
from reliability.report import KINDS, Findings, Order
from reliability.truth import numbers_of, samples
from zarrpipe import AtomicDataZarrWriter, ZarrData

SMALL = {group: {"chunk_size": 60} for group in ("meta", "core", "custom")}


def test_a_disk_that_runs_full(tmp_path, seed, quick):
    found = disk.run(Order(tmp_path, seed, count=2 if quick else 5, only="write on a"))
    assert found.defects == []
    assert found.done["full"] >= (1 if quick else 3)


def test_readers_beside_a_writer(tmp_path, seed):
    found = live.run(Order(tmp_path, seed, count=2, minutes=0.05, only="mapped"))
    assert found.defects == []
    assert found.done["writer: write"] > 0


@pytest.mark.parametrize("party", parties.PARTIES)
def test_several_writers(tmp_path, seed, party):
    if "without" in party.__name__:
        pytest.importorskip("fsspec", reason="the extra 'fsspec' is not installed")
    found = parties.run(Order(tmp_path, seed, 1, only=party.__name__.strip("_").replace("_", " ")))
    assert found.defects == []
    assert sum(found.done.values()) > 0


@pytest.mark.parametrize("way", WAYS)
def test_a_reader_sees_what_is_wrong(tmp_path, way, monkeypatch):
    """Each way of reading compares values: one that is changed on disk is told."""
    store, numbers = tmp_path / "store", numbers_of(0, 90)
    with ZarrData(store, config=SMALL) as sink:
        sink.write(samples(numbers))
    reader = Reader(store, np.random.default_rng(0), way)
    reader.go_on()
    assert reader.found.defects == []
    assert reader.found.done[f"{way}: samples compared"] > 0
    chunk = store / "core" / "forces" / "c" / "0" / "0"
    content = np.fromfile(chunk)
    content[:] += 1
    content.tofile(chunk)
    reader = Reader(store, np.random.default_rng(0), way)
    monkeypatch.setattr(readers, "_index", lambda rng, count: np.arange(count))
    reader.go_on()
    assert [kind for kind, _ in reader.found.defects] == ["torn"]


def test_a_reader_goes_on_after_what_is_promised(tmp_path):
    store = tmp_path / "store"
    with ZarrData(store, config=SMALL) as sink:
        sink.write(samples(numbers_of(0, 90)))
    reader = Reader(store, np.random.default_rng(0), "StoreView")
    reader.go_on()
    with AtomicDataZarrWriter(store, SMALL) as writer:
        writer.delete([3])
        writer.defragment()
    store.rename(tmp_path / "other")
    for _ in range(4):
        reader.go_on()
    (tmp_path / "other").rename(store)
    for _ in range(4):
        reader.go_on()
    assert reader.found.defects == []
    assert reader.found.done["StoreView: StoreNotFoundError"] > 0


def test_the_command_line(tmp_path, monkeypatch, capsys):
    """One row for each campaign, and the exit code 1 where something was found."""
    out = tmp_path / "results.jsonl"
    told = ["parties", "--only", "nothing of this name", "--out", str(out), "--work", str(tmp_path)]
    assert command.main([*told, "--seed", "5"]) == 0
    found = Findings()
    found.add("lost", "a sample")
    found.done["trials"] += 3
    monkeypatch.setattr(parties, "run", lambda order: found)
    assert command.main(told) == 1
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["lost"] for row in rows] == [0, 1]
    assert rows[0]["seed"] == 5
    assert rows[0]["campaign"] == "parties"
    assert rows[1]["done"] == {"trials": 3}
    assert rows[1]["defects"] == ["lost: a sample"]
    assert {"versions", "seconds", "arguments", *KINDS} <= set(rows[0])
    assert "LOST: a sample" in capsys.readouterr().out
    assert [path.name for path in tmp_path.iterdir()] == ["results.jsonl"]


def test_findings_come_over_from_another_process():
    found = Findings()
    found.done["trials"] += 2
    found.facts["disk"] = "small"
    found.add("torn", "one")
    again = Findings.from_json(found.as_json())
    assert (again.done, again.facts, again.defects) == (found.done, found.facts, found.defects)
    with pytest.raises(ValueError, match="kind='odd'"):
        found.add("odd", "two")
