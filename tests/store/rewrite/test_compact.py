"""Stores written anew in their place; and `merge` and `compact` killed at any operation."""

import errno
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import zarr
from zarr.storage import MemoryStore, StorePath

from zarrpipe import AtomicDataZarrWriter, ZarrData, ZarrDataset, compact, merge
from zarrpipe.errors import StoreFormatError, StoreLockedError, StoreRenameError
from zarrpipe.store.backend import files, swap
from zarrpipe.store.read.view import StoreView
from zarrpipe.store.rewrite import delete_defragment
from zarrpipe.testing import assert_batches_equal, assert_plain_zarr, numbered_batch

ZSTD = {
    group: {"chunk_size": 16, "compressors": ({"name": "zstd"},)}
    for group in ("meta", "core", "custom")
}
GONE = [1, 2, 8]
KEPT = [number for number in range(20) if number not in GONE]


def filled(store, count=20, gone=GONE, config=None):
    with AtomicDataZarrWriter(store, config) as writer:
        writer.write(numbered_batch(range(count)))
        writer.delete(list(gone))
    return store


def everything(store):
    view = StoreView(store)
    return view.gather(np.arange(view.num_samples))


def content(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name != ".lock"
    }


@pytest.fixture(params=["local", "compressed", "memory"])
def store(request, tmp_path):
    if request.param == "memory":
        return filled(MemoryStore())
    return filled(tmp_path / "store", config=ZSTD if request.param == "compressed" else None)


class TestCompact:
    def test_leaves_the_deleted_out(self, store):
        ids = StoreView(store).ids
        assert compact(store) == len(KEPT)
        assert_batches_equal(everything(store), numbered_batch(KEPT))
        assert_plain_zarr(store, numbered_batch(KEPT), exact=True)
        np.testing.assert_array_equal(StoreView(store).ids, ids)
        with ZarrData(store) as sink:
            sink.write(numbered_batch([50]))
        assert_batches_equal(everything(store), numbered_batch([*KEPT, 50]))

    def test_shuffles(self, store):
        compact(store, shuffle=3)
        order = np.random.default_rng(3).permutation(len(KEPT))
        assert_batches_equal(everything(store), numbered_batch(np.array(KEPT)[order]))

    def test_changes_codecs(self, store):
        for config in (ZSTD, None):
            compact(store, config=config)
            array = zarr.open_group(store, mode="r")["core/forces"]
            assert bool(array.compressors) == (config is not None)
            assert array.chunks == ((16, 3) if config else (16_384, 3))
            assert_batches_equal(everything(store), numbered_batch(KEPT))

    def test_keeps_what_others_made(self, store):
        group = zarr.open_group(store, mode="r+")
        group.create_array("spectra", data=np.arange(4))
        group["custom"].create_array("of_another", data=np.arange(5))
        group.attrs["note"] = "keep"
        compact(store)
        group = zarr.open_group(store, mode="r")
        np.testing.assert_array_equal(group["spectra"][:], np.arange(4))
        np.testing.assert_array_equal(group["custom/of_another"][:], np.arange(5))
        assert group.attrs["note"] == "keep"
        assert_batches_equal(everything(store), numbered_batch(KEPT))

    def test_a_store_without_samples(self, store):
        with AtomicDataZarrWriter(store) as writer:
            writer.delete(range(len(KEPT)))
        assert compact(store) == 0
        assert StoreView(store).num_samples == 0
        with ZarrData(store) as sink:
            sink.write(numbered_batch([3]))
        assert_batches_equal(everything(store), numbered_batch([3]))

    @pytest.mark.parametrize("touched", ["all", "nothing"])
    def test_a_reader_that_is_open(self, store, touched):
        """It serves what it had at hand, or says that the store was written anew."""
        view, dataset = StoreView(store), ZarrDataset(store)
        index = np.arange(len(KEPT))
        if touched == "all":
            view.gather(index)
        compact(store, shuffle=1)
        if touched == "all":
            assert_batches_equal(view.gather(index), numbered_batch(KEPT))
        else:
            with pytest.raises(StoreFormatError, match=r"emptied or rewritten|was cut"):
                view.gather(index)
        order = np.random.default_rng(1).permutation(len(KEPT))
        assert view.refresh() == 0
        assert_batches_equal(view.gather(index), numbered_batch(np.array(KEPT)[order]))
        with pytest.raises(StoreFormatError, match=r"rewritten|was cut"):
            dataset[0]

    def test_the_same_seed_gives_the_same_order(self, tmp_path):
        stores = [filled(tmp_path / name) for name in ("a", "b")]
        for store in stores:
            compact(store, shuffle=5)
        order = np.random.default_rng(5).permutation(len(KEPT))
        assert_batches_equal(everything(stores[0]), numbered_batch(np.array(KEPT)[order]))
        assert_batches_equal(everything(stores[0]), everything(stores[1]))
        merge(stores, tmp_path / "c", shuffle=6)
        order = np.random.default_rng(6).permutation(2 * len(KEPT))
        whole = ZarrDataset(stores).gather(order)
        assert_batches_equal(everything(tmp_path / "c"), whole)


class TestRefused:
    def test_a_store_that_is_being_written(self, tmp_path):
        with ZarrData(filled(tmp_path / "store")) as sink:
            sink.write(numbered_batch([30]))
            with pytest.raises(StoreLockedError, match="is being written by process"):
                compact(tmp_path / "store")
        assert_batches_equal(everything(tmp_path / "store"), numbered_batch([*KEPT, 30]))
        assert [path.name for path in tmp_path.iterdir()] == ["store"]

    def test_a_remote_store(self, tmp_path):
        pytest.importorskip("fsspec")
        store = zarr.storage.FsspecStore.from_url(f"memory://{tmp_path.name}/s")
        filled(store)
        with pytest.raises(StoreFormatError, match=r"is not local.*zarrpipe\.merge"):
            compact(store)
        assert_batches_equal(everything(store), numbered_batch(KEPT))

    def test_a_store_of_another_tool(self, tmp_path):
        store = filled(tmp_path / "store")
        del zarr.open_group(store, mode="r+").attrs["zarrpipe"]
        before = content(tmp_path)
        with pytest.raises(StoreFormatError, match="did not write"):
            compact(store)
        assert content(tmp_path) == before

    @pytest.mark.parametrize("place", ["write_store", "swap_into_place"])
    def test_a_failure_leaves_the_store(self, tmp_path, monkeypatch, place):
        def fail(*_, **__):
            raise OSError(28, "No space left on device")

        store = filled(tmp_path / "store")
        monkeypatch.setattr(delete_defragment, place, fail)
        before = content(tmp_path)
        with pytest.raises(OSError, match="No space"):
            compact(store)
        assert content(tmp_path) == before
        with ZarrData(store) as sink:
            sink.write(numbered_batch([30]))
        assert_batches_equal(everything(store), numbered_batch([*KEPT, 30]))

    def test_a_failure_in_memory_leaves_the_store(self, monkeypatch):
        def fail(*_, **__):
            raise MemoryError

        store = filled(MemoryStore())
        monkeypatch.setattr(delete_defragment, "write_store", fail)
        with pytest.raises(MemoryError):
            compact(store)
        assert_batches_equal(everything(store), numbered_batch(KEPT))


class TestLeftovers:
    def room(self, tmp_path, name="store"):
        return tmp_path / f".{name}.rewrite-0123abcd"

    def test_are_removed_by_the_next(self, tmp_path):
        store = filled(tmp_path / "store")
        others = [tmp_path / ".store.rewrite-mine", tmp_path / ".other.rewrite-0123abcd"]
        for folder in (self.room(tmp_path), *others):
            shutil.copytree(store, folder)
        compact(store)
        assert not self.room(tmp_path).exists()
        assert all(other.exists() for other in others)

    def test_of_a_writer_that_lives_are_left(self, tmp_path):
        store = filled(tmp_path / "store")
        with swap.temp_sibling(store) as (room, lock):
            compact(store)
            assert room.exists()
            lock.release()
        compact(store)
        assert not room.exists()

    @pytest.mark.parametrize("held", [True, False], ids=["locked", "gone"])
    def test_one_that_another_takes_for_left(self, tmp_path, monkeypatch, held):
        """A writer that tidies up comes between the making of a room and its lock."""
        store, original, taken = filled(tmp_path / "store"), swap.WriterLock, []

        def lock(room):
            if not taken:
                taken.append(original(room))
                if held:
                    return original(room)
                shutil.rmtree(room)
                return taken[0]
            return original(room)

        monkeypatch.setattr(swap, "WriterLock", lock)
        assert compact(store) == len(KEPT)
        assert_batches_equal(everything(store), numbered_batch(KEPT))

    def test_a_store_that_was_put_aside_is_put_back(self, tmp_path):
        """A kill between two renames, where directories cannot be exchanged at once."""
        store = filled(tmp_path / "store")
        shutil.copytree(store, self.room(tmp_path))
        store.rename(self.room(tmp_path).with_suffix(".rewrite-0123abcd.old"))
        assert compact(store) == len(KEPT)
        assert [path.name for path in tmp_path.iterdir()] == ["store"]

    def test_a_store_that_was_put_aside_is_left_where_another_was_made(self, tmp_path):
        store, aside = filled(tmp_path / "store"), tmp_path / ".store.rewrite-0123abcd.old"
        shutil.copytree(store, self.room(tmp_path))
        store.rename(aside)
        filled(tmp_path / "elsewhere", 3, ()).rename(store)  # as a writer that knows of no asides
        for _ in range(2):
            assert compact(store) == 3
            assert_batches_equal(everything(aside), numbered_batch(KEPT))
        shutil.rmtree(self.room(tmp_path))  # the room had moved in: nobody needs the old store
        compact(store)
        assert [path.name for path in tmp_path.iterdir()] == ["store"]

    def test_a_failed_rename_puts_it_back_at_once(self, tmp_path, monkeypatch):
        monkeypatch.setattr(files, "_RENAME_EXCHANGE", 1 << 20)
        with pytest.raises(FileNotFoundError):
            swap.swap_directories(filled(tmp_path / "store"), tmp_path / "nothing")
        assert [path.name for path in tmp_path.iterdir()] == ["store"]


class TestPlacesThatCannotBeRenamed:
    """Mount points, and directories in a lower layer of an overlay file system."""

    def untouched(self, store):
        assert [path.name for path in store.parent.iterdir()] == ["store"]
        assert_batches_equal(everything(store), numbered_batch(KEPT))

    @pytest.mark.parametrize("code", [errno.EXDEV, errno.EBUSY])
    def test_are_left_with_an_error_that_names_the_way_out(self, tmp_path, monkeypatch, code):
        store, rename = filled(tmp_path / "store"), files.rename

        def refuse(source, target):
            if store in (source, target):
                raise OSError(code, os.strerror(code), source)
            rename(source, target)

        monkeypatch.setattr(files, "rename", refuse)
        monkeypatch.setattr(files, "atomic_swap", lambda *_: False)
        with pytest.raises(StoreRenameError, match=r"store cannot be replaced.*zarrpipe\.merge"):
            compact(store)
        self.untouched(store)

    def test_are_refused_before_anything_is_written(self, tmp_path, monkeypatch):
        store, stat = filled(tmp_path / "store"), Path.stat

        def elsewhere(path, **options):
            found = stat(path, **options)
            if path != store:
                return found
            return os.stat_result((*found[:2], found.st_dev + 1, *found[3:10]))

        monkeypatch.setattr(Path, "stat", elsewhere)
        monkeypatch.setattr(swap, "WriterLock", None)
        with pytest.raises(StoreRenameError, match="it is a mount point"), swap.temp_sibling(store):
            raise AssertionError
        monkeypatch.undo()
        self.untouched(store)

    def test_a_vacant_mount_point(self, tmp_path, monkeypatch):
        def busy(*_):
            raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))

        (tmp_path / "room").mkdir()
        (tmp_path / "place").mkdir()
        monkeypatch.setattr(files, "rename", busy)
        with pytest.raises(StoreRenameError, match="place cannot be replaced"):
            swap.move_into_place(tmp_path / "room", tmp_path / "place")


HOST = """
import os, signal, sys
import zarrpipe
from zarrpipe.store.backend import swap as exchange
from zarrpipe.store.backend import files
import zarrpipe.store.read.kernels
CHANGES = {"os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.truncate", "os.link"}

def work(call, folder, last, swap):
    spent, swapped = [0], []
    def spend():
        if spent[0] == last:
            os.kill(os.getpid(), signal.SIGKILL)
        spent[0] += 1
    def hook(event, arguments):
        written = event == "open" and arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        if event in CHANGES or written:
            spend()
    sys.addaudithook(hook)
    def counted(function):
        def call(*arguments):
            swapped.append(spent[0]) if function is exchange_them else None
            spend()
            function(*arguments)
            spend()
        return call
    exchange_them = exchange.swap_directories
    files.write_at, exchange.swap_directories = counted(files.write_at), counted(exchange_them)
    if swap == "renames":
        files._RENAME_EXCHANGE = 1 << 20
    if call == "merge":
        zarrpipe.merge([f"{folder}/a", f"{folder}/b"], f"{folder}/whole", shuffle=1)
    else:
        zarrpipe.compact(f"{folder}/a", shuffle=1)
    os.write(1, f"{spent[0]} {swapped[0] if swapped else spent[0] - 1}\\n".encode())

for line in sys.stdin:
    call, folder, last, swap = line.split()
    child = os.fork()
    if child == 0:
        work(call, folder, int(last), swap)
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    os.write(1, b"end %d\\n" % status)
"""


class Host:
    """Carries calls out in processes of their own, which are killed at an operation."""

    def __init__(self):
        self._process = subprocess.Popen(
            [sys.executable, "-c", HOST], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def __call__(self, call, folder, last=-1, swap="at-once"):
        """Operations of a call and which of them is the exchange; None where it was killed."""
        self._process.stdin.write(f"{call} {folder} {last} {swap}\n")
        self._process.stdin.flush()
        counts = None
        while not (line := self._process.stdout.readline()).startswith("end"):
            counts = [int(word) for word in line.split()]
        assert line.split() == ["end", "0" if last < 0 else str(int(signal.SIGKILL))]
        return counts

    def close(self):
        self._process.stdin.close()
        self._process.wait(300)
        self._process.stdout.close()


@pytest.fixture(scope="module")
def host():
    host = Host()
    yield host
    host.close()


def kills(host, call, folder, seed, swap="at-once"):
    """Carry a call out whole, then again from the beginning for each kill; yields after each.

    Kills are at a few operations that are drawn, and at those around the exchange; with
    ZARRPIPE_EXHAUSTIVE=1 at every one.
    """
    kept = folder.with_name("kept")
    shutil.copytree(folder, kept)
    spent, exchanged = host(call, folder, swap=swap)
    yield False
    points = {*range(spent)}
    if not os.environ.get("ZARRPIPE_EXHAUSTIVE"):
        few = np.random.default_rng(seed).integers(0, spent, 2 if swap == "at-once" else 0)
        around = range(exchanged, exchanged + (2 if swap == "at-once" else 4))
        points = points & {*few.tolist(), *around}
    for last in sorted(points):
        print(f"killed at operation {last} of {spent}, exchange {exchanged}")  # noqa: T201  shown when a test fails
        shutil.rmtree(folder)
        shutil.copytree(kept, folder)
        assert host(call, folder, last, swap) is None
        yield True


def test_killed_merges(tmp_path, host, seed):
    """The target is not there or complete, the sources are as they were, and a rerun succeeds."""
    folder = tmp_path / "run"
    folder.mkdir()
    filled(folder / "a")
    filled(folder / "b", 5, ())
    before = {name: content(folder / name) for name in "ab"}
    order = np.random.default_rng(1).permutation(len(KEPT) + 5)
    whole = numbered_batch(np.array([*KEPT, *range(5)])[order])
    found = set()
    for killed in kills(host, "merge", folder, seed):
        target = folder / "whole"
        assert {name: content(folder / name) for name in "ab"} == before
        found.add(target.exists())
        assert killed or target.exists()
        if target.exists():
            assert_batches_equal(everything(target), whole)
            shutil.rmtree(target)
        merge([folder / "a", folder / "b"], target, shuffle=1)
        assert_batches_equal(everything(target), whole)
        assert sorted(path.name for path in folder.iterdir()) == ["a", "b", "whole"]
    assert found == {True, False}


@pytest.mark.parametrize("swap", ["at-once", "renames"])
def test_killed_compactions(tmp_path, host, swap, seed):
    """The store is the old or the new one, with what others made, and a rerun succeeds."""
    folder = tmp_path / "run"
    folder.mkdir()
    group = zarr.open_group(filled(folder / "a"), mode="r+")
    group.create_array("spectra", data=np.arange(4))
    order = np.random.default_rng(1).permutation(len(KEPT))
    old, new = numbered_batch(KEPT), numbered_batch(np.array(KEPT)[order])
    found = []
    for killed in kills(host, "compact", folder, seed, swap):
        store = folder / "a"
        if store.exists() or swap == "at-once":
            serials = everything(store)["serial"].tolist()
            found.append(serials == new["serial"].tolist())
            assert found[-1] or (killed and serials == old["serial"].tolist())
            assert_batches_equal(everything(store), new if found[-1] else old)
            spectra = zarr.open_group(store, mode="r")["spectra"]
            np.testing.assert_array_equal(spectra[:], np.arange(4))
        assert compact(store) == len(KEPT)
        assert sorted(everything(store)["serial"].tolist()) == KEPT
        np.testing.assert_array_equal(zarr.open_group(store, mode="r")["spectra"][:], np.arange(4))
        assert [path.name for path in folder.iterdir()] == ["a"]
    with ZarrData(store) as sink:
        sink.write(numbered_batch([40]))
        assert len(sink) == len(KEPT) + 1
    assert found[1:] == sorted(found[1:])
    assert set(found) == {True, False}


class Killed(BaseException):
    """What a writer meets instead of its next operation."""


class MortalMemory(MemoryStore):
    """Memory whose writer dies after a number of changes."""

    def __init__(self, content, left):
        super().__init__(content)
        self.left = left

    def _spend(self):
        self.left -= 1
        if self.left < 0:
            raise Killed

    async def set(self, *arguments, **options):
        self._spend()
        await super().set(*arguments, **options)

    async def delete(self, *arguments, **options):
        self._spend()
        await super().delete(*arguments, **options)

    def set_sync(self, key, value):
        self._spend()
        super().set_sync(key, value)

    def delete_sync(self, key):
        self._spend()
        super().delete_sync(key)


@pytest.mark.parametrize("prefix", ["", "deep/store"])
def test_interrupted_compactions_of_a_store_in_memory(prefix):
    """Whenever it is interrupted, every object of the old store is put back."""
    memory = {}
    filled(StorePath(MemoryStore(memory), prefix), 6, [1])
    zarr.create_group(memory, path="other", attributes={"title": "mine"})
    whole = MortalMemory(dict(memory), 10**9)
    compact(StorePath(whole, prefix))
    spent = 10**9 - whole.left
    points = {*range(0, spent, 17), spent - 1}
    for last in sorted({*range(spent)} if os.environ.get("ZARRPIPE_EXHAUSTIVE") else points):
        content = dict(memory)
        with pytest.raises(Killed):
            compact(StorePath(MortalMemory(content, last), prefix))
        store = StorePath(MemoryStore(content), prefix)
        assert_batches_equal(everything(store), numbered_batch([0, 2, 3, 4, 5]))
        assert content.keys() == memory.keys()
    assert compact(store) == 5
    assert_batches_equal(everything(store), numbered_batch([0, 2, 3, 4, 5]))


@pytest.mark.parametrize("config", [None, ZSTD], ids=["large", "compressed"])
def test_killed_merges_into_memory(tmp_path, config, seed):
    """Where nothing can be renamed there are no samples until all are there."""
    source = filled(tmp_path / "source")
    whole = MortalMemory({}, 10**9)
    merge(source, whole, config=config)
    spent = 10**9 - whole.left
    few = np.random.default_rng(seed).integers(0, spent, 4)
    points = {*few.tolist(), spent - 2, spent - 1}
    found = []
    for last in sorted({*range(spent)} if os.environ.get("ZARRPIPE_EXHAUSTIVE") else points):
        memory = {}
        with pytest.raises(Killed):
            merge(source, MortalMemory(memory, last), config=config)
        if "zarr.json" in memory:
            found.append(StoreView(memory).num_samples)
            assert found[-1] in (0, len(KEPT))
        if not found or found[-1] == 0:
            merge(source, memory, config=config)
        assert_batches_equal(everything(memory), numbered_batch(KEPT))
    assert found == sorted(found)
    assert found[-1] == len(KEPT)


def test_a_store_that_was_left_aside_is_put_back_by_its_next_writer(tmp_path):
    place = tmp_path / "store"
    with ZarrData(place) as sink:
        sink.write(numbered_batch(range(5)))
    (tmp_path / ".store.rewrite-0123abcd").mkdir()
    place.rename(tmp_path / ".store.rewrite-0123abcd.old")
    with ZarrData(place) as sink:
        sink.write(numbered_batch([5]))
    assert_batches_equal(everything(place), numbered_batch(range(6)))


@pytest.mark.parametrize("kind", ["local", "memory"])
def test_defragment_keeps_the_encodings_of_the_store(tmp_path, kind):
    """Whatever the writer that is asked for it would have chosen for a new store."""
    store = tmp_path / "store" if kind == "local" else {}
    config = {
        "core": {"chunk_size": 8, "shard_size": 32, "compressors": ({"name": "zstd"},)},
        "custom": {"chunk_size": 4, "compressors": ({"name": "gzip"}, {"name": "crc32c"})},
    }
    filled(store, config=config)
    before = {
        path: array.metadata.to_dict() for path, array in zarr.open_group(store).members(None)
    }
    with AtomicDataZarrWriter(store) as writer:
        writer.defragment()
        writer.append(numbered_batch([77]))
    after = {path: array.metadata.to_dict() for path, array in zarr.open_group(store).members(None)}
    assert before.keys() == after.keys()
    for path, stored in before.items():
        for part in ("codecs", "chunk_grid", "data_type", "fill_value"):
            assert after[path].get(part) == stored.get(part), (path, part)
    assert_batches_equal(everything(store), numbered_batch([*KEPT, 77]))
