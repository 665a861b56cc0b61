"""What a writer leaves behind when an exception ends it, and what the next call believes."""

import asyncio
import os
import signal
import threading
import time

import pytest
from zarr.storage import MemoryStore, WrapperStore

from zarrpipe import ZarrData, ZarrDataset
from zarrpipe.errors import SchemaError, StoreLockedError
from zarrpipe.store.backend import files, lock
from zarrpipe.store.backend.location import Root
from zarrpipe.store.format.config import ZarrWriteConfig
from zarrpipe.store.read.view import StoreView
from zarrpipe.store.write.plain_array_writer import PlainArrayWriter
from zarrpipe.store.write.store_writer import StoreWriter
from zarrpipe.testing import assert_batches_equal, numbered_batch

SMALL = {group: {"chunk_size": 4} for group in ("meta", "core", "custom")}
ZSTD = {group: {"chunk_size": 4, "compressors": "zstd"} for group in ("meta", "core", "custom")}


def serials(store):
    return ZarrDataset(store).gather(range(len(ZarrDataset(store))))["serial"].long().tolist()


@pytest.mark.parametrize(
    ("config", "error"), [(SMALL, OSError), (SMALL, KeyboardInterrupt), (ZSTD, OSError)]
)
def test_an_append_over_several_chunks_of_pointers_is_there_whole_or_not_at_all(
    tmp_path, monkeypatch, config, error
):
    """Whichever of its writes of pointers fails; readers in between see all or nothing too."""
    store, number, failing = tmp_path / "store", 0, True
    with ZarrData(store, config=config) as sink:
        sink.write(numbered_batch(range(3)))
    while failing:
        number, left = number + 1, [number]
        write = files.write_at if config is SMALL else files.replace

        def struck(target, *arguments, left=left, write=write, **options):
            path = target if config is ZSTD else os.readlink(f"/proc/self/fd/{target}")  # noqa: PTH115
            if "atoms_ptr/c/" in str(path):
                if left[0] == 0:
                    raise error(5, "no")
                left[0] -= 1
            write(target, *arguments, **options)
            assert StoreView(store).num_samples in (3, 16)

        sink = ZarrData(store, config=config)
        with monkeypatch.context() as patch:
            patch.setattr(files, write.__name__, struck)
            try:
                sink.write(numbered_batch(range(3, 16)))
            except error:
                assert len(sink) == len(ZarrData(store)) == 3
            else:
                failing = False
        sink.close()
    assert number >= 4
    assert serials(store) == list(range(16))
    assert ZarrDataset(store).check()[0].ok


def test_a_shape_that_was_stored_though_the_call_was_interrupted(tmp_path, monkeypatch):
    """D1: rows that are acknowledged afterwards are not beyond the shape."""
    store = tmp_path / "store"
    sink = ZarrData(store, config=SMALL)
    sink.write(numbered_batch(range(3)))
    write_json, done = files.write_json, []

    def interrupted(path, content, **options):
        write_json(path, content, **options)
        if "positions" in str(path) and not done:
            done.append(path)
            raise KeyboardInterrupt

    monkeypatch.setattr(files, "write_json", interrupted)
    with pytest.raises(KeyboardInterrupt):
        sink.flush()
    sink.write(numbered_batch(range(3, 5)))
    assert serials(store) == list(range(5))  # nobody closed it
    sink.close()
    assert serials(store) == list(range(5))


def test_an_interrupt_right_behind_the_pointers(tmp_path, monkeypatch):
    """D2: the next write goes behind what is committed."""
    store = tmp_path / "store"
    sink = ZarrData(store, config=SMALL)
    sink.write(numbered_batch(range(3)))
    commit = PlainArrayWriter.commit

    def interrupted(self, start, values):
        monkeypatch.undo()
        commit(self, start, values)
        raise KeyboardInterrupt

    monkeypatch.setattr(PlainArrayWriter, "commit", interrupted)
    with pytest.raises(KeyboardInterrupt):
        sink.write(numbered_batch(range(3, 5)))
    assert len(sink) == 5
    sink.write(numbered_batch(range(5, 7)))
    sink.close()
    assert serials(store) == list(range(7))


def test_an_error_before_anything_was_changed_ends_nothing(tmp_path):
    sink = ZarrData(tmp_path / "store")
    sink.write(numbered_batch(range(3)))
    writer = sink._writer
    with pytest.raises(SchemaError):
        sink.write(other_dtype())
    assert sink._writer is writer
    assert not writer.closed
    sink.close()


def other_dtype():
    batch = numbered_batch([3]).without("serial")
    batch.add_field("serial", [0.5], "system")
    return batch


@pytest.mark.parametrize("step", ["_flock", "_holder_text"])
def test_an_interrupt_while_the_lock_is_taken(tmp_path, monkeypatch, step):
    """D7: the same process takes it again, while the traceback is still held."""
    flock = lock._flock

    def interrupted(descriptor):
        monkeypatch.undo()
        if step == "_flock":
            flock(descriptor)
        raise KeyboardInterrupt

    sink = ZarrData(tmp_path / "store")
    if step == "_flock":
        monkeypatch.setattr(lock, "_flock", interrupted)
    else:
        monkeypatch.setattr(files, "resize", lambda *_: interrupted(0))
    with pytest.raises(KeyboardInterrupt) as kept:
        sink.write(numbered_batch(range(3)))
    sink.write(numbered_batch(range(3)))
    with pytest.raises(StoreLockedError):
        ZarrData(tmp_path / "store").write(numbered_batch([3]))
    sink.close()
    assert kept.value is not None
    assert serials(tmp_path / "store") == [0, 1, 2]


def test_an_interrupt_while_the_lock_is_released(tmp_path, monkeypatch):
    sink = ZarrData(tmp_path / "store")
    sink.write(numbered_batch(range(3)))

    def interrupted(descriptor):
        monkeypatch.undo()
        raise KeyboardInterrupt

    monkeypatch.setattr(lock, "_unflock", interrupted)
    with pytest.raises(KeyboardInterrupt):
        sink.close()
    with ZarrData(tmp_path / "store") as other:
        other.write(numbered_batch([3]))
    assert serials(tmp_path / "store") == [0, 1, 2, 3]


class Slow:
    """Takes its time for the pointers of one append, whose caller is interrupted meanwhile."""

    armed = False

    async def set(self, key, value):
        if "atoms_ptr/c" in key and self.armed:
            self.armed = False
            signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
            await asyncio.sleep(0.4)
        await super().set(key, value)


class SlowMemory(Slow, MemoryStore):
    pass


class SlowFar(Slow, WrapperStore):
    pass


@pytest.mark.parametrize("kind", ["memory", "far"])
def test_a_request_that_outlives_the_interrupt_of_its_call_is_waited_for(kind):
    """The chunk of pointers arrives late, and must not come over one that was written since."""
    memory: dict = {}
    store = SlowMemory(memory) if kind == "memory" else SlowFar(MemoryStore(memory))
    sink = ZarrData(store)
    sink.write(numbered_batch(range(3)))
    store.armed = True
    begun = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        sink.write(numbered_batch(range(3, 5)))
    assert time.monotonic() - begun > 0.35
    assert len(sink) == 5
    sink.write(numbered_batch(range(5, 8)))
    sink.close()
    assert_batches_equal(ZarrData(memory).read(), numbered_batch(range(8)))


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("can't start new thread")])
def test_errors_of_the_process_are_raised_as_they_are(tmp_path, monkeypatch, error):
    def failing(self, writes):
        raise error

    sink = ZarrData(tmp_path / "store")
    sink.write(numbered_batch(range(3)))
    with monkeypatch.context() as patch:
        patch.setattr("zarrpipe.store.write.open_arrays.OpenArrays.carry_out", failing)
        with pytest.raises(type(error)) as caught:
            sink.write(numbered_batch([3]))
    assert caught.value is error
    sink.write(numbered_batch([3]))
    sink.close()
    assert serials(tmp_path / "store") == [0, 1, 2, 3]


def test_a_writer_that_failed_gives_its_lock_up(tmp_path, monkeypatch):
    """While its object is still there, as in a notebook."""
    writer = StoreWriter(Root.of(tmp_path / "store"), ZarrWriteConfig(), 100)
    writer.append(numbered_batch(range(3)))

    def failing(self, writes):
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr("zarrpipe.store.write.open_arrays.OpenArrays.carry_out", failing)
        with pytest.raises(OSError, match="Input/output"):
            writer.append(numbered_batch([3]))
    assert writer.closed
    with ZarrData(tmp_path / "store") as sink:
        sink.write(numbered_batch([3]))
    assert serials(tmp_path / "store") == [0, 1, 2, 3]
