"""Copies: a twin of a store at one moment, whatever its writer does meanwhile."""

import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
import zarr
from zarr.storage import FsspecStore, LocalStore, MemoryStore

from zarrpipe import (
    AtomicDataZarrWriter,
    Batch,
    ZarrData,
    ZarrDataset,
    ZarrWriteConfig,
    check,
    copy,
    merge,
)
from zarrpipe.errors import (
    ArgumentError,
    StoreExistsError,
    StoreFormatError,
    StoreLockedError,
    StoreNotFoundError,
)
from zarrpipe.store.backend.location import Root
from zarrpipe.store.read.snapshot import Snapshot
from zarrpipe.store.read.view import StoreView
from zarrpipe.store.rewrite import merge_source as sources
from zarrpipe.store.rewrite import write_store as writing
from zarrpipe.store.statistics.stored_sums import read_sums
from zarrpipe.testing import (
    assert_batches_equal,
    assert_plain_zarr,
    numbered_batch,
    random_batch,
    stored_bytes,
)

GROUPS = ("meta", "core", "custom")
ZSTD = (zarr.codecs.ZstdCodec(level=1),)
CONFIGS = {
    "plain": None,
    "small": {group: {"chunk_size": 64} for group in GROUPS},
    "zstd": {group: {"chunk_size": 16, "compressors": ZSTD} for group in GROUPS},
    "sparse": {
        group: {"chunk_size": 4, "compressors": ZSTD, "write_empty_chunks": False}
        for group in GROUPS
    },
    "sharded": {
        group: {"chunk_size": 8, "shard_size": 32, "compressors": ZSTD} for group in GROUPS
    },
}
UNITS = {"weight": "kg"}


def rich(numbers) -> Batch:
    """Samples with a string, a level of their own that counts atoms, and a field some lack."""
    batch = numbered_batch(numbers)
    numbers = np.asarray(numbers)
    counts = numbers % 3
    first = np.repeat(batch.batch_ptr.numpy()[:-1], counts)
    has = torch.from_numpy(numbers % 4 > 0)
    weight = torch.where(has, torch.from_numpy(numbers * 1.5), torch.nan)
    extra = {
        "kind": [f"kind-{number // 7}" for number in numbers.tolist()],
        "bond_atoms": torch.from_numpy(np.stack([first, first], axis=1)),
        "weight": weight,
    }
    levels = {"serial": "system", "kind": "system", "bond_atoms": "bond", "weight": "system"}
    return Batch(
        {**batch.fields, **extra},
        batch.batch_ptr,
        batch.edge_ptr,
        levels=levels,
        level_ptrs={"bond": torch.from_numpy(np.concatenate([[0], np.cumsum(counts)]))},
        index_of={"bond_atoms": "atom"},
        present={"weight": has},
    )


def written(store, numbers, kind="plain"):
    """A closed store in two appends, so that not all fields are there from the start."""
    config = {**(CONFIGS[kind] or {}), "units": UNITS}
    with ZarrData(store, config=config) as sink:
        for part in np.array_split(np.asarray(numbers), 2):
            sink.write(rich(part))
    root(store).update_attributes({"licence": "CC-BY-4.0", "zarrpipe.imports": [{"of": "x.xyz"}]})
    return store


def root(store) -> zarr.Group:
    return zarr.open_group(Root.of(store).path, mode="r+", use_consolidated=False)


def everything(store) -> Batch:
    view = StoreView(store)
    return view.gather(np.arange(view.num_samples))


def twin(store, other) -> None:
    """Compare every array by its rows and its metadata, and the attributes of the root."""
    arrays = [
        {
            path: item
            for path, item in root(place).members(max_depth=None)
            if isinstance(item, zarr.Array) and path != "meta/sums"
        }
        for place in (store, other)
    ]
    assert arrays[0].keys() == arrays[1].keys()
    for path, one in arrays[0].items():
        same = arrays[1][path]
        for name in ("shape", "chunks", "shards", "dtype", "fill_value"):  # which may be NaN
            assert repr(getattr(same, name)) == repr(getattr(one, name)), (path, name)
        assert same.metadata.codecs == one.metadata.codecs, path
        assert same.attrs.asdict() == one.attrs.asdict(), path
        np.testing.assert_array_equal(same[:], one[:], err_msg=path)
    attributes = [root(place).attrs.asdict() for place in (store, other)]
    generations = [one["zarrpipe"].pop("generation") for one in attributes]
    assert generations[0] != generations[1]
    assert attributes[0] == attributes[1]


@pytest.fixture(params=["local", "dict", "fsspec"])
def target(request, tmp_path):
    """A place of each kind."""
    if request.param == "fsspec":
        pytest.importorskip("fsspec", reason="the extra 'fsspec' is not installed")
        return f"memory://{tmp_path.name}/copy"
    return {} if request.param == "dict" else tmp_path / "deep" / "copy"


class TestTwin:
    @pytest.mark.parametrize(
        ("kind", "memory"), [*((kind, False) for kind in CONFIGS), ("zstd", True)]
    )
    def test_every_array_and_attribute(self, tmp_path, target, kind, memory, monkeypatch):
        monkeypatch.setattr(writing, "_CHECKED", 50)
        monkeypatch.setattr(sources, "_DECODED", 200)
        store = written(MemoryStore() if memory else tmp_path / "s", range(60), kind)
        assert copy(store, target, progress=False) == 60
        twin(store, target)
        assert_batches_equal(everything(target), rich(range(60)))
        assert Snapshot(Root.of(target)).schema == Snapshot(Root.of(store)).schema
        assert Snapshot(Root.of(target)).schema["weight"].unit == "kg"
        assert check(target).ok

    def test_back_and_forth(self, tmp_path):
        store = written({}, range(30), "zstd")
        copy(store, tmp_path / "there")
        back = {}
        assert copy(str(tmp_path / "there"), back) == 30
        twin(store, back)

    def test_what_is_not_in_the_arrays_of_the_source(self, tmp_path):
        """Deleted samples, the masks of their atoms, and arrays that are not of zarrpipe."""
        store = written(tmp_path / "s", range(40), "small")
        with AtomicDataZarrWriter(store) as writer:
            writer.delete([0, 7, 39])
        root(store).create_array("notes", data=np.arange(3))
        assert copy(store, tmp_path / "copy") == 37
        kept = [number for number in range(40) if number not in {0, 7, 39}]
        assert_batches_equal(everything(tmp_path / "copy"), rich(kept))
        assert root(tmp_path / "copy").attrs["zarrpipe"]["deleted"] == 0
        assert "notes" not in root(tmp_path / "copy")
        assert check(tmp_path / "copy").findings == ()

    def test_a_box_that_some_samples_lack(self, tmp_path):
        fields = ("energy", "cell", "pbc")
        batch = random_batch(np.random.default_rng(0), 40, fields=fields, absent=0.3)
        assert {"cell", "pbc"} <= batch.partly_present
        with ZarrData(tmp_path / "s") as sink:
            sink.write(batch)
        assert copy(tmp_path / "s", tmp_path / "copy") == 40
        assert_batches_equal(everything(tmp_path / "copy"), batch)

    def test_sums_are_kept(self, tmp_path):
        """Those of the store, or counted where it was not closed."""
        store = tmp_path / "s"
        with ZarrData(store) as sink:
            sink.write(rich(range(50)))
            copy(store, tmp_path / "open")
            assert read_sums(root(store)) is None
        copy(store, tmp_path / "closed")
        expected = read_sums(root(store)).sums
        kept, counted = (read_sums(root(tmp_path / name)).sums for name in ("closed", "open"))
        np.testing.assert_array_equal(kept.table, expected.table)
        np.testing.assert_array_equal(kept.origin, expected.origin)
        assert counted.total("energies") == expected.total("energies") == 50
        assert check(tmp_path / "open").findings == ()

    def test_a_store_goes_on_from_its_copy(self, tmp_path):
        copy(written(tmp_path / "s", range(10), "zstd"), tmp_path / "copy")
        with ZarrData(tmp_path / "copy") as sink:
            sink.write(rich(range(10, 15)))
        assert_batches_equal(everything(tmp_path / "copy"), rich(range(15)))
        assert check(tmp_path / "copy").ok

    def test_without_samples(self, tmp_path):
        with ZarrData(tmp_path / "s") as sink:
            sink.write(numbered_batch([1]))
            sink.zero()
        assert copy(tmp_path / "s", tmp_path / "copy") == 0
        assert len(ZarrDataset(tmp_path / "copy")) == 0

    def test_a_store_of_another_writer(self, tmp_path):
        """The layout alone: without ids and attributes of ours, own fields in core."""
        store = tmp_path / "s"
        with AtomicDataZarrWriter(store, CONFIGS["zstd"]) as writer:
            writer.write(numbered_batch(range(20)))
            writer.delete([3])
        ids, group = StoreView(store).ids, zarr.open_group(store, mode="r+")
        fields = group.attrs["fields"]
        group.create_array("core/serial", data=group["custom/serial"][:], chunks=(5,))
        del group["custom/serial"], group.attrs["zarrpipe"], group["meta/ids"]
        group.attrs["fields"] = {"core": fields["core"] | fields["custom"], "custom": {}}
        assert copy(store, tmp_path / "copy") == 19
        expected = numbered_batch([number for number in range(20) if number != 3])
        assert_plain_zarr(tmp_path / "copy", expected, exact=True)
        np.testing.assert_array_equal(StoreView(tmp_path / "copy").ids, ids)
        made = zarr.open_group(tmp_path / "copy", mode="r")
        assert made["core/positions"].chunks == (16, 3)
        assert made["core/positions"].compressors == ZSTD
        assert made["custom/serial"].chunks == (5,)
        with ZarrData(tmp_path / "copy") as sink:
            assert len(sink) == 19

    def test_a_published_store_stays_one(self, tmp_path):
        merge(written({}, range(50)), tmp_path / "s", config=ZarrWriteConfig.published())
        copy(tmp_path / "s", tmp_path / "copy")
        twin(tmp_path / "s", tmp_path / "copy")


class TestLive:
    @pytest.mark.parametrize("kind", ["plain", "small", "zstd"])
    def test_a_writer_appends_between_all_arrays(self, tmp_path, target, kind, monkeypatch):
        """New fields and strings too: the copy has what was there when it began."""
        sink = ZarrData(tmp_path / "s", config=CONFIGS[kind])
        sink.write(numbered_batch(range(20)).without("forces"))
        field, after = sources.MergeSource.field, iter(range(20, 10_000, 20))

        def late(self, item):
            start = next(after)
            sink.write(rich(range(start, start + 20)))
            return field(self, item)

        monkeypatch.setattr(sources.MergeSource, "field", late)
        assert copy(tmp_path / "s", target) == 20
        monkeypatch.undo()
        assert_batches_equal(everything(target), numbered_batch(range(20)).without("forces"))
        assert check(target).ok
        assert copy(tmp_path / "s", tmp_path / "later") == len(sink) > 100
        found = everything(tmp_path / "later")
        assert found["serial"].tolist() == [*range(len(sink))]
        assert found.strings("kind")[20:] == rich(range(20, len(sink))).strings("kind")
        sink.close()

    def test_a_thread_that_writes_into_memory(self):
        store, errors = MemoryStore(), []
        begun, stop = threading.Event(), threading.Event()

        def write():
            with ZarrData(store, config=CONFIGS["zstd"]) as sink:
                start = 0
                while not stop.is_set():
                    try:
                        sink.write(rich(range(start, start + 10)))
                    except Exception as error:  # noqa: BLE001  shown by the test
                        errors.append(error)
                        return
                    start += 10
                    begun.set()

        thread = threading.Thread(target=write)
        thread.start()
        try:
            assert begun.wait(60)
            for _ in range(3):
                target = {}
                count = copy(store, target)
                assert_batches_equal(everything(target), rich(range(count)))
                assert check(target).ok
        finally:
            stop.set()
            thread.join()
        assert not errors


class TestChangedMeanwhile:
    @pytest.mark.parametrize("change", ["emptied", "refilled", "rewritten", "removed"])
    def test_nothing_is_left_and_a_repetition_works(self, tmp_path, target, change, monkeypatch):
        store, ids = written(tmp_path / "s", range(30), "zstd"), sources.MergeSource.ids

        def late(self):
            monkeypatch.undo()
            if change == "emptied":
                with ZarrData(store) as sink:
                    sink.zero()
            elif change == "rewritten":
                with AtomicDataZarrWriter(store) as writer:
                    writer.delete([0])
                    writer.defragment()
            found = ids(self)
            if change == "refilled":  # by as many samples, once all of these were read
                with ZarrData(store) as sink:
                    sink.zero()
                    sink.write(rich(range(100, 130)))
            if change == "removed":
                Path(store).rename(tmp_path / "moved")
            return found

        monkeypatch.setattr(sources.MergeSource, "ids", late)
        with pytest.raises(StoreFormatError, match=r"emptied or rewritten (while|since)"):
            copy(store, target)
        assert Root.of(target).open_group() is None
        if isinstance(target, dict):
            assert target == {}
        elif isinstance(target, Path):
            assert not [*target.parent.iterdir()]
        else:
            assert not [*Root.of(target).path.store.fs.sync_fs.find(target)]
        fresh = written(tmp_path / "fresh", range(9))
        assert copy(fresh, target) == 9
        assert_batches_equal(everything(target), rich(range(9)))

    def test_an_older_state_is_put_back(self, tmp_path, monkeypatch):
        """As from a backup, with the same generation and fewer samples."""
        store, blocks = MemoryStore(), sources.MergeSource.ids
        sink = ZarrData(store)
        sink.write(rich(range(10)))
        sink.flush()
        older = dict(store._store_dict)
        sink.write(rich(range(10, 20)))

        def late(self):
            found = blocks(self)
            store._store_dict.clear()
            store._store_dict.update(older)
            return found

        monkeypatch.setattr(sources.MergeSource, "ids", late)
        with pytest.raises(
            StoreFormatError, match="emptied or rewritten while it was being copied"
        ):
            copy(store, tmp_path / "copy")
        assert not [*tmp_path.iterdir()]


class TestVerify:
    def damaged(self, store):
        chunk = store / "core" / "positions" / "c" / "0" / "0"
        content = bytearray(chunk.read_bytes())
        content[0] ^= 1
        chunk.write_bytes(bytes(content))
        return store

    def test_a_structure_that_is_not_that_of_its_id(self, tmp_path, target):
        store = self.damaged(written(tmp_path / "s", range(10)))
        with pytest.raises(StoreFormatError, match="1 samples, the first of them 0 of the new"):
            copy(store, target)
        assert Root.of(target).open_group() is None
        assert copy(store, target, verify=False) == 10
        assert not check(target).ok

    def test_a_target_that_does_not_keep_what_is_written(self, tmp_path, monkeypatch):
        store, write = written(tmp_path / "s", range(40)), writing._fill

        def lossy(array, plan, name, done):
            write(array, plan, name, done)
            if name == "atomic_numbers":
                array.write(plan.counts.atoms - 1, np.array([77], dtype=np.int32))

        monkeypatch.setattr(writing, "_fill", lossy)
        monkeypatch.setattr(writing, "_CHECKED", 1)
        with pytest.raises(StoreFormatError, match="first of them 39 of the new store"):
            copy(store, tmp_path / "copy")
        assert [path.name for path in tmp_path.iterdir()] == ["s"]

    def test_structures_larger_than_a_block(self, tmp_path, monkeypatch):
        monkeypatch.setattr(writing, "_CHECKED", 1)
        store = written({}, range(12), "zstd")
        assert copy(store, tmp_path / "copy") == 12


KILLED = """
import os, signal, sys
from zarrpipe import copy
from zarrpipe.store.rewrite import write_store
source, target, kind, moment = sys.argv[1:]
if kind == "fsspec":
    from zarr.storage import FsspecStore
    target = FsspecStore.from_url(f"local://{target}", {"auto_mkdir": True})
calls, write = [], write_store._write_backwards
def die(array, values):
    calls.append(array)
    if moment == "after":  # the pointers of bonds and edges, and the last of those of atoms
        if len(calls) < 3:
            return write(array, values)
        array.write(len(values) - 1, values[-1:])
    os.kill(os.getpid(), signal.SIGKILL)
write_store._write_backwards = die
copy(source, target)
"""


class TestKilled:
    @pytest.mark.parametrize("moment", ["before", "after"])
    @pytest.mark.parametrize("kind", ["local", "fsspec"])
    def test_no_incomplete_copy(self, tmp_path, kind, moment):
        source, folder = written(tmp_path / "s", range(30), "small"), tmp_path / "copies"
        folder.mkdir()
        target = folder / "copy"
        if kind == "fsspec":
            pytest.importorskip("fsspec", reason="the extra 'fsspec' is not installed")
            target = FsspecStore.from_url(f"local://{folder}/copy", {"auto_mkdir": True})
        command = [sys.executable, "-c", KILLED, str(source), str(folder / "copy"), kind, moment]
        assert subprocess.run(command, check=False, timeout=120).returncode == -signal.SIGKILL
        if kind == "local":
            assert not target.exists()
            assert len([*folder.iterdir()]) == 1
        else:
            assert Snapshot(Root.of(target)).count == 0
        assert copy(source, target) == 30
        twin(source, target)
        assert [path.name for path in folder.iterdir()] == ["copy"]


class TestTarget:
    def test_samples_are_not_written_over(self, tmp_path, target):
        store = written(tmp_path / "s", range(5))
        copy(store, target)
        with pytest.raises(StoreExistsError, match=r"holds 5 samples.*overwrite=True"):
            copy(written({}, range(7)), target)
        assert_batches_equal(everything(target), rich(range(5)))

    @pytest.mark.parametrize("kind", ["local", "dict"])
    def test_overwrite(self, tmp_path, kind):
        target = tmp_path / "copy" if kind == "local" else {}
        assert copy(written({}, range(5)), target, overwrite=True) == 5
        root(target).attrs["mine"] = 1
        store = written(tmp_path / "s", range(9), "zstd")
        root(store).attrs["licence"] = "other"
        assert copy(store, target, overwrite=True) == 9
        assert root(target).attrs["mine"] == 1
        del root(target).attrs["mine"]
        twin(store, target)
        if kind == "local":
            assert sorted(path.name for path in tmp_path.iterdir()) == ["copy", "s"]

    def test_what_overwrite_does_not_replace(self, tmp_path):
        store = written(tmp_path / "s", range(5))
        zarr.create_group(tmp_path / "group", attributes={"title": "mine"})
        (tmp_path / "files").mkdir()
        (tmp_path / "files" / "text").write_text("mine")
        for name, match in (("group", "zarrpipe did not write"), ("files", "not empty")):
            before = stored_bytes(tmp_path / name)
            with pytest.raises(StoreExistsError, match=match):
                copy(store, tmp_path / name, overwrite=True)
            assert stored_bytes(tmp_path / name) == before
        with ZarrData(tmp_path / "held") as sink:
            sink.write(rich(range(3)))
            with pytest.raises(StoreLockedError):
                copy(store, tmp_path / "held", overwrite=True)
        assert_batches_equal(everything(tmp_path / "held"), rich(range(3)))

    def test_a_remote_store_is_not_replaced(self, tmp_path):
        pytest.importorskip("fsspec", reason="the extra 'fsspec' is not installed")
        url = f"memory://{tmp_path.name}/copy"
        store = written(tmp_path / "s", range(5))
        assert copy(store, url, overwrite=True) == 5
        with pytest.raises(StoreFormatError, match="not local, and a kill during the rewrite"):
            copy(written({}, range(7)), url, overwrite=True)
        assert_batches_equal(everything(FsspecStore.from_url(url)), rich(range(5)))

    def test_a_failed_replacement_leaves_the_old_one(self, tmp_path, monkeypatch):
        for target in (tmp_path / "copy", {}):
            copy(written({}, range(5)), target)

            def fail(self):
                raise OSError("no room")

            with monkeypatch.context() as patch:
                patch.setattr(sources.MergeSource, "check_unchanged", fail)
                with pytest.raises(OSError, match="no room"):
                    copy(written({}, range(9)), target, overwrite=True)
            assert_batches_equal(everything(target), rich(range(5)))

    def test_a_store_onto_itself(self, tmp_path):
        store, memory = written(tmp_path / "s", range(5)), written({}, range(5))
        (tmp_path / "link").symlink_to(store)
        for source, target in ((store, tmp_path / "link"), (memory, memory)):
            with pytest.raises(ArgumentError, match="is the source and the target"):
                copy(source, target, overwrite=True)

    def test_no_source(self, tmp_path):
        with pytest.raises(StoreNotFoundError, match="no Zarr store"):
            copy(tmp_path / "nowhere", tmp_path / "copy")
        with pytest.raises(TypeError, match="overwrite"):
            copy(written({}, range(2)), {}, overwrite="yes")
        assert not [*tmp_path.iterdir()]

    def test_a_read_only_source(self, tmp_path):
        written(tmp_path / "s", range(5))
        assert copy(LocalStore(tmp_path / "s", read_only=True), tmp_path / "copy") == 5


def test_progress(tmp_path, capfd):
    pytest.importorskip("tqdm")
    copy(written({}, range(20)), tmp_path / "copy", progress=True)
    assert f"copy to {tmp_path / 'copy'}: 100%" in capfd.readouterr().err
