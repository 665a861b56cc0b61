"""A sink with a buffer: what waits, when it is written, and what an error or a kill does to it."""

import os
import signal
import subprocess
import sys
import threading
import time

import pytest
import torch

import zarrpipe as zp
from zarrpipe.errors import ArgumentError, DeferredWriteError, StoreFullError
from zarrpipe.store.backend import files
from zarrpipe.testing import assert_batches_equal, numbered_batch
from zarrpipe.testing.contract import SinkContract

NEVER = 3600.0


class TestContract(SinkContract):
    """The sink keeps its contract, but for when others see what was written."""

    @pytest.fixture
    def make_sink(self, tmp_path):
        sinks = []

        def make(capacity=1000):
            sinks.append(zp.ZarrData(tmp_path / "s", capacity, buffer=3, buffer_seconds=NEVER))
            return sinks[-1]

        yield make
        for sink in sinks:
            sink.close()

    def test_others_see_writes_at_once(self, make_sink):
        """They see them when they are flushed."""
        writer, reader = make_sink(), make_sink()
        parts = self.batches(2, 1, 1)
        for part in parts:
            writer.write(part)
        assert (len(writer), len(reader)) == (4, 2)
        writer.flush()
        assert_batches_equal(reader.read(), zp.Batch.concatenate(parts))

    def test_is_plain_zarr(self, make_sink):
        """Flushed before each look: see `test_others_see_writes_at_once`."""


def stored(store):
    """What another process would read."""
    return zp.ZarrDataset(store)


def no_thread():
    return not [thread for thread in threading.enumerate() if thread.name == "zarrpipe-buffer"]


def wait_for(condition):
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.002)


def test_what_waits_is_written_by_count(tmp_path):
    with zp.ZarrData(tmp_path / "s", buffer=4, buffer_seconds=NEVER) as sink:
        sink.write(numbered_batch([0]))
        for number in (1, 2, 3):
            sink.write(numbered_batch([number]))
        assert len(sink) == 4
        assert len(stored(tmp_path / "s")) == 1
        sink.write(numbered_batch([4]))
        wait_for(lambda: len(stored(tmp_path / "s")) == 5)
    assert_batches_equal(zp.ZarrData(tmp_path / "s").read(), numbered_batch(range(5)))


def test_what_waits_is_written_by_time(tmp_path):
    with zp.ZarrData(tmp_path / "s", buffer=1000, buffer_seconds=0.05) as sink:
        for number in range(3):
            sink.write(numbered_batch([number]))
        wait_for(lambda: len(stored(tmp_path / "s")) == 3)
        wait_for(no_thread)
        sink.write(numbered_batch([3]))  # starts another thread
        wait_for(lambda: len(stored(tmp_path / "s")) == 4)


@pytest.mark.parametrize("call", ["flush", "read", "close", "drain", "zero"])
def test_what_waits_is_written_by_a_call(tmp_path, call):
    sink = zp.ZarrData(tmp_path / "s", buffer=1000, buffer_seconds=NEVER)
    for number in range(5):
        sink.write(numbered_batch([number]))
    found = getattr(sink, call)()
    if call in ("read", "drain"):
        assert_batches_equal(found, numbered_batch(range(5)))
    left = 0 if call in ("drain", "zero") else 5
    assert len(sink) == left
    assert len(stored(tmp_path / "s")) == left
    sink.close()
    assert len(zp.ZarrData(tmp_path / "s")) == left


def test_a_batch_is_copied_and_its_mask_applied_when_it_is_handed_over(tmp_path):
    live = numbered_batch(range(4))
    with zp.ZarrData(tmp_path / "s", buffer=100, buffer_seconds=NEVER) as sink:
        sink.write(live)
        expected = [live.clone()]
        for step in range(5):
            live.positions += 1.0
            mask = torch.arange(4) % 2 == step % 2
            sink.write(live, mask)
            expected.append(live.index_select(mask))
        live.positions.zero_()
        assert_batches_equal(sink.read(), zp.Batch.concatenate(expected))


def test_other_fields_are_written_at_once_and_in_order(tmp_path):
    with zp.ZarrData(tmp_path / "s", buffer=100, buffer_seconds=NEVER) as sink:
        sink.write(numbered_batch([0]))
        sink.write(numbered_batch([1]))
        sink.write(numbered_batch([2]).without("energy"))
        assert len(stored(tmp_path / "s")) == 3
        sink.write(numbered_batch([3]).without("energy"))
        assert len(stored(tmp_path / "s")) == 3
        clash = (
            numbered_batch([9]).without("serial").add_field("serial", torch.zeros(1, 7), "system")
        )
        with pytest.raises(ValueError, match="'serial'"):  # of its own call, with nothing lost
            sink.write(clash)
        assert sink.read().serial.flatten().tolist() == [0, 1, 2, 3]


def test_strings_that_are_new_wait_like_others(tmp_path):
    kinds = ["water", "ice", "steam"]
    with zp.ZarrData(tmp_path / "s", buffer=100, buffer_seconds=NEVER) as sink:
        for number, kind in enumerate(kinds):
            sink.write(numbered_batch([number]).add_field("kind", [kind], "system"))
        assert len(stored(tmp_path / "s")) == 1
        found = sink.read()
    assert list(found.strings("kind")) == kinds


def test_capacity_counts_what_waits(tmp_path):
    with zp.ZarrData(tmp_path / "s", 5, buffer=100, buffer_seconds=NEVER) as sink:
        sink.write(numbered_batch([0, 1]))
        sink.write(numbered_batch([2, 3]))
        with pytest.raises(RuntimeError, match="4 of 5 samples are stored and 2 more"):
            sink.write(numbered_batch([4, 5]))
        sink.write(numbered_batch([4]))
        assert sink.is_full
    assert_batches_equal(zp.ZarrData(tmp_path / "s").read(), numbered_batch(range(5)))


def test_an_error_of_the_thread_is_raised_by_the_next_write_and_loses_nothing(
    tmp_path, monkeypatch
):
    sink = zp.ZarrData(tmp_path / "s", buffer=2, buffer_seconds=NEVER)
    sink.write(numbered_batch([0]))
    write_at = files.write_at

    def full(descriptor, values, offset):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files, "write_at", full)
    sink.write(numbered_batch([1]))
    sink.write(numbered_batch([2]))
    wait_for(no_thread)
    with pytest.raises(DeferredWriteError, match=r"No space left on device.*stays queued"):
        sink.write(numbered_batch([3]))
    assert len(sink) == 3
    monkeypatch.setattr(files, "write_at", write_at)
    sink.write(numbered_batch([3]))
    assert_batches_equal(sink.read(), numbered_batch(range(4)))
    sink.close()


def test_a_write_waits_for_room(tmp_path, monkeypatch):
    """At most twice as many samples wait as were asked for."""
    sink = zp.ZarrData(tmp_path / "s", buffer=2, buffer_seconds=NEVER)
    sink.write(numbered_batch([0]))
    write_at, go = files.write_at, threading.Event()

    def slow(descriptor, values, offset):
        assert go.wait(60)
        write_at(descriptor, values, offset)

    monkeypatch.setattr(files, "write_at", slow)
    for number in range(1, 7):  # 2 are being written, 4 wait
        if number == 3:
            wait_for(lambda: sink._buffer.count == 0)
        sink.write(numbered_batch([number]))
    late = threading.Thread(target=sink.write, args=(numbered_batch([7]),))
    late.start()
    late.join(0.05)
    assert late.is_alive()
    assert sink._buffer.count == 4
    go.set()
    late.join(60)
    sink.close()
    assert_batches_equal(zp.ZarrData(tmp_path / "s").read(), numbered_batch(range(8)))


def test_threads_share_a_buffer(tmp_path):
    with zp.ZarrData(tmp_path / "s", buffer=7, buffer_seconds=0.001) as sink:

        def run(first):
            for number in range(first, first + 50):
                sink.write(numbered_batch([number]))

        threads = [threading.Thread(target=run, args=(first,)) for first in (0, 50, 100)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        numbers = sink.read().serial.flatten().tolist()
    assert sorted(numbers) == list(range(150))
    for first in (0, 50, 100):
        own = [number for number in numbers if first <= number < first + 50]
        assert own == sorted(own)
    assert_batches_equal(zp.ZarrData(tmp_path / "s").read(), numbered_batch(numbers))


def test_a_forked_child_writes_nothing_of_its_parent(tmp_path):
    sink = zp.ZarrData(tmp_path / "s", buffer=100, buffer_seconds=NEVER)
    for number in range(3):
        sink.write(numbered_batch([number]))
    child = os.fork()
    if child == 0:
        os._exit(0 if sink._buffer.count == 0 and not sink._buffer.take() else 1)
    assert os.waitpid(child, 0)[1] == 0
    sink.close()
    assert_batches_equal(zp.ZarrData(tmp_path / "s").read(), numbered_batch(range(3)))


_NO_THREADS = pytest.mark.skipif(
    (3, 12) <= sys.version_info < (3, 12, 2),
    reason="Python 3.12.0 and 3.12.1 start no threads at exit, see docs/reference/releases.md",
)


@pytest.mark.parametrize(
    "options",
    [
        "",
        pytest.param("durable=True", marks=_NO_THREADS),
        pytest.param("config={'core': ZSTD, 'meta': ZSTD}", marks=_NO_THREADS),
    ],
)
@pytest.mark.parametrize("end", ["exit", "kill"])
def test_an_interpreter_that_ends_writes_what_waits_and_a_kill_loses_no_more(
    tmp_path, end, options
):
    code = f"""
import os, signal
import zarr
import zarrpipe as zp
from zarrpipe.testing import numbered_batch
ZSTD = {{"compressors": (zarr.codecs.ZstdCodec(level=1),)}}
sink = zp.ZarrData({str(tmp_path / "s")!r}, buffer=1000, buffer_seconds={NEVER}, {options})
sink.write(numbered_batch([0]))
sink.write(numbered_batch([1]))
sink.flush()
sink.write(numbered_batch([2]))
if {end == "kill"}:
    os.kill(os.getpid(), signal.SIGKILL)
"""
    done = subprocess.run([sys.executable, "-c", code], check=False, timeout=100)
    assert done.returncode == (-signal.SIGKILL if end == "kill" else 0)
    left = 2 if end == "kill" else 3
    assert_batches_equal(zp.ZarrData(tmp_path / "s").read(), numbered_batch(range(left)))


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"buffer": 0}, "buffer is 0, expected an integer from 1"),
        ({"buffer": 2.5}, "buffer is 2.5"),
        ({"buffer": 5, "buffer_seconds": 0}, "buffer_seconds=0, expected a positive number"),
        ({"buffer": 5, "buffer_seconds": float("nan")}, "buffer_seconds=nan"),
        ({"buffer": 5, "buffer_seconds": True}, "buffer_seconds=True"),
    ],
)
def test_wrong_sizes_are_refused(options, told):
    with pytest.raises(ArgumentError, match=told):
        zp.ZarrData({}, **options)


def test_threads_never_queue_more_than_there_is_room_for(tmp_path, monkeypatch):
    """Of two threads that see the same room, one is refused, and nothing of the other is lost."""
    sink = zp.ZarrData(tmp_path / "s", capacity=6, buffer=100, buffer_seconds=NEVER)
    sink.write(numbered_batch([0]))
    takes, both, refused = sink._buffer.takes, threading.Barrier(2), []
    monkeypatch.setattr(sink._buffer, "takes", lambda batch: takes(batch) and both.wait() >= 0)

    def run(first):
        try:
            sink.write(numbered_batch(range(first, first + 3)))
        except StoreFullError:
            refused.append(first)

    threads = [threading.Thread(target=run, args=(first,)) for first in (1, 4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    sink.close()
    assert len(refused) == 1
    assert len(zp.ZarrData(tmp_path / "s")) == 4
