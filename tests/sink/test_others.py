"""What a sink shares with others: the directory, the lock, the ranks."""

import copy
import os
import pickle
import signal
import socket
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch
import zarr
from zarr.storage import MemoryStore, StorePath

from zarrpipe import AtomicData, AtomicDataZarrWriter, ZarrData, ZarrDataset
from zarrpipe.errors import (
    StoreClosedError,
    StoreEmptyError,
    StoreFormatError,
    StoreFullError,
    StoreLockedError,
    StoreReadOnlyError,
)
from zarrpipe.store.read.view import StoreView
from zarrpipe.store.write.exclusive_calls import ForkSafeLock
from zarrpipe.testing import assert_batches_equal, numbered_batch


def hold(path: Path) -> subprocess.Popen:
    """Process that writes three samples, says so, and keeps the store open."""
    code = (
        "import sys, time; from zarrpipe import ZarrData;"
        "from zarrpipe.testing import numbered_batch;"
        "sink = ZarrData(sys.argv[1]); sink.write(numbered_batch(range(3)));"
        "print('written', flush=True); time.sleep(600)"
    )
    return subprocess.Popen([sys.executable, "-c", code, path], stdout=subprocess.PIPE, text=True)


def test_foreign_files_survive(tmp_path):
    """`zero` and `drain` leave every file that zarrpipe did not make, wherever it stands."""
    store = tmp_path / "store"
    sink = ZarrData(store)
    sink.write(numbered_batch(range(2)))
    files = ["notes.txt", "logs/run.log", "core/readme.md", "meta/ours.json", ".hidden"]
    for name in files:
        (store / name).parent.mkdir(parents=True, exist_ok=True)
        (store / name).write_text(name)
    for clear in (sink.zero, sink.drain):
        sink.write(numbered_batch(range(4)))
        clear()
    sink.close()
    assert [(store / name).read_text() for name in files] == files
    assert not (store / "core" / "positions").exists()


def test_a_sink_that_never_wrote_removes_nothing(tmp_path):
    group = zarr.open_group(tmp_path / "store", mode="w")
    group.create_array("spectra", data=np.arange(5))
    before = sorted(path for path in (tmp_path / "store").rglob("*"))
    with pytest.raises(StoreFormatError, match="without meta/atoms_ptr"):
        ZarrData(tmp_path / "store")
    assert sorted(path for path in (tmp_path / "store").rglob("*")) == before


def test_two_stores_in_one_hierarchy():
    """A prefix of a store is a store of its own; clearing one leaves the other."""
    memory = MemoryStore()
    one, other = (ZarrData(StorePath(memory, f"runs/{name}")) for name in ("one", "other"))
    one.write(numbered_batch(range(3)))
    other.write(numbered_batch(range(5, 9)))
    one.zero()
    assert_batches_equal(other.read(), numbered_batch(range(5, 9)))


def test_a_second_sink_is_locked_out(tmp_path):
    """Writing, draining and clearing need the lock; its error names who holds it."""
    first, second = ZarrData(tmp_path / "store"), ZarrData(str(tmp_path / "store"))
    first.write(numbered_batch(range(3)))
    held = rf"written by process {os.getpid()} on {socket.gethostname()} since \d{{4}}-"
    for change in (lambda: second.write(numbered_batch(range(2))), second.drain, second.zero):
        with pytest.raises(StoreLockedError, match=held):
            change()
    assert_batches_equal(second.read(), numbered_batch(range(3)))
    first.close()
    second.write(numbered_batch([3]))
    assert_batches_equal(second.read(), numbered_batch(range(4)))
    second.close()


def test_a_sink_that_is_dropped_frees_its_lock(tmp_path):
    """Also where it is part of a cycle that no collection has met yet, as in a notebook."""
    dropped = ZarrData(tmp_path / "store")
    dropped.write(numbered_batch([0]))
    cycle = [dropped]
    cycle.append(cycle)
    del dropped, cycle
    with ZarrData(tmp_path / "store") as sink:
        sink.write(numbered_batch([1]))
        assert_batches_equal(sink.read(), numbered_batch([0, 1]))


def test_a_killed_holder_loses_the_lock(tmp_path):
    """Another process holds the lock until it is killed; readers need none."""
    store = tmp_path / "store"
    holder = hold(store)
    try:
        assert holder.stdout.readline() == "written\n"
        sink = ZarrData(store)
        assert_batches_equal(sink.read(), numbered_batch(range(3)))
        with pytest.raises(StoreLockedError, match=f"written by process {holder.pid} on "):
            sink.write(numbered_batch([3]))
        assert StoreView(store).num_samples == 3
    finally:
        holder.send_signal(signal.SIGKILL)
        holder.wait()
        holder.stdout.close()
    sink.write(numbered_batch([3]))
    assert_batches_equal(sink.read(), numbered_batch(range(4)))
    sink.close()


def test_a_lock_without_a_name(tmp_path):
    """A holder that has not written its name yet is still in the way."""
    first = ZarrData(tmp_path / "store")
    first.write(numbered_batch([0]))
    for text in ("", "{", "[]", "{}"):
        (tmp_path / "store" / "meta" / "atoms_ptr" / ".lock").write_text(text)
        with pytest.raises(StoreLockedError, match="has not said its name"):
            ZarrData(tmp_path / "store").write(numbered_batch([0]))
    first.close()


def test_a_forked_child_does_not_keep_the_lock(tmp_path):
    """The lock goes with the writer, though a child that it forked lives on."""
    sink = ZarrData(tmp_path / "store")
    sink.write(numbered_batch([0]))
    read_end, write_end = os.pipe()
    child = os.fork()
    if child == 0:
        os.read(read_end, 1)
        os._exit(0)
    try:
        sink._writer.abandon()
        with ZarrData(tmp_path / "store") as other:
            other.write(numbered_batch([1]))
    finally:
        os.write(write_end, b"x")
        os.waitpid(child, 0)
        os.close(read_end)
        os.close(write_end)
    assert_batches_equal(ZarrData(tmp_path / "store").read(), numbered_batch([0, 1]))


def test_a_forked_child_cannot_write(tmp_path):
    """What was the parent's to write is not the child's, which may close it without effect."""
    sink = ZarrData(tmp_path / "store")
    sink.write(numbered_batch([0]))
    child = os.fork()
    if child == 0:
        code = 1
        with suppress(BaseException):
            try:
                sink.write(numbered_batch([7]))
            except StoreClosedError:
                sink.close()
                code = 0
        os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    sink.write(numbered_batch([1]))
    assert_batches_equal(sink.read(), numbered_batch([0, 1]))
    with pytest.raises(StoreLockedError):
        ZarrData(tmp_path / "store").write(numbered_batch([2]))
    sink.close()


@pytest.fixture
def process_group(tmp_path, monkeypatch):
    """torch.distributed with one process, which says rank 0 whatever the environment says."""
    monkeypatch.setenv("RANK", "3")
    monkeypatch.setenv("LOCAL_RANK", "2")
    init = f"file://{tmp_path / 'rendezvous'}"
    torch.distributed.init_process_group("gloo", init_method=init, rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def test_ranks_of_a_process_group(process_group):
    sink = ZarrData({})
    assert (sink.global_rank, sink.local_rank) == (0, 2)


@pytest.mark.parametrize("capacity", [0, -1, 2.5, "many", True, None])
def test_capacity_is_a_positive_number(capacity):
    with pytest.raises(ValueError, match=r"capacity=.*expected a positive integer"):
        ZarrData({}, capacity)


def test_what_is_no_store():
    with pytest.raises(TypeError, match=r"3 is of type int, expected a path, a URL, a zarr Store"):
        ZarrData(3)


def test_a_path_that_is_a_file(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(NotADirectoryError, match=r"file is a file, expected the directory"):
        ZarrData(tmp_path / "file")
    assert (tmp_path / "file").read_text() == "mine"


def test_a_read_only_store():
    memory = MemoryStore()
    with ZarrData(memory) as sink:
        sink.write(numbered_batch([0]))
    sink = ZarrData(memory.with_read_only(True))
    assert_batches_equal(sink.read(), numbered_batch([0]))
    for change in (lambda: sink.write(numbered_batch([1])), sink.zero, sink.drain):
        with pytest.raises(StoreReadOnlyError, match="read-only"):
            change()
    assert len(sink) == 1


def test_a_url(tmp_path):
    fsspec = pytest.importorskip("fsspec")
    url = f"memory://{tmp_path.name}/url"
    with ZarrData(url) as sink:
        sink.write(numbered_batch(range(3)))
        assert sink.store == url
    assert_batches_equal(ZarrData(url).read(), numbered_batch(range(3)))
    fsspec.filesystem("memory").store.clear()


def test_an_empty_group_is_an_empty_sink(tmp_path):
    """What a kill right after the first step of all leaves behind, or a user made."""
    zarr.create_group(tmp_path / "store")
    sink = ZarrData(tmp_path / "store")
    assert len(sink) == 0
    sink.write(numbered_batch([0]))
    assert_batches_equal(sink.read(), numbered_batch([0]))
    sink.close()


def test_two_writers_of_one_dict_share_it():
    shared: dict = {}
    with ZarrData(shared) as sink:
        sink.write(numbered_batch([0]))
    with ZarrData(shared) as sink:
        sink.write(numbered_batch([1]))
    assert_batches_equal(ZarrData(shared).read(), numbered_batch([0, 1]))
    assert "zarr.json" in shared


def test_a_durable_sink(tmp_path):
    """It is asked for in the sink; a store in memory outlasts no loss of power."""
    with ZarrData(tmp_path / "store", durable=True) as sink:
        sink.write(numbered_batch(range(3)))
        assert_batches_equal(sink.read(), numbered_batch(range(3)))
    with AtomicDataZarrWriter(tmp_path / "store", durable=True) as writer:
        writer.append(numbered_batch([3]))
    assert_batches_equal(ZarrData(tmp_path / "store").read(), numbered_batch(range(4)))
    for taker in (ZarrData, AtomicDataZarrWriter):
        with pytest.raises(ValueError, match="in memory and does not outlast a loss of power"):
            taker({}, durable=True)


@pytest.mark.parametrize("kind", ["path", "dict"])
def test_a_sink_and_a_dataset_look_their_stores_through(tmp_path, kind):
    store = tmp_path / "store" if kind == "path" else {}
    with ZarrData(store) as sink:
        sink.write(numbered_batch(range(3)))
    reports = [sink.check(), *ZarrDataset([store, store]).check()]
    assert [report.ok for report in reports] == [True] * 3
    group = zarr.open_group(store, mode="r+")
    edges = group["core/neighbor_list"]
    edges[0] = [7, 7]
    reports = [ZarrData(store).check(), *ZarrDataset(store).check()]
    assert [report.ok for report in reports] == [False] * 2


def test_errors_are_the_builtins_too():
    assert issubclass(StoreFullError, RuntimeError)
    assert issubclass(StoreLockedError, RuntimeError)


def test_repr(tmp_path):
    sink = ZarrData(tmp_path / "store", 5)
    sink.write(AtomicData([[0.0, 0.0, 0.0]], [2]))
    assert repr(sink) == f"ZarrData('{tmp_path / 'store'}', 1 of 5 samples)"
    sink.close()


@pytest.fixture
def hasty_threads():
    """Threads that take turns as often as they can."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


@pytest.mark.parametrize("kind", ["sink", "writer"])
def test_threads_may_share_a_writer(tmp_path, hasty_threads, kind):
    """Each batch is there once and whole, those of a thread in its order."""
    batches = [
        [numbered_batch([100 * k + 2 * i, 100 * k + 2 * i + 1]) for i in range(8)] for k in range(4)
    ]
    shared = ZarrData(tmp_path / "s") if kind == "sink" else AtomicDataZarrWriter(tmp_path / "s")
    shared.write(numbered_batch([999]))
    append = shared.write if kind == "sink" else shared.append
    with shared, ThreadPoolExecutor(4) as threads:
        for done in [threads.submit(lambda own=own: [append(b) for b in own]) for own in batches]:
            done.result()
    stored = ZarrData(tmp_path / "s").read()
    order = stored["serial"].reshape(-1).long().tolist()
    assert_batches_equal(stored, numbered_batch(order))
    assert sorted(order) == sorted([999, *(100 * k + j for k in range(4) for j in range(16))])
    for k in range(4):
        assert [n for n in order if n // 100 == k] == [100 * k + j for j in range(16)]


def test_threads_that_drain_lose_nothing(tmp_path, hasty_threads):
    sink, drained = ZarrData(tmp_path / "s"), []

    def drain():
        for _ in range(8):
            with suppress(StoreEmptyError):
                drained.extend(sink.drain()["serial"].reshape(-1).long().tolist())

    with sink, ThreadPoolExecutor(2) as threads:
        other = threads.submit(drain)
        for number in range(24):
            sink.write(numbered_batch([number]))
        other.result()
        if len(sink):
            drained.extend(sink.read()["serial"].reshape(-1).long().tolist())
    assert drained == list(range(24))


def test_a_forked_child_does_not_wait_for_a_thread_that_it_has_not(monkeypatch):
    """Nor does a copy."""
    mutex = ForkSafeLock()

    def is_free(one):
        taken = ThreadPoolExecutor(1).submit(lambda: one.here().acquire(blocking=False))
        return taken.result()

    with mutex.here():
        assert not is_free(mutex)
        assert is_free(copy.copy(mutex))
        assert is_free(pickle.loads(pickle.dumps(mutex)))
        monkeypatch.setattr(os, "getpid", lambda: -1)
        assert is_free(mutex)
        monkeypatch.undo()
    assert is_free(mutex)


@pytest.mark.parametrize("duplicate", [pickle.dumps, copy.copy, copy.deepcopy])
def test_a_sink_stays_in_its_process(tmp_path, duplicate):
    sink = ZarrData(tmp_path / "store")
    for _ in range(2):
        with pytest.raises(
            TypeError, match=r"store can be neither pickled nor copied: .* hand the"
        ):
            duplicate(sink)
        sink.write(numbered_batch(range(2)))
    sink.close()


def test_a_mark_of_a_helper_that_was_interrupted_holds_nothing():
    """An error at the last line of a task leaves the mark of its thread, and not the lock."""
    mutex = ForkSafeLock()
    mutex._helper = (os.getpid(), threading.get_ident())
    assert not mutex.mine
    held, done = threading.Event(), threading.Event()

    def hold():
        with mutex.here():
            held.set()
            done.wait(60)

    thread = threading.Thread(target=hold)
    thread.start()
    assert held.wait(60)
    assert mutex.mine  # its holder waits for this thread
    done.set()
    thread.join()
    assert not mutex.mine
