"""One gather, out of one store and several: equal to what was written."""

import itertools
import subprocess
import sys
import threading
from functools import partial

import numpy as np
import pytest
import torch
import zarr
from hypothesis import given
from hypothesis import strategies as st

import zarrpipe as zp
from zarrpipe.data.buffers import ALIGNMENT, BufferPool
from zarrpipe.data.fields import FieldSpec, Kind
from zarrpipe.data.levels import Level
from zarrpipe.errors import StoreFormatError
from zarrpipe.store.read.view import StoreView
from zarrpipe.testing import assert_batches_equal, random_batch

HALF = FieldSpec("half", Level.ATOM, Kind.FLOAT, (), "")
FIELDS = ("energy", "forces", "cell", "pbc", "stress", HALF)


def written(place, seed=0, num_graphs=40, config=None, **options):
    options = {"fields": FIELDS, "edges": (0, 6), "absent": 0.3, **options}
    batch = random_batch(np.random.default_rng(seed), num_graphs, **options)
    with zp.ZarrData(place, 1000, config) as sink:
        for start in range(0, num_graphs, 16):
            sink.write(batch.index_select(slice(start, start + 16)))
    return batch


ORDERS = {
    "shuffled": lambda n: np.random.default_rng(1).permutation(n),
    "repeated": lambda n: np.random.default_rng(2).integers(0, n, 3 * n),
    "a run": lambda n: np.arange(5, n - 5),
    "backwards": lambda n: np.arange(n)[::-1],
    "runs": lambda n: np.r_[10:20, 3:7, 7:9, 30:33],
    "one": lambda n: np.array([n - 1]),
    "none": lambda n: np.zeros(0, dtype=np.int64),
}


def by_numpy(whole, index):
    """Fields and pointers of the samples at `index`, sample by sample."""
    ends = {Level.ATOM: whole.batch_ptr.numpy(), Level.EDGE: whole.edge_ptr.numpy()}
    ends[Level.SYSTEM] = np.arange(whole.num_graphs + 1)
    expected = {}
    for level, ptr in ends.items():
        lengths = [ptr[i + 1] - ptr[i] for i in index]
        expected[level] = np.concatenate([[0], np.cumsum(lengths)]).astype(int)
    first_atoms = expected[Level.ATOM][:-1] - ends[Level.ATOM][index]
    for name, value in whole.fields.items():
        ptr, rows = ends[whole.levels[name]], value.numpy()
        parts = [rows[ptr[i] : ptr[i + 1]] for i in index]
        if name == "neighbor_list":
            parts = [part + first for part, first in zip(parts, first_atoms, strict=True)]
        expected[name] = np.concatenate([rows[:0], *parts])
    return expected


@pytest.mark.parametrize("one_call", [True, False])
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("deleted", [False, True])
def test_against_numpy(tmp_path, monkeypatch, one_call, order, deleted):
    whole = written(tmp_path / "store", absent=0.0)
    if deleted:
        with zp.AtomicDataZarrWriter(tmp_path / "store") as writer:
            writer.delete([0, 7, 8, 39])
    kept = np.setdiff1d(np.arange(40), [0, 7, 8, 39] if deleted else [])
    view = StoreView(tmp_path / "store")
    index = ORDERS[order](36) % len(kept)
    assert view.rows._plan(None).fused
    if not one_call:
        monkeypatch.setattr(view.rows._plan(None), "fused", False)
    got, expected = view.gather(index), by_numpy(whole, kept[index])
    for name, value in got.fields.items():
        np.testing.assert_array_equal(value.numpy(), expected[name], name)
    np.testing.assert_array_equal(got.batch_ptr.numpy(), expected[Level.ATOM])
    np.testing.assert_array_equal(got.edge_ptr.numpy(), expected[Level.EDGE])
    assert set(got.fields) == set(whole.fields)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("kind", ["plain", "tiny chunks", "compressed", "memory"])
def test_any_order_of_samples(tmp_path, kind, order):
    place = {} if kind == "memory" else tmp_path / "store"
    tiny = {"chunk_size": 7}
    config = {
        "tiny chunks": {"core": tiny, "custom": tiny, "meta": tiny},
        "compressed": {"core": {"compressors": ("zstd",), "chunk_size": 64}},
    }.get(kind)
    batch = written(place, config=config)
    index = ORDERS[order](batch.num_graphs)
    got = StoreView(place).gather(index)
    expected = batch.index_select(torch.from_numpy(index.copy()))
    if len(index) == 0:
        assert got.num_graphs == got.num_nodes == got.num_edges == 0
    else:
        assert_batches_equal(got, expected)


@given(data=st.data())
def test_any_choice_of_fields_and_samples(data):
    store: dict = {}
    batch = written(store, seed=data.draw(st.integers(0, 3)), num_graphs=12)
    index = data.draw(st.lists(st.integers(0, 11), min_size=1, max_size=30))
    names = data.draw(st.lists(st.sampled_from(sorted(batch.fields)), unique=True))
    got = StoreView(store).gather(np.array(index), names)
    kept = {"positions", "atomic_numbers", *names}
    expected = batch.without(*(set(batch.fields) - kept)).index_select(index)
    assert set(got.fields) == kept
    for name in kept:
        assert torch.equal(got.present(name), expected.present(name))
        torch.testing.assert_close(got[name], expected[name], rtol=0, atol=0, equal_nan=True)
    assert got.batch_ptr.tolist() == expected.batch_ptr.tolist()


def test_deleted_samples_are_counted_through(tmp_path):
    batch = written(tmp_path / "store")
    with zp.AtomicDataZarrWriter(tmp_path / "store") as writer:
        writer.delete([0, 7, 8, 39])
    kept = np.setdiff1d(np.arange(40), [0, 7, 8, 39])
    view = StoreView(tmp_path / "store")
    index = np.random.default_rng(0).permutation(len(kept))
    assert_batches_equal(view.gather(index), batch.index_select(torch.from_numpy(kept[index])))


@pytest.mark.parametrize("absent", [0.0, 0.3])
def test_several_stores_and_fields_that_some_lack(tmp_path, absent):
    first = written(tmp_path / "a", 1, absent=absent)
    second = written(tmp_path / "b", 2, 23, fields=("energy",), edges=None, absent=absent)
    third = written({}, 3, 9, fields=("forces", HALF), absent=absent)
    with zp.ZarrData(tmp_path / "c") as sink:
        sink.write(third)
    dataset = zp.ZarrDataset([tmp_path / "a", tmp_path / "b", tmp_path / "c"])
    whole = zp.Batch.concatenate([first, second, third])
    for index in (
        np.random.default_rng(0).permutation(len(dataset)),
        np.array([70, 3, 41]),
        np.arange(45, 60),
    ):
        expected = whole.index_select(torch.from_numpy(index))
        got = dataset.__getitems__(index)
        for name in whole.fields:
            assert torch.equal(got.present(name), expected.present(name)), name
            torch.testing.assert_close(got[name], expected[name], rtol=0, atol=0, equal_nan=True)
        assert got.edge_ptr.tolist() == expected.edge_ptr.tolist()
    assert dataset.__getitems__([]).num_graphs == 0


def test_growth_and_new_fields_are_seen_after_a_refresh(tmp_path):
    tiny = {"core": {"chunk_size": 8}, "meta": {"chunk_size": 8}}
    batch = random_batch(np.random.default_rng(0), 60, fields=("energy", "forces"))
    with zp.ZarrData(tmp_path / "store", 100, tiny) as sink:
        sink.write(batch.index_select(slice(0, 1)).without("forces"))
        view = StoreView(tmp_path / "store")
        for start in range(1, 60, 9):
            sink.write(batch.index_select(slice(start, start + 9)))
            view.refresh()
            got = view.gather(np.arange(1, view.num_samples))
            assert_batches_equal(got, batch.index_select(slice(1, view.num_samples)))


@pytest.mark.parametrize("index", [[40], [-1], [0, 2**40], [-(2**63)]])
def test_a_sample_that_is_not_there(tmp_path, index):
    written(tmp_path / "store")
    with pytest.raises(IndexError, match="of a store of 40"):
        StoreView(tmp_path / "store").gather(np.array(index))


@pytest.mark.parametrize(
    ("array", "entry", "value"),
    [("atoms_ptr", 5, 10**6), ("atoms_ptr", 5, -4), ("edges_ptr", 9, 10**9), ("edges_ptr", 9, 0)],
)
def test_damaged_pointers_are_no_wild_reads(tmp_path, array, entry, value):
    written(tmp_path / "store", edges=(1, 6))
    pointers = np.fromfile(tmp_path / "store/meta" / array / "c/0", dtype="<i8")
    pointers[entry] = value
    pointers.tofile(tmp_path / "store/meta" / array / "c/0")
    with pytest.raises(StoreFormatError, match="is damaged"):
        StoreView(tmp_path / "store").gather(np.arange(40))


def test_a_batch_is_one_buffer(tmp_path):
    written(tmp_path / "store")
    batch = StoreView(tmp_path / "store").gather(np.arange(7))
    first, last = batch._buffer.ctypes.data, batch._buffer.ctypes.data + batch._buffer.nbytes
    for tensor in (*batch.fields.values(), batch.batch_ptr, batch.edge_ptr):
        assert first <= tensor.data_ptr() <= last - tensor.nbytes
        assert (tensor.data_ptr() - first) % ALIGNMENT == 0


def test_a_batch_that_is_kept_stays_as_it_is(tmp_path):
    whole = written(tmp_path / "store")
    view = StoreView(tmp_path / "store")
    kept = [view.gather(np.array(pair)) for pair in itertools.pairwise(range(20))]
    for number, batch in enumerate(kept):
        assert_batches_equal(batch, whole.index_select([number, number + 1]))


def test_a_field_outlives_its_batch(tmp_path):
    whole = written(tmp_path / "store", absent=0.0)
    view = StoreView(tmp_path / "store")
    forces = view.gather(np.array([3])).forces
    for index in range(20):
        view.gather(np.array([index]))
    assert torch.equal(forces, whole.index_select([3]).forces)


def test_int32_edges_of_a_foreign_store_are_shifted_too(tmp_path):
    whole = written(tmp_path / "store", edges=(1, 4), fields=("energy",), absent=0.0)

    group = zarr.open_group(tmp_path / "store")
    edges = group["core/neighbor_list"][:]
    del group["core/neighbor_list"]
    group.create_array("core/neighbor_list", data=edges.astype(np.int32))
    got = StoreView(tmp_path / "store").gather(np.array([30, 2]))
    assert got.neighbor_list.tolist() == whole.index_select([30, 2]).neighbor_list.tolist()


def test_numba_is_imported_at_the_first_gather_only(tmp_path):
    written(tmp_path / "store")
    code = (
        "import sys, zarrpipe; d = zarrpipe.ZarrDataset(sys.argv[1]);"
        "assert 'numba' not in sys.modules; d[0]; assert 'numba' in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "store")], check=True)


def test_a_pool_keeps_few_buffers():
    pool = BufferPool()
    held = [pool.take(1024) for _ in range(50)]
    del held
    assert len(pool._buffers) <= 4


def test_absent_edges_are_zero(tmp_path):
    with_edges = written(tmp_path / "a", edges=(2, 4), fields=("energy",), absent=0.0)
    own = FieldSpec("lengths", Level.EDGE, Kind.FLOAT, (), "")
    lacking = random_batch(np.random.default_rng(1), 5, edges=(1, 3), fields=("energy", own))
    with zp.ZarrData(tmp_path / "b") as sink:
        sink.write(lacking.without("neighbor_list", "neighbor_list_shifts"))
    batch = zp.ZarrDataset([tmp_path / "a", tmp_path / "b"]).__getitems__([0, 42, 3])
    first, second = batch.edge_ptr[1], batch.edge_ptr[2]
    assert not batch.neighbor_list[first:second].any()
    expected = with_edges.index_select([0, 3]).neighbor_list[:first]
    assert torch.equal(batch.neighbor_list[:first], expected)


@pytest.mark.parametrize("dtypes", ["float32 float64", "float64 float32", "float32 float32"])
def test_a_store_that_was_rewritten_is_refused(tmp_path, dtypes):
    before, after = map(partial(getattr, torch), dtypes.split())
    for place in "ab":
        written(tmp_path / place, dtype=before, edges=None)
    dataset = zp.ZarrDataset([tmp_path / "a", tmp_path / "b"])
    with zp.ZarrData(tmp_path / "b") as sink:
        sink.zero()
        other = random_batch(np.random.default_rng(5), 40, dtype=after)
        sink.write(other)
    with pytest.raises(StoreFormatError, match="was rewritten"):
        dataset.refresh()
    with pytest.raises(StoreFormatError, match="was rewritten"):
        dataset.__getitems__([0, 70])


def test_an_array_of_another_make_is_refused(tmp_path):
    written(tmp_path / "store", edges=None)
    view = StoreView(tmp_path / "store")
    group = zarr.open_group(tmp_path / "store")
    shape = group["core/energy"].shape
    del group["core/energy"]
    group.create_array("core/energy", shape=shape, dtype="float32", chunks=(65536, 1))
    group["core/energy"][:] = 1
    assert view.schema["energy"].dtype == np.float32
    object.__setattr__(view.schema["energy"], "dtype", np.dtype("float64"))
    with pytest.raises(StoreFormatError, match="'energy' has dtype float32"):
        view.gather(np.arange(3))


def test_a_refresh_beside_a_gather(tmp_path):
    whole = random_batch(np.random.default_rng(0), 2000, fields=("energy",))
    tiny = {group: {"chunk_size": 512} for group in ("core", "meta")}
    done, errors = threading.Event(), []
    with zp.ZarrData(tmp_path / "store", 4000, tiny) as sink:
        sink.write(whole.index_select(slice(0, 1)))
        dataset = zp.ZarrDataset(tmp_path / "store")

        def read() -> None:
            rng = np.random.default_rng(1)
            try:
                while not done.is_set():
                    index = rng.integers(0, len(dataset), 8)
                    got = dataset.__getitems__(index).energy
                    assert torch.equal(got, whole.energy[torch.from_numpy(index)])
            except BaseException as error:  # noqa: BLE001  looked at in the main thread
                errors.append(error)

        reader = threading.Thread(target=read)
        reader.start()
        for start in range(1, 2000, 20):
            sink.write(whole.index_select(slice(start, start + 20)))
            dataset.refresh()
        done.set()
        reader.join()
    assert errors == []


def test_numba_without_a_place_for_its_cache(tmp_path):
    written(tmp_path / "store")
    code = (
        "import numba, sys\n"
        "njit = numba.njit\n"
        "def refuse(*signature, cache=False, **options):\n"
        "    if cache: raise RuntimeError('no locator available')\n"
        "    return njit(*signature, **options)\n"
        "numba.njit = refuse\n"
        "import zarrpipe\n"
        "assert zarrpipe.ZarrDataset(sys.argv[1])[3].num_nodes > 0\n"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "store")], check=True)
