"""One writer at a time: who has the lock is named, the dead lose it, and some systems have none."""

import errno
import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
import time

import pytest

from zarrpipe import ZarrData
from zarrpipe.errors import StoreFormatError, StoreLockedError, StoreReadOnlyError
from zarrpipe.store.backend import files
from zarrpipe.store.backend.lock import LOCK_FILE, WriterLock, holder_of
from zarrpipe.testing import assert_batches_equal, numbered_batch

HOLDER = """
import sys, time
from zarrpipe.store.backend.lock import WriterLock
from pathlib import Path
lock = WriterLock(Path(sys.argv[1]))
print("held", flush=True)
time.sleep(600)
"""


def test_a_holder_is_named_and_loses_its_lock_when_it_is_killed(tmp_path):
    before = time.time()
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, tmp_path], stdout=subprocess.PIPE)
    try:
        assert holder.stdout.readline() == b"held\n"
        found = holder_of(tmp_path)
        assert (found.host, found.pid) == (socket.gethostname(), holder.pid)
        assert before <= found.since <= time.time()
        when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(found.since))
        name = f"process {holder.pid} on {socket.gethostname()} since {when}"
        with pytest.raises(StoreLockedError, match=f"is being written by {name}: one writer"):
            WriterLock(tmp_path)
        assert holder_of(tmp_path) == found
    finally:
        holder.send_signal(signal.SIGKILL)
        holder.wait(300)
        holder.stdout.close()
    lock = WriterLock(tmp_path)
    assert holder_of(tmp_path).pid == os.getpid()
    lock.release()
    assert holder_of(tmp_path) is None


@pytest.mark.parametrize(
    "text", [b"", b"{", b"[]", b'{"host": 1}', b'{"host": "a", "pid": "x", "since": 1}', b"\xff",
             b'{"host": "a", "pid": 1, "since": 1e300}', b"[" * 5000]
)  # fmt: skip
def test_a_lock_that_says_nothing_useful(tmp_path, text):
    lock = WriterLock(tmp_path)
    (tmp_path / LOCK_FILE).write_bytes(text)
    assert holder_of(tmp_path) is None
    with pytest.raises(StoreLockedError, match="by a process that has not said its name yet"):
        WriterLock(tmp_path)
    lock.release()


def without_locks(monkeypatch, number):
    def flock(descriptor, operation):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", flock)


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS])
def test_a_file_system_without_locks(tmp_path, monkeypatch, number):
    """A writer says so and goes on, and raises if it finds that another wrote."""
    without_locks(monkeypatch, number)
    first, second = ZarrData(tmp_path / "store"), ZarrData(tmp_path / "store")
    with pytest.warns(RuntimeWarning, match="has no locks, so nothing keeps a second writer out"):
        first.write(numbered_batch(range(3)))
    first.write(numbered_batch(range(3, 5)))
    name = f"process {os.getpid()} on {socket.gethostname()}"
    with pytest.warns(RuntimeWarning, match=f"last taken by {name} since .*, which may still"):
        second.write(numbered_batch(range(5, 7)))
    with pytest.raises(StoreLockedError, match=f"was taken by {name}.*: one writer at a time"):
        first.write(numbered_batch([99]))
    with pytest.raises(StoreLockedError, match="was taken by"):
        first.close()
    second.write(numbered_batch([7]))
    second.close()
    assert_batches_equal(ZarrData(tmp_path / "store").read(), numbered_batch(range(8)))
    assert holder_of(tmp_path / "store") is None


def test_another_error_of_the_lock_is_told(tmp_path, monkeypatch):
    without_locks(monkeypatch, errno.EIO)
    with pytest.raises(OSError, match="Input/output error"):
        WriterLock(tmp_path)


@pytest.mark.parametrize("name", ["resize", "write_at"])
def test_a_lock_is_given_up_on_a_disk_that_fails(tmp_path, monkeypatch, name):
    """Both when it cannot be named and when it cannot be un-named."""

    def failing(*arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(files, name, failing)
        with pytest.raises(OSError, match="No space left"):
            WriterLock(tmp_path)
    lock = WriterLock(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(files, name, failing)
        lock.release()
    WriterLock(tmp_path).release()


def test_a_directory_that_must_not_be_written_to(tmp_path, monkeypatch):
    for number in (errno.EACCES, errno.EROFS):
        with monkeypatch.context() as patch:

            def refused(path, number=number):
                raise OSError(number, os.strerror(number), str(path))

            patch.setattr(files, "open_or_create", refused)
            with pytest.raises(StoreReadOnlyError, match="must not be written to"):
                WriterLock(tmp_path)


@pytest.mark.parametrize("kind", ["link", "dangling", "folder", "fifo"])
def test_something_else_in_the_place_of_the_lock(tmp_path, kind):
    place = tmp_path / "store" / LOCK_FILE
    place.parent.mkdir(parents=True)
    (tmp_path / "other").write_text(json.dumps("untouched"))
    if kind == "folder":
        place.mkdir()
    elif kind == "fifo":
        os.mkfifo(place)
    else:
        place.symlink_to(tmp_path / ("other" if kind == "link" else "nothing"))
    with pytest.raises(StoreFormatError, match=r"atoms_ptr/\.lock is (a link|not a regular file)"):
        WriterLock(tmp_path / "store")
    assert (tmp_path / "other").read_text() == '"untouched"'
    assert holder_of(tmp_path / "store") is None
