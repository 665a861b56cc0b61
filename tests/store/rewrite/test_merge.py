"""Stores merged into one: the same samples, whatever the stores were made of."""

import os
import sys
import threading

import numpy as np
import pytest
import torch
import zarr
from zarr.storage import MemoryStore

from zarrpipe import (
    AtomicDataZarrWriter,
    Batch,
    ZarrData,
    ZarrDataset,
    ZarrWriteConfig,
    compact,
    merge,
)
from zarrpipe.data.fields import FieldSpec
from zarrpipe.data.levels import Level
from zarrpipe.errors import (
    FieldError,
    SchemaError,
    StoreExistsError,
    StoreFormatError,
    StoreNotFoundError,
    StoreReadOnlyError,
)
from zarrpipe.store.read.view import StoreView
from zarrpipe.store.rewrite import merge as merge_module
from zarrpipe.store.rewrite import merge_plan as selection
from zarrpipe.store.rewrite import merge_source as sources
from zarrpipe.store.rewrite import target as target_module
from zarrpipe.testing import (
    assert_batches_equal,
    assert_plain_zarr,
    numbered_batch,
    random_batch,
)

ZSTD = (zarr.codecs.ZstdCodec(level=1),)
COMPRESSED = {
    group: {"chunk_size": 16, "compressors": ZSTD} for group in ("meta", "core", "custom")
}
SHARDED = {
    group: {"chunk_size": 8, "shard_size": 32, "compressors": ZSTD}
    for group in ("meta", "core", "custom")
}
OWN = (FieldSpec("weights", Level.EDGE), FieldSpec("tag", Level.SYSTEM, shape=(2,)))


def filled(store, batch, config=None, delete=()):
    with AtomicDataZarrWriter(store, config) as writer:
        writer.write(batch)
        writer.delete(list(delete))
    return store


def everything(store) -> Batch:
    view = StoreView(store)
    return view.gather(np.arange(view.num_samples))


def files(folder):
    return {
        path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()
    }


@pytest.fixture(params=["plain", "compressed", "memory"])
def make(request, tmp_path):
    """Makes places for stores of one kind, and their config."""
    count = iter(range(100))

    def place():
        if request.param == "memory":
            return MemoryStore()
        return tmp_path / f"part-{next(count)}"

    place.config = COMPRESSED if request.param == "compressed" else None
    return place


@pytest.fixture(params=["local", "dict", "sharded"])
def target(request, tmp_path):
    """A place for the new store and the config to write it with."""
    config = SHARDED if request.param == "sharded" else None
    return ({} if request.param == "dict" else tmp_path / "whole"), config


@pytest.fixture
def _small_blocks(monkeypatch):
    """Blocks of a few rows; without it each store is smaller than one."""
    monkeypatch.setattr(selection, "_BLOCK", 100)
    monkeypatch.setattr(sources, "_DECODED", 200)
    monkeypatch.setattr(sources, "_IDS_BLOCK", 3)


class TestValues:
    @pytest.mark.usefixtures("_small_blocks")
    def test_many_stores(self, make, target):
        """Deleted samples, absent and new fields, edges, an empty store, all in one."""
        rng = np.random.default_rng(0)
        fields = ("energy", "cell", "pbc", *OWN)
        batches = [
            random_batch(rng, 15, edges=(0, 4), fields=fields, absent=0.3),
            random_batch(rng, 1, edges=(0, 4), fields=("energy", "charge")),
            random_batch(rng, 21, edges=(0, 0), fields=("energy", "forces")),
        ]
        gone = [[0, 3, 4, 14], [], [*range(10, 20)]]
        stores = [
            filled(make(), batch, make.config, delete)
            for batch, delete in zip(batches, gone, strict=True)
        ]
        place, config = target
        expected = ZarrDataset(stores).gather(np.arange(23))
        empty = filled(make(), numbered_batch([5]), make.config, [0])
        assert merge([stores[0], empty, *stores[1:]], place, config=config) == 11 + 1 + 11
        found = everything(place)
        assert_batches_equal(found, expected)
        np.testing.assert_array_equal(
            StoreView(place).ids, np.concatenate([StoreView(store).ids for store in stores])
        )
        assert_plain_zarr(place, found, exact=True)

    def test_one_store(self, make, target):
        place, config = target
        batch = numbered_batch(range(50))
        store = filled(make(), batch, make.config)
        assert merge(store, place, config=config) == 50
        assert_batches_equal(everything(place), batch)
        assert_batches_equal(everything(store), batch)

    def test_what_is_written_can_be_continued(self, make, target):
        place, config = target
        merge([filled(make(), numbered_batch(range(20)), make.config)], place, config=config)
        with ZarrData(place, config=config) as sink:
            sink.write(numbered_batch(range(20, 45)))
        assert_batches_equal(everything(place), numbered_batch(range(45)))
        assert_plain_zarr(place, numbered_batch(range(45)), exact=True)

    @pytest.mark.usefixtures("_small_blocks")
    def test_shuffled(self, make, target):
        place, config = target
        stores = [
            filled(make(), numbered_batch(range(start, start + 30)), make.config, [1, 2, 3])
            for start in (0, 30)
        ]
        kept = [i for i in range(60) if i % 30 not in (1, 2, 3)]
        assert merge(stores, place, config=config, shuffle=7) == len(kept)
        order = np.random.default_rng(7).permutation(len(kept))
        assert_batches_equal(everything(place), numbered_batch(np.array(kept)[order]))
        ids = np.concatenate([StoreView(store).ids for store in stores])
        np.testing.assert_array_equal(StoreView(place).ids, ids[order])

    def test_shuffled_beyond_memory(self, tmp_path, monkeypatch):
        """What does not fit in memory is read in large blocks, in the order of the sources."""
        stores = [
            filled(tmp_path / f"{start}", numbered_batch(range(start, start + 30)), None, [1, 2])
            for start in (0, 30)
        ]
        stores.append(filled({}, numbered_batch(range(60, 70)).without("neighbor_list")))
        for name, value in (("_BLOCK", 50), ("_memory", lambda: 2000)):
            monkeypatch.setattr(selection, name, value)
        merge(stores, tmp_path / "whole", shuffle=7)
        order = np.random.default_rng(7).permutation(66)
        found, dataset = everything(tmp_path / "whole"), ZarrDataset(stores)
        expected = dataset.gather(order)
        absent = ~expected.present("neighbor_list")
        assert absent.sum() == 10
        for batch in (found, expected):  # the rows of what is absent mean nothing
            batch["neighbor_list"][absent.repeat_interleave(batch.num_edges_per_graph)] = 0
        assert_batches_equal(found, expected)

    def test_a_seed_says_the_order(self, tmp_path):
        store = filled({}, numbered_batch(range(40)))
        found = []
        for name, seed in (("a", 1), ("b", 1), ("c", 2), ("d", None)):
            merge(store, tmp_path / name, shuffle=seed)
            found.append(everything(tmp_path / name)["serial"].tolist())
        assert found[0] == found[1]
        assert found[3] == [*range(40)]
        assert len({tuple(order) for order in found}) == 3
        assert sorted(found[0]) == sorted(found[2]) == found[3]

    def test_a_store_in_parts_again(self, tmp_path):
        """Merging what was merged gives the same, so that parts can be merged as they come."""
        stores = [filled({}, numbered_batch(range(start, start + 9))) for start in (0, 9, 18)]
        merge(stores[:2], tmp_path / "first")
        merge([tmp_path / "first", stores[2]], tmp_path / "second")
        assert_batches_equal(everything(tmp_path / "second"), numbered_batch(range(27)))

    def test_no_samples(self, make, target):
        place, config = target
        store = filled(make(), numbered_batch([1, 2]), make.config, [0, 1])
        assert merge([store], place, config=config) == 0
        assert StoreView(place).num_samples == 0
        with ZarrData(place, config=config) as sink:
            sink.write(numbered_batch([3]))
        assert_batches_equal(everything(place), numbered_batch([3]))

    def test_a_field_that_no_kept_sample_lacks(self, tmp_path):
        """Presence is of the samples that are copied, not of those that were deleted."""
        batch = Batch.concatenate([numbered_batch([0]).without("energy"), numbered_batch([1, 2])])
        merge(filled({}, batch, delete=[0]), tmp_path / "whole")
        assert "present" in zarr.open_group(tmp_path / "whole", mode="r")
        assert not [*zarr.open_group(tmp_path / "whole", mode="r")["present"].keys()]
        assert_batches_equal(everything(tmp_path / "whole"), numbered_batch([1, 2]))

    def test_absent_edges(self, tmp_path):
        """A store without a neighbor_list, but with other fields of edges."""
        one, other = numbered_batch(range(9)), numbered_batch(range(9, 20))
        weights = torch.arange(other.num_edges, dtype=torch.float64)
        lacking = other.without("neighbor_list")
        lacking.add_field("weights", weights, "edge")
        merge([filled({}, one), filled({}, lacking)], tmp_path / "whole")
        found = everything(tmp_path / "whole")
        assert found.present("neighbor_list").tolist() == [True] * 9 + [False] * 11
        assert found.present("weights").tolist() == [False] * 9 + [True] * 11
        assert_batches_equal(found.index_select(slice(0, 9)).without("weights"), one)
        np.testing.assert_array_equal(found["weights"][one.num_edges :], weights)

    def test_a_live_writer(self, tmp_path):
        """What is there when the call begins is copied, and the writer goes on."""
        sink = ZarrData(tmp_path / "live")
        sink.write(numbered_batch(range(10)))
        calls = []
        block = sources.MergeSource.field

        def field(self, item):
            sink.write(numbered_batch([10 + len(calls)]))
            calls.append(item)
            return block(self, item)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sources.MergeSource, "field", field)
            assert merge(tmp_path / "live", tmp_path / "whole") == 10
        assert calls
        assert_batches_equal(everything(tmp_path / "whole"), numbered_batch(range(10)))
        assert len(sink) == 10 + len(calls)

    @pytest.mark.usefixtures("_small_blocks")
    def test_what_is_decoded_is_on_the_disk_before_it_is_mapped(self, tmp_path, monkeypatch):
        """To write through a map ends the process where the disk is full."""
        part = filled(tmp_path / "part", numbered_batch(range(40)), COMPRESSED)
        mapped, memmap = [], np.memmap

        def written(file, dtype, mode, shape):
            size = int(np.prod(shape)) * np.dtype(dtype).itemsize
            assert os.fstat(file.fileno()).st_size == size
            os.fsync(file.fileno())
            assert os.fstat(file.fileno()).st_blocks * 512 >= size
            mapped.append(mode)
            return memmap(file, dtype, mode, shape=shape)

        monkeypatch.setattr(np, "memmap", written)
        merge(part, tmp_path / "whole", shuffle=0)
        assert set(mapped) == {"r"}
        assert sorted(everything(tmp_path / "whole")["serial"].tolist()) == [*range(40)]

    @pytest.mark.parametrize("config", [None, COMPRESSED], ids=["plain", "compressed"])
    def test_a_source_that_is_rewritten_with_longer_rows_meanwhile(
        self, tmp_path, monkeypatch, config
    ):
        """Its arrays are opened late; rows that are longer have no room where they are copied."""
        batch = numbered_batch(range(5))
        batch.add_field("own", torch.zeros(5, 2), "system")
        filled(tmp_path / "part", batch, config)
        write_store = target_module.write_store

        def late(*arguments, **options):
            with ZarrData(tmp_path / "part", config=config) as sink:
                sink.zero()
                batch.add_field("own", torch.zeros(5, 64), "system")
                sink.write(batch)
            write_store(*arguments, **options)

        monkeypatch.setattr(target_module, "write_store", late)
        with pytest.raises(StoreFormatError, match="emptied or rewritten while it was being"):
            merge(tmp_path / "part", tmp_path / "whole", shuffle=0)
        assert [path.name for path in tmp_path.iterdir()] == ["part"]

    def test_a_source_that_is_emptied_meanwhile(self, tmp_path):
        sink = ZarrData(MemoryStore())
        sink.write(numbered_batch(range(10)))
        block = sources.MergeSource.field

        def field(self, item):
            if item.name == "forces":
                sink.zero()
                sink.write(numbered_batch(range(10), 1))
            return block(self, item)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sources.MergeSource, "field", field)
            with pytest.raises(StoreFormatError, match="while it was being copied: try again"):
                merge(sink.store, tmp_path / "whole")
        assert not [*tmp_path.iterdir()]


class TestForeign:
    def foreign(self, store, count=12):
        """A store of the layout alone: without ids and our attributes."""
        rng = np.random.default_rng(count)
        batch = random_batch(rng, count, edges=(0, 3), fields=("energy", "cell", "pbc"))
        filled(store, batch, delete=[2])
        ids = StoreView(store).ids
        group = zarr.open_group(store, mode="r+")
        del group.attrs["zarrpipe"]
        del group["meta/ids"]
        return batch, ids

    @pytest.mark.usefixtures("_small_blocks")
    @pytest.mark.parametrize("kind", ["local", "memory"])
    def test_ids_are_found_anew(self, tmp_path, kind):
        store = tmp_path / "foreign" if kind == "local" else {}
        batch, ids = self.foreign(store)
        assert merge(store, tmp_path / "whole") == 11
        assert_batches_equal(
            everything(tmp_path / "whole"), batch.index_select([0, 1, *range(3, 12)])
        )
        np.testing.assert_array_equal(StoreView(tmp_path / "whole").ids, ids)
        with ZarrData(tmp_path / "whole") as sink:
            assert len(sink) == 11

    def test_own_fields_in_core_come_to_custom(self, tmp_path):
        store = filled({}, numbered_batch(range(6)))
        group = zarr.open_group(store, mode="r+")
        fields = dict(group.attrs["fields"])
        group.create_array("core/serial", data=group["custom/serial"][:])
        del group["custom/serial"], group.attrs["zarrpipe"]
        group.attrs["fields"] = {"core": fields["core"] | fields["custom"], "custom": {}}
        merge(store, tmp_path / "whole")
        assert_plain_zarr(tmp_path / "whole", numbered_batch(range(6)), exact=True)

    def test_edges_that_leave_their_system(self, tmp_path):
        store = {}
        self.foreign(store)
        group = zarr.open_group(store, mode="r+")
        group["core/neighbor_list"][:] = 0
        with pytest.raises(StoreFormatError, match="edges refer to rows outside their system"):
            merge(store, tmp_path / "whole")
        assert not [*tmp_path.iterdir()]

    def test_attributes_of_others(self, tmp_path):
        stores = [filled({}, numbered_batch([number])) for number in range(3)]
        for number, store in enumerate(stores):
            zarr.open_group(store, mode="r+").update_attributes(
                {"licence": "CC-BY-4.0", "number": number, f"only_{number}": 1}
            )
        merge(stores[0], tmp_path / "one")
        merge(stores, tmp_path / "all")
        found = [
            zarr.open_group(tmp_path / name, mode="r").attrs.asdict() for name in ("one", "all")
        ]
        ours = {"num_samples", "fields", "zarrpipe"}
        assert found[0].keys() - ours == {"licence", "number", "only_0"}
        assert found[1].keys() - ours == {"licence"}
        assert found[1]["licence"] == "CC-BY-4.0"

    def test_a_damaged_source(self, tmp_path):
        store = filled(tmp_path / "store", numbered_batch(range(8)))
        os.truncate(store / "core" / "forces" / "c" / "0" / "0", 24)
        with pytest.raises(StoreFormatError, match=r"forces/c/0/0 has 24 bytes"):
            merge(store, tmp_path / "whole")
        assert [path.name for path in tmp_path.iterdir()] == ["store"]

    @pytest.mark.parametrize("value", [1, 10**6])
    def test_damaged_pointers(self, tmp_path, value):
        store = filled({}, numbered_batch(range(8)))
        zarr.open_group(store, mode="r+")["meta/atoms_ptr"][3] = value
        with pytest.raises(StoreFormatError, match="meta/atoms_ptr falls, is negative or"):
            merge(store, tmp_path / "whole")

    def test_a_cut_or_missing_array(self, tmp_path):
        store = filled({}, numbered_batch(range(8)))
        group = zarr.open_group(store, mode="r+")
        group["core/forces"].resize((2, 3))
        with pytest.raises(StoreFormatError, match="core/forces has 2 rows, the pointers say"):
            merge(store, tmp_path / "whole")
        del group["present"], group["meta/edges_ptr"]
        with pytest.raises(StoreFormatError, match="edges_ptr"):
            merge(store, tmp_path / "whole")


class TestTarget:
    @pytest.fixture
    def part(self):
        return filled({}, numbered_batch(range(5)))

    @pytest.mark.parametrize("kind", ["local", "memory"])
    def test_samples_are_never_written_over(self, tmp_path, part, kind):
        place = filled(tmp_path / "whole" if kind == "local" else {}, numbered_batch([7]))
        for given in (part, place, [part, place]):
            with pytest.raises(StoreExistsError, match=r"holds 1 samples.*use compact"):
                merge(given, place)
        assert_batches_equal(everything(place), numbered_batch([7]))

    def test_what_is_no_store_is_left(self, tmp_path, part):
        (tmp_path / "notes").mkdir()
        (tmp_path / "notes" / "text").write_text("mine")
        with pytest.raises(StoreExistsError, match="a directory that is not empty"):
            merge(part, tmp_path / "notes")
        zarr.create_group(tmp_path / "group", attributes={"title": "mine"})
        before = files(tmp_path)
        with pytest.raises(StoreExistsError, match="holds a group that zarrpipe did not write"):
            merge(part, tmp_path / "group")
        with pytest.raises(NotADirectoryError):
            merge(part, tmp_path / "notes" / "text")
        assert files(tmp_path) == before

    @pytest.mark.parametrize("kind", ["nothing", "directory", "group", "empty", "emptied"])
    @pytest.mark.parametrize("where", ["local", "memory"])
    def test_where_no_sample_is(self, tmp_path, part, kind, where):
        place = tmp_path / "deep" / "whole" if where == "local" else {}
        if kind == "directory" and where == "local":
            place.mkdir(parents=True)
        if kind == "group":
            zarr.create_group(place)
        if kind in ("empty", "emptied"):
            with ZarrData(place) as sink:
                sink.write(numbered_batch([1]).without("energy"))
                sink.zero() if kind == "emptied" else None
        if kind == "empty":
            with AtomicDataZarrWriter(place) as writer:
                writer.delete([0])
        merge(part, place)
        assert_batches_equal(everything(place), numbered_batch(range(5)))
        assert_plain_zarr(place, numbered_batch(range(5)), exact=True)
        if where == "local":
            assert [path.name for path in place.parent.iterdir()] == ["whole"]
        with ZarrData(place) as sink:
            sink.write(numbered_batch([5]))
        assert len(StoreView(place).ids) == 6

    def test_another_makes_it_meanwhile(self, tmp_path, part, monkeypatch):
        place = tmp_path / "whole"
        block = sources.MergeSource.ids

        def ids(self):
            filled(place, numbered_batch([9])) if not place.exists() else None
            return block(self)

        monkeypatch.setattr(sources.MergeSource, "ids", ids)
        with pytest.raises(StoreExistsError, match="created by another process meanwhile"):
            merge(part, place)
        assert_batches_equal(everything(place), numbered_batch([9]))
        assert [path.name for path in tmp_path.iterdir()] == ["whole"]

    @pytest.mark.parametrize(
        ("kind", "moment"),
        [
            ("nothing", "MergePlan"),
            ("local", "MergePlan"),
            ("memory", "MergePlan"),
            ("local", "StoreWriter"),
            ("memory", "StoreWriter"),
        ],
    )
    def test_another_writes_into_it_meanwhile(self, tmp_path, part, monkeypatch, kind, moment):
        """While the sources are looked at, or just before the target is locked."""
        place = {} if kind == "memory" else tmp_path / "whole"
        if kind != "nothing":
            filled(place, numbered_batch([9]), delete=[0])
        module = target_module if moment == "StoreWriter" else merge_module
        original = getattr(module, moment)

        def late(*arguments):
            with ZarrData(place) as sink:
                sink.write(numbered_batch([7, 8]))
            return original(*arguments)

        monkeypatch.setattr(module, moment, late)
        with pytest.raises(StoreExistsError, match=r"holds 2 samples.*use compact"):
            merge(part, place)
        assert_batches_equal(everything(place), numbered_batch([7, 8]))

    def test_two_at_a_time(self, tmp_path, part):
        """One comes first, the other is refused, and nobody's work is removed under him."""
        errors, started = [], threading.Barrier(2)

        def work():
            started.wait()
            try:
                merge(part, tmp_path / "whole")
            except StoreExistsError as error:
                errors.append(error)

        threads = [threading.Thread(target=work) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(errors) == 1
        assert_batches_equal(everything(tmp_path / "whole"), numbered_batch(range(5)))
        assert [path.name for path in tmp_path.iterdir()] == ["whole"]

    def test_through_a_link(self, tmp_path, part):
        (tmp_path / "real").mkdir()
        (tmp_path / "link").symlink_to(tmp_path / "real")
        merge(part, tmp_path / "link" / "whole")
        merge(part, tmp_path / "elsewhere")
        (tmp_path / "other").symlink_to(tmp_path / "elsewhere")
        compact(tmp_path / "other", shuffle=1)
        assert (tmp_path / "other").is_symlink()
        assert sorted(everything(tmp_path / "elsewhere")["serial"].tolist()) == [*range(5)]
        assert_batches_equal(everything(tmp_path / "real" / "whole"), numbered_batch(range(5)))

    def test_a_remote_store(self, part, tmp_path):
        pytest.importorskip("fsspec")
        url = f"memory://{tmp_path.name}/s"
        merge([part, part], zarr.storage.FsspecStore.from_url(url))
        store = zarr.storage.FsspecStore.from_url(url)
        assert_batches_equal(everything(store), numbered_batch([*range(5)] * 2))
        merge(store, tmp_path / "back")
        assert_batches_equal(everything(tmp_path / "back"), numbered_batch([*range(5)] * 2))

    def test_read_only(self, part, tmp_path):
        with pytest.raises(StoreReadOnlyError, match="opened read-only"):
            merge(part, zarr.storage.LocalStore(tmp_path / "whole", read_only=True))
        filled(tmp_path / "source", numbered_batch([3]))
        merge(zarr.storage.LocalStore(tmp_path / "source", read_only=True), tmp_path / "whole")
        assert_batches_equal(everything(tmp_path / "whole"), numbered_batch([3]))


class TestWrongInput:
    def test_stores(self, tmp_path):
        with pytest.raises(FieldError, match="an empty list of stores"):
            merge([], tmp_path / "whole")
        with pytest.raises(StoreNotFoundError, match=r"no Zarr store at .*nowhere"):
            merge([filled({}, numbered_batch([0])), tmp_path / "nowhere"], tmp_path / "whole")
        with pytest.raises(StoreNotFoundError, match=r"no Zarr store at .*nowhere"):
            compact(tmp_path / "nowhere")
        with pytest.raises(TypeError, match="expected a path"):
            merge([3], tmp_path / "whole")
        zarr.create_array(tmp_path / "array", data=np.arange(3))
        with pytest.raises(StoreFormatError, match="is a single Zarr array"):
            merge(tmp_path / "array", tmp_path / "whole")
        assert [path.name for path in tmp_path.iterdir()] == ["array"]

    @pytest.mark.parametrize("seed", [-1, 1.5, True, "1"])
    def test_seeds(self, tmp_path, seed):
        for call in (lambda **o: merge({}, tmp_path / "whole", **o), lambda **o: compact({}, **o)):
            with pytest.raises(FieldError, match=r"shuffle is .*expected an integer of at least 0"):
                call(shuffle=seed)

    @pytest.mark.parametrize(
        ("change", "match"),
        [
            (lambda b: b.add_field("own", torch.zeros(b.num_nodes), "atom"), "at level 'atom'"),
            (lambda b: b.add_field("own", torch.zeros(3).double(), "system"), "float64 of row"),
            (lambda b: b.add_field("own", torch.zeros(3, 2), "system"), r"row shape \(2,\)"),
        ],
    )
    def test_stores_that_clash(self, tmp_path, change, match):
        one, other = numbered_batch(range(3)), numbered_batch(range(3))
        one.add_field("own", torch.zeros(3), "system")
        change(other)
        stores = [filled(tmp_path / "a", one), filled(tmp_path / "b", other)]
        with pytest.raises(SchemaError, match=f"'own' is float32.*in .*/a and .*{match}.*in .*/b"):
            merge(stores, tmp_path / "whole")
        assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]


class TestSizes:
    def test_few_large_whole_pages(self, tmp_path):
        stores = [
            filled(tmp_path / f"{n}", random_batch(np.random.default_rng(n), 9000)) for n in (0, 1)
        ]
        merge(stores, tmp_path / "whole")
        group = zarr.open_group(tmp_path / "whole", mode="r")
        atoms = group["core/positions"].shape[0]
        assert atoms > 40_000
        assert group["core/positions"].chunks == (65_536, 3)
        assert group["meta/atoms_ptr"].chunks == (32_768,)
        assert group["core/energy"].chunks == (32_768, 1)
        chunks = (tmp_path / "whole").rglob("c/*")
        for path in (path for path in chunks if "sums" not in path.parts):  # these are encoded
            size = sum(entry.stat().st_size for entry in path.rglob("*") if entry.is_file())
            if "sums" not in path.parts:
                assert (path.stat().st_size if path.is_file() else size) % 65_536 == 0
        assert not (tmp_path / "whole" / "meta" / "atoms_mask" / "c").exists()
        assert_batches_equal(
            everything(tmp_path / "whole"), ZarrDataset(stores).gather(range(18_000))
        )

    def test_published(self, tmp_path):
        store = filled(tmp_path / "store", random_batch(np.random.default_rng(0), 30_000))
        merge(store, tmp_path / "whole", config=ZarrWriteConfig.published())
        array = zarr.open_group(tmp_path / "whole", mode="r")["core/positions"]
        assert array.shards == (131_072, 3)
        assert array.chunks == (65_536, 3)
        assert array.compressors[0].to_dict()["name"] == "zstd"
        assert len([*(tmp_path / "whole" / "core" / "positions" / "c").iterdir()]) == 1
        assert_batches_equal(everything(tmp_path / "whole"), everything(store))

    def test_sizes_that_are_given(self, tmp_path):
        store = filled({}, numbered_batch(range(20)))
        merge(
            store,
            tmp_path / "whole",
            config=SHARDED | {"field_overrides": {"serial": {"chunk_size": 5}}},
        )
        group = zarr.open_group(tmp_path / "whole", mode="r")
        assert (group["core/forces"].chunks, group["core/forces"].shards) == ((8, 3), (32, 3))
        assert group["custom/serial"].chunks == (5,)


class TestProgress:
    def test_silent_where_no_one_looks(self, tmp_path, capfd):
        store = filled({}, numbered_batch(range(20)))
        merge(store, tmp_path / "whole")
        merge(store, tmp_path / "quiet", progress=False)
        compact(store)
        assert capfd.readouterr() == ("", "")

    def test_shown_when_asked_for(self, tmp_path, capfd):
        pytest.importorskip("tqdm")
        store = filled({}, numbered_batch(range(20)))
        merge(store, tmp_path / "whole", progress=True)
        compact(tmp_path / "whole", progress=True)
        shown = capfd.readouterr().err
        assert f"merge into {tmp_path / 'whole'}: 100%" in shown
        assert f"compact {tmp_path / 'whole'}: 100%" in shown

    def test_without_tqdm(self, tmp_path, monkeypatch):
        monkeypatch.setitem(sys.modules, "tqdm", None)
        store = filled({}, numbered_batch(range(20)))
        with pytest.raises(ModuleNotFoundError, match="pip install tqdm"):
            merge(store, tmp_path / "whole", progress=True)
        assert merge(store, tmp_path / "whole") == 20
