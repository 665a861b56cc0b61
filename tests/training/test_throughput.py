"""What `measure` says of a store, and what a measurement is made of."""

import dataclasses
import json
import os
import subprocess
import time

import numpy as np
import pytest

import zarrpipe as zp
from zarrpipe.errors import ArgumentError, StoreEmptyError, StoreNotFoundError
from zarrpipe.testing import numbered_batch
from zarrpipe.training import bench
from zarrpipe.training.bench import drop_pages, measure
from zarrpipe.training.flow import Flow
from zarrpipe.training.throughput import COLD, WARM, Reading, Spread, Throughput


@pytest.fixture
def store(tmp_path):
    with zp.ZarrData(tmp_path / "s") as sink:
        sink.write(numbered_batch(range(640)))
    return tmp_path / "s"


@pytest.fixture
def _droppable(monkeypatch):
    """As on a disk: on file systems in memory no page can be dropped."""
    monkeypatch.setattr(bench, "drop_pages", lambda directory: 0.0)


def on_a_disk(path) -> bool:
    kind = subprocess.run(
        ["stat", "-f", "-c", "%T", path], capture_output=True, text=True, check=False
    )
    return kind.returncode == 0 and kind.stdout.strip() not in {"tmpfs", "ramfs", "overlayfs"}


def ways(found):
    return [(one.pages, one.workers, one.step_ms) for one in found.readings]


@pytest.mark.usefixtures("_droppable")
def test_each_way_of_reading_in_its_time(store):
    begun = time.perf_counter()
    found = measure(store, batch_size=16, num_workers=1, step_ms=2.0, seconds=0.9, repeats=2)
    assert ways(found) == [
        (COLD, 0, 0.0),
        *((WARM, workers, step) for workers in (0, 1) for step in (0.0, 2.0)),
    ]
    assert found.seconds < time.perf_counter() - begun
    assert (found.store, found.num_samples, found.batch_size) == (str(store), 640, 16)
    assert found.notes == ()
    batch = zp.ZarrDataset(store).read(range(640))
    per_sample = sum(value.nbytes for value in batch.fields.values()) / 640
    for one in found.readings:
        assert one.repeats == 2
        for name in ("samples_per_s", "atoms_per_s", "bytes_per_s", "batches_per_s", "wait"):
            spread = getattr(one, name)
            assert 0 < spread.least <= spread.median <= spread.most, name
        ratio = one.samples_per_s.median / one.batches_per_s.median
        assert ratio == pytest.approx(16, rel=0.01)
        atoms = one.atoms_per_s.median / one.samples_per_s.median
        assert atoms == pytest.approx(batch.num_nodes / 640, rel=0.2)
        size = one.bytes_per_s.median / one.samples_per_s.median
        assert size == pytest.approx(per_sample, rel=0.2)
        if one.step_ms:
            assert one.batches_per_s.most <= 500
            assert one.wait.median < 1


def test_a_loader_that_takes_as_long_as_the_model(store, monkeypatch):
    """Half of the time is waited, and batches come as fast as the model takes them."""
    read = zp.ZarrDataset.read

    def slow(self, *args, **kwargs):
        time.sleep(0.02)
        return read(self, *args, **kwargs)

    monkeypatch.setattr(zp.ZarrDataset, "read", slow)
    monkeypatch.setattr(bench, "drop_pages", lambda directory: 1.0)
    found = measure(store, num_workers=0, step_ms=20.0, seconds=1.6, repeats=2)
    alone, model = found.readings
    assert alone.batches_per_s.median <= 50
    assert alone.wait.median == 1.0
    assert 0.3 < model.wait.median < 0.85
    assert 0.2 < found.headroom(0) <= 1.0
    assert model.batches_per_s.median <= 25
    (note,) = found.notes
    assert note.startswith("cold: measured 0 times, since 100% of the store stayed in memory")


def test_a_model_computes_or_waits():
    taken = {}
    for busy in (True, False):
        step, begun, before = bench._step(0.3, busy=busy), time.perf_counter(), time.thread_time()
        step()
        taken[busy] = time.thread_time() - before
        assert time.perf_counter() - begun >= 0.3
    assert taken[False] < 0.01 < taken[True]


def test_a_cold_reading_is_one_epoch_of_a_new_process(store, monkeypatch):
    dropped = []
    monkeypatch.setattr(bench, "drop_pages", lambda directory: dropped.append(directory) or 0.0)
    with monkeypatch.context() as patch:  # what is patched here is not there in another process
        patch.setattr(bench._Bench, "run", None)
        flows, note = bench._Bench(store, 16, 0, 2, 60.0).cold(bench.Root.of(store))
    assert (len(flows), dropped, note) == (2, [store, store], "")
    assert [(flow.batches, flow.samples) for flow in flows] == [(40, 640)] * 2


def test_the_part_that_is_read_again_is_that_of_the_cold_readings(store):
    one = bench._Bench(store, 16, 3, 1, 1.0)
    dataset = zp.ZarrDataset(store)
    first = [*one.loader(dataset).sampler][:5]
    part = one.part(dataset, 5)
    assert part.tolist() == sorted(np.concatenate(first).tolist())
    assert one.part(dataset, 5).tolist() == part.tolist()
    assert dataclasses.replace(one, seed=4).part(dataset, 5).tolist() != part.tolist()
    read = np.concatenate([*one.loader(dataset, part).sampler])
    assert sorted(read.tolist()) == part.tolist()


def test_pages_of_files_are_dropped(store):
    if not on_a_disk(store):
        pytest.skip("pages can be dropped on a disk only")
    zp.ZarrDataset(store).read(range(640))
    assert drop_pages(store) < 0.02
    chunk = np.memmap(store / "core" / "positions" / "c" / "0" / "0", np.uint8, "r")
    chunk.max()
    assert drop_pages(store) > 0.02  # what is mapped stays
    del chunk
    assert drop_pages(store) < 0.02


def test_stores_that_are_not_local(store, tmp_path):
    memory = {}
    zp.copy(store, memory)
    found = measure(memory, num_workers=0, step_ms=1.0, seconds=0.2, repeats=1)
    assert found.notes == ("cold: not measured, since the store is in memory",)
    assert ways(found) == [(WARM, 0, 0.0), (WARM, 0, 1.0)]
    pytest.importorskip("fsspec", reason="the extra 'fsspec' is not installed")
    url = f"memory://{tmp_path.name}/s"
    zp.copy(store, url)
    found = measure(url, num_workers=0, step_ms=1.0, seconds=0.4, repeats=1)
    assert found.notes == ("cold: nothing was held here; what the other side holds is not known",)
    assert ways(found)[0] == (COLD, 0, 0.0)


def test_a_system_that_cannot_drop_pages(store, monkeypatch):
    monkeypatch.delattr(os, "posix_fadvise")
    found = measure(store, num_workers=0, step_ms=1.0, seconds=0.2, repeats=1)
    assert found.notes == ("cold: not measured, since this system cannot drop pages of files",)


@pytest.mark.parametrize(
    ("given", "match"),
    [
        ({"batch_size": 0}, "batch_size is 0"),
        ({"num_workers": -1}, "num_workers is -1"),
        ({"repeats": 0}, "repeats is 0"),
        ({"step_ms": 0.0}, "step_ms is 0.0, expected more than 0"),
        ({"seconds": float("nan")}, "seconds is nan, expected more than 0"),
        ({"busy": 3}, "busy is 3"),
    ],
)
def test_wrong_arguments(store, given, match):
    with pytest.raises((ArgumentError, TypeError), match=match):
        measure(store, **given)


def test_stores_without_samples(tmp_path):
    with pytest.raises(StoreNotFoundError):
        measure(tmp_path / "nowhere")
    with zp.ZarrData(tmp_path / "s") as sink:
        sink.write(numbered_batch([1]))
        sink.zero()
    with pytest.raises(StoreEmptyError, match="has no samples to read"):
        measure(tmp_path / "s")


def flow(seconds, batches, waited):
    return Flow(seconds, waited, batches, 10 * batches, 30 * batches, 0, 1000 * batches)


def test_what_is_said():
    alone = [flow(1.0, count, 1.0) for count in (100, 400, 200)]
    model = [flow(2.0, 100, wait) for wait in (0.5, 0.2, 0.4)]
    readings = (
        Reading.of(COLD, 0, 0.0, alone[:1]),
        Reading.of(WARM, 0, 0.0, alone),
        Reading.of(WARM, 0, 20.0, model),
    )
    found = Throughput("s", 5000, 640, 10, 0, 20.0, 3.5, readings, ("a note",))
    assert readings[1].samples_per_s == Spread(1000.0, 2000.0, 4000.0)
    assert readings[2].wait == Spread(0.1, 0.2, 0.25)
    assert found.headroom(0) == pytest.approx(200 * 20 / 1000)
    facts = json.loads(json.dumps(found.to_dict()))
    assert facts["headroom"] == {"0": 4.0}
    assert facts["readings"][2]["wait"] == {"least": 0.1, "median": 0.2, "most": 0.25}
    lines = str(found).splitlines()
    assert lines[-2] == (
        "  in process: batches come 4 times as fast as a step of 20 ms takes them; training waits "
        "20.0% of its time; no model gets more than 2,000 samples/s"
    )
    assert [*lines[:-2], lines[-1]] == [
        "s: batches of 10, of 640 of the 5,000 samples",
        "  pages  loader      model  samples/s   least to most  atoms/s  MB/s   wait",
        "  cold   in process  none       1,000  1,000 to 1,000    3,000   0.1      -",
        "  warm   in process  none       2,000  1,000 to 4,000    6,000   0.2      -",
        "  warm   in process  20 ms        500      500 to 500    1,500   0.1  20.0%",
        "training:",
        "  a note",
    ]
