"""Good stores of every kind have no errors, and every fault is told for what it is."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch
import zarr
from store_faults import ERROR, FAULTS, NOTE, SHARDED, SMALL, ZSTD, write
from zarr.storage import MemoryStore

import zarrpipe as zp
from zarrpipe.store.check.damaged_rows import CheckedRows
from zarrpipe.store.check.run import check
from zarrpipe.testing import assert_batches_equal, numbered_batch, random_batch


def kinds(report):
    return {(item.kind, item.severity, item.place) for item in report.findings}


def only(report, kind):
    """The one finding of a kind."""
    (found,) = [item for item in report.findings if item.kind == kind]
    return found


@pytest.mark.parametrize(
    "config", [None, SMALL, ZSTD, SHARDED], ids=["plain", "small", "zstd", "sharded"]
)
@pytest.mark.parametrize("memory", [False, True], ids=["local", "memory"])
def test_a_store_that_was_closed_has_no_findings(tmp_path, config, memory):
    report = check(write({} if memory else tmp_path / "store", config=config))
    assert report.findings == ()
    assert report.exit_code == 0
    assert (report.samples, report.deleted, report.atoms, report.edges) == (100, 0, 300, 150)
    facts = {item.name: (item.level, item.shape, item.unit, item.present) for item in report.fields}
    assert facts == {
        "positions": ("atom", (3,), "Angstrom", 100),
        "atomic_numbers": ("atom", (), "", 100),
        "energy": ("system", (1,), "eV", 100),
        "forces": ("atom", (3,), "eV/Angstrom", 100),
        "neighbor_list": ("edge", (2,), "", 100),
        "serial": ("system", (), "", 100),
    }


@pytest.mark.parametrize("checksum", [False, True])
def test_a_published_store_has_no_findings(tmp_path, checksum):
    config = zp.ZarrWriteConfig.published(checksum=checksum)
    zp.merge(write(tmp_path / "store"), tmp_path / "published", config=config)
    assert check(tmp_path / "published").findings == ()


def test_random_fields_of_all_levels_partly_present(tmp_path):
    rng = np.random.default_rng(1)
    fields = ("energy", "forces", "cell", "pbc", "stress", "charges")
    with zp.ZarrData(tmp_path / "store", config=SMALL) as sink:
        for absent in (0.0, 0.5, 0.0):
            batch = random_batch(rng, 40, edges=(0, 4), fields=fields, absent=absent)
            batch.atomic_numbers.clamp_(min=1)
            sink.write(batch)
        sink.write(zp.AtomicData(torch.rand(2, 3), [1, 1], dipole=torch.ones(1, 3)))
    report = check(tmp_path / "store")
    assert report.findings == ()
    present = {item.name: item.present for item in report.fields}
    expected = sum(
        int(batch.present("energy").sum()) for batch in [zp.ZarrData(tmp_path / "store").read()]
    )
    assert present["energy"] == expected
    assert present["dipole"] == 1


def test_a_cell_that_was_added_later_does_not_contradict_the_ids(tmp_path):
    write(tmp_path / "store")
    with zp.AtomicDataZarrWriter(tmp_path / "store") as writer:
        writer.add_custom("cell", torch.rand(100, 3, 3), "system")
    assert check(tmp_path / "store").ok


def test_deleted_samples_are_counted(tmp_path):
    write(tmp_path / "store")
    with zp.AtomicDataZarrWriter(tmp_path / "store") as writer:
        writer.delete([3, 50, 99])
    report = check(tmp_path / "store")
    assert report.findings == ()
    assert (report.samples, report.deleted, report.fields[0].present) == (100, 3, 97)


def test_a_store_that_is_being_written(tmp_path):
    with zp.ZarrData(tmp_path / "store") as sink:
        sink.write(numbered_batch(range(10)))
        report = check(tmp_path / "store")
        assert report.ok
        assert report.samples == 10
        assert {item.severity for item in report.findings} == {NOTE}
        assert f"process {os.getpid()} on " in only(report, "lock").message
        with pytest.raises(RuntimeError, match="is being written by process"):
            zp.AtomicDataZarrWriter(tmp_path / "store").delete([0])
        sink.write(numbered_batch(range(10, 20)))  # nothing was changed or locked
    assert check(tmp_path / "store").findings == ()


@pytest.mark.parametrize("closed", [False, True])
def test_a_copy_of_a_live_store_whose_labels_are_older_than_its_pointers(tmp_path, closed):
    """What `tar` makes of it: the rows of a label, then more samples, then all the rest."""
    sink = zp.ZarrData(tmp_path / "store")
    sink.write(numbered_batch(range(10)))
    shutil.copytree(tmp_path / "store/core/energy", tmp_path / "older")
    sink.write(numbered_batch(range(10, 20)))
    if closed:
        sink.close()
    shutil.copytree(tmp_path / "store", tmp_path / "copy", ignore=lambda *_: [".lock"])
    for file in ("zarr.json", "c/0/0"):
        shutil.copy(tmp_path / "older" / file, tmp_path / "copy/core/energy" / file)
    report = check(tmp_path / "copy")
    if closed:
        assert "sums" in report.kinds()
    else:
        assert report.ok
        assert "from sample 0 on may be older" in only(report, "num-samples").message
    sink.close()


def test_an_empty_store(tmp_path):
    with zp.ZarrData(tmp_path / "store") as sink:
        sink.write(numbered_batch(range(3)))
        sink.zero()
    report = check(tmp_path / "store")
    assert report.ok
    assert report.samples == 0


KILLED = """
import os, sys
import zarrpipe
from zarrpipe.testing import numbered_batch

sink = zarrpipe.ZarrData(sys.argv[1])
sink.write(numbered_batch(range(30)))
os.kill(os.getpid(), 9)
"""


def test_a_store_whose_writer_was_killed(tmp_path):
    done = subprocess.run([sys.executable, "-c", KILLED, tmp_path / "store"], check=False)
    assert done.returncode == -signal.SIGKILL
    report = check(tmp_path / "store")
    assert report.ok
    assert report.samples == 30
    assert "without closing the store" in only(report, "lock").message
    assert only(report, "num-samples").repairable
    repaired = check(tmp_path / "store", repair=True)
    assert repaired.findings == ()
    assert repaired.repairs
    assert_batches_equal(zp.ZarrData(tmp_path / "store").read(), numbered_batch(range(30)))


def test_what_is_no_store(tmp_path):
    with pytest.raises(FileNotFoundError, match="no Zarr store"):
        check(tmp_path / "nothing")
    assert not (tmp_path / "nothing").exists()
    zarr.create_group(tmp_path / "other").create_array("x", shape=(3,), dtype="i4")
    with pytest.raises(ValueError, match="without meta/atoms_ptr"):
        check(tmp_path / "other")
    (tmp_path / "file").write_text("")
    with pytest.raises(NotADirectoryError):
        check(tmp_path / "file")


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_told_for_what_it_is(tmp_path, name):
    fault, expected = FAULTS[name]
    store = write(tmp_path / "store")
    fault(store)
    before = {path: path.read_bytes() for path in store.rglob("*") if path.is_file()}
    report = check(store)
    found = [item for item in report.findings if item.kind == expected["kind"]]
    assert [(item.place, item.severity) for item in found] == [
        (expected["place"], expected.get("severity", ERROR))
    ]
    assert expected["says"] in found[0].message
    assert report.ok == (not report.of(ERROR))
    assert {item.kind for item in report.of(ERROR)} <= {expected["kind"], "ids", "edges"}
    after = {path: path.read_bytes() for path in store.rglob("*") if path.is_file()}
    assert before == after
    text = str(report)
    assert found[0].message in text.replace("\n", " ") or found[0].message in text
    assert json.loads(json.dumps(report.to_dict()))["ok"] == report.ok


def test_duplicates_are_noted(tmp_path):
    with zp.ZarrData(tmp_path / "store") as sink:
        sink.write(numbered_batch([1, 2, 3, 1, 2]))
    report = check(tmp_path / "store")
    assert kinds(report) == {("duplicates", NOTE, "meta/ids")}
    assert "2 samples" in only(report, "duplicates").message


def test_several_faults_are_told_at_once(tmp_path):
    store = write(tmp_path / "store")
    for name in ("bad-metadata", "stray-edge", "cut-chunk", "flipped-number", "unit"):
        if name != "cut-chunk":
            FAULTS[name][0](store)
    (store / "custom/serial/c/0").unlink()
    assert check(store).kinds(ERROR) == {"metadata", "edges", "ids", "unit", "missing-chunk"}


@pytest.mark.parametrize("config", [ZSTD, SHARDED], ids=["zstd", "sharded"])
def test_one_flipped_byte_in_any_object_of_a_store_with_checksums(config, seed):
    content = {}
    write(content, count=40, config=config)
    rng = np.random.default_rng(seed)
    chunks = [key for key in content if "/c/" in key]
    assert len(chunks) > 12
    for key in chunks:
        store = dict(content)
        raw = bytearray(store[key].to_bytes())
        place = int(rng.integers(len(raw)))
        raw[place] ^= 1 << int(rng.integers(8))
        store[key] = type(store[key]).from_bytes(bytes(raw))
        report = check(MemoryStore(store))
        if key.startswith("meta/sums/"):  # which no sample needs
            assert report.ok, place
            assert "sums" in {finding.kind for finding in report.findings}, place
            continue
        assert "chunk" in report.kinds(ERROR), (key, place)


def test_pbc_as_whole_numbers_is_what_a_reader_takes(tmp_path):
    store = tmp_path / "store"
    with zp.ZarrData(store) as sink:
        sink.write(zp.AtomicData(torch.zeros(1, 3), [1], pbc=torch.ones(1, 3, dtype=torch.bool)))
    group = zarr.open_group(store, mode="r+")
    mark = group["core/pbc"].attrs.asdict()
    del group["core/pbc"]
    group.create_array("core/pbc", data=np.ones((1, 3), "u1"), attributes=mark)
    assert zp.ZarrDataset(store)[0].pbc.tolist() == [[True] * 3]
    assert check(store).ok


@pytest.mark.parametrize(
    "error",
    [
        MemoryError("no room"),
        KeyboardInterrupt(),
        RuntimeError("can't start new thread"),
        OSError(errno.EMFILE, "Too many open files"),
    ],
    ids=["memory", "interrupt", "threads", "files"],
)
@pytest.mark.parametrize("config", [None, ZSTD], ids=["plain", "zstd"])
def test_what_the_machine_lacks_is_not_told_as_damage(tmp_path, monkeypatch, error, config):
    write(tmp_path / "store", config=config)
    load = CheckedRows._load

    def fail(rows, start, stop):
        if rows.path == "core/forces":
            raise error
        return load(rows, start, stop)

    monkeypatch.setattr(CheckedRows, "_load", fail)
    with pytest.raises(type(error)):
        check(tmp_path / "store")
