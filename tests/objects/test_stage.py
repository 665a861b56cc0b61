"""A sink on an object store writes into a stage on the local disk, and uploads from there."""

import os
import signal
import subprocess
import sys
import threading
import time

import pytest
from obstore.store import MemoryStore
from zarr.storage import ObjectStore

import zarrpipe as zp
from zarrpipe.errors import (
    ArgumentError,
    ArgumentTypeError,
    DeferredWriteError,
    StoreExistsError,
    StoreFullError,
    StoreLockedError,
    StoreReadOnlyError,
)
from zarrpipe.store.backend import files
from zarrpipe.store.write import stage as stage_module
from zarrpipe.store.write.stage import Segment, Stage
from zarrpipe.testing import assert_batches_equal, numbered_batch
from zarrpipe.testing.contract import SinkContract

NEVER = 3600.0


@pytest.fixture
def make(tmp_path, monkeypatch):
    """Sinks of one place in an object store in memory, whose stage is in a directory."""
    monkeypatch.setattr(stage_module, "_SERVICES", ("MemoryStore",))
    monkeypatch.setattr(stage_module, "_IDENTITY", ())
    monkeypatch.setattr(MemoryStore, "prefix", "", raising=False)
    place, sinks = ObjectStore(MemoryStore()), []

    def make_sink(capacity=1000, **options):
        options = {"stage": tmp_path / "stage", "flush_seconds": NEVER} | options
        sinks.append(zp.ZarrData(place, capacity, **options))
        return sinks[-1]

    yield make_sink
    for sink in sinks:
        sink.close()


def stored(sink):
    """Numbers of what readers of the store see, in order."""
    found = zp.ZarrDataset(sink.store)
    return found.read(range(len(found))).serial.flatten().tolist()


def segments(sink):
    return sorted(path.name for path in sink.stage.glob("*")) if sink.stage.is_dir() else []


def wait_for(condition):
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.002)


class TestContract(SinkContract):
    """A staged sink keeps the contract of sinks, but for when others see what was written."""

    @pytest.fixture
    def make_sink(self, make):
        return make

    def test_others_see_writes_at_once(self, make_sink):
        """They see what was uploaded."""
        writer, reader = make_sink(), make_sink()
        parts = self.batches(2, 1, 1)
        for part in parts:
            writer.write(part)
        assert (len(writer), len(reader)) == (4, 2)
        writer.flush()
        assert_batches_equal(reader.read(), zp.Batch.concatenate(parts))

    def test_is_plain_zarr(self, make_sink):
        """See `tests/objects/test_object_stores.py`."""

    def test_zero_removes_only_its_own(self, make_sink):
        """See `tests/store`; what is removed is in the object store."""


def test_others_see_what_was_uploaded_and_the_stage_ends_empty(make):
    sink = make()
    for number in range(5):
        sink.write(numbered_batch([number]))
    assert len(sink) == 5
    assert stored(sink) == [0]  # the first batch says which fields there are
    assert len(segments(sink)) == 2
    sink.flush()
    assert stored(sink) == [0, 1, 2, 3, 4]
    assert segments(sink) == []
    assert sink.stage.is_dir()
    sink.write(numbered_batch([5]))
    sink.close()
    assert_batches_equal(zp.ZarrData(sink.store).read(), numbered_batch(range(6)))
    assert not sink.stage.exists()


def test_it_is_uploaded_by_number_and_by_time(make):
    sink = make(flush_samples=3)
    for number in range(4):
        sink.write(numbered_batch([number]))
    wait_for(lambda: stored(sink) == [0, 1, 2, 3])
    sink.close()
    with make(flush_seconds=0.01) as sink:
        sink.write(numbered_batch([4]))
        sink.write(numbered_batch([5]))
        wait_for(lambda: stored(sink) == [0, 1, 2, 3, 4, 5])


@pytest.mark.parametrize("call", ["flush", "read", "close", "drain", "zero", "mark"])
def test_what_waits_is_uploaded_by_a_call(make, call):
    sink = make()
    for number in range(5):
        sink.write(numbered_batch([number]))
    found = getattr(sink, call)(*(("round-1",) if call == "mark" else ()))
    if call in ("read", "drain"):
        assert_batches_equal(found, numbered_batch(range(5)))
    if call == "mark":
        assert found == 5
    emptied = call in ("drain", "zero")
    assert len(zp.ZarrDataset(sink.store)) == (0 if emptied else 5)
    assert len(sink) == (0 if emptied else 5)
    assert segments(sink) == []


def test_other_fields_missing_fields_and_texts_arrive_in_order(make):
    batches = [
        numbered_batch([0, 1]),
        numbered_batch([2, 3]),
        numbered_batch([4]).without("energy"),
        numbered_batch([5]),
        numbered_batch([6]).add_field("kind", ["water"], "system"),
        numbered_batch([7]).add_field("kind", ["ice"], "system"),
        numbered_batch([8]).add_field("kind", ["steam"], "system"),
    ]
    sink = make()
    for batch in batches:
        sink.write(batch)
    assert stored(sink) == [0, 1, 2, 3, 4, 5, 6]  # other strings wait like the ones before
    sink.close()
    assert_batches_equal(zp.ZarrData(sink.store).read(), zp.Batch.concatenate(batches))


def test_a_batch_id_is_stored_at_once_and_a_retry_writes_nothing(make):
    sink = make()
    sink.write(numbered_batch([0]))
    sink.write(numbered_batch([1]))
    assert sink.write(numbered_batch([2]), batch_id="task") is True
    assert stored(sink) == [0, 1, 2]
    assert sink.write(numbered_batch([2]), batch_id="task") is False


def test_capacity_counts_what_waits(make):
    with make(5) as sink:
        sink.write(numbered_batch([0, 1]))
        sink.write(numbered_batch([2, 3]))
        assert not sink.is_full
        with pytest.raises(StoreFullError, match="4 of 5 samples are stored and 2 more"):
            sink.write(numbered_batch([4, 5]))
        sink.write(numbered_batch([4]))
        assert sink.is_full
    assert stored(sink) == [0, 1, 2, 3, 4]


def test_large_segments_are_uploaded_in_pieces(make, monkeypatch):
    monkeypatch.setattr(stage_module, "_PIECE", 1)
    sink = make()
    for number in range(6):
        sink.write(numbered_batch([number]))
    seen = []
    uploaded = Stage.uploaded

    def look(stage, segment, sent):
        uploaded(stage, segment, sent)
        seen.append((stored(sink), len(sink)))

    monkeypatch.setattr(Stage, "uploaded", look)
    sink.flush()
    assert seen == [(list(range(count)), 6) for count in range(2, 7)]


def test_a_write_waits_for_room_and_len_does_not_wait(make, monkeypatch):
    """At most twice as many samples wait as were asked for."""
    sink = make(flush_samples=2)
    sink.write(numbered_batch([0]))
    go, uploading, write_note = threading.Event(), threading.Event(), Segment.write_note

    def slow(*given):
        uploading.set()
        assert go.wait(60)
        write_note(*given)

    monkeypatch.setattr(Segment, "write_note", slow)
    sink.write(numbered_batch([1]))
    sink.write(numbered_batch([2]))
    assert uploading.wait(60)
    sink.write(numbered_batch([3]))
    sink.write(numbered_batch([4]))
    assert len(sink) == 5
    late = threading.Thread(target=sink.write, args=(numbered_batch([5]),))
    late.start()
    late.join(0.05)
    assert late.is_alive()
    go.set()
    late.join(60)
    sink.close()
    assert stored(sink) == list(range(6))


def fail_uploads(monkeypatch, error, times):
    """Let so many uploads fail before they begin; an event for the last of these."""
    upload, left, last = zp.ZarrData._upload, [times], threading.Event()

    def failing(self, stage, segment):
        if left[0] <= 0:
            return upload(self, stage, segment)
        left[0] -= 1
        if not left[0]:
            last.set()
        raise error

    monkeypatch.setattr(zp.ZarrData, "_upload", failing)
    return last


def test_an_outage_is_waited_out_while_batches_are_taken(make, monkeypatch):
    monkeypatch.setattr(stage_module, "_FIRST_PAUSE", 0.001)
    sink = make(flush_samples=2)
    sink.write(numbered_batch([0]))
    last = fail_uploads(monkeypatch, OSError("no route to host"), 5)
    sink.write(numbered_batch([1]))
    sink.write(numbered_batch([2]))
    sink.write(numbered_batch([3]))
    assert last.wait(60)
    wait_for(lambda: stored(sink) == [0, 1, 2, 3])
    assert len(sink) == 4


@pytest.mark.parametrize("error", [OSError("no route to host"), ValueError("no such field")])
def test_an_upload_that_goes_on_failing_is_raised_by_the_next_write(make, monkeypatch, error):
    """An error that does not pass is raised at once, others after a time."""
    monkeypatch.setattr(stage_module, "_PATIENCE", -1.0)
    monkeypatch.setattr(stage_module, "_FIRST_PAUSE", 0.001)
    sink = make(flush_samples=2)
    sink.write(numbered_batch([0]))
    fail_uploads(monkeypatch, error, 3)
    sink.write(numbered_batch([1]))
    sink.write(numbered_batch([2]))
    wait_for(lambda: sink._stage._failure is not None)
    with pytest.raises(DeferredWriteError, match=rf"{error}.*wait in .*stage") as raised:
        sink.write(numbered_batch([3]))
    assert raised.value.__cause__ is error
    assert len(sink) == 3
    for _ in range(2):
        with pytest.raises(DeferredWriteError, match="2 samples could not be uploaded"):
            sink.flush()
    sink.flush()
    sink.write(numbered_batch([3]))
    sink.close()
    assert stored(sink) == [0, 1, 2, 3]


def test_a_close_that_fails_leaves_what_waits_to_the_next_sink(make, monkeypatch):
    sink = make()
    for number in range(4):
        sink.write(numbered_batch([number]))
    fail_uploads(monkeypatch, OSError("no route to host"), 1)
    with pytest.raises(DeferredWriteError, match="3 samples could not be uploaded"):
        sink.close()
    with pytest.raises(StoreExistsError, match="has 4 samples"):
        make(if_exists="error")
    other = make()
    assert len(other) == 4
    other.write(numbered_batch([4]))
    other.close()
    assert stored(other) == [0, 1, 2, 3, 4]
    sink.close()
    assert stored(other) == [0, 1, 2, 3, 4]


def test_a_stage_that_must_not_be_written_is_named(make, monkeypatch):
    def refused(path, content):
        raise PermissionError(13, "Permission denied", str(path))

    sink = make()
    sink.write(numbered_batch([0]))
    with monkeypatch.context() as patch:
        patch.setattr(files, "write_json", refused)
        with pytest.raises(StoreReadOnlyError, match=r"must not be written to.*stage=False"):
            sink.write(numbered_batch([1]))
    sink.write(numbered_batch([1]))
    sink.close()
    assert stored(sink) == [0, 1]


@pytest.mark.parametrize("moment", ["before", "after"])
@pytest.mark.parametrize("pieces", [1, 1 << 30])
def test_an_interrupted_upload_doubles_nothing(make, monkeypatch, moment, pieces):
    """Right before the store has the samples, and right after."""
    monkeypatch.setattr(stage_module, "_PIECE", pieces)
    sink = make()
    for number in range(4):
        sink.write(numbered_batch([number]))
    owner, name = (Segment, "write_note") if moment == "before" else (Stage, "uploaded")
    usual = getattr(owner, name)

    def interrupted(*given):
        if moment == "before":
            usual(*given)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, interrupted)
        with pytest.raises(KeyboardInterrupt):
            sink.flush()
    assert len(sink) == 4
    sink.write(numbered_batch([4]))
    sink.close()
    assert stored(sink) == [0, 1, 2, 3, 4]


def test_an_upload_is_not_repeated_where_the_store_was_emptied_since(make, monkeypatch):
    """What another writer wrote first in it stays, and nothing is there twice."""
    sink = make()
    for number in range(4):
        sink.write(numbered_batch([number]))
    with monkeypatch.context() as patch:
        patch.setattr(Stage, "uploaded", lambda *_: 1 / 0)
        with pytest.raises(DeferredWriteError, match="division by zero"):
            sink.flush()
    sink._stage.release()
    sink._writer.abandon()
    with make(stage=False) as other:
        kept = other.drain()
        other.write(numbered_batch([9]))
        other.write(kept)
    again = make()
    assert len(again) == 5
    again.close()
    assert stored(again) == [9, 0, 1, 2, 3]


def test_an_interrupted_write_is_stored_whole_or_not_at_all(make, monkeypatch):
    sink = make()
    for number in range(3):
        sink.write(numbered_batch([number]))
    write_at, calls = files.write_at, []

    def interrupted(descriptor, values, offset):
        calls.append(offset)
        if len(calls) == 3:
            raise KeyboardInterrupt
        write_at(descriptor, values, offset)

    with monkeypatch.context() as patch:
        patch.setattr(files, "write_at", interrupted)
        with pytest.raises(KeyboardInterrupt):
            sink.write(numbered_batch([3]))
    assert len(sink) == 3
    sink.write(numbered_batch([3]))
    sink.write(numbered_batch([4]))
    sink.close()
    assert stored(sink) == [0, 1, 2, 3, 4]


def test_the_stage_of_a_living_sink_is_left_alone(make):
    sink = make()
    sink.write(numbered_batch([0]))
    sink.write(numbered_batch([1]))
    other = make()
    assert len(other) == 1
    with pytest.raises(StoreLockedError):
        other.write(numbered_batch([2]))
    sink.write(numbered_batch([3]))
    sink.close()
    assert stored(sink) == [0, 1, 3]
    assert len(other) == 3


def test_a_stage_of_before_the_machine_stopped_is_not_uploaded_unseen(make, monkeypatch):
    sink = make()
    sink.write(numbered_batch([0]))
    sink.write(numbered_batch([1]))
    sink._stage.release()
    sink._writer.abandon()
    with monkeypatch.context() as patch:
        patch.setattr(stage_module, "_boot", lambda: "the next one")
        with pytest.warns(UserWarning, match=r"not uploaded.*zarrpipe check .*\.zarr"):
            again = make()
        assert len(again) == 1
        (left,) = again.stage.glob("*.zarr")
        assert zp.check(left).ok
        with pytest.warns(UserWarning, match="not uploaded"):
            again.write(zp.ZarrDataset(left))
        again.close()
    assert stored(again) == [0, 1]


def test_a_forked_child_uploads_nothing_of_its_parent(make):
    sink = make()
    for number in range(3):
        sink.write(numbered_batch([number]))
    child = os.fork()
    if child == 0:
        os._exit(0 if sink._stage.count == 0 and not sink._stage.sealed() else 1)
    assert os.waitpid(child, 0)[1] == 0
    sink.close()
    assert stored(sink) == [0, 1, 2]


def test_threads_share_a_stage(make):
    with make(flush_samples=7) as sink:
        sink.write(numbered_batch([1000]))

        def run(first):
            for number in range(first, first + 30):
                sink.write(numbered_batch([number]))

        threads = [threading.Thread(target=run, args=(first,)) for first in (0, 30, 60)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert len(sink) == 91
    numbers = stored(sink)
    assert sorted(numbers) == [*range(90), 1000]
    for first in (0, 30, 60):
        own = [number for number in numbers if first <= number < first + 30]
        assert own == sorted(own)


@pytest.mark.parametrize("end", ["exit", "kill", "kill while uploading", "kill after uploading"])
def test_a_process_that_ends_loses_nothing_on_this_machine(url, end):
    """At its end it uploads what waits; after a kill, the next sink does, and each sample once."""
    code = f"""
import os, signal, sys
import zarrpipe as zp
from zarrpipe.store.write.stage import Segment, Stage
from zarrpipe.testing import numbered_batch
def kill(*_):
    os.kill(os.getpid(), signal.SIGKILL)
sink = zp.ZarrData(sys.argv[1], flush_seconds={NEVER})
for number in range(4):
    sink.write(numbered_batch([number]))
end = {end!r}
if end == "kill":
    kill()
elif end != "exit":
    setattr(*((Stage, "uploaded") if "after" in end else (Segment, "append")), kill)
    sink.flush() if "after" in end else sink.write(numbered_batch([4]))
"""
    done = subprocess.run([sys.executable, "-c", code, url], check=False, timeout=300)
    assert done.returncode == (0 if end == "exit" else -signal.SIGKILL)
    before = 4 if end in ("exit", "kill after uploading") else 1
    assert len(zp.ZarrDataset(url)) == before
    with zp.ZarrData(url) as sink:
        assert len(sink) == 4
        sink.write(numbered_batch([9]))
    assert_batches_equal(zp.ZarrData(url).read(), numbered_batch([0, 1, 2, 3, 9]))
    assert not sink.stage.exists()


def test_what_is_not_staged(tmp_path, url):
    assert zp.ZarrData(tmp_path / "s").stage is None
    assert zp.ZarrData({}).stage is None
    assert zp.ZarrData(ObjectStore(MemoryStore())).stage is None
    assert zp.ZarrData(url, stage=False).stage is None
    assert zp.ZarrData(url, buffer=10).stage is None
    default = zp.ZarrData(url).stage
    assert default.parent == tmp_path / "user-cache/zarrpipe/stages"
    assert default.name.startswith("store.zarr-")
    assert zp.ZarrData(url, stage=tmp_path).stage == tmp_path / default.name
    assert zp.ZarrData(f"{url}/part-1", stage=tmp_path).stage.name != default.name


@pytest.mark.parametrize(
    ("options", "error", "told"),
    [
        ({"stage": 3}, ArgumentTypeError, "stage=3, expected a directory, or False"),
        ({"flush_samples": 0}, ArgumentError, "flush_samples is 0, expected an integer from 1"),
        ({"flush_seconds": 0}, ArgumentError, "flush_seconds=0, expected a positive number"),
        ({"stage": "x", "buffer": 5}, ArgumentError, "give one of them"),
        ({"stage": "x"}, ArgumentError, "is in no object store, and is written directly"),
    ],
)
def test_wrong_arguments_are_refused(options, error, told):
    with pytest.raises(error, match=told):
        zp.ZarrData({}, **options)


def test_a_recipe_of_a_part_has_the_stage(tmp_path, url):
    with zp.ZarrData(url, part="1", stage=tmp_path, flush_samples=17) as sink:
        recipe = sink.for_part("2")
        with recipe.open() as other:
            assert other.stage.parent == tmp_path
            assert other.stage != sink.stage
            assert other._stage.samples == 17
            for number in range(3):
                other.write(numbered_batch([number]))
                sink.write(numbered_batch([10 + number]))
    assert len(zp.ZarrDataset(url)) == 6
