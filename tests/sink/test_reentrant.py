"""Calls on a sink from inside another call of it, as a signal handler makes them."""

import signal

import pytest

from zarrpipe import AtomicDataZarrWriter, ZarrData, ZarrDataset
from zarrpipe.errors import DeferredWriteError, StoreBusyError, StoreClosedError
from zarrpipe.store.write.open_arrays import OpenArrays
from zarrpipe.testing import assert_batches_equal, numbered_batch


@pytest.fixture(params=["path", "dict"])
def store(request, tmp_path):
    return tmp_path / "store" if request.param == "path" else {}


@pytest.fixture
def inside(monkeypatch):
    """Call a function once in the middle of the next append, before its pointers are written."""

    def arm(function):
        carry_out = OpenArrays.carry_out

        def interrupted(self, writes):
            monkeypatch.setattr(OpenArrays, "carry_out", carry_out)
            carry_out(self, writes[:-1])
            function()
            carry_out(self, writes[-1:])

        monkeypatch.setattr(OpenArrays, "carry_out", interrupted)

    return arm


def test_a_call_from_inside_a_write_is_refused(store, inside):
    """It changes nothing, and says how else to do it."""
    sink = ZarrData(store)
    sink.write(numbered_batch(range(3)))
    refused = []

    def handler():
        calls = (lambda: sink.write(numbered_batch([9])), sink.flush, sink.zero, sink.drain)
        for call in (*calls, sink.read):
            with pytest.raises(StoreBusyError, match=r"from inside another call.*ZarrData\.defer"):
                call()
            refused.append(call)
        assert len(sink) == 3
        assert "3 of" in repr(sink)

    inside(handler)
    sink.write(numbered_batch(range(3, 5)))
    assert len(refused) == 5
    sink.close()
    assert_batches_equal(ZarrData(store).read(), numbered_batch(range(5)))


def test_a_writer_refuses_too(store, inside):
    writer = AtomicDataZarrWriter(store)
    writer.write(numbered_batch(range(3)))

    def handler():
        calls = (lambda: writer.append(numbered_batch([9])), lambda: writer.delete([0]))
        for call in (*calls, writer.defragment):
            with pytest.raises(StoreBusyError, match="AtomicDataZarrWriter"):
                call()

    inside(handler)
    writer.append(numbered_batch([3]))
    writer.close()
    assert_batches_equal(ZarrData(store).read(), numbered_batch(range(4)))


def test_a_deferred_batch_is_written_when_the_call_ends(store, inside):
    sink, live = ZarrData(store), numbered_batch([7, 8, 9])
    sink.write(numbered_batch(range(3)))

    def handler():
        sink.defer(live, mask=[True, False, True])
        live["positions"].zero_()  # the simulation goes on with its buffers

    inside(handler)
    sink.write(numbered_batch(range(3, 5)))
    assert_batches_equal(sink.read(), numbered_batch([0, 1, 2, 3, 4, 7, 9]))
    sink.close()


@pytest.mark.parametrize("next_call", ["write", "flush", "close", "drain", "zero"])
def test_a_deferred_batch_waits_for_the_next_call(store, next_call):
    sink = ZarrData(store)
    sink.write(numbered_batch(range(2)))
    sink.defer(numbered_batch([2]))
    assert len(sink) == 2
    if next_call == "write":
        sink.write(numbered_batch([3]))
    else:
        drained = getattr(sink, next_call)()
    if next_call == "drain":
        assert_batches_equal(drained, numbered_batch(range(3)))
    elif next_call == "zero":
        assert len(sink) == 0
    else:
        expected = range(4) if next_call == "write" else range(3)
        assert_batches_equal(sink.read(), numbered_batch(expected))
    sink.close()
    with pytest.raises(StoreClosedError, match="was closed"):
        sink.defer(numbered_batch([2]))


def test_a_deferred_batch_outlasts_a_call_that_fails(store, inside):
    """It is written by the next one, after what that call found stored."""
    sink = ZarrData(store)
    sink.write(numbered_batch(range(2)))

    def handler():
        sink.defer(numbered_batch([7]))
        raise KeyboardInterrupt

    inside(handler)
    with pytest.raises(KeyboardInterrupt):
        sink.write(numbered_batch(range(2, 4)))
    assert len(sink) == 2
    sink.write(numbered_batch(range(2, 4)))
    assert_batches_equal(sink.read(), numbered_batch([0, 1, 7, 2, 3]))
    sink.close()


def test_a_deferred_batch_that_is_refused(store):
    sink = ZarrData(store, capacity=4)
    sink.write(numbered_batch(range(2)))
    sink.defer(numbered_batch(range(5, 10)))
    with pytest.raises(DeferredWriteError, match=r"5 samples .*is full.* is given up") as caught:
        sink.write(numbered_batch([2]))
    assert_batches_equal(caught.value.batch, numbered_batch(range(5, 10)))
    sink.write(numbered_batch([2]))
    sink.close()
    assert_batches_equal(ZarrData(store).read(), numbered_batch(range(3)))


def test_a_deferred_batch_that_the_disk_refuses_stays_queued(store, monkeypatch):
    sink = ZarrData(store)
    sink.write(numbered_batch(range(2)))
    sink.defer(numbered_batch([2]))

    def failing(self, writes):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(OpenArrays, "carry_out", failing)
        with pytest.raises(DeferredWriteError, match=r"stays queued; the call .* did nothing else"):
            sink.write(numbered_batch([3]))
    sink.close()
    assert_batches_equal(ZarrData(store).read(), numbered_batch(range(3)))


def test_a_close_from_inside_closes_when_the_call_ends(store, inside):
    sink = ZarrData(store)
    sink.write(numbered_batch(range(2)))
    inside(sink.close)
    sink.write(numbered_batch([2]))
    with pytest.raises(StoreClosedError, match="was closed"):
        sink.write(numbered_batch([3]))
    with ZarrData(store) as other:
        other.write(numbered_batch([3]))
    assert_batches_equal(sink.read(), numbered_batch(range(4)))


@pytest.mark.parametrize("close_again", [False, True])
def test_a_handler_that_closes_and_exits(store, inside, close_again):
    """The process ends by SystemExit, the store is free, and a further close makes it exact."""
    sink = ZarrData(store)
    sink.write(numbered_batch(range(2)))

    def handler():
        sink.close()
        raise SystemExit(3)

    inside(handler)
    with pytest.raises(SystemExit):
        sink.write(numbered_batch([2]))
    if close_again:
        sink.close()
        assert sink.check().ok
    with ZarrData(store) as other:
        other.write(numbered_batch([3]))
    assert_batches_equal(sink.read(), numbered_batch([0, 1, 3]))


def test_a_signal_in_the_middle_of_writes(tmp_path):
    """A real signal, at whatever moment it comes: what is deferred is there once, nothing torn."""
    sink, numbers = ZarrData(tmp_path / "store"), iter(range(1000, 10_000))
    before = signal.signal(signal.SIGALRM, lambda *_: sink.defer(numbered_batch([next(numbers)])))
    signal.setitimer(signal.ITIMER_REAL, 0.01, 0.003)
    try:
        for start in range(0, 60, 3):
            sink.write(numbered_batch(range(start, start + 3)))
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    sink.close()
    stored = ZarrDataset(tmp_path / "store").gather(range(len(sink)))
    order = stored["serial"].reshape(-1).long().tolist()
    assert [number for number in order if number < 1000] == list(range(60))
    deferred = [number for number in order if number >= 1000]
    assert sorted(deferred) == list(range(1000, next(numbers)))
    assert_batches_equal(stored, numbered_batch(order))
