"""What readers see of a store that changes under them, and what a writer does to it."""

import copy
import json
import multiprocessing
import os
import pickle
import shutil
import threading
from contextlib import nullcontext, suppress

import numpy as np
import pytest
import torch
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from zarr.storage import MemoryStore

from zarrpipe import (
    AtomicData,
    AtomicDataZarrReader,
    AtomicDataZarrWriter,
    Batch,
    ZarrArrayConfig,
    ZarrData,
    ZarrWriteConfig,
)
from zarrpipe.data.fields import FieldSpec
from zarrpipe.data.ids import structure_ids
from zarrpipe.data.levels import Level
from zarrpipe.errors import (
    FieldError,
    SchemaError,
    StoreClosedError,
    StoreExistsError,
    StoreFormatError,
    StoreLockedError,
    StoreNotFoundError,
)
from zarrpipe.store.backend import files
from zarrpipe.store.read.view import StoreView
from zarrpipe.store.rewrite import delete_defragment
from zarrpipe.testing import assert_batches_equal, numbered_batch, random_batch

ZSTD = (zarr.codecs.ZstdCodec(level=1),)
COMPRESSED = {
    group: {"chunk_size": 16, "compressors": ZSTD} for group in ("meta", "core", "custom")
}


class Place:
    def __init__(self, store, config=None) -> None:
        self.store, self.config = store, config

    def writer(self) -> AtomicDataZarrWriter:
        return AtomicDataZarrWriter(self.store, self.config)

    def fill(self, count: int, generation: int = 0) -> None:
        with self.writer() as writer:
            writer.write(numbered_batch(range(count), generation))

    def all(self) -> Batch:
        view = StoreView(self.store)
        return view.gather(np.arange(view.num_samples))

    def serials(self) -> list[int]:
        return self.all()["serial"].tolist()


@pytest.fixture(params=["local", "compressed", "memory"])
def place(request, tmp_path):
    if request.param == "memory":
        return Place(MemoryStore())
    return Place(tmp_path / "store", COMPRESSED if request.param == "compressed" else None)


@pytest.fixture(params=["local", "memory"])
def either(request, tmp_path):
    """The two ways of reading: mapped and loaded."""
    return Place(MemoryStore() if request.param == "memory" else tmp_path / "store")


@pytest.fixture
def local(tmp_path):
    return Place(tmp_path / "store")


class TestDelete:
    def test_takes_samples_out_of_sight(self, place):
        place.fill(60)
        with place.writer() as writer:
            writer.delete([0, 5, -1])
            assert_batches_equal(
                place.all(), numbered_batch([i for i in range(59) if i not in (0, 5)])
            )
            writer.delete(torch.tensor([0, 1]))
            writer.append(numbered_batch(range(60, 70)))
            writer.delete(np.array([], dtype=np.int64))
        kept = [i for i in range(70) if i not in (0, 1, 2, 5, 59)]
        assert_batches_equal(place.all(), numbered_batch(kept))
        assert len(ZarrData(place.store)) == len(kept)

    def test_masks_say_it_to_other_tools(self, place):
        place.fill(30)
        gone = [3, 17, 29]
        with place.writer() as writer:
            writer.delete(gone)
        group, batch = zarr.open_group(place.store, mode="r"), numbered_batch(range(30))
        active = ~np.isin(np.arange(30), gone)
        np.testing.assert_array_equal(group["meta/samples_mask"][:], active)
        np.testing.assert_array_equal(
            group["meta/atoms_mask"][:], np.repeat(active, batch.num_nodes_list)
        )
        np.testing.assert_array_equal(
            group["meta/edges_mask"][:], np.repeat(active, batch.num_edges_list)
        )

    @pytest.mark.parametrize("wrong", [[10], [-11], [0, 99]])
    def test_what_is_not_there(self, place, wrong):
        place.fill(10)
        with (
            place.writer() as writer,
            pytest.raises(IndexError, match=r"sample .* of the store .* of 10"),
        ):
            writer.delete(wrong)
        assert place.serials() == [*range(10)]

    def test_a_mask(self, local):
        """A bool mask chooses samples, and never counts as the numbers 0 and 1."""
        local.fill(4)
        with local.writer() as writer:
            with pytest.raises(IndexError, match=r"a mask of shape \(2,\) for the store .* of 4"):
                writer.delete(torch.tensor([True, False]))
            with pytest.raises(IndexError, match=r"dtype float64.*expected integers or bool"):
                writer.delete([1.5])
            writer.delete(torch.tensor([False, True, False, True]))
        assert local.serials() == [0, 2]

    def test_everything(self, place):
        place.fill(5)
        with place.writer() as writer:
            writer.delete(range(5))
            assert StoreView(place.store).num_samples == 0
            writer.append(numbered_batch([8]))
        assert place.serials() == [8]
        with ZarrData(place.store, 2) as sink:
            sink.write(numbered_batch([9]))
            assert sink.is_full


class TestDefragment:
    def test_keeps_what_was_not_deleted(self, place):
        place.fill(50)
        with place.writer() as writer:
            writer.delete(range(0, 50, 3))
            writer.defragment()
            kept = [i for i in range(50) if i % 3]
            assert_batches_equal(place.all(), numbered_batch(kept))
            writer.append(numbered_batch(range(50, 60)))
            kept += range(50, 60)
        assert_batches_equal(place.all(), numbered_batch(kept))
        group = zarr.open_group(place.store, mode="r")
        assert group["meta/samples_mask"][:].all()
        assert group["core/positions"].shape[0] == numbered_batch(kept).num_nodes
        assert group.attrs["num_samples"] == len(kept)

    def test_changes_codecs(self, place):
        place.fill(20)
        with place.writer() as writer:
            writer.defragment({"core": {"compressors": ZSTD, "chunk_size": 8}})
        array = zarr.open_group(place.store, mode="r")["core/positions"]
        assert array.chunks == (8, 3)
        assert len(array.compressors) == 1
        assert_batches_equal(place.all(), numbered_batch(range(20)))

    def test_keeps_presence_and_own_fields(self, place):
        own = (FieldSpec("weights", Level.EDGE), FieldSpec("tag", Level.SYSTEM, shape=(2,)))
        rng = np.random.default_rng(5)
        batch = random_batch(rng, 30, edges=(0, 4), fields=("energy", "cell", *own), absent=0.4)
        with place.writer() as writer:
            writer.write(batch)
            writer.delete([0, 7, 29])
            writer.defragment()
        assert_batches_equal(place.all(), batch.index_select([*range(1, 7), *range(8, 29)]))

    def test_leaves_what_others_made(self, place):
        place.fill(9)
        group = zarr.open_group(place.store, mode="r+")
        group.create_array("spectra", data=np.arange(4))
        group["custom"].create_array("of_another", data=np.arange(5))
        group.attrs["note"] = "keep"
        with place.writer() as writer:
            writer.delete([2])
            writer.defragment()
        group = zarr.open_group(place.store, mode="r")
        np.testing.assert_array_equal(group["spectra"][:], np.arange(4))
        np.testing.assert_array_equal(group["custom/of_another"][:], np.arange(5))
        assert group.attrs["note"] == "keep"

    def test_everything_deleted(self, place):
        place.fill(3)
        with place.writer() as writer:
            writer.delete([0, 1, 2])
            writer.defragment()
            assert StoreView(place.store).num_samples == 0
            writer.append(numbered_batch([4]))
        assert place.serials() == [4]

    def test_leaves_no_files_and_keeps_the_lock(self, local, tmp_path):
        local.fill(5)
        writer = local.writer()
        writer.delete([0])
        writer.defragment()
        with pytest.raises(StoreLockedError):
            local.writer().append(numbered_batch([9]))
        writer.close()
        with local.writer() as other:
            other.append(numbered_batch([9]))
        assert [path.name for path in tmp_path.iterdir()] == ["store"]
        assert local.serials() == [1, 2, 3, 4, 9]

    def test_a_failure_leaves_the_store(self, local, tmp_path, monkeypatch):
        def fail(*_):
            raise OSError(28, "No space left on device")

        local.fill(5)
        writer = local.writer()
        writer.delete([0])
        monkeypatch.setattr(delete_defragment, "swap_into_place", fail)
        with pytest.raises(OSError, match="No space"):
            writer.defragment()
        assert [path.name for path in tmp_path.iterdir()] == ["store"]
        writer.append(numbered_batch([9]))
        writer.close()
        assert local.serials() == [1, 2, 3, 4, 9]

    def test_without_an_atomic_exchange(self, local, monkeypatch):
        monkeypatch.setattr(files, "_RENAME_EXCHANGE", 1 << 20)
        local.fill(5)
        with local.writer() as writer:
            writer.delete([0])
            writer.defragment()
        assert local.serials() == [1, 2, 3, 4]

    def test_refuses_where_no_swap_is_safe(self, tmp_path):
        pytest.importorskip("fsspec")
        store = zarr.storage.FsspecStore.from_url(f"memory://{tmp_path.name}/s")
        with AtomicDataZarrWriter(store) as writer:
            writer.write(numbered_batch(range(3)))
            with pytest.raises(StoreFormatError, match=r"is not local.*write it to another place"):
                writer.defragment()
        assert StoreView(store).num_samples == 3


class TestAddCustom:
    def test_at_every_level(self, place):
        place.fill(40)
        batch = numbered_batch(range(40))
        rng = np.random.default_rng(0)
        values = {
            "system": rng.normal(size=(40, 2)),
            "atom": rng.integers(0, 9, batch.num_nodes),
            "edge": rng.normal(size=(batch.num_edges, 3)) > 0,
        }
        with place.writer() as writer:
            for level, rows in values.items():
                writer.add_custom(f"own_{level}", rows, level)
                batch.add_field(f"own_{level}", torch.from_numpy(rows), level)
            writer.add_custom("charge", torch.zeros(40, 1), Level.SYSTEM)
            batch.charge = torch.zeros(40, 1)
            assert_batches_equal(place.all(), batch)
            more = numbered_batch(range(40, 45))
            writer.append(more)
        assert_batches_equal(place.all(), Batch.concatenate([batch, more]))

    def test_counts_what_was_not_deleted(self, place):
        place.fill(10)
        kept = [i for i in range(10) if i not in (2, 6)]
        with place.writer() as writer:
            writer.delete([2, 6])
            writer.add_custom("again", np.array(kept), "system")
            with pytest.raises(FieldError, match=r"shape \(10,\), expected one row for each of 8"):
                writer.add_custom("ten", np.zeros(10), "system")
        found = place.all()
        assert found["again"].tolist() == found["serial"].tolist() == kept

    @pytest.mark.parametrize(
        ("key", "data", "level", "match"),
        [
            ("1st", np.zeros(4), "system", "must be a Python identifier"),
            ("_own", np.zeros(4), "system", "without a leading underscore"),
            ("num_graphs", np.zeros(4), "system", r"is taken by \w+.num_graphs"),
            ("own", np.zeros(4), "bond", "has level 'bond'; expected 'system', 'atom' or"),
            ("charge", np.zeros((4, 1)), "atom", "registry has it at 'system'"),
            ("charge", np.zeros(4), "system", r"shape \(4,\), expected \(4, 1\)"),
            ("own", np.zeros(4, dtype=complex), "system", "cannot be stored"),
            ("own", np.float64(3), "system", r"shape \(\), expected one row"),
            ("own", np.zeros(5), "system", "each of 4 systems"),
        ],
    )
    def test_refuses(self, local, key, data, level, match):
        local.fill(4)
        with local.writer() as writer, pytest.raises(FieldError, match=match):
            writer.add_custom(key, data, level)
        assert_batches_equal(local.all(), numbered_batch(range(4)))

    def test_refuses_what_is_there(self, local):
        local.fill(4)
        with local.writer() as writer, pytest.raises(SchemaError, match="'energy' already"):
            writer.add_custom("energy", np.zeros((4, 1)), "system")

    def test_refuses_a_neighbor_list(self, local):
        with local.writer() as writer:
            writer.write(AtomicData([[0.0, 0.0, 0.0]], [1], edge={"own": torch.ones(1)}))
            with pytest.raises(FieldError, match="neighbor_list cannot be added"):
                writer.add_custom("neighbor_list", np.zeros((1, 2), dtype=int), "edge")


class TestWriter:
    def test_write_then_append(self, either):
        with either.writer() as writer:
            with pytest.raises(StoreNotFoundError, match=r"no store at .*write one first"):
                writer.append(numbered_batch([0]))
            writer.write(numbered_batch(range(3)))
            with pytest.raises(StoreExistsError, match="has 3 samples: append"):
                writer.write(numbered_batch([9]))
            writer.append(numbered_batch([3]))
        with either.writer() as writer, pytest.raises(FileExistsError):
            writer.write(numbered_batch([9]))
        assert either.serials() == [0, 1, 2, 3]

    def test_closed(self, either):
        either.fill(3)
        writer = either.writer()
        writer.close()
        writer.close()
        for change in (
            lambda: writer.append(numbered_batch([1])),
            lambda: writer.delete([0]),
            writer.defragment,
            lambda: writer.add_custom("own", np.zeros(3), "system"),
        ):
            with pytest.raises(StoreClosedError, match="was closed"):
                change()

    def test_an_appender_that_was_closed(self, either):
        either.fill(3)
        writer = either.writer()
        writer.append(numbered_batch([3]))
        appender = writer._writer
        writer.close()
        appender.close()
        for change in (lambda: appender.append(numbered_batch([4])), appender.flush, appender.zero):
            with pytest.raises(StoreClosedError, match="was closed"):
                change()
        assert either.serials() == [0, 1, 2, 3]

    @given(st.data())
    @settings(max_examples=8)
    def test_any_history_of_changes(self, tmp_path_factory, data):
        """Appends, deletions and rewriting in any order, against a list."""
        kind = data.draw(st.sampled_from(["local", "compressed", "memory"]))
        store = MemoryStore() if kind == "memory" else tmp_path_factory.mktemp("history") / "s"
        here = Place(store, COMPRESSED if kind == "compressed" else None)
        here.fill(5)
        kept, following = [*range(5)], 5
        writer, view = here.writer(), StoreView(store)
        for _ in range(data.draw(st.integers(1, 5))):
            action = data.draw(st.sampled_from(["append", "delete", "defragment", "reopen"]))
            if action == "append":
                count = data.draw(st.integers(1, 30))
                writer.append(numbered_batch(range(following, following + count)))
                kept += range(following, following + count)
                following += count
            elif action == "delete" and kept:
                gone = data.draw(st.sets(st.integers(0, len(kept) - 1), max_size=len(kept)))
                writer.delete(sorted(gone))
                kept = [number for place, number in enumerate(kept) if place not in gone]
            elif action == "defragment":
                writer.defragment()
            elif action == "reopen":
                writer.close()
                writer = here.writer()
            view.refresh()
            for reader in (view, StoreView(store)):
                assert reader.num_samples == len(kept)
                if kept:
                    index = np.array(data.draw(st.lists(st.integers(0, len(kept) - 1), min_size=1)))
                    expected = numbered_batch(np.array(kept)[index])
                    assert_batches_equal(reader.gather(index), expected)
        writer.close()


class TestRefresh:
    def test_growth(self, place):
        place.fill(3)
        view = StoreView(place.store)
        with place.writer() as writer:
            for count in (1, 20, 40):
                before = view.num_samples
                writer.append(numbered_batch(range(before, before + count)))
                assert view.num_samples == before
                assert_batches_equal(view.gather(np.arange(before)), numbered_batch(range(before)))
                assert view.refresh() == count
                whole = numbered_batch(range(before + count))
                assert_batches_equal(view.gather(np.arange(before + count)), whole)
        assert view.refresh() == 0

    def test_a_new_field(self, place):
        place.fill(3)
        view, more = StoreView(place.store), numbered_batch([3, 4])
        more.charge = torch.ones(2, 1)
        with place.writer() as writer:
            writer.append(more.without("energy"))
            assert_batches_equal(view.gather(np.arange(3)), numbered_batch(range(3)))
            assert view.refresh() == 2
        whole = Batch.concatenate([numbered_batch(range(3)), more.without("energy")])
        assert_batches_equal(view.gather(np.arange(5)), whole)
        assert view.present("energy").tolist() == [True] * 3 + [False] * 2
        assert view.present("charge").tolist() == [False] * 3 + [True] * 2
        assert view.present("forces").all()

    def test_a_deletion(self, place):
        place.fill(6)
        view = StoreView(place.store)
        with place.writer() as writer:
            writer.delete([1, 4])
            assert_batches_equal(view.gather(np.arange(6)), numbered_batch(range(6)))
            assert view.refresh() == -2
            assert_batches_equal(view.gather(np.arange(4)), numbered_batch([0, 2, 3, 5]))
            writer.append(numbered_batch([6]))
            assert view.refresh() == 1
            assert_batches_equal(view.gather(np.array([4, 1])), numbered_batch([6, 2]))
            assert view.stored_rows(np.array([4, 1])).tolist() == [6, 2]

    @pytest.mark.parametrize("change", ["zero", "drain", "defragment"])
    @pytest.mark.parametrize("touched", ["all", "some", "nothing"])
    def test_an_old_view_never_mixes_generations(self, place, change, touched):
        """It serves what it had at hand, or raises; after a refresh it serves what is there now."""
        place.fill(20)
        view = StoreView(place.store)
        if touched != "nothing":
            fields = None if touched == "all" else ["energy"]
            view.gather(np.arange(20), fields)
        old = numbered_batch(range(20))
        if change == "defragment":
            with place.writer() as writer:
                writer.delete([0])
                writer.defragment()
                writer.append(numbered_batch(range(20, 40), 1))
            now = Batch.concatenate(
                [numbered_batch(range(1, 20)), numbered_batch(range(20, 40), 1)]
            )
        else:
            with ZarrData(place.store, config=place.config) as sink:
                getattr(sink, change)()
                now = numbered_batch(range(33), 1)
                sink.write(now)
        for fields in ([], ["energy"], ["forces"], None):
            with suppress(StoreFormatError) if touched != "all" else nullcontext():
                found = view.gather(np.arange(20), fields)
                for name, value in found.fields.items():
                    torch.testing.assert_close(value, old[name], rtol=0, atol=0)
        assert view.refresh() == now.num_graphs - 20
        assert_batches_equal(view.gather(np.arange(now.num_graphs)), now)

    def test_beside_a_sink_that_is_drained(self, local):
        """Over and over, in another thread: every read is of one generation, or refused."""

        looked = threading.Event()

        def write() -> None:
            with ZarrData(local.store) as sink:
                for generation in range(2, 7):
                    sink.drain()
                    for start in (0, 7, 14):
                        sink.write(numbered_batch(range(start, start + 7), generation))
                    looked.wait(120)  # for a first read, however long it takes

        local.fill(7, 1)
        view, seen = StoreView(local.store), set()
        thread = threading.Thread(target=write)
        thread.start()
        running = True
        while running:
            running = thread.is_alive()
            with suppress(StoreFormatError) if running else nullcontext():
                view.refresh()
                found = view.gather(np.arange(view.num_samples))
                if len(found):
                    seen.add(generation := round(found.energy[0].item() / 1e9))
                    looked.set()
                    assert_batches_equal(found, numbered_batch(range(len(found)), generation))
                    assert len(found) in (7, 14, 21)
        thread.join()
        assert 6 in seen
        assert len(seen) > 1
        assert len(found) == 21

    def test_an_emptied_store(self, place):
        place.fill(5)
        view = StoreView(place.store)
        with ZarrData(place.store, config=place.config) as sink:
            sink.zero()
            assert view.refresh() == -5
            assert view.num_samples == 0
            assert view.gather(np.array([], dtype=np.int64)).num_graphs == 0
            sink.write(numbered_batch([3], 1))
            assert view.refresh() == 1
        assert_batches_equal(view.gather(np.array([0])), numbered_batch([3], 1))

    def test_a_store_that_is_gone(self, local):
        local.fill(5)
        view = StoreView(local.store)
        whole = view.gather(np.arange(5))
        shutil.rmtree(local.store)
        with pytest.raises(StoreNotFoundError, match="no Zarr store at"):
            view.refresh()
        assert_batches_equal(view.gather(np.arange(5)), whole)

    def test_a_memory_that_is_cleared(self):
        memory = MemoryStore()
        Place(memory).fill(2)
        view = StoreView(memory)
        memory._store_dict.clear()
        with pytest.raises(StoreNotFoundError, match="no Zarr store at"):
            view.refresh()


class TestPickle:
    def test_knows_what_it_knew(self, either):
        """Another process has the same samples under the same numbers, and goes on from there."""
        if not isinstance(either.store, MemoryStore):  # which is copied with its reader
            either.fill(20)
            with either.writer() as writer:
                writer.delete([3, 4])
            view = StoreView(either.store)
            text = pickle.dumps(view)
            with either.writer() as writer:
                writer.delete([0])
                writer.append(numbered_batch(range(20, 26)))
            other = pickle.loads(text)
            known = [i for i in range(20) if i not in (3, 4)]
            assert_batches_equal(other.gather(np.arange(18)), numbered_batch(known))
            assert other.refresh() == view.refresh() == 5
            assert other.num_samples == 23
            now = numbered_batch([*known[1:], *range(20, 26)])
            for reader in (view, other):
                assert_batches_equal(reader.gather(np.arange(23)), now)

    def test_a_copy(self, either):
        either.fill(4)
        view = StoreView(either.store)
        other = copy.deepcopy(view)
        view.close()
        assert_batches_equal(other.gather(np.arange(4)), numbered_batch(range(4)))

    def test_a_rewritten_store(self, local):
        local.fill(4)
        text = pickle.dumps(StoreView(local.store))
        with ZarrData(local.store) as sink:
            sink.zero()
            sink.write(numbered_batch(range(9), 1))
        with pytest.raises(StoreFormatError, match="rewritten since the reader was pickled"):
            pickle.loads(text)

    def test_a_spawned_process(self, local):
        local.fill(50)
        view = StoreView(local.store)
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            found = pool.apply(view.system_field, ("energy",))
        np.testing.assert_array_equal(found[:, 0], np.arange(50))


class TestView:
    def test_subsets_of_fields(self, either):
        either.fill(9)
        view = StoreView(either.store)
        found = view.gather(np.array([4, 2]), ["energy"])
        expected = numbered_batch([4, 2])
        assert sorted(found.fields) == ["atomic_numbers", "energy", "positions"]
        assert found.edge_ptr.tolist() == [0, 0, 0]
        torch.testing.assert_close(found.energy, expected.energy, rtol=0, atol=0)
        with pytest.raises(FieldError, match=r"has no field 'charge'; it has \["):
            view.gather(np.array([0]), ["charge"])

    def test_sizes_ids_and_columns(self, either):
        either.fill(9)
        view, batch = StoreView(either.store), numbered_batch(range(9))
        assert view.num_atoms.tolist() == batch.num_nodes_list
        assert view.num_edges.tolist() == batch.num_edges_list
        ids = structure_ids(
            batch.positions.numpy(), batch.atomic_numbers.numpy(), batch.batch_ptr.numpy()
        )
        np.testing.assert_array_equal(view.ids, ids)
        np.testing.assert_array_equal(view.system_field("energy"), batch.energy.numpy())
        for name in ("forces", "charge"):
            with pytest.raises(FieldError, match=f"no field '{name}' at system level; it has"):
                view.system_field(name)
        with pytest.raises(FieldError, match="no field 'charge'"):
            view.present("charge")

    @pytest.mark.parametrize("wrong", [[9], [-1], [3, 100]])
    def test_refuses_what_is_outside(self, either, wrong):
        either.fill(9)
        with pytest.raises(IndexError, match="of a store of 9"):
            StoreView(either.store).gather(np.array(wrong))

    def test_closed(self, either):
        either.fill(2)
        view = StoreView(either.store)
        view.close()
        view.close()
        with pytest.raises(StoreClosedError, match="was closed"):
            view.gather(np.array([0]))
        with pytest.raises(StoreClosedError, match="was closed"):
            view.refresh()

    def test_what_is_read_is_a_copy(self, either):
        either.fill(4)
        view = StoreView(either.store)
        for index in ([0, 1, 2, 3], [2, 0]):
            view.gather(np.array(index)).positions.zero_()
            view.system_field("energy")[:] = 0
        assert_batches_equal(view.gather(np.arange(4)), numbered_batch(range(4)))


class TestReader:
    def test_reads_dictionaries(self, either):
        either.fill(10)
        with either.writer() as writer:
            writer.delete([0])
        with AtomicDataZarrReader(either.store) as reader:
            assert len(reader) == 9
            for number, (fields, metadata) in enumerate(reader, 1):
                expected = numbered_batch([number])
                assert sorted(fields) == sorted(expected.fields)
                for name, value in fields.items():
                    torch.testing.assert_close(value, expected[name], rtol=0, atol=0)
                assert metadata["index"] == number - 1
                assert metadata["physical_index"] == str(number)
                assert metadata["source_file"] == str(either.store)
            assert reader[-1][0]["serial"].tolist() == [9]
            several = reader.read_many(torch.tensor([3, -9, 3]))
            assert [fields["serial"].item() for fields, _ in several] == [4, 1, 4]
            assert reader.field_levels["forces"] == "atom"
            with pytest.raises(IndexError, match="of 9"):
                reader.read(9)
            with either.writer() as writer:
                writer.append(numbered_batch([10]))
            assert reader.refresh() == 1
            assert reader.read(9)[0]["energy"].tolist() == [[10.0]]
        with pytest.raises(StoreClosedError):
            reader.read(0)

    def test_absent_fields_are_left_out(self, either):
        with either.writer() as writer:
            writer.write(Batch.concatenate([numbered_batch([0]).without("energy"),
                                            numbered_batch([1])]))  # fmt: skip
        reader = AtomicDataZarrReader(either.store)
        assert ["energy" in fields for fields, _ in reader] == [False, True]


class TestForeign:
    def test_nothing_there(self, tmp_path):
        for store in (tmp_path / "none", {}, MemoryStore()):
            with pytest.raises(StoreNotFoundError, match="there is no Zarr store at"):
                StoreView(store)
        assert not (tmp_path / "none").exists()

    def test_a_foreign_group_is_left_as_it_is(self, tmp_path):
        store = tmp_path / "other"
        group = zarr.create_group(store, attributes={"title": "mine"})
        group.create_array("core/positions", data=np.arange(6.0))
        before = {path: path.read_bytes() for path in store.rglob("*") if path.is_file()}
        with pytest.raises(StoreFormatError, match="a Zarr group without meta/atoms_ptr"):
            StoreView(store)
        with AtomicDataZarrWriter(store) as writer:
            for change in (writer.write, writer.append):
                with pytest.raises(StoreFormatError, match="zarrpipe did not write"):
                    change(numbered_batch([0]))
        after = {path: path.read_bytes() for path in store.rglob("*") if path.is_file()}
        assert after == before

    def test_a_foreign_array(self, tmp_path):
        zarr.create_array(tmp_path / "array", data=np.arange(3))
        for opening in (StoreView, ZarrData):
            with pytest.raises(
                StoreFormatError, match="is a single Zarr array, expected the group"
            ):
                opening(tmp_path / "array")

    def test_a_newer_format(self, either):
        either.fill(2)
        group = zarr.open_group(either.store, mode="r+")
        own = dict(group.attrs["zarrpipe"])
        for version in (2, 0, "1", None):
            group.attrs["zarrpipe"] = own | {"format": version}
            for opening in (StoreView, ZarrData):
                with pytest.raises(StoreFormatError, match=f"format {version!r}, .*upgrade"):
                    opening(either.store)
            with pytest.raises(StoreFormatError, match="upgrade"):
                either.writer().append(numbered_batch([2]))
        group.attrs["zarrpipe"] = own
        assert either.serials() == [0, 1]

    @pytest.mark.parametrize(
        ("changes", "match"),
        [
            ({"fields": 3}, "must be objects"),
            ({"num_samples": "two"}, "must be objects and 'num_samples' a number"),
            ({"zarrpipe": []}, "must be objects"),
            ({"fields": {"core": ["energy"]}}, "should map names to levels"),
            ({"fields": {"core": {"stress": "system"}}}, "name the field 'stress', but there"),
            ({"fields": {"core": {"energy": "bond"}}}, "has level 'bond'"),
            ({"fields": {"core": {"energy": "atom"}}}, "registry has it at 'system'"),
        ],
    )
    def test_damaged_attributes(self, either, changes, match):
        either.fill(2)
        zarr.open_group(either.store, mode="r+").update_attributes(changes)
        with pytest.raises(StoreFormatError, match=match):
            StoreView(either.store)

    def test_damaged_metadata(self, local):
        local.fill(2)
        (local.store / "zarr.json").write_text("{")
        with pytest.raises(StoreFormatError, match="cannot be opened as a Zarr group"):
            StoreView(local.store)

    def test_damaged_pointers(self, either):
        either.fill(8)
        group = zarr.open_group(either.store, mode="r+")
        group["meta/atoms_ptr"][3] = 1
        with pytest.raises(
            StoreFormatError, match=r"atoms_ptr falls.* sample 2 would have rows 3 "
        ):
            StoreView(either.store)

    def test_pointers_that_are_damaged_while_they_are_mapped(self, local):
        local.fill(8)
        view = StoreView(local.store)
        with (local.store / "meta/atoms_ptr/c/0").open("r+b") as file:
            file.seek(3 * 8)
            file.write(np.int64(1).tobytes())
        with pytest.raises(StoreFormatError, match="meta/atoms_ptr or meta/edges_ptr falls, is"):
            view.gather(np.arange(8))

    @pytest.mark.parametrize("path", ["core/energy", "meta/edges_ptr", "meta/ids"])
    def test_a_missing_array(self, either, path):
        either.fill(8)
        group = zarr.open_group(either.store, mode="r+")
        del group[path]
        if path == "meta/ids":
            assert_batches_equal(either.all(), numbered_batch(range(8)))
            assert len(np.unique(StoreView(either.store).ids)) == 8
            return
        with pytest.raises(StoreFormatError, match=path.rpartition("/")[2]):
            either.all()

    def test_a_truncated_chunk(self, local):
        local.fill(8)
        chunk = local.store / "core" / "forces" / "c" / "0" / "0"
        os.truncate(chunk, 24)
        view = StoreView(local.store)
        for _ in range(2):
            with pytest.raises(StoreFormatError, match=r"forces/c/0/0 has 24 bytes, expected"):
                view.gather(np.arange(8))
        assert view.gather(np.arange(8), ["energy"]).energy[:, 0].tolist() == [*range(8)]

    def test_a_cut_array(self):
        memory = MemoryStore()
        Place(memory).fill(8)
        zarr.open_group(memory, mode="r+")["core/forces"].resize((2, 3))
        with pytest.raises(StoreFormatError, match="core/forces has 2 rows, the pointers say"):
            Place(memory).all()

    def test_without_our_attributes(self, either):
        """A store of the same layout from another tool is read, its own deletions included."""
        either.fill(6)
        with either.writer() as writer:
            writer.delete([2])
        group = zarr.open_group(either.store, mode="r+")
        del group.attrs["zarrpipe"]
        del group["meta/ids"]
        assert either.serials() == [0, 1, 3, 4, 5]
        batch = either.all()
        ids = structure_ids(
            batch.positions.numpy(), batch.atomic_numbers.numpy(), batch.batch_ptr.numpy()
        )
        np.testing.assert_array_equal(StoreView(either.store).ids, ids)
        with either.writer() as writer, pytest.raises(StoreFormatError, match="did not write"):
            writer.append(numbered_batch([6]))
        with pytest.raises(StoreFormatError, match="did not write"):
            ZarrData(either.store).zero()

    def test_a_foreign_array_beside_a_field(self, either):
        """Another's array of the same name in the other group is not taken for the field."""
        either.fill(3)
        group = zarr.open_group(either.store, mode="r+")
        group.create_array("core/serial", data=np.zeros(9))
        assert_batches_equal(either.all(), numbered_batch(range(3)))

    def test_attributes_say_units_and_levels(self, local):
        local.fill(3)
        attributes = json.loads((local.store / "zarr.json").read_text())["attributes"]
        assert attributes["num_samples"] == 3
        assert attributes["fields"]["custom"] == {"serial": "system"}
        assert attributes["fields"]["core"]["forces"] == "atom"
        assert attributes["zarrpipe"]["units"]["forces"] == "eV/Angstrom"
        assert "atomic_numbers" not in attributes["zarrpipe"]["units"]


class TestConfig:
    def test_mappings_and_objects_are_the_same(self):
        array = ZarrArrayConfig(chunk_size=8, compressors=ZSTD)
        assert ZarrWriteConfig.of({"core": {"chunk_size": 8, "compressors": ZSTD}}).core == array
        assert ZarrWriteConfig.of(None) == ZarrWriteConfig()
        assert ZarrWriteConfig(core=array).core is array
        transpose = zarr.codecs.TransposeCodec(order=(1, 0))
        assert ZarrArrayConfig(filters=transpose).filters == (transpose,)
        assert ZarrArrayConfig(chunk_size=np.int32(8)).chunk_size == 8

    @pytest.mark.parametrize(
        ("config", "match"),
        [
            ({"core": {"chunk_size": 0}}, "chunk_size is 0, expected an integer from 1"),
            ({"core": {"chunk_size": 2.5}}, "chunk_size is 2.5, expected an integer"),
            ({"core": {"chunk_size": "8"}}, "chunk_size is '8', expected an integer"),
            ({"core": {"chunk_size": True}}, "chunk_size is True, expected an integer"),
            ({"core": {"shard_size": -4}}, "shard_size is -4, expected an integer"),
            ({"meta": {"shard_size": 4}}, "shard_size=4 needs a chunk_size"),
            (
                {"custom": {"shard_size": 10, "chunk_size": 4}},
                "shard_size=10 is not a multiple of chunk_size=4",
            ),
            ({"core": {"chunks": 4}}, "is not a ZarrArrayConfig: expected a mapping of"),
            ({"cores": {}}, "is not a ZarrWriteConfig: expected a mapping of"),
            ([], "is not a ZarrWriteConfig"),
            ({"core": {"chunk_size": 10**18}}, "expected an integer from 1 to"),
            ({"core": {"sharded": "yes"}}, "sharded is 'yes', expected True or False"),
            (
                {"core": {"write_empty_chunks": 1}},
                "write_empty_chunks is 1, expected True or False",
            ),
            ({"core": {"serializer": "zstd"}}, "of another kind: give it as compressors"),
            ({"core": {"compressors": "bytes"}}, "of another kind: give it as serializer"),
            ({"core": {"filters": ZSTD}}, "of another kind: give it as compressors"),
            ({"field_overrides": [1]}, r"field_overrides=\[1\], expected a mapping of field names"),
            ({"field_overrides": {3: {}}}, "field name 3 must be a Python identifier"),
            ({"units": "eV"}, "units='eV', expected a mapping of field names"),
            ({"units": {"a/b": "eV"}}, "field name 'a/b' must be"),
            ({"units": {"gap": 3}}, "unit of field 'gap' is 3, expected text such as 'eV'"),
            ({"units": {"gap": " "}}, "unit of field 'gap' is ' ', expected text"),
            ({"units": {"energy": "kcal/mol"}}, "the registry has it in 'eV': convert"),
            ({"units": {"spin": "hbar"}}, "the registry has it without one: convert"),
            ({"core": 3}, "3 is not a ZarrArrayConfig"),
        ],
    )
    def test_refuses(self, config, match):
        with pytest.raises(FieldError, match=match):
            ZarrWriteConfig.of(config)

    def test_which_config_counts(self):
        one, two, three, four = (ZarrArrayConfig(chunk_size=n) for n in (1, 2, 3, 4))
        config = ZarrWriteConfig(one, two, three, {"energy": four})
        found = {
            (group, name): config.for_array(f"{group}/{name}").chunk_size
            for group, name in [
                ("meta", "ids"),
                ("present", "energy"),
                ("core", "forces"),
                ("core", "energy"),
                ("custom", "tag"),
            ]
        }
        assert [*found.values()] == [1, 1, 2, 4, 3]

    def test_reaches_the_arrays(self, local):
        config = {
            "meta": {"chunk_size": 512},
            "core": {"chunk_size": 6, "shard_size": 12, "compressors": ZSTD},
            "field_overrides": {"serial": {"chunk_size": 5}, "energy": {"filters": ()}},
        }
        with ZarrData(local.store, config=config) as sink:
            sink.write(numbered_batch(range(8)))
        group = zarr.open_group(local.store, mode="r")
        assert group["meta/atoms_ptr"].chunks == (512,)
        assert (group["core/forces"].chunks, group["core/forces"].shards) == ((6, 3), (12, 3))
        assert len(group["core/forces"].compressors) == 1
        assert group["custom/serial"].chunks == (5,)
        assert group["core/energy"].chunks == (65_536, 1)
        assert not group["core/energy"].compressors
        assert_batches_equal(local.all(), numbered_batch(range(8)))
