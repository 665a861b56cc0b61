"""Writes with a batch id: a retry changes nothing, wherever it lands."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import zarrpipe as zp
from reliability.numbered_systems import batch, numbers_of, system
from zarrpipe.errors import SchemaError, StoreFullError

ROOT = Path(__file__).parents[2]


@pytest.fixture(params=["path", "dict"])
def store(request, tmp_path):
    return tmp_path / "run.zarr" if request.param == "path" else {}


def test_a_retry_writes_nothing(store):
    with zp.ZarrData(store) as sink:
        assert sink.write(batch(1, 2), batch_id="a") is True
        assert sink.write(batch(1, 2), batch_id="a") is False
        assert sink.write(batch(3), batch_id="b") is True
    with zp.ZarrData(store) as sink:
        assert sink.write(batch(4, 5, 6), batch_id="a") is False
        assert sink.write(batch(3), batch_id="c") is True
        assert sink.write(batch(7)) is None
    assert numbers_of(zp.ZarrDataset(store)) == [1, 2, 3, 3, 7]


def test_a_retry_in_another_part(store):
    first, second = zp.ZarrData(store, part="1"), zp.ZarrData(store, part="2")
    assert first.write(batch(1, 2), batch_id="a")
    assert second.write(batch(1, 2), batch_id="a") is False
    assert second.write(batch(3), batch_id="b")
    assert first.write(batch(3), batch_id="b") is False
    assert first.for_part("3").open().write(batch(3), batch_id="b") is False
    assert numbers_of(zp.ZarrDataset(store)) == [1, 2, 3]


def test_samples_with_and_without(store):
    with zp.ZarrData(store) as sink:
        sink.write(batch(1))
        sink.write(batch(2, 3), batch_id="a")
        sink.write(batch(4))
        assert sink.write(batch(2, 3), batch_id="a") is False
    dataset = zp.ZarrDataset(store)
    assert numbers_of(dataset) == [1, 2, 3, 4]
    assert dataset.present("batch_id").tolist() == [False, True, True, False]
    values = dataset.system_field("batch_id")
    assert values.dtype == "int64"
    assert values[1] == values[2] != 0
    assert values[0] == values[3] == 0
    assert dataset.where(f"batch_id == {values[1]}").tolist() == [1, 2]


def test_the_batch_that_was_given_stays_as_it_is(store):
    given = batch(1, 2)
    with zp.ZarrData(store, part="a") as sink:
        sink.write(given, batch_id="sampled")
        assert "batch_id" not in given.fields
        labelled = zp.ZarrDataset(store).read([0, 1])
        before = labelled["batch_id"].clone()
        assert sink.write(labelled, batch_id="labelled") is True
        assert torch.equal(labelled["batch_id"], before)
        assert sink.write(batch(1), batch_id="sampled") is False
    assert numbers_of(zp.ZarrDataset(store)) == [1, 2, 1, 2]
    assert len(set(zp.ZarrDataset(store).system_field("batch_id").tolist())) == 2


def test_the_mask_and_an_empty_batch(store):
    with zp.ZarrData(store) as sink:
        assert sink.write(batch(1, 2), [False, False], batch_id="a") is False
        assert sink.write(batch(1, 2), [False, True], batch_id="a") is True
        assert sink.write(batch(1, 2), [True, True], batch_id="a") is False
    assert numbers_of(zp.ZarrDataset(store)) == [2]


def test_a_full_sink_takes_a_retry(store):
    with zp.ZarrData(store, capacity=2) as sink:
        sink.write(batch(1, 2), batch_id="a")
        assert sink.write(batch(1, 2), batch_id="a") is False
        with pytest.raises(StoreFullError):
            sink.write(batch(3), batch_id="b")


def test_a_sink_that_was_emptied_has_forgotten(store):
    with zp.ZarrData(store) as sink:
        sink.write(batch(1), batch_id="a")
        sink.drain()
        assert sink.write(batch(2), batch_id="a") is True
        assert sink.write(batch(3), batch_id="a") is False
    assert numbers_of(zp.ZarrDataset(store)) == [2]


def test_merged_stores_know_their_batches():
    store, whole = {}, {}
    for part in ("1", "2"):
        with zp.ZarrData(store, part=part) as sink:
            sink.write(batch(int(part)), batch_id=part)
    zp.merge(store, whole)
    with zp.ZarrData(whole) as sink:
        assert sink.write(batch(1), batch_id="1") is False
        assert sink.write(batch(2), batch_id="2") is False
        assert sink.write(batch(3), batch_id="3") is True


def test_with_a_buffer(store):
    with zp.ZarrData(store, buffer=100, buffer_seconds=600) as sink:
        sink.write(batch(1))
        sink.write(batch(2))
        assert sink.write(batch(3), batch_id="a") is True
        assert numbers_of(zp.ZarrDataset(store)) == [1, 2, 3]
        assert sink.write(batch(3), batch_id="a") is False


def _stream(stop=None):
    for number in range(6):
        if number == stop:
            raise RuntimeError("an SCF that does not converge")
        yield system(number)


def test_a_stream_is_completed_by_its_retry(store):
    with zp.ZarrData(store, part="1") as sink:
        with pytest.raises(RuntimeError, match="SCF"):
            sink.write(_stream(stop=4), batch_id="a")
        assert 0 < len(sink) < 6
    with zp.ZarrData(store, part="2") as sink:
        assert sink.write(_stream(), batch_id="a") is True
        assert sink.write(_stream(), batch_id="a") is False
    assert numbers_of(zp.ZarrDataset(store)) == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize("batch_id", ["", 3, b"a", "x" * 5000])
def test_what_is_no_batch_id(batch_id):
    with pytest.raises((TypeError, ValueError), match=r"batch_id (is|has) .*expected"):
        zp.ZarrData({}).write(batch(1), batch_id=batch_id)


def test_a_field_of_that_name_of_another_kind(store):
    with zp.ZarrData(store) as sink:
        sink.write(batch(1).add_field("batch_id", torch.tensor([0.5]), "system"))
        with pytest.raises(SchemaError, match="'batch_id' of another kind"):
            sink.write(batch(2), batch_id="a")
    assert numbers_of(zp.ZarrDataset(store)) == [1]


_KILLED = """
import os, signal, sys
import zarrpipe as zp
from reliability.numbered_systems import batch
sink = zp.ZarrData(sys.argv[1], part="1")
assert sink.write(batch(1, 2, 3), batch_id="a") is True
os.kill(os.getpid(), signal.SIGKILL)  # before the engine hears of it
"""


def test_killed_before_the_acknowledgement(tmp_path):
    killed = subprocess.run(
        [sys.executable, "-c", _KILLED, tmp_path / "run"], cwd=ROOT, check=False
    )
    assert killed.returncode == -signal.SIGKILL
    for part in ("2", "1"):
        with zp.ZarrData(tmp_path / "run", part=part) as sink:
            assert sink.write(batch(1, 2, 3), batch_id="a") is False
    assert numbers_of(zp.ZarrDataset(tmp_path / "run")) == [1, 2, 3]
