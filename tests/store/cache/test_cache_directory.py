"""What a cache holds on to: limits, other processes, kills, reboots, full disks."""

import errno
import json
import os
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
import zarr
from zarr.storage import LocalStore, MemoryStore

from zarrpipe import AtomicDataZarrWriter
from zarrpipe.errors import StoreFormatError
from zarrpipe.store.backend.location import Root
from zarrpipe.store.cache import shared_cache
from zarrpipe.store.cache import unit_file as units_module
from zarrpipe.store.cache.directory import cache_identity
from zarrpipe.store.cache.row_cache import RowCache
from zarrpipe.store.cache.unit_file import GENERATION, ROWS, UnitFile, UnitLocks
from zarrpipe.store.format.metadata import Attributes
from zarrpipe.testing import numbered_batch

NAME = "place-generation"
UNIT_ROWS, UNITS = 1024, 16
UNIT_BYTES = UNIT_ROWS * 8 * 8
ROW_COUNT = UNIT_ROWS * UNITS - 100

PROCESS = """
import asyncio, os, sys, time
import numpy as np
import zarr
from zarr.storage import LocalStore
from zarrpipe.store.cache.row_cache import RowCache

place, cache, log, stop_at = sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4])

class Slow(LocalStore):
    asked = 0

    async def get(self, key, prototype, byte_range=None):
        if "/c/" in key:
            with open(log, "a") as file:
                file.write(key + "\\n")
            Slow.asked += 1
            await asyncio.sleep(3600 if Slow.asked > stop_at else 0.005)
        return await super().get(key, prototype, byte_range)

from pathlib import Path
store = Slow(place)
row_cache = RowCache("place-generation", Path(cache))
arrays = [row_cache.array(n, lambda n=n: zarr.open_array(store, path=n, mode="r+")) for n in "ab"]
rows = arrays[0].data.shape[0]
print("ready", flush=True)
sys.stdin.readline()
for array in arrays:
    array.commit(rows)
every = np.array([0]), np.array([rows])
row_cache.ensure_cached([(array, *every) for array in arrays])
print(int(sum(array.data.sum() for array in arrays)), flush=True)
row_cache.close()
"""


def rows(seed=0):
    return np.random.default_rng(seed).integers(1, 1000, (ROW_COUNT, 8))


def create(store, name="a", seed=0):
    values = rows(seed)
    zarr.create_array(
        store,
        name=name,
        shape=values.shape,
        chunks=(UNIT_ROWS, 8),
        dtype="int64",
        compressors=zarr.codecs.ZstdCodec(level=1),
    )[:] = values
    return values


class Opened:
    """A row_cache over a store with one array, and how often the array was asked for."""

    def __init__(self, store, directory, limit=None, name=NAME, **options) -> None:
        self.row_cache = RowCache(name, directory, limit, **options)
        self.array = self.row_cache.array("a", lambda: zarr.open_array(store, path="a", mode="r+"))
        self.array.commit(ROW_COUNT)

    def read(self, starts, length):
        stops = np.minimum(starts + length, ROW_COUNT)
        return self.row_cache.read(
            [(self.array, starts, stops)],
            lambda: [
                self.array.data[a:b].copy() for a, b in zip(starts.tolist(), stops, strict=True)
            ],
        )

    def all(self):
        return self.read(np.array([0]), ROW_COUNT)[0]

    def held(self):
        return np.flatnonzero(self.array.file.table[:UNITS, ROWS] > 0).tolist()

    def close(self):
        self.row_cache.close()


class Counting(MemoryStore):
    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.asked = []

    async def get(self, key, prototype, byte_range=None):
        if "/c/" in key:
            self.asked.append(key)
        return await super().get(key, prototype, byte_range)


@pytest.fixture
def store():
    return Counting()


@pytest.fixture
def values(store):
    return create(store)


@pytest.fixture
def opened(store, values, tmp_path):
    made = []

    def open_cache(limit=None, *, directory=tmp_path / "cache", **options):
        made.append(Opened(store, directory, limit, **options))
        return made[-1]

    yield open_cache
    for one in made:
        one.close()


def at(*units):
    return np.array(units, dtype=np.int64) * UNIT_ROWS


class TestSharing:
    def test_what_another_fetched_is_there(self, opened, store, values):
        first, second = opened(), opened()
        np.testing.assert_array_equal(first.all(), values)
        np.testing.assert_array_equal(second.all(), values)
        assert len(store.asked) == UNITS

    def test_it_is_there_the_next_time(self, opened, store, values):
        opened().all()
        opened().close()
        store.asked.clear()
        np.testing.assert_array_equal(opened().all(), values)
        assert not store.asked

    @pytest.mark.parametrize("by_unit", [True, False])
    def test_two_at_once(self, opened, store, values, monkeypatch, by_unit):
        """Each unit is fetched by one of them, with locks of units and with locks of files."""
        monkeypatch.setattr(units_module, "has_unit_locks", lambda: by_unit)
        both, found = [opened(), opened()], {}
        threads = [
            threading.Thread(target=lambda i=i: found.update({i: both[i].all()})) for i in (0, 1)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        np.testing.assert_array_equal(found[0], values)
        np.testing.assert_array_equal(found[1], values)
        assert len(store.asked) == UNITS

    def test_two_processes_at_once(self, tmp_path):
        total = sum(create(LocalStore(tmp_path / "store"), n, i).sum() for i, n in enumerate("ab"))
        both = [start(tmp_path) for _ in range(2)]
        for process in both:
            process.stdin.write(b"\n")
            process.stdin.flush()
        for process in both:
            assert int(process.stdout.readline()) == total
            process.communicate(timeout=300)
        asked = (tmp_path / "log").read_text().split()
        assert len(asked) == len(set(asked)) == 2 * UNITS

    def test_a_process_that_was_killed(self, tmp_path):
        """Its locks are free at once, and what it had not finished is fetched again."""
        store = LocalStore(tmp_path / "store")
        values, _ = create(store, "a"), create(store, "b", 1)
        process = start(tmp_path, stop_at=5)
        process.stdin.write(b"\n")
        process.stdin.flush()
        log = tmp_path / "log"
        while not log.exists() or len(log.read_text().split()) < 12:
            time.sleep(0.01)
        other = Opened(store, tmp_path / "cache")
        reading = threading.Thread(target=other.all)
        reading.start()
        process.send_signal(signal.SIGKILL)
        process.communicate()
        reading.join()
        np.testing.assert_array_equal(other.array.data, values)
        other.close()

    def test_a_forked_child(self, opened, values):
        parent = opened()
        parent.read(at(0, 3), 5)
        child = os.fork()
        if child == 0:
            signal.alarm(300)
            os._exit(0 if (parent.all() == values).all() else 1)
        assert os.waitpid(child, 0)[1] == 0
        np.testing.assert_array_equal(parent.all(), values)


def start(tmp_path, stop_at=10**9):
    places = [str(tmp_path / name) for name in ("store", "cache", "log")]
    process = subprocess.Popen(
        [sys.executable, "-c", PROCESS, *places, str(stop_at)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert process.stdout.readline() == b"ready\n"
    return process


class TestLimit:
    @pytest.mark.parametrize("directory", [None, "files"])
    @pytest.mark.parametrize("units", [1, 3, 5])
    def test_it_is_kept(self, opened, values, tmp_path, units, directory):
        one = opened(units * UNIT_BYTES, directory=directory and tmp_path / directory)
        rng = np.random.default_rng(units)
        for unit in rng.integers(0, UNITS, 60):
            start = int(unit) * UNIT_ROWS + 17
            found = one.read(np.array([start]), 20)[0]
            np.testing.assert_array_equal(found, values[start : start + 20])
            assert one.row_cache.cache.used <= units * UNIT_BYTES
            assert unit in one.held()

    def test_the_longest_unused_goes_first(self, opened):
        one = opened(3 * UNIT_BYTES)
        for unit in (0, 1, 2, 0, 3):
            one.read(at(unit), 5)
        assert one.held() == [0, 2, 3]

    def test_storage_is_given_back(self, opened, tmp_path):
        one = opened(2 * UNIT_BYTES)
        for unit in range(UNITS):
            one.read(at(unit), 5)
        stored = (tmp_path / "cache" / NAME / "a.rows").stat()
        assert stored.st_size == ROW_COUNT * 64
        assert stored.st_blocks * 512 <= 2 * UNIT_BYTES + 2 * 4096

    def test_a_batch_that_is_larger(self, opened, values):
        one = opened(2 * UNIT_BYTES)
        with pytest.warns(
            UserWarning, match=r"holds more than its limit of 131072 bytes: the units"
        ):
            np.testing.assert_array_equal(one.all(), values)
        np.testing.assert_array_equal(one.all(), values)
        one.read(at(3), 5)
        one.read(at(9), 5)

    def test_it_is_left_again(self, opened, values):
        one = opened(3 * UNIT_BYTES)
        with pytest.warns(UserWarning, match="holds more than its limit"):
            one.read(at(0, 1, 2, 3, 4), 5)
        one.read(at(7), 5)
        assert one.row_cache.cache.used <= 3 * UNIT_BYTES

    def test_kept_rows_stay(self, opened, store, values):
        one = opened(4 * UNIT_BYTES)
        small = create(store, "b", 1)[:UNIT_ROWS]
        other = one.row_cache.array("b", lambda: zarr.open_array(store, path="b", mode="r+"))
        other.ensure(UNIT_ROWS)
        for unit in range(UNITS):
            one.read(at(unit), 5)
        np.testing.assert_array_equal(other.data[:UNIT_ROWS], small)

    def test_a_lease_tells(self, opened, values):
        one, rival = opened(2 * UNIT_BYTES), opened(2 * UNIT_BYTES)
        lease = one.row_cache.ensure_cached([(one.array, at(5), at(5) + 3)])
        rival.read(at(6), 5)
        assert lease.valid()
        rival.read(at(7), 5)
        assert not lease.valid()
        np.testing.assert_array_equal(one.read(at(5), 3)[0], values[at(5)[0] :][:3])

    def test_a_lease_of_everything_tells(self, opened, store, values):
        """A row_cache without a limit is told of evictions by another that has one."""
        one, rival = opened(), opened(4 * UNIT_BYTES)
        one.all()
        lease = one.row_cache.ensure_cached([(one.array, at(5), at(5) + 3)])
        assert lease.valid()
        create(store, "b", 1)
        other = rival.row_cache.array("b", lambda: zarr.open_array(store, path="b", mode="r+"))
        other.ensure(5)
        assert not lease.valid()
        assert rival.row_cache.cache.used <= 4 * UNIT_BYTES
        np.testing.assert_array_equal(one.all(), values)

    def test_settled_rows_are_read_at_once(self, opened, values):
        """It is known that all are there, until something is evicted while they are copied."""
        one, found = opened(), []

        def copy():
            found.append(one.array.data.copy())

        one.read(at(0), 5)
        assert not one.row_cache.read_settled([one.array], copy)
        assert not found
        one.all()
        assert one.row_cache.read_settled([one.array], copy)
        np.testing.assert_array_equal(found.pop(), values)
        rival = opened(4 * UNIT_BYTES)
        rival.row_cache.open([rival.array])
        assert not one.row_cache.read_settled([one.array], rival.row_cache.cache.trim)
        assert rival.row_cache.cache.used <= 4 * UNIT_BYTES
        np.testing.assert_array_equal(one.all(), values)

    @pytest.mark.filterwarnings("ignore:the cache")
    @pytest.mark.parametrize("units", [1, 4, 9])
    def test_readers_that_evict_each_other(self, opened, values, units):
        """Rows are always right, and all of them get on."""
        readers = [opened(units * UNIT_BYTES) for _ in range(3)]
        wrong = []

        def read(one, seed):
            rng = np.random.default_rng(seed)
            for _ in range(25):
                starts = rng.integers(0, ROW_COUNT - 40, 5)
                for start, found in zip(starts, one.read(starts, 40), strict=True):
                    if not np.array_equal(found, values[start : start + 40]):
                        wrong.append(start)

        threads = [threading.Thread(target=read, args=(one, i)) for i, one in enumerate(readers)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(timeout=300)
        assert not any(thread.is_alive() for thread in threads)
        assert not wrong

    def test_where_no_holes_can_be_made(self, opened, values, monkeypatch):
        monkeypatch.setattr("zarrpipe.store.cache.unit_file.punch", lambda *_: False)
        one = opened(2 * UNIT_BYTES)
        one.read(at(0), 5)
        one.read(at(1), 5)
        with pytest.warns(UserWarning, match="this file system cannot make holes"):
            one.read(at(2), 5)
        assert one.held() == [0, 1, 2]
        np.testing.assert_array_equal(one.all(), values)


class Recorded:
    """A table of units that remembers in which order its columns are read and written."""

    def __init__(self, table) -> None:
        self.table, self.read, self.written = table, [], []

    def __getitem__(self, key):
        if isinstance(key, tuple):
            self.read.append(key[1])
            return self.table[key]
        self.line = self.table[key]
        return RecordedLine(self)


class RecordedLine:
    def __init__(self, owner) -> None:
        self.owner = owner

    def __getitem__(self, column):
        return self.owner.line[column]

    def __setitem__(self, column, value) -> None:
        self.owner.written.append(column)
        self.owner.line[column] = value


def test_a_reader_between_two_steps_of_an_eviction(opened, monkeypatch):
    """Rows leave the table before the generation changes, and are read after it.

    The other way round, a reader in between would hold the new generation of a unit that is being
    evicted, and take holes for rows.
    """
    one = opened()
    one.read(at(0), 5)
    file = one.array.file
    recorded = Recorded(file.table)
    monkeypatch.setattr(UnitFile, "table", recorded)
    one.array.look(np.array([0]))
    assert recorded.read == [GENERATION, ROWS]
    file.clear(0)
    assert recorded.written[:2] == [ROWS, GENERATION]


class TestFailures:
    def test_a_full_disk(self, opened, values, monkeypatch):
        one = opened()
        one.read(at(0), 5)
        pwrite, left = os.pwrite, [100_000]

        def full(descriptor, data, offset):
            if left[0] <= 0:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            part = memoryview(data)[: left[0]]
            left[0] -= len(part)
            return pwrite(descriptor, part, offset)

        monkeypatch.setattr(os, "pwrite", full)
        with pytest.raises(OSError, match=r"No space left.*: free space, give a smaller") as caught:
            one.all()
        assert caught.value.errno == errno.ENOSPC
        assert "place-generation" in str(caught.value)
        monkeypatch.undo()
        one.row_cache._fetcher.pool.close()
        one.row_cache._fetcher.pool.join()
        assert (one.array.file.table[:, ROWS] >= 0).all()
        assert one.row_cache.cache.used == one.array.file.cached_bytes.sum()
        again = opened()
        np.testing.assert_array_equal(again.all(), values)

    def test_what_was_half_written(self, opened, values, store):
        """A killed process leaves units that say so; nobody reads them."""
        one = opened()
        one.read(at(0, 1), 5)
        one.row_cache.cache.reserve(one.array.file, 2, UNIT_ROWS)
        one.array.file.write(2, 0, np.full((UNIT_ROWS, 8), -1))
        one.close()
        again = opened()
        assert again.row_cache.cache.used == 2 * UNIT_BYTES
        np.testing.assert_array_equal(again.all(), values)

    def test_a_reboot(self, opened, values, store, monkeypatch, tmp_path):
        """Only what was synced is trusted; a power cut leaves holes where the rest was."""
        one = opened()
        one.read(at(0, 1), 5)
        one.row_cache.cache.sync()
        one.read(at(2, 3), 5)
        monkeypatch.setattr(one.row_cache.cache, "sync", lambda: None)
        one.close()
        with (tmp_path / "cache" / NAME / "a.rows").open("r+b") as file:
            file.seek(2 * UNIT_BYTES)
            file.write(bytes(2 * UNIT_BYTES))
        monkeypatch.setattr(shared_cache, "boot_id", lambda: "another")
        store.asked.clear()
        again = opened()
        again.row_cache.ensure_cached([(again.array, at(0), at(0) + 5)])
        assert again.held() == [0, 1]
        np.testing.assert_array_equal(again.all(), values)
        assert len(store.asked) == UNITS - 2

    def test_a_reboot_after_it_was_closed(self, opened, values, store, monkeypatch):
        one = opened()
        one.all()
        one.close()
        monkeypatch.setattr(shared_cache, "boot_id", lambda: "another")
        store.asked.clear()
        np.testing.assert_array_equal(opened().all(), values)
        assert not store.asked

    def test_an_evicted_unit_is_not_synced_any_more(self, opened, monkeypatch, values):
        one = opened(2 * UNIT_BYTES)
        one.read(at(0, 1), 5)
        one.row_cache.cache.sync()
        one.read(at(2), 5)
        monkeypatch.setattr(one.row_cache.cache, "sync", lambda: None)
        one.close()
        monkeypatch.setattr(shared_cache, "boot_id", lambda: "another")
        again = opened(2 * UNIT_BYTES)
        again.read(at(1), 5)
        assert again.held() == [1]
        np.testing.assert_array_equal(again.read(at(0), 5)[0], values[:5])

    def test_another_machine(self, opened, monkeypatch):
        opened()
        monkeypatch.setattr(shared_cache, "boot_id", lambda: "another")
        with pytest.raises(StoreFormatError, match="is in use on another machine"):
            opened()


class TestPlace:
    def test_a_note_that_cannot_be_opened_is_not_told_as_foreign(self, opened, monkeypatch):
        opened().close()

        def refuse(*_):
            raise OSError(errno.EMFILE, "Too many open files")

        monkeypatch.setattr("pathlib.Path.read_text", refuse)
        with pytest.raises(OSError, match="Too many open files"):
            opened()

    def test_foreign_files_are_left_alone(self, opened, tmp_path):
        place = tmp_path / "cache" / NAME
        place.mkdir(parents=True)
        (place / "thesis.tex").write_text("chapter 1")
        with pytest.raises(StoreFormatError, match="holds files that do not belong to a cache"):
            opened()
        assert [path.name for path in place.iterdir()] == ["thesis.tex"]

    @pytest.mark.parametrize("note", [{"zarrpipe_cache": 99, "identity": NAME}, {"identity": 1}])
    def test_another_version(self, opened, tmp_path, note):
        place = tmp_path / "cache" / NAME
        place.mkdir(parents=True)
        (place / "cache.json").write_text(json.dumps(note))
        with pytest.raises(StoreFormatError, match=r"expected format 1|do not belong to a cache"):
            opened()
        assert [path.name for path in place.iterdir()] == ["cache.json"]

    def test_units_of_another_size(self, opened, store, tmp_path):
        opened().all()
        del store._store_dict["a/zarr.json"]
        zarr.create_array(store, name="a", shape=(ROW_COUNT, 8), chunks=(2048, 8), dtype="int64")
        with pytest.raises(StoreFormatError, match="made for units of 1024 rows of 64 bytes"):
            opened().all()

    def test_superseded_caches_are_removed(self, opened, store, tmp_path):
        opened(name="place-first").close()
        in_use = opened(name="place-second")
        opened(name="other-first").close()
        (tmp_path / "cache" / "place-notes").mkdir()
        opened(name="place-third")
        names = sorted(path.name for path in (tmp_path / "cache").iterdir())
        assert names == ["other-first", "place-notes", "place-second", "place-third"]
        in_use.all()


class TestIdentity:
    @staticmethod
    def identity(store):
        root = Root.of(store)
        group = root.open_group()
        return cache_identity(root.path, group, Attributes.read(group))

    def test_a_store_that_grows_keeps_it(self, tmp_path):
        found = set()
        for count in (1, 2):
            with AtomicDataZarrWriter(tmp_path / "store") as writer:
                (writer.append if count > 1 else writer.write)(numbered_batch(range(count)))
                found.add(self.identity(tmp_path / "store"))
        assert len(found) == 1

    def test_a_rewritten_store_gets_another(self, tmp_path):
        found = []
        changes = (
            lambda writer: writer.write(numbered_batch(range(4))),
            lambda writer: writer.delete([1]),
            lambda writer: writer.defragment(),
        )
        for change in changes:
            with AtomicDataZarrWriter(tmp_path / "store") as writer:
                change(writer)
            found.append(self.identity(tmp_path / "store"))
        assert len(set(found)) == 3
        assert len({name.partition("-")[0] for name in found}) == 1

    def test_places_differ(self, tmp_path):
        for name in ("one", "two"):
            with AtomicDataZarrWriter(tmp_path / name) as writer:
                writer.write(numbered_batch(range(4)))
        (tmp_path / "two" / "zarr.json").write_text((tmp_path / "one" / "zarr.json").read_text())
        assert self.identity(tmp_path / "one") != self.identity(tmp_path / "two")

    @pytest.mark.parametrize("local", [True, False])
    def test_a_foreign_store(self, tmp_path, local):
        """It has no generation: any change of it counts, and one in memory is like no other."""
        store = LocalStore(tmp_path / "store") if local else MemoryStore()
        with AtomicDataZarrWriter(store) as writer:
            writer.write(numbered_batch(range(4)))
        group = zarr.open_group(store)
        attributes = group.attrs.asdict()
        del attributes["zarrpipe"]
        group.attrs.put(attributes)
        first, second = self.identity(store), self.identity(store)
        assert (first == second) == local
        group["meta/atoms_ptr"].resize((9,))
        assert self.identity(store) != first


class TestLocks:
    @pytest.mark.parametrize("by_unit", [True, False])
    def test_one_holder(self, tmp_path, monkeypatch, by_unit):
        monkeypatch.setattr(units_module, "has_unit_locks", lambda: by_unit)
        path = tmp_path / "file"
        path.touch()
        ours, theirs = UnitLocks(path), UnitLocks(path)
        assert ours.take(3, wait=False)
        assert not ours.take(3, wait=False)
        assert not theirs.take(3, wait=False)
        assert theirs.take(4, wait=False) == by_unit
        got = threading.Event()
        waiting = threading.Thread(target=lambda: theirs.take(3, wait=True) and got.set())
        waiting.start()
        assert not got.wait(0.05)
        ours.release(3)
        assert got.wait(120)
        waiting.join()
        assert not ours.take(3, wait=False)
        ours.close()
        theirs.close()
