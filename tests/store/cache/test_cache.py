"""Cached arrays hold what the Zarr array holds, however they are asked for."""

import gc
import threading
import weakref
from pathlib import Path

import numpy as np
import pytest
import zarr
from zarr.storage import MemoryStore

import zarrpipe
from zarrpipe.errors import StoreClosedError, StoreFormatError
from zarrpipe.store.cache.row_cache import RowCache
from zarrpipe.testing import numbered_batch

ZSTD = (zarr.codecs.ZstdCodec(level=1),)
SEGMENTS = {
    "empty": ([], []),
    "without rows": ([5, 0, 700], [5, 0, 700]),
    "first": ([0], [1]),
    "last": ([999], [1000]),
    "repeated": ([10, 10, 990, 10], [20, 20, 1000, 20]),
    "overlapping": ([100, 50, 120], [300, 101, 121]),
    "backwards": ([900, 500, 0], [910, 510, 10]),
    "across units": ([255, 511], [258, 770]),
    "whole": ([0], [1000]),
}
KINDS = {
    "plain": {"chunks": 256},
    "zstd": {"chunks": 256, "compressors": ZSTD},
    "sharded": {"chunks": 64, "shards": 256, "compressors": ZSTD},
    "tiny": {"chunks": 17, "compressors": ZSTD},
    "one": {"chunks": 4096},
}


class CountingStore(MemoryStore):
    """Store in memory that remembers which keys were asked for, and can refuse some."""

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.asked: list[str] = []
        self.refused = ""

    async def get(self, key, prototype, byte_range=None):
        self.asked.append(key)
        if self.refused and self.refused in key:
            raise OSError(f"no answer for {key}")
        return await super().get(key, prototype, byte_range)

    def chunks(self) -> list[str]:
        return sorted(key for key in self.asked if "/c/" in key)


def random_rows(shape, dtype, seed=0):
    rng = np.random.default_rng(seed)
    if dtype == "bool":
        return rng.integers(0, 2, shape).astype(bool)
    return rng.integers(1, 100, shape).astype(dtype)


def create(store, values, name="a", *, chunks, shards=None, **options):
    rest = values.shape[1:]
    return zarr.create_array(
        store,
        name=name,
        shape=values.shape,
        dtype=values.dtype,
        chunks=(chunks, *rest),
        shards=None if shards is None else (shards, *rest),
        **{"compressors": None, **options},
    )


def open_named(store, name="a"):
    return lambda: zarr.open_array(store, path=name, mode="r+")


def segments(starts, stops):
    return np.array(starts, dtype=np.int64), np.array(stops, dtype=np.int64)


def rows_of(data, starts, stops):
    return [data[a:b].tolist() for a, b in zip(starts, stops, strict=True)]


@pytest.fixture(params=["files", "memory"])
def row_cache(request, tmp_path):
    made = RowCache("place-generation", tmp_path / "cache" if request.param == "files" else None)
    yield made
    made.close()


def cached(row_cache, store, values, **options):
    create(store, values, **options)[:] = values
    array = row_cache.array("a", open_named(store))
    array.commit(len(values))
    return array


class TestValues:
    @pytest.mark.parametrize("which", SEGMENTS)
    @pytest.mark.parametrize("kind", KINDS)
    def test_segments(self, row_cache, kind, which):
        starts, stops = SEGMENTS[which]
        values = random_rows((1000, 40), "float64")
        array = cached(row_cache, MemoryStore(), values, **KINDS[kind])
        assert row_cache.ensure_cached([(array, *segments(starts, stops))]).valid()
        assert rows_of(array.data, starts, stops) == rows_of(values, starts, stops)
        assert array.data.shape == (1000, 40)
        assert array.data.dtype == values.dtype
        assert not array.data.flags.writeable

    @pytest.mark.parametrize("dtype", ["bool", "int8", "uint64", "float32"])
    @pytest.mark.parametrize("row", [(), (3,), (3, 3)])
    @pytest.mark.parametrize("kind", ["zstd", "sharded"])
    def test_rows(self, row_cache, kind, row, dtype):
        values = random_rows((1000, *row), dtype)
        array = cached(row_cache, {}, values, **KINDS[kind])
        array.ensure(1000)
        np.testing.assert_array_equal(array.data, values)

    def test_chunks_that_do_not_span_a_row(self, row_cache):
        values = random_rows((50, 6), "int32")
        store = MemoryStore()
        zarr.create_array(store, name="a", shape=(50, 6), chunks=(8, 2), dtype="int32")[:] = values
        array = row_cache.array("a", open_named(store))
        array.ensure(50)
        np.testing.assert_array_equal(array.data, values)

    def test_missing_chunks_are_fill(self, row_cache):
        values = np.full((1000, 64), 7.5)
        values[512:768] = 1.0
        store = MemoryStore()
        create(store, values, chunks=256, fill_value=7.5)[512:768] = 1.0
        array = row_cache.array("a", open_named(store))
        array.ensure(1000)
        np.testing.assert_array_equal(array.data, values)

    def test_an_array_without_rows(self, row_cache):
        array = cached(row_cache, MemoryStore(), np.zeros((0, 3)), chunks=4)
        array.ensure(0)
        assert row_cache.ensure_cached([(array, *segments([0], [0]))]).valid()
        assert array.data.shape == (0, 3)

    def test_rows_that_are_not_committed(self, row_cache):
        array = cached(row_cache, MemoryStore(), random_rows((10, 3), "int64"), chunks=4)
        with pytest.raises(IndexError, match=r"rows 0 to 11 of a were requested, and 10 are"):
            row_cache.ensure_cached([(array, *segments([0], [11]))])


class TestFetches:
    def test_each_unit_once(self, row_cache):
        store, values = CountingStore(), random_rows((1000, 64), "float64")
        array = cached(row_cache, store, values, chunks=256)
        for _ in range(3):
            row_cache.ensure_cached([(array, *segments([0, 300], [10, 310]))])
        assert store.chunks() == ["a/c/0/0", "a/c/1/0"]
        array.ensure(1000)
        array.ensure(1000)
        assert store.chunks() == [f"a/c/{i}/0" for i in range(4)]

    def test_a_shard_is_one_read(self, row_cache):
        store, values = CountingStore(), random_rows((1024, 64), "float64")
        array = cached(row_cache, store, values, chunks=16, shards=256)
        store.asked.clear()
        row_cache.ensure_cached([(array, *segments([0], [1]))])
        assert store.chunks() == ["a/c/0/0"]

    def test_small_chunks_are_fetched_together(self, row_cache):
        store, values = CountingStore(), random_rows((100, 1), "float64")
        array = cached(row_cache, store, values, chunks=10)
        row_cache.ensure_cached([(array, *segments([0], [1]))])
        assert len(store.chunks()) == 10
        np.testing.assert_array_equal(array.data, values)

    def test_what_is_advised_is_there(self, row_cache):
        store, values = CountingStore(), random_rows((1000, 64), "float64")
        array = cached(row_cache, store, values, chunks=256)
        row_cache.prefetch([(array, *segments([0], [1000]))])
        row_cache.ensure_cached([(array, *segments([0], [1000]))])
        assert len(store.chunks()) == 4
        row_cache.prefetch([(array, *segments([0], [1000]))])
        np.testing.assert_array_equal(array.data, values)

    def test_many_threads_at_once(self, row_cache):
        store, values = CountingStore(), random_rows((4000, 64), "float64")
        array = cached(row_cache, store, values, chunks=256)
        wrong = []

        def read(seed):
            starts = np.random.default_rng(seed).integers(0, 3990, 40)
            row_cache.ensure_cached([(array, starts, starts + 10)])
            if rows_of(array.data, starts, starts + 10) != rows_of(values, starts, starts + 10):
                wrong.append(seed)

        threads = [threading.Thread(target=read, args=(seed,)) for seed in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not wrong
        assert len(store.chunks()) == len(set(store.chunks()))

    def test_several_arrays(self, row_cache):
        store, arrays, values = MemoryStore(), [], []
        for i in range(4):
            values.append(random_rows((500 + i, 32), "float64", i))
            create(store, values[-1], f"field{i}", chunks=64, compressors=ZSTD)[:] = values[-1]
            arrays.append(row_cache.array(f"field{i}", open_named(store, f"field{i}")))
            arrays[-1].commit(500 + i)
        row_cache.ensure_cached([(array, *segments([0], [500])) for array in arrays])
        for array, rows in zip(arrays, values, strict=True):
            np.testing.assert_array_equal(array.data[:500], rows[:500])


@pytest.mark.parametrize("terminal", [True, False])
def test_a_long_bring_shows_its_progress(row_cache, monkeypatch, capsys, terminal):
    """On a terminal, and only then."""
    tqdm = pytest.importorskip("tqdm")
    shown = []

    class Bar(tqdm.tqdm):
        def __init__(self, tasks, **options) -> None:
            shown.append((len(tasks), options.pop("delay")))
            super().__init__(tasks, **options)

    monkeypatch.setattr(tqdm, "tqdm", Bar)
    monkeypatch.setattr("sys.stderr.isatty", lambda: terminal)
    values = random_rows((40 * 64, 128), "float64")
    array = cached(row_cache, MemoryStore(), values, chunks=64)
    few = segments([0], [64])
    row_cache.ensure_cached([(array, *few)])
    assert not shown
    scattered = np.arange(0, 40, 1) * 64
    monkeypatch.setattr("zarrpipe.store.cache.fetch._RUN_UNITS", 1)
    row_cache.ensure_cached([(array, scattered, scattered + 1)])
    assert shown == ([(39, 1.0)] if terminal else [])
    np.testing.assert_array_equal(array.data, values)


class TestGrowth:
    @pytest.mark.parametrize("kind", ["zstd", "sharded"])
    def test_a_unit_that_was_half_full(self, row_cache, kind):
        """Its rows are fetched again when more of them are committed, and only then."""
        store, values = CountingStore(), random_rows((1000, 64), "float64")
        zarray = create(store, np.zeros((256, 64)), **KINDS[kind])
        zarray[:100] = values[:100]
        array = row_cache.array("a", open_named(store))
        array.ensure(100)
        first = array.data
        np.testing.assert_array_equal(first[:100], values[:100])
        zarray[100:256] = values[100:256]
        store.asked.clear()
        array.ensure(60)
        assert not store.asked
        array.ensure(200)
        assert set(store.chunks()) == {"a/c/0/0"}
        zarray.resize((1000, 64))
        zarray[256:] = values[256:]
        array.ensure(1000)
        np.testing.assert_array_equal(array.data, values)
        np.testing.assert_array_equal(first[:200], values[:200])
        assert array.data.ctypes.data == first.ctypes.data

    def test_beyond_the_reserved_range(self, row_cache, monkeypatch):
        monkeypatch.setattr("zarrpipe.store.cache.unit_file._LEAST_RESERVE", 4096)
        store, values = MemoryStore(), random_rows((9000, 64), "float64")
        zarray = create(store, values[:500], chunks=256)
        zarray[:] = values[:500]
        array = row_cache.array("a", open_named(store))
        array.ensure(500)
        first = array.data
        zarray.resize((9000, 64))
        zarray[:] = values
        array.ensure(9000)
        np.testing.assert_array_equal(array.data, values)
        np.testing.assert_array_equal(first, values[:500])

    def test_grow_makes_room(self, row_cache):
        store, values = MemoryStore(), random_rows((40, 2), "int64")
        zarray = create(store, values[:20], chunks=10)
        array = row_cache.array("a", open_named(store))
        assert array.data.shape == (20, 2)
        zarray.resize((40, 2))
        array.grow()
        assert array.data.shape == (40, 2)

    def test_an_array_that_was_cut(self, row_cache):
        store, values = MemoryStore(), random_rows((40, 2), "int64")
        array = cached(row_cache, store, values, chunks=10)
        zarr.open_array(store, path="a").resize((30, 2))
        with pytest.raises(StoreFormatError, match=r"has 30 rows, the pointers say 40"):
            array.ensure(40)


class TestErrors:
    def test_a_fetch_that_fails(self, row_cache):
        store, values = CountingStore(), random_rows((1000, 64), "float64")
        array = cached(row_cache, store, values, chunks=256)
        store.refused = "a/c/2"
        expected = r"cannot fetch rows 512 to 768 \(unit 2 on\) of .*/a: OSError\('no answer"
        with pytest.raises(OSError, match=expected):
            row_cache.ensure_cached([(array, *segments([600], [601]))])
        with pytest.raises(OSError, match="no answer"):
            array.ensure(1000)
        store.refused = ""
        array.ensure(1000)
        np.testing.assert_array_equal(array.data, values)

    def test_a_chunk_that_cannot_be_decoded(self, row_cache):
        store, values = MemoryStore(), random_rows((1000, 64), "float64")
        array = cached(row_cache, store, values, chunks=256, compressors=ZSTD)
        damaged = zarr.buffer.default_buffer_prototype().buffer.from_bytes(b"no zstd")
        whole, store._store_dict["a/c/1/0"] = store._store_dict["a/c/1/0"], damaged
        with pytest.raises(
            StoreFormatError, match=r"rows 256 to 512 .*/a cannot be read, it is dam"
        ):
            row_cache.ensure_cached([(array, *segments([300], [301]))])
        store._store_dict["a/c/1/0"] = whole
        array.ensure(1000)
        np.testing.assert_array_equal(array.data, values)

    def test_a_store_that_was_rewritten_meanwhile(self, tmp_path):
        """What is fetched before the check fails is never trusted, not by others either."""
        store, values = MemoryStore(), random_rows((1000, 64), "float64")
        changed = threading.Event()

        def check():
            if changed.is_set():
                raise StoreFormatError("the store was rewritten")

        row_cache = RowCache("place-generation", tmp_path, check=check)
        array = cached(row_cache, store, values, chunks=256)
        row_cache.ensure_cached([(array, *segments([0], [256]))])
        zarr.open_array(store, path="a")[:] = -values
        changed.set()
        with pytest.raises(StoreFormatError, match="was rewritten"):
            array.ensure(1000)
        np.testing.assert_array_equal(array.data[:256], values[:256])
        changed.clear()
        zarr.open_array(store, path="a")[:] = values
        array.ensure(1000)
        np.testing.assert_array_equal(array.data, values)
        row_cache.close()

    def test_closed(self, row_cache):
        array = cached(row_cache, MemoryStore(), random_rows((10, 3), "int64"), chunks=4)
        array.ensure(10)
        data = array.data
        row_cache.close()
        row_cache.close()
        with pytest.raises(StoreClosedError, match="the cache was closed"):
            row_cache.ensure_cached([(array, *segments([0], [10]))])
        np.testing.assert_array_equal(data, random_rows((10, 3), "int64"))


def test_a_dropped_cache_is_collected(tmp_path):
    """It lets go of its files and threads, and what was handed out stays valid."""
    row_cache = RowCache("place-generation", tmp_path)
    values = random_rows((100, 3), "int64")
    array = cached(row_cache, MemoryStore(), values, chunks=40)
    array.ensure(100)
    data, pool, seen = array.data, row_cache._fetcher.pool, weakref.ref(row_cache)
    del row_cache, array
    gc.collect()
    assert seen() is None
    assert pool.join(timeout=120)
    np.testing.assert_array_equal(data, values)


def test_a_dropped_reader_leaves_no_file_open():
    """At once, as a process may have only a thousand files open."""
    store: dict = {}
    with zarrpipe.ZarrData(store) as sink:
        sink.write(numbered_batch(range(20)))
    gc.collect()  # of earlier tests
    gc.disable()
    try:
        opened = len(list(Path("/proc/self/fd").iterdir()))
        for _ in range(3):
            zarrpipe.ZarrDataset(store).__getitems__([1, 2])
        assert len(list(Path("/proc/self/fd").iterdir())) == opened
    finally:
        gc.enable()
