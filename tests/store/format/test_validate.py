"""What Zarr raises is told as damage if the store is damaged, and not if the machine has failed."""

import errno

import pytest

from zarrpipe.errors import StoreFormatError, StoreMemoryError
from zarrpipe.store.cache import fetch
from zarrpipe.store.cache.fetch import FetchPool, Task
from zarrpipe.store.format.validate import translate_zarr_errors
from zarrpipe.store.read.view import StoreView
from zarrpipe.testing import numbered_batch


def translated(error):
    with pytest.raises(BaseException) as caught, translate_zarr_errors("run.zarr"):
        raise error
    return caught.value


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.EMFILE, "Too many open files"),
        OSError(errno.ENOMEM, "Cannot allocate memory"),
        RuntimeError("can't start new thread"),
        KeyboardInterrupt(),
        SystemExit(3),
    ],
    ids=repr,
)
def test_what_the_machine_or_the_user_raises_goes_through(error):
    assert translated(error) is error


def test_a_lack_of_memory_stays_one():
    error = translated(MemoryError())
    assert isinstance(error, MemoryError)
    assert not isinstance(error, StoreFormatError)
    assert "run.zarr cannot be read: there is not enough memory" in str(error)


@pytest.mark.parametrize(
    "error", [ValueError("bad"), RuntimeError("error during decompression"), KeyError("name")]
)
def test_what_a_decoder_raises_is_damage(error):
    assert isinstance(translated(error), StoreFormatError)


@pytest.mark.parametrize("config", [{"chunk_size": 64}, {"compressors": "zstd", "chunk_size": 64}])
@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (MemoryError(), StoreMemoryError),
        (RuntimeError("can't start new thread"), RuntimeError),
        (OSError(errno.EMFILE, "Too many open files"), OSError),
    ],
    ids=["memory", "threads", "files"],
)
def test_a_reader_tells_what_it_was(tmp_path, monkeypatch, config, error, kind):
    """Of compressed rows, and of a store's own documents."""
    import zarrpipe  # noqa: PLC0415
    from zarrpipe.store.backend import local_store  # noqa: PLC0415

    with zarrpipe.ZarrData(tmp_path / "store", config={"core": config}) as sink:
        sink.write(numbered_batch(range(5)))

    def fail(*_, **__):
        raise error

    view = StoreView(tmp_path / "store")
    with monkeypatch.context() as patch:
        patch.setattr(local_store, "open_regular", fail)
        with pytest.raises(kind) as caught:
            StoreView(tmp_path / "store")
        assert not isinstance(caught.value, StoreFormatError)
        if "compressors" in config:
            with pytest.raises(kind) as caught:
                view.gather([0, 1])
            assert not isinstance(caught.value, StoreFormatError)
    assert view.gather([0, 1]).num_graphs == 2


class NoThread:
    def __init__(self, **_):
        pass

    def start(self):
        raise RuntimeError("can't start new thread")


def test_without_a_single_thread_nothing_is_queued(monkeypatch):
    pool = FetchPool(2)
    monkeypatch.setattr(fetch.threading, "Thread", NoThread)
    with pytest.raises(RuntimeError, match="can't start new thread"):
        pool.submit(Task(lambda task: task.finish(), 0), urgent=True)
    assert pool.waiting == 0
    assert pool.join(0)


def test_with_too_few_threads_those_that_run_have_to_do(monkeypatch):
    """The first is at work when no other can be started, and does the second task as well."""
    pool, tasks = FetchPool(2), []

    def work(task):
        if not tasks:
            monkeypatch.setattr(fetch.threading, "Thread", NoThread)
            tasks.append(Task(lambda task: task.finish(), 0))
            pool.submit(tasks[0], urgent=True)
        task.finish()

    first = Task(work, 0)
    pool.submit(first, urgent=True)
    first.result()
    tasks[0].result()
    pool.close()
    assert pool.join(5)
