"""Stores on network file systems, and stores that others change or replace under a reader."""

import shutil
import tarfile

import numpy as np
import pytest
import zarr

from zarrpipe import ZarrData, ZarrDataset
from zarrpipe.errors import StoreFormatError
from zarrpipe.store.backend import location
from zarrpipe.store.backend.location import is_far
from zarrpipe.store.backend.mapped_memory import libc
from zarrpipe.store.cache.array import CachedArray
from zarrpipe.store.read import store_arrays
from zarrpipe.store.read.loaded import LoadedArray
from zarrpipe.store.read.mapped import MappedArray
from zarrpipe.store.read.view import StoreView
from zarrpipe.testing import assert_batches_equal, numbered_batch

SMALL = {"chunk_size": 512}
CONFIG = {"meta": SMALL, "core": SMALL, "custom": SMALL}


def sink(store, config=CONFIG):
    return ZarrData(store, config=config)


def fill(store, start, stop, generation=0):
    with sink(store) as writer:
        writer.write(numbered_batch(range(start, stop), generation))


def rows(view):
    return view.gather(np.arange(view.num_samples))


class TestFileSystems:
    def test_a_local_one(self, tmp_path):
        assert not is_far(tmp_path)
        assert not is_far(tmp_path / "nothing")

    @pytest.mark.parametrize("kind", [0x6969, 0xFE534D42, 0xFF534D42, 0x65735546, 0x01021997])
    def test_those_of_networks(self, monkeypatch, kind):
        class Library:
            @staticmethod
            def statfs(path, answer):
                assert path == b"/somewhere"
                answer[:8] = kind.to_bytes(8, "little")
                return 0

        monkeypatch.setattr(location, "libc", Library)
        assert is_far(location.Path("/somewhere"))

    def test_the_answer_of_the_system(self):
        if not hasattr(libc(), "statfs"):
            pytest.skip("no statfs")
        assert not is_far(location.Path("/proc"))


class TestNetwork:
    @pytest.fixture(autouse=True)
    def _far(self, monkeypatch):
        monkeypatch.setattr(store_arrays, "is_far", lambda _: True)

    def test_nothing_is_mapped(self, tmp_path):
        fill(tmp_path / "store", 0, 9)
        view = StoreView(tmp_path / "store")
        assert_batches_equal(rows(view), numbered_batch(range(9)))
        kinds = {type(flat) for flat in view.snapshot._arrays._readers.values()}
        assert kinds == {LoadedArray, CachedArray}

    def test_a_live_store(self, tmp_path, monkeypatch):
        """Rows that were not committed when their chunk was fetched are fetched again."""
        store, step = tmp_path / "store", 37
        with sink(store) as writer:
            writer.write(numbered_batch(range(step)))
            view, dataset = StoreView(store), ZarrDataset(store)
            for start in range(step, 1500, step):
                writer.write(numbered_batch(range(start, start + step)))
                assert view.refresh() == step
                assert_batches_equal(
                    view.gather(np.arange(start - 5, start + step)),
                    numbered_batch(range(start - 5, start + step)),
                )
            assert dataset.refresh() == len(dataset) - step
            whole = dataset.__getitems__(np.arange(len(dataset)))
        assert_batches_equal(whole, numbered_batch(range(len(dataset))))

    def test_rows_that_are_not_committed_are_not_kept(self, tmp_path, monkeypatch):
        """A writer that was killed leaves rows that the next one writes anew, in place."""
        store = tmp_path / "store"
        fill(store, 0, 9)
        with sink(store) as writer:
            with monkeypatch.context() as patch:
                killed = RuntimeError("killed")
                pointers = writer._open_writer().array("meta/atoms_ptr")
                patch.setattr(type(pointers), "write", _failing(pointers, killed))
                with pytest.raises(RuntimeError, match="killed"):
                    writer.write(numbered_batch(range(9, 15), 1))
            view = StoreView(store)
            assert_batches_equal(rows(view), numbered_batch(range(9)))
            writer.write(numbered_batch(range(9, 15), 2))
            assert view.refresh() == 6
            assert_batches_equal(view.gather(np.arange(9, 15)), numbered_batch(range(9, 15), 2))

    def test_a_store_that_is_emptied(self, tmp_path):
        store = tmp_path / "store"
        fill(store, 0, 9)
        view = StoreView(store)
        rows(view)
        with sink(store) as writer:
            writer.zero()
            writer.write(numbered_batch(range(4), 3))
            view.refresh()
            assert_batches_equal(rows(view), numbered_batch(range(4), 3))


def _failing(broken, error):
    original = type(broken).write

    def write(self, start, values):
        if self is broken:
            raise error
        original(self, start, values)

    return write


class TestReplaced:
    def test_by_another_store(self, tmp_path):
        """What was at hand is served until a refresh sees what stands there now."""
        fill(tmp_path / "store", 0, 30)
        fill(tmp_path / "other", 100, 108, 1)
        view = StoreView(tmp_path / "store")
        before = rows(view)
        (tmp_path / "store").rename(tmp_path / "aside")
        (tmp_path / "other").rename(tmp_path / "store")
        assert_batches_equal(rows(view), before)
        view.refresh()
        assert_batches_equal(rows(view), numbered_batch(range(100, 108), 1))

    def test_rows_not_at_hand_are_not_taken_from_another(self, tmp_path):
        fill(tmp_path / "store", 0, 30)
        fill(tmp_path / "other", 0, 30, 1)
        view = StoreView(tmp_path / "store")
        view.gather(np.arange(3), ["energy"])
        shutil.rmtree(tmp_path / "store")
        (tmp_path / "other").rename(tmp_path / "store")
        with pytest.raises(StoreFormatError, match="was emptied or rewritten since"):
            view.gather(np.arange(3), ["forces"])

    @pytest.mark.parametrize("how", ["rename", "tar", "copy"])
    def test_by_a_backup_of_the_same_generation(self, tmp_path, how):
        """Whose samples may be others: it has grown in another way."""
        store, backup = tmp_path / "store", tmp_path / "backup"
        fill(store, 0, 10)
        shutil.copytree(store, backup)
        fill(store, 10, 30)
        fill(backup, 10, 30, 1)
        view, fresh = StoreView(store), StoreView(store)
        before = rows(view)
        _put_back(store, backup, how)
        if how != "copy":
            assert_batches_equal(rows(view), before)
        for look in (view.refresh, view.refresh, lambda: rows(fresh)):
            with pytest.raises(StoreFormatError, match="was replaced by another copy of the store"):
                look()
        assert_batches_equal(
            rows(StoreView(store)).index_select(slice(10, 30)), numbered_batch(range(10, 30), 1)
        )

    def test_by_an_older_backup(self, tmp_path):
        store, backup = tmp_path / "store", tmp_path / "backup"
        fill(store, 0, 10)
        shutil.copytree(store, backup)
        fill(store, 10, 30)
        dataset = ZarrDataset(store)
        before = dataset.__getitems__(np.arange(30))
        _put_back(store, backup, "rename")
        with pytest.raises(StoreFormatError, match="was replaced by another copy of the store"):
            dataset.refresh()
        assert_batches_equal(before, numbered_batch(range(30)))

    def test_pointers_that_are_removed_or_replaced_by_nothing(self, tmp_path):
        """What is mapped is served; that no other pointers stand there yet is no damage."""
        store = tmp_path / "store"
        fill(store, 0, 30)
        view = StoreView(store)
        (store / "meta/atoms_ptr/c/0").unlink()
        assert view.refresh() == 0
        assert_batches_equal(rows(view), numbered_batch(range(30)))

    def test_one_file_that_is_put_right(self, tmp_path):
        """A chunk that another file replaces is mapped anew at a refresh."""
        store = tmp_path / "store"
        fill(store, 0, 30)
        view = StoreView(store)
        rows(view)
        zarr.open_group(store, mode="r+")["core/energy"][:] = np.arange(30.0)[:, None] * 2
        view.refresh()
        assert rows(view)["energy"][:, 0].tolist() == [2.0 * i for i in range(30)]


def _put_back(store, backup, how):
    if how == "tar":
        with tarfile.open(backup.with_suffix(".tar"), "w") as archive:
            archive.add(backup, ".")
        with tarfile.open(backup.with_suffix(".tar")) as archive:
            for member in archive.getmembers():
                if member.isfile():  # as GNU tar does: what is there is removed first
                    (store / member.name).unlink(missing_ok=True)
            archive.extractall(store, filter="data")
        return
    shutil.rmtree(store)
    if how == "rename":
        backup.rename(store)
    else:
        shutil.copytree(backup, store)


class TestForeign:
    """A plain store that zarr-python appends to, which replaces files by new ones."""

    def make(self, store, count):
        fill(store, 0, count)
        group = zarr.open_group(store, mode="r+")
        attributes = dict(group.attrs)
        del attributes["zarrpipe"]
        group.attrs.put(attributes)
        return group

    def test_that_has_grown(self, tmp_path):
        group = self.make(tmp_path / "store", 40)
        view = StoreView(tmp_path / "store")
        assert isinstance(view.snapshot._arrays.find("meta/atoms_ptr"), MappedArray)
        assert_batches_equal(rows(view), numbered_batch(range(40)))
        for start in (40, 60, 300):
            self.append(group, view.num_samples, start)
            view.refresh()
            assert_batches_equal(rows(view), numbered_batch(range(start)))

    def append(self, group, have, count):
        """Rows first and pointers last, each by a read, a change and a new file."""
        batch = numbered_batch(range(count))
        ends = {"atoms_ptr": batch.batch_ptr.numpy(), "edges_ptr": batch.edge_ptr.numpy()}
        before = {name: group[f"meta/{name}"].shape[0] for name in ends}
        assert before == dict.fromkeys(ends, have + 1)
        for path, array in [
            (f"{p}/{n}", a) for p in ("core", "custom") for n, a in group[p].arrays()
        ]:
            array.append(batch[path.rpartition("/")[2]].numpy()[array.shape[0] :])
        group["meta/samples_mask"].append(np.ones(count - have, dtype=bool))
        for name in ("edges_ptr", "atoms_ptr"):
            group[f"meta/{name}"].append(ends[name][have + 1 :])

    def test_whose_files_were_only_replaced(self, tmp_path):
        self.make(tmp_path / "store", 40)
        view = StoreView(tmp_path / "store")
        rows(view)
        path = tmp_path / "store/core/forces/c/0/0"
        content = path.read_bytes()
        path.with_name("new").write_bytes(bytes(len(content)))
        path.with_name("new").replace(path)
        view.refresh()
        assert not rows(view)["forces"].any()
