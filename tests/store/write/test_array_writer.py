"""Columns write rows, flat arrays read them: the two halves that share nothing but files."""

import os
import pickle

import numpy as np
import pytest
import zarr
from hypothesis import given
from hypothesis import strategies as st
from zarr.storage import MemoryStore

from zarrpipe import Batch, ZarrData
from zarrpipe.errors import StoreFormatError
from zarrpipe.store.backend import files
from zarrpipe.store.backend import mapped_memory as addresses
from zarrpipe.store.format import layout
from zarrpipe.store.format.config import ZarrWriteConfig
from zarrpipe.store.format.layout import ArraySpec, Level, chunk_file, create_array, is_plain
from zarrpipe.store.read import mapped as flat
from zarrpipe.store.read.loaded import LoadedArray
from zarrpipe.store.read.mapped import MappedArray, can_be_mapped
from zarrpipe.store.read.view import StoreView
from zarrpipe.store.write import plain_array_writer
from zarrpipe.store.write.array_writer import ZarrArrayWriter, open_array_writer
from zarrpipe.store.write.plain_array_writer import PlainArrayWriter
from zarrpipe.testing import assert_batches_equal, numbered_batch

PAGE = 4096


def new_array(folder, dtype="f4", shape=(2,), fill=0, rows=512, **options):
    return zarr.create_array(
        folder,
        shape=(0, *shape),
        chunks=(rows, *shape),
        dtype=dtype,
        fill_value=fill,
        compressors=None,
        filters=None,
        **options,
    )


def rows(start, stop, dtype="f4", width=2):
    values = np.arange(start * width, stop * width).reshape(-1, width) + 1
    return values.astype(dtype)


@given(st.lists(st.tuples(st.integers(0, 70), st.integers(1, 40)), min_size=1, max_size=8))
def test_a_plain_column_is_an_array_of_rows(tmp_path_factory, writes):
    """Rows written anywhere, over any border, read back by column, mapping and zarr-python."""
    folder = tmp_path_factory.mktemp("column") / "array"
    array = new_array(folder, "i8", (3,), rows=16)
    column = open_array_writer(array, folder)
    assert isinstance(column, PlainArrayWriter)
    expected = np.zeros((200, 3), dtype=np.int64)
    rng = np.random.default_rng(0)
    for start, count in writes:
        values = rng.integers(1, 2**62, (count, 3))
        column.write(start, values)
        expected[start : start + count] = values
    stop = max(start + count for start, count in writes)
    np.testing.assert_array_equal(column.read(0, stop), expected[:stop])
    stored = zarr.open_array(folder, mode="r")
    assert stored.shape[0] % 16 == 0
    assert stop <= stored.shape[0] <= (stop + 15) * 2
    np.testing.assert_array_equal(stored[:stop], expected[:stop])
    column.trim(stop)
    np.testing.assert_array_equal(zarr.open_array(folder, mode="r")[:], expected[:stop])
    column.clear_from(stop // 2)
    expected[stop // 2 :] = 0
    np.testing.assert_array_equal(column.read(0, stop), expected[:stop])
    column.clear_all()
    column.close()
    assert zarr.open_array(folder, mode="r").shape == (0, 3)
    assert not [path for path in folder.rglob("c/*") if path.is_file()]


def test_a_chunk_file_always_has_its_size(tmp_path):
    column = open_array_writer(new_array(tmp_path / "a"), tmp_path / "a")
    column.write(510, rows(510, 515))
    for index in (0, 1):
        assert chunk_file(tmp_path / "a", index, 2).stat().st_size == PAGE
    assert column.chunk_rows == 512
    assert column.fill == 0
    column.close()


def test_what_is_cleared_stays_where_readers_have_mapped_it(tmp_path, monkeypatch):
    """Rows written later appear to a reader that met the chunk before it was cleared."""
    monkeypatch.setattr(plain_array_writer, "_BLOCK", 1000)
    array = new_array(tmp_path / "a")
    column, mapped = open_array_writer(array, tmp_path / "a"), MappedArray(array, tmp_path / "a")
    column.write(0, rows(0, 1300))
    mapped.grow()
    assert len(mapped.data) == 1536
    column.clear_from(200)
    expected = rows(0, 1536)
    expected[200:] = 0
    np.testing.assert_array_equal(mapped.data, expected)
    column.write(200, rows(200, 1100))
    expected[200:1100] = rows(200, 1100)
    np.testing.assert_array_equal(mapped.data, expected)
    column.close()


def test_clearing_ends_with_the_first_row(tmp_path, monkeypatch):
    """At each moment what is not yet zero are the first rows; holes are not filled."""
    monkeypatch.setattr(plain_array_writer, "_BLOCK", 1000)
    column = open_array_writer(new_array(tmp_path / "a"), tmp_path / "a")
    column.write(0, rows(0, 800))
    left, write = [800 * 2], files.write_at

    def observed(descriptor, data, offset):
        write(descriptor, data, offset)
        values = column.read(0, 1024).reshape(-1)
        left.append(int(np.count_nonzero(values)))
        assert not values[left[-1] :].any()

    monkeypatch.setattr(files, "write_at", observed)
    column.clear_from(100)
    assert left == sorted(left, reverse=True)
    assert len(left) > 4
    assert left[-1] == 200
    number = len(left)
    column.clear_from(100)
    assert len(left) == number


def test_a_column_without_rows(tmp_path):
    """Reading and writing no rows at all is allowed."""
    for column in (
        open_array_writer(new_array(tmp_path / "a"), tmp_path / "a"),
        open_array_writer(new_array(MemoryStore()), None),
    ):
        column.write(0, rows(0, 0))
        assert column.read(0, 0).shape == (0, 2)
        column.clear_from(0)
        column.clear_all()


def test_a_truncated_chunk_is_not_read(tmp_path):
    column = open_array_writer(new_array(tmp_path / "a"), tmp_path / "a")
    column.write(0, rows(0, 512))
    os.truncate(chunk_file(tmp_path / "a", 0, 2), 100)
    with pytest.raises(StoreFormatError, match=r"has 100 bytes, expected 4096.*truncated"):
        column.read(0, 512)
    column.close()


def test_a_column_through_zarr_writes_chunk_by_chunk():
    """In order, which is what makes pointers of a compressed store a log."""
    written = []

    class Recording(MemoryStore):
        async def set(self, key, value, byte_range=None):
            written.append(key)
            await super().set(key, value, byte_range)

        def set_sync(self, key, value):
            written.append(key)
            super().set_sync(key, value)

    array = new_array(Recording(), "i8", (), rows=4)
    column = open_array_writer(array, None)
    assert isinstance(column, ZarrArrayWriter)
    column.write(2, np.arange(1, 18))
    assert [key for key in written if key.startswith("c/")] == [f"c/{i}" for i in range(5)]
    np.testing.assert_array_equal(column.read(2, 19), np.arange(1, 18))
    column.clear_from(10)
    np.testing.assert_array_equal(column.read(2, 19), [*range(1, 9), *[0] * 9])


class TestMapped:
    def test_grows_over_chunks(self, tmp_path, monkeypatch):
        """Across chunk files, in place and moved; arrays taken before stay right."""
        monkeypatch.setattr(flat, "_LEAST_RESERVE", PAGE)
        array = new_array(tmp_path / "a")
        column, mapped = (
            open_array_writer(array, tmp_path / "a"),
            MappedArray(array, tmp_path / "a"),
        )
        taken, addresses = [], set()
        for stop in (1, 100, 512, 513, 2000, 5000, 30000):
            column.write(taken[-1][0] if taken else 0, rows(taken[-1][0] if taken else 0, stop))
            mapped.ensure(stop)
            assert len(mapped.data) == -(-stop // 512) * 512
            taken.append((stop, mapped.data[:stop]))
            addresses.add(mapped.data.__array_interface__["data"][0])
        assert len(addresses) > 2
        column.close()
        del mapped
        for stop, data in taken:
            np.testing.assert_array_equal(data, rows(0, stop))
            assert not data.flags.writeable

    @pytest.mark.parametrize(
        ("dtype", "fill"), [("f4", np.nan), ("?", True), ("?", False), ("i8", 0), ("f8", -1.5)]
    )
    def test_a_missing_chunk_reads_as_fill(self, tmp_path, dtype, fill):
        count = 2 * PAGE
        array = new_array(tmp_path / "a", dtype, (), fill, count)
        column, mapped = (
            open_array_writer(array, tmp_path / "a"),
            MappedArray(array, tmp_path / "a"),
        )
        mapped.ensure(3 * count)
        np.testing.assert_array_equal(mapped.data, np.full(3 * count, fill, dtype))
        column.reserve(3 * count)
        stored = zarr.open_array(tmp_path / "a", mode="r")[: 3 * count]
        np.testing.assert_array_equal(mapped.data, stored)
        values = np.ones(count, dtype)
        column.write(count, values)
        mapped.ensure(4 * count)
        np.testing.assert_array_equal(mapped.data[count : 2 * count], values)
        np.testing.assert_array_equal(mapped.data[:count], np.full(count, fill, dtype))
        np.testing.assert_array_equal(column.read(0, 2 * count), mapped.data[: 2 * count])
        column.close()

    def test_a_hole_survives_a_move(self, tmp_path, monkeypatch):
        monkeypatch.setattr(flat, "_LEAST_RESERVE", PAGE)
        array = new_array(tmp_path / "a", fill=np.nan)
        column, mapped = (
            open_array_writer(array, tmp_path / "a"),
            MappedArray(array, tmp_path / "a"),
        )
        column.write(512, rows(512, 1024))
        mapped.ensure(1024)
        column.write(1024, rows(1024, 9000))
        mapped.ensure(9000)
        assert np.isnan(mapped.data[:512]).all()
        np.testing.assert_array_equal(mapped.data[512:9000], rows(512, 9000))
        column.close()

    @pytest.mark.parametrize("size", [0, 1, PAGE - 1, PAGE + 1])
    def test_a_chunk_of_another_size_is_refused(self, tmp_path, size):
        array = new_array(tmp_path / "a")
        column, mapped = (
            open_array_writer(array, tmp_path / "a"),
            MappedArray(array, tmp_path / "a"),
        )
        column.write(0, rows(0, 1000))
        column.close()
        os.truncate(chunk_file(tmp_path / "a", 1, 2), size)
        with pytest.raises(StoreFormatError, match=rf"c/1/0 has {size} bytes, expected {PAGE}"):
            mapped.ensure(1000)
        mapped.ensure(512)
        np.testing.assert_array_equal(mapped.data[:512], rows(0, 512))

    def test_rows_outlive_their_files(self, tmp_path):
        array = new_array(tmp_path / "a")
        column, mapped = (
            open_array_writer(array, tmp_path / "a"),
            MappedArray(array, tmp_path / "a"),
        )
        column.write(0, rows(0, 1000))
        mapped.ensure(1000)
        column.clear_all()
        np.testing.assert_array_equal(mapped.data[:1000], rows(0, 1000))

    def test_grow_stops_at_a_file_that_vanishes(self, tmp_path, monkeypatch):
        """Between the look at the name and the opening of the file the store may be cleared."""
        array = new_array(tmp_path / "a")
        column, mapped = (
            open_array_writer(array, tmp_path / "a"),
            MappedArray(array, tmp_path / "a"),
        )
        column.write(0, rows(0, 1000))
        column.close()
        original = MappedArray._map

        def vanishing(self, index):
            if index == 1:
                chunk_file(tmp_path / "a", 1, 2).unlink(missing_ok=True)
            return original(self, index)

        monkeypatch.setattr(MappedArray, "_map", vanishing)
        mapped.grow()
        np.testing.assert_array_equal(mapped.data, rows(0, 512))

    def test_holes_share_one_chunk_of_fill(self, tmp_path):
        mapped = MappedArray(new_array(tmp_path / "a", fill=np.nan), tmp_path / "a")
        made = mapped._filled_chunk
        calls = []
        mapped._filled_chunk = lambda: calls.append(1) or made()
        mapped.ensure(5 * mapped._chunk_rows)
        assert np.isnan(mapped.data).all()
        assert len(mapped.data) == 5 * mapped._chunk_rows
        assert len(calls) == 1

    def test_without_memfd(self, tmp_path, monkeypatch):
        monkeypatch.delattr(os, "memfd_create", raising=False)
        mapped = MappedArray(new_array(tmp_path / "a", fill=np.nan), tmp_path / "a")
        mapped.ensure(600)
        assert np.isnan(mapped.data).all()

    def test_a_refused_mapping_says_so(self, tmp_path):
        with pytest.raises(OSError, match="cannot map 0 bytes"):
            addresses.AddressRange(0)


def test_what_is_mapped_and_what_is_loaded(tmp_path):
    """Whole pages of plain bytes are mapped, everything else goes through zarr-python."""
    arrays = {
        "plain": new_array(tmp_path / "plain"),
        "odd": new_array(tmp_path / "odd", rows=500),
        "zstd": zarr.create_array(tmp_path / "zstd", shape=(4,), chunks=(4,), dtype="f4"),
        "wide": zarr.create_array(
            tmp_path / "wide", shape=(4, 4), chunks=(1024, 2), dtype="f4", compressors=None
        ),
        "flat_keys": new_array(
            tmp_path / "flat_keys", chunk_key_encoding={"name": "default", "separator": "."}
        ),
    }
    plain = {name for name, array in arrays.items() if is_plain(array)}
    assert plain == {"plain", "odd"}
    mapped = {name for name, array in arrays.items() if can_be_mapped(array, tmp_path / name)}
    assert mapped == {"plain"}
    assert not can_be_mapped(arrays["plain"], None)


class TestLoaded:
    def test_grows(self):
        array = new_array(MemoryStore(), "i8", (), rows=8)
        column, loaded = open_array_writer(array, None), LoadedArray(lambda: array, array)
        column.write(1, np.arange(1, 11))
        loaded.grow()
        taken = loaded.data
        np.testing.assert_array_equal(taken, [0, *range(1, 11), *[0] * 5])
        column.write(11, np.arange(11, 31))
        loaded.grow()
        np.testing.assert_array_equal(loaded.data[:31], np.arange(31))
        assert not loaded.data.flags.writeable

    def test_a_later_chunk_of_a_later_moment_does_not_count(self):
        """Chunks are fetched side by side: what is not behind a prefix waits for the next look."""
        array = new_array(MemoryStore(), "i8", (), rows=4)
        array.resize((12,))
        loaded = LoadedArray(lambda: array, array)
        array[:] = [0, 2, 3, 0, 5, 6, 7, 0, 0, 0, 0, 0]
        loaded.grow()
        np.testing.assert_array_equal(loaded.data, [0, 2, 3] + [0] * 9)
        array[3] = 4
        loaded.grow()
        np.testing.assert_array_equal(loaded.data, [0, 2, 3, 4, 5, 6, 7, 0, 0, 0, 0, 0])

    def test_what_is_at_hand_outlasts_an_emptied_store(self):
        """A reader goes on with the pointers that it has, or is told; it never mixes two stores."""
        array = new_array(MemoryStore(), "i8", (), rows=8)
        array.resize((8,))
        loaded = LoadedArray(lambda: array, array)
        array[:] = [0, 2, 3, 4, 0, 0, 0, 0]
        loaded.grow()
        at_hand = loaded.data
        for now in ([0] * 8, [0, 7, 8, 9, 10, 11, 0, 0]):
            array[:] = now
            with pytest.raises(StoreFormatError, match="was emptied or rewritten"):
                loaded.grow()
            np.testing.assert_array_equal(at_hand, [0, 2, 3, 4, 0, 0, 0, 0])
            np.testing.assert_array_equal(loaded.data, at_hand)
        array[:] = [0, 2, 3, 4, 5, 0, 0, 0]
        loaded.grow()
        np.testing.assert_array_equal(loaded.data, [0, 2, 3, 4, 5, 0, 0, 0])

    def test_too_few_rows_raise(self):
        array = new_array(MemoryStore(), "i8", (), rows=4)
        with pytest.raises(StoreFormatError, match="has 0 rows, the pointers say 3"):
            LoadedArray(lambda: array, array).ensure(3)


LEVELS = {Level.SYSTEM: 1, Level.ATOM: 64, Level.EDGE: 64 * 32}


@given(
    level=st.sampled_from([*LEVELS]),
    dtype=st.sampled_from(["?", "f2", "f4", "f8", "i1", "i4"]),
    shape=st.lists(st.integers(1, 7), max_size=3).map(tuple),
    capacity=st.integers(1, 10**9),
)
def test_chunk_rows(level, dtype, shape, capacity):
    """Whole pages of every platform, a power of two, at most 4096 chunks at capacity."""
    spec = ArraySpec("core/x", level, np.dtype(dtype), shape, 0)
    count = layout.chunk_rows(spec, capacity)
    assert count >= 16_384
    assert count & (count - 1) == 0
    assert count * spec.row_bytes % 65_536 == 0
    assert count * 4096 >= capacity * LEVELS[level]


def test_a_new_array_replaces_what_a_killed_writer_left(tmp_path):
    spec = ArraySpec("core/x", Level.SYSTEM, np.dtype("f4"), (), 0.0)
    group = zarr.create_group(tmp_path / "s")
    array = create_array(group, spec, ZarrWriteConfig(), 10)
    column = open_array_writer(array, tmp_path / "s" / "core" / "x")
    column.write(0, np.ones(5, dtype="f4"))
    column.close()
    array = create_array(group, spec, ZarrWriteConfig(), 10)
    assert array.shape == (0,)
    assert not (tmp_path / "s" / "core" / "x" / "c").exists()


@pytest.mark.parametrize("kind", ["mapped", "compressed", "memory"])
def test_late_fields_are_nan_before(tmp_path, monkeypatch, kind):
    """Over chunk borders, for zarr-python as for us: NaN in floats, 0 and False in the others."""
    monkeypatch.setattr(layout, "_LEAST_ROWS", 1)
    monkeypatch.setattr(layout, "_LARGEST_PAGE", PAGE)
    store = MemoryStore() if kind == "memory" else tmp_path / "s"
    zstd = {"chunk_size": 300, "compressors": (zarr.codecs.ZstdCodec(level=1),)}
    config = {"core": zstd, "meta": zstd} if kind == "compressed" else None
    early, late = numbered_batch(range(700)), numbered_batch(range(700, 1500))
    late.add_field("tag", np.arange(800), "system").add_field("spin", np.ones((800, 1)))
    late.add_field("charges", np.arange(float(late.num_nodes)))
    late.add_field("weights", np.ones((late.num_edges, 2)), "edge")
    parts = [early.without("forces"), late, early]
    with ZarrData(store, 5000, config=config) as sink:
        for part in parts:
            sink.write(part)
        whole = Batch.concatenate(parts)
        assert_batches_equal(sink.read(), whole)
    group = zarr.open_group(store, mode="r")
    for name, where in {"charges": "core", "forces": "core", "weights": "custom"}.items():
        stored = group[f"{where}/{name}"][:]
        np.testing.assert_array_equal(stored, whole[name].numpy())
    stored = group["core/charges"][:]
    assert np.isnan(stored[: early.num_nodes]).all()
    assert np.isnan(stored[-early.num_nodes :]).all()
    assert not group["custom/tag"][:700].any()
    view = pickle.loads(pickle.dumps(StoreView(store)))
    index = np.array([1499, 3, 699, 700, 2100])
    assert_batches_equal(view.gather(index), whole.index_select(index.tolist()))
