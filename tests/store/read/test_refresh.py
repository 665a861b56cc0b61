"""What a refresh costs: it does not grow with the store."""

import gc
import itertools
import os
import shutil

import numpy as np
import pytest
import zarr

from zarrpipe import AtomicDataZarrWriter, ZarrData
from zarrpipe.data.buffers import BufferPool
from zarrpipe.errors import StoreFormatError
from zarrpipe.store.backend import mapped_memory as addresses
from zarrpipe.store.format.commit_log import committed_samples
from zarrpipe.store.read.mapped import MappedArray, can_be_mapped
from zarrpipe.store.read.snapshot import Snapshot
from zarrpipe.store.read.store_arrays import StoreArrays
from zarrpipe.store.read.view import StoreView
from zarrpipe.testing import assert_batches_equal, numbered_batch

CHUNKS = 40


class Counted:
    """Pointers that know how many single entries were looked at."""

    def __init__(self, values) -> None:
        self.values, self.looks = values, 0

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, key):
        self.looks += not isinstance(key, slice)
        return self.values[key]


@pytest.fixture
def calls(monkeypatch):
    """Names of the system calls that look at files, as they are made."""
    made = []
    for name in ("stat", "lstat", "open", "pread", "scandir"):
        real = getattr(os, name)

        def counted(*args, name=name, real=real, **kwargs):
            made.append(name)
            return real(*args, **kwargs)

        monkeypatch.setattr(os, name, counted)
    return made


@pytest.fixture
def mapped(tmp_path):
    """Array of many chunk files, all mapped; chunk k has k + 1."""
    values = np.repeat(np.arange(CHUNKS) + 1, 512)
    array = zarr.create_array(
        tmp_path / "a", data=values, chunks=(512,), compressors=None, filters=None
    )
    mapped = MappedArray(array, tmp_path / "a")
    mapped.ensure(len(values))
    return mapped


def test_nothing_new_is_seen_by_few_looks():
    """However much room was made ahead; what is new is found as by a search of all."""
    for new in (0, 1, 2, 3, 100):
        pointers = Counted(np.zeros(1 << 20, dtype=np.int64))
        pointers.values[1 : 1000 + new + 1] = 5
        assert committed_samples(pointers, 1000) == 1000 + new
        assert pointers.looks <= 3 + 2 * new.bit_length()


def test_a_refresh_looks_at_few_chunks(mapped, calls):
    del calls[:]
    mapped.verify()
    assert calls.count("stat") <= 4


def test_every_chunk_is_looked_at_in_turn(tmp_path, mapped):
    """The last at once."""
    for index in (CHUNKS - 1, 0, 17):
        path = tmp_path / f"a/c/{index}"
        content = np.frombuffer(path.read_bytes(), np.int64)
        (tmp_path / "new").write_bytes((content + 100).tobytes())
        (tmp_path / "new").replace(path)
        for _ in range(1 if index == CHUNKS - 1 else CHUNKS // 3 + 1):
            mapped.verify()
        assert mapped.data[512 * index] == index + 101
    os.truncate(tmp_path / "a/c/20", 8)

    def turn():
        for _ in range(CHUNKS // 3 + 1):
            mapped.verify()

    with pytest.raises(StoreFormatError, match="c/20 has 8 bytes, expected 4096"):
        turn()


def test_a_refresh_makes_as_many_calls_for_many_chunks(tmp_path, calls):
    """And few at all."""
    made = []
    for name, chunk_size in (("few", 1 << 16), ("many", 512)):
        config = {"core": {"chunk_size": chunk_size}}
        with ZarrData(tmp_path / name, config=config) as sink:
            sink.write(numbered_batch(range(1500)))
        view = StoreView(tmp_path / name)
        assert_batches_equal(view.gather(np.arange(1500)), numbered_batch(range(1500)))
        view.refresh()
        del calls[:]
        view.refresh()
        made.append(len(calls))
    arrays = len(view.schema) + 2
    assert made[1] <= made[0] + 3 * arrays
    assert made[0] <= 10 + arrays


def test_pointers_are_looked_at_in_their_files(tmp_path, monkeypatch):
    """All of them, as they are mapped, with few files open at a time, and without touching maps."""
    values = np.arange(CHUNKS * 512)
    array = zarr.create_array(
        tmp_path / "a", data=values, chunks=(512,), compressors=None, filters=None
    )
    (tmp_path / "a/c/3").unlink()
    mapped = MappedArray(array, tmp_path / "a")
    mapped.ensure(len(values))
    values[3 * 512 : 4 * 512] = 0
    os.truncate(tmp_path / "a/c/9", 8)
    held, most = set(), 0

    def opened(*args, real=os.open, **kwargs):
        nonlocal most
        descriptor = real(*args, **kwargs)
        held.add(descriptor)
        most = max(most, len(held))
        return descriptor

    def closed(descriptor, real=os.close):
        held.discard(descriptor)
        real(descriptor)

    monkeypatch.setattr(os, "open", opened)
    monkeypatch.setattr(os, "close", closed)
    with mapped.in_file().opened() as entries:
        for start, stop in ((0, 9 * 512), (10 * 512, CHUNKS * 512), (511, 513), (700, 701), (5, 5)):
            np.testing.assert_array_equal(entries[start:stop], values[start:stop])
        assert entries[8 * 512] == values[8 * 512]
        with pytest.raises(StoreFormatError, match="c/9 was truncated"):
            entries[0 : CHUNKS * 512]
    assert not held
    assert 1 <= most <= 8


def test_a_map_that_does_not_follow_its_file_is_said(tmp_path, monkeypatch):
    """As on an overlay, where the first change copies the file; what was there can be read."""
    with ZarrData(tmp_path / "a") as sink:
        sink.write(numbered_batch(range(20)))
    view = StoreView(tmp_path / "a")
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    with ZarrData(tmp_path / "b") as sink:
        sink.write(numbered_batch(range(20, 30)))
    other = StoreView(tmp_path / "b")
    changed = other.snapshot.array("meta/atoms_ptr", 31)
    monkeypatch.setattr(MappedArray, "in_file", lambda _, real=MappedArray.in_file: real(changed))
    zarr.open_array(tmp_path / "a/meta/atoms_ptr").resize(31)
    with pytest.raises(StoreFormatError, match=r"mapped of it stays as it was.*the store again"):
        view.refresh()
    assert_batches_equal(view.gather(np.arange(20)), numbered_batch(range(20)))
    assert view.num_samples == 20
    assert other.refresh() == 0


@pytest.mark.parametrize("name", ["atoms_ptr", "edges_ptr"])
def test_the_first_pointer_is_looked_at_by_each_refresh(tmp_path, name):
    with ZarrData(tmp_path / "a") as sink:
        sink.write(numbered_batch(range(20)))
    view = StoreView(tmp_path / "a")
    with (tmp_path / "a/meta" / name / "c/0").open("r+b") as file:
        file.write(np.int64(1).tobytes())
    with pytest.raises(StoreFormatError, match=f"{name} begins with 1, expected 0"):
        view.refresh()


def test_maps_are_counted_for_all_arrays_of_the_process(tmp_path, mapped, monkeypatch):
    """Where they are short an array is read in another way, and growth says what is short."""
    monkeypatch.setattr(addresses, "_COUNT_EACH", 1)
    monkeypatch.setattr(addresses, "_MOST_MAPS", 1 << 20)
    gc.collect()  # of earlier tests
    in_use = (1 << 20) - addresses.maps_left()
    assert in_use >= CHUNKS
    array = zarr.open_array(tmp_path / "a", mode="r")
    monkeypatch.setattr(addresses, "_MOST_MAPS", in_use + CHUNKS)
    assert can_be_mapped(array, tmp_path / "a")
    monkeypatch.setattr(addresses, "_MOST_MAPS", in_use + 5)
    assert not can_be_mapped(array, tmp_path / "a")
    other = MappedArray(array, tmp_path / "a")
    with pytest.raises(OSError, match="chunk files are mapped in this process"):
        other.ensure(CHUNKS * 512)
    before = addresses.maps_left()
    del other
    gc.collect()
    assert addresses.maps_left() > before


class TestCopyWrittenOverTheFiles:
    """A backup that is restored in place keeps inodes and the generation."""

    @staticmethod
    def restored(store, backup):
        for path in (path for path in backup.rglob("*") if path.is_file()):
            with (store / path.relative_to(backup)).open("r+b") as file:
                file.write(path.read_bytes())
                file.truncate()

    def opened(self, tmp_path):
        store, backup = tmp_path / "store", tmp_path / "backup"
        with ZarrData(store) as sink:
            sink.write(numbered_batch(range(5)))
        shutil.copytree(store, backup)
        with ZarrData(store) as sink:
            sink.write(numbered_batch(range(5, 10)))
        view = StoreView(store)
        assert view.num_samples == 10
        self.restored(store, backup)
        return store, view

    def test_fewer_samples(self, tmp_path):
        _, view = self.opened(tmp_path)
        for _ in range(2):
            with pytest.raises(
                StoreFormatError, match=r"had 10 samples and now has 5: .* older copy"
            ):
                view.refresh()

    @pytest.mark.parametrize("count", [5, 8])
    @pytest.mark.parametrize("other", ["atoms", "values"])
    def test_others_in_their_place(self, tmp_path, count, other):
        store, view = self.opened(tmp_path)
        batch = numbered_batch(range(5, 5 + count))
        batch.positions += 1.0
        if other == "atoms":
            batch = batch.index_select([*range(count)][::-1])
        with ZarrData(store) as sink:
            sink.write(batch)
        for _ in range(2):
            with pytest.raises(StoreFormatError, match="sample 9 is another than it was: a copy"):
                view.refresh()
        assert StoreView(store).num_samples == 5 + count


@pytest.mark.parametrize(
    "error", [MemoryError(), RuntimeError("can't start new thread"), KeyboardInterrupt()], ids=repr
)
@pytest.mark.parametrize(
    "step", ["committed_samples", "row_counts", "last_sample", "active_samples", "open"]
)
def test_errors_of_the_machine_are_no_damage(tmp_path, monkeypatch, error, step):
    """They surface as they are, and the next refresh and the next batch are right."""

    def fail(*_):
        raise error

    with ZarrData(tmp_path / "a") as sink:
        sink.write(numbered_batch(range(20)))
    with AtomicDataZarrWriter(tmp_path / "a") as writer:
        writer.delete([3])
    view = StoreView(tmp_path / "a")
    with AtomicDataZarrWriter(tmp_path / "a") as writer:
        writer.append(numbered_batch(range(20, 25)))
        writer.delete([4])
    kept = [number for number in range(25) if number not in (3, 5)]
    with monkeypatch.context() as patch:
        patch.setattr(StoreArrays, step, fail)
        with pytest.raises(type(error)) as caught:
            view.refresh()
        assert caught.value is error
    view.refresh()
    assert view.num_samples == len(kept)
    assert_batches_equal(view.gather(np.arange(len(kept))), numbered_batch(kept))


@pytest.mark.parametrize("error", [MemoryError(), KeyboardInterrupt()], ids=repr)
def test_a_batch_that_fails_for_the_machine(tmp_path, monkeypatch, error):
    def fail(*_):
        raise error

    with ZarrData(tmp_path / "a") as sink:
        sink.write(numbered_batch(range(20)))
    view = StoreView(tmp_path / "a")
    with monkeypatch.context() as patch:
        patch.setattr(BufferPool, "lend", fail)
        with pytest.raises(type(error)) as caught:
            view.gather(np.arange(3))
        assert caught.value is error
    assert_batches_equal(view.gather(np.arange(3)), numbered_batch(range(3)))


@pytest.mark.parametrize("damage", ["chunk", "metadata", "array"])
def test_damaged_ids_are_told_to_those_who_ask_for_ids(tmp_path, damage):
    with ZarrData(tmp_path / "a") as sink:
        sink.write(numbered_batch(range(20)))
    ids = tmp_path / "a/meta/ids"
    if damage == "chunk":
        os.truncate(ids / "c/0", 8)
    elif damage == "metadata":
        (ids / "zarr.json").write_text("{")
    else:
        shutil.rmtree(ids)
    view = StoreView(tmp_path / "a")
    assert view.refresh() == 0
    assert_batches_equal(view.gather(np.arange(20)), numbered_batch(range(20)))
    if damage != "array":  # without the array they are computed
        with pytest.raises(StoreFormatError, match="meta/ids"):
            view.ids  # noqa: B018


def test_a_store_whose_strings_change_faster_than_it_is_opened(tmp_path, monkeypatch):
    """Each look at the pointers finds a sample with a string that the attributes did not have."""
    sink = ZarrData(tmp_path / "s")

    def write(number):
        batch = numbered_batch([number])
        batch.add_field("kind", [f"kind-{number}"], "system")
        sink.write(batch)

    write(0)
    look, numbers = Snapshot._look, itertools.count(1)

    def late(self):
        write(next(numbers))
        look(self)

    monkeypatch.setattr(Snapshot, "_look", late)
    view = StoreView(tmp_path / "s")
    monkeypatch.undo()
    assert (view.num_samples, len(sink)) == (2, 3)
    assert view.gather(np.arange(2)).strings("kind") == ["kind-0", "kind-1"]
    write(99)
    view.refresh()
    assert view.gather(np.arange(len(sink))).strings("kind")[-1] == "kind-99"
    sink.close()
