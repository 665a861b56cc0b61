"""What writers and readers believe after a call that failed, or beside another that came first."""

import os

import pytest

from zarrpipe import AtomicDataZarrReader, AtomicDataZarrWriter, ZarrData, ZarrDataset
from zarrpipe.errors import StoreFormatError, StoreLockedError
from zarrpipe.store.backend import files, lock
from zarrpipe.store.read.view import StoreView
from zarrpipe.testing import assert_batches_equal, numbered_batch, stored_bytes


def fail_once(monkeypatch, name, when):
    """Let a step of `files` raise after it was carried out, the first time that `when` says so."""
    step, failures = getattr(files, name), []

    def failing(*arguments, **options):
        result = step(*arguments, **options)
        if not failures and when(*arguments):
            failures.append(arguments)
            raise OSError(5, "Input/output error")
        return result

    monkeypatch.setattr(files, name, failing)
    return failures


def root_was_replaced(store):
    return lambda _, target: target == store / "zarr.json"


def test_a_lacking_field_whose_announcement_arrived_though_it_raised(tmp_path, monkeypatch):
    store = tmp_path / "store"
    with ZarrData(store) as sink:
        sink.write(numbered_batch(range(4)))
        failures = fail_once(monkeypatch, "rename", root_was_replaced(store))
        with pytest.raises(OSError, match="Input/output"):
            sink.write(numbered_batch(range(4, 6)).without("energy"))
        assert len(failures) == 1
        sink.write(numbered_batch(range(4, 8)))
        assert ZarrDataset(store).gather(range(8)).present("energy").tolist() == [True] * 8
        sink.write(numbered_batch(range(8, 10)).without("energy"))
    assert (
        ZarrDataset(store).gather(range(10)).present("energy").tolist() == [True] * 8 + [False] * 2
    )
    assert sink.check().ok


def test_a_new_field_whose_announcement_arrived_though_it_raised(tmp_path, monkeypatch):
    store = tmp_path / "store"
    old, new = numbered_batch(range(4)).without("energy"), numbered_batch(range(4, 6))
    with AtomicDataZarrWriter(store) as writer:
        writer.write(old)
        fail_once(monkeypatch, "rename", root_was_replaced(store))
        with pytest.raises(OSError, match="Input/output"):
            writer.append(new)
        writer.append(new)
    found = ZarrDataset(store).gather(range(6))
    assert found.present("energy").tolist() == [False] * 4 + [True] * 2
    assert found.energy[4:].tolist() == new.energy.tolist()


def test_a_deletion_whose_count_arrived_though_it_raised(tmp_path, monkeypatch):
    store = tmp_path / "store"
    with AtomicDataZarrWriter(store) as writer:
        writer.write(numbered_batch(range(6)))
        fail_once(monkeypatch, "rename", root_was_replaced(store))
        with pytest.warns(RuntimeWarning, match="2 samples of .* were deleted"):
            writer.delete([1, 2])
        assert len(AtomicDataZarrReader(store)) == 4
    left = ZarrDataset(store)
    assert_batches_equal(left.gather(range(4)), numbered_batch([0, 3, 4, 5]))


def test_a_reader_that_could_not_look_at_the_masks_looks_again(tmp_path):
    store = tmp_path / "store"
    with ZarrData(store) as sink:
        sink.write(numbered_batch(range(6)))
    reader = AtomicDataZarrReader(store)
    with AtomicDataZarrWriter(store) as writer:
        writer.delete([0, 1])
    mask = store / "meta" / "samples_mask" / "c" / "0"
    mask.rename(tmp_path / "aside")
    with pytest.raises((OSError, ValueError)):
        reader.refresh()
    (tmp_path / "aside").rename(mask)
    reader.refresh()
    assert len(reader) == 4


def test_a_store_that_is_replaced_while_its_lock_is_taken(tmp_path, monkeypatch):
    """The lock of the old store says nothing about the new one, which keeps its samples."""
    store, flock, calls = tmp_path / "store", lock._flock, []
    first = AtomicDataZarrWriter(store)
    first.write(numbered_batch(range(6)))
    first.delete([0])

    def late(descriptor):
        calls.append(descriptor)
        if len(calls) == 1:
            first.defragment()
        return flock(descriptor)

    monkeypatch.setattr(lock, "_flock", late)
    with pytest.raises(StoreLockedError, match=f"process {os.getpid()}"):
        ZarrData(store).write(numbered_batch([99]))
    assert len(calls) >= 3
    first.append(numbered_batch(range(6, 9)))
    first.close()
    assert_batches_equal(ZarrData(store).read(), numbered_batch(range(1, 9)))


def test_locks_that_were_given_up_are_forgotten(tmp_path):
    known = lock._locks_of_process()
    before = len(known)
    for number in range(3):
        with ZarrData(tmp_path / "store") as sink:
            sink.write(numbered_batch([number]))
            assert len(known) == before + 1
        del sink
    assert len(known) == before


@pytest.mark.parametrize("path", ["meta/samples_mask", "meta/ids", "core/energy", "present/energy"])
def test_a_writer_does_not_make_anew_what_a_store_with_samples_lacks(tmp_path, path):
    store = tmp_path / "store"
    with ZarrData(store) as sink:
        sink.write(numbered_batch(range(3)))
        sink.write(numbered_batch([3]).without("energy"))
    (store / path / "zarr.json").unlink()
    before = stored_bytes(store)
    with pytest.raises(StoreFormatError, match=path):
        ZarrData(store).write(numbered_batch([4]))
    assert {name: value for name, value in stored_bytes(store).items() if ".lock" not in name} == {
        name: value for name, value in before.items() if ".lock" not in name
    }


@pytest.mark.parametrize("config", [None, {"core": {"compressors": ("zstd",), "chunk_size": 4}}])
def test_rows_that_went_when_the_store_was_emptied_are_not_called_damage(tmp_path, config):
    """A reader that has not fetched them is told why they are not there."""
    store = tmp_path / "store"
    with ZarrData(store, config=config) as sink:
        sink.write(numbered_batch(range(6)))
        dataset, view = ZarrDataset(store), StoreView(store)
        ids = StoreView(store).ids
        sink.zero()
        assert view.ids.tolist() == ids.tolist()  # they were fetched when the view was opened
        for read in (lambda: dataset.gather([5, 0]), lambda: view.gather([3])):
            with pytest.raises(
                StoreFormatError, match="was emptied or rewritten since it was opened"
            ):
                read()
        sink.write(numbered_batch(range(2)))
        view.refresh()
        assert_batches_equal(view.gather([1, 0]), numbered_batch([1, 0]))
