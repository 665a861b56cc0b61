"""What is put right reads right afterwards, what cannot be is left, and a kill is no harm."""

import shutil
from contextlib import suppress

import numpy as np
import pytest
import zarr
from store_faults import ERROR, FAULTS, SHARDED, SMALL, ZSTD, Killed, mortal, opened, write

import zarrpipe as zp
from zarrpipe.errors import StoreFormatError
from zarrpipe.store.backend.lock import WriterLock
from zarrpipe.store.check import repair
from zarrpipe.store.check.run import check
from zarrpipe.testing import assert_batches_equal, assert_plain_zarr, numbered_batch

PUT_RIGHT = [
    "falling-pointer",
    "zero-pointer",
    "first-pointer",
    "falling-edges",
    "uncommitted-mask",
    "uncommitted-pointers",
    "row-mask",
    "not-closed",
    "no-ids",
    "few-ids",
    "partial",
    "rewrite",
]
GIVEN_UP = {
    "flipped-position": [42],
    "flipped-number": [0],
    "flipped-id": [7],
    "stray-edge": [3],
    "cut-chunk": range(84, 100),
    "no-chunk": range(100),
}


@pytest.mark.parametrize("name", PUT_RIGHT)
def test_nothing_is_lost_by_what_is_put_right(tmp_path, name):
    store = write(tmp_path / "store")
    FAULTS[name][0](store)
    ids = zp.ZarrDataset(write(tmp_path / "good")).ids.tolist() if "ids" in name else []
    report = check(store, repair=True)
    assert report.findings == ()
    assert report.repairs
    assert ids in ([], zp.ZarrDataset(store).ids.tolist())
    assert_plain_zarr(store, numbered_batch(range(100)), exact=True)
    assert check(store, repair=True).repairs == ()
    with zp.ZarrData(store) as sink:
        sink.write(numbered_batch([100]))
        assert_batches_equal(sink.read(), numbered_batch(range(101)))


def test_a_deletion_that_a_killed_writer_did_not_publish_is_taken_back(tmp_path):
    store = write(tmp_path / "store")
    FAULTS["lost-count"][0](store)
    report = check(store, repair=True)
    assert report.findings == ()
    assert report.deleted == 0
    assert_batches_equal(zp.ZarrData(store).read(), numbered_batch(range(100)))


def test_damaged_samples_whose_deletion_was_not_published_are_deleted_again(tmp_path):
    store = write(tmp_path / "store")
    FAULTS["stray-edge"][0](store)
    opened(store, "meta/samples_mask")[3] = False  # as a killed repair leaves it
    report = check(store, repair=True, drop=True)
    assert report.findings == ()
    assert report.deleted == 1
    assert_batches_equal(zp.ZarrData(store).read(), numbered_batch(np.delete(np.arange(100), 3)))


@pytest.mark.parametrize("name", GIVEN_UP)
def test_samples_are_given_up_only_where_that_is_asked_for(tmp_path, name):
    store = write(tmp_path / "store")
    FAULTS[name][0](store)
    before = {path: path.read_bytes() for path in store.rglob("*") if path.is_file()}
    report = check(store, repair=True)
    assert not report.ok
    assert report.repairs == ()
    assert {path: path.read_bytes() for path in store.rglob("*") if path.is_file()} == before
    assert all(item.drop for item in report.of(ERROR))
    report = check(store, repair=True, drop=True)
    assert report.findings == ()
    kept = np.setdiff1d(np.arange(100), [*GIVEN_UP[name]])
    assert report.deleted == 100 - len(kept)
    if len(kept):
        assert_batches_equal(zp.ZarrData(store).read(), numbered_batch(kept))


@pytest.mark.parametrize("config", [SMALL, ZSTD, SHARDED], ids=["small", "zstd", "sharded"])
@pytest.mark.parametrize("entries", [[30], [30, 31, 60], [100], [98, 99, 100]], ids=str)
def test_pointers_are_worked_out_again(tmp_path, config, entries):
    store = write(tmp_path / "store", config=config)
    for path in ("meta/atoms_ptr", "meta/edges_ptr"):
        array = opened(store, path)
        for entry in entries:
            array[entry] = 1 << 50
    assert check(store).kinds(ERROR) == {"pointers"}
    assert check(store, repair=True).findings == ()
    assert_plain_zarr(store, numbered_batch(range(100)), exact=True)


@pytest.mark.parametrize("entries", [[30], [30, 31, 60]], ids=str)
def test_where_pointers_cannot_be_worked_out_the_samples_beside_are_given_up(tmp_path, entries):
    store = write(tmp_path / "store")
    for entry in entries:
        opened(store, "meta/atoms_ptr")[entry] = 1 << 50
    ids = opened(store, "meta/ids")
    ids[29] = ids[30] = ids[59] = 5
    assert not check(store, repair=True).ok
    report = check(store, repair=True, drop=True)
    assert report.findings == ()
    lost = {sample for entry in entries for sample in (entry - 1, entry)} | {59}
    kept = np.setdiff1d(np.arange(100), list(lost))
    assert_batches_equal(zp.ZarrData(store).read(), numbered_batch(kept))


def test_a_store_ends_before_pointers_that_are_lost_only_where_that_is_asked_for(tmp_path):
    store = write(tmp_path / "store", config=SMALL)
    for chunk in (4, 5, 6):
        (store / f"meta/atoms_ptr/c/{chunk}").unlink()
    report = check(store, repair=True)
    assert report.kinds(ERROR) == {"num-samples"}
    assert report.samples == 63
    with pytest.raises(ValueError, match="100"):
        zp.ZarrDataset(store)
    report = check(store, repair=True, drop=True)
    assert report.findings == ()
    assert_plain_zarr(store, numbered_batch(range(63)), exact=True)


@pytest.mark.parametrize("place", ["core/positions/c/1/0", "core/atomic_numbers/c/1"])
@pytest.mark.parametrize("config", [ZSTD, SHARDED], ids=["zstd", "sharded"])
def test_an_encoded_chunk_is_filled_and_its_samples_given_up(tmp_path, config, place):
    store = write(tmp_path / "store", config=config)
    chunk = store / place
    raw = bytearray(chunk.read_bytes())
    raw[10] ^= 1
    chunk.write_bytes(raw)
    report = check(store)
    assert report.kinds(ERROR) == {"chunk"}
    with pytest.raises(zp.errors.StoreFormatError, match=place.rpartition("/c/")[0]):
        zp.ZarrDataset(store).__getitems__(range(100))
    repaired = check(store, repair=True, drop=True)
    assert repaired.findings == ()
    assert 0 < repaired.deleted < 30
    kept = np.asarray(opened(store, "meta/samples_mask")).nonzero()[0]
    assert_batches_equal(zp.ZarrData(store).read(), numbered_batch(kept))


@pytest.mark.parametrize("name", ["no-array", "short", "bad-dtype", "unit", "bad-group"])
def test_what_no_repair_knows_is_left(tmp_path, name):
    store = write(tmp_path / "store")
    FAULTS[name][0](store)
    FAULTS["row-mask"][0](store)
    before = {path: path.read_bytes() for path in store.rglob("*") if path.is_file()}
    report = check(store, repair=True, drop=True)
    assert not report.ok
    assert "left all else as it is" in report.repairs[-1]
    assert {path: path.read_bytes() for path in store.rglob("*") if path.is_file()} == before


def test_a_lost_mask_is_written_anew_where_nothing_was_deleted(tmp_path):
    store = write(tmp_path / "store")
    whole = zp.ZarrData(store).read()
    FAULTS["no-mask"][0](store)
    repaired = check(store, repair=True)
    assert repaired.ok
    assert repaired.deleted == 0
    assert_batches_equal(zp.ZarrData(store).read(), whole)
    with zp.ZarrData(store) as sink:
        sink.write(whole)
    assert len(zp.ZarrDataset(store)) == 2 * whole.num_graphs


def test_a_lost_mask_is_left_where_samples_were_deleted(tmp_path):
    store = write(tmp_path / "store")
    with zp.AtomicDataZarrWriter(store) as writer:
        writer.delete([3])
    FAULTS["no-mask"][0](store)
    before = {path: path.read_bytes() for path in store.rglob("*") if path.is_file()}
    report = check(store, repair=True, drop=True)
    assert not report.ok
    assert "left all else as it is" in report.repairs[-1]
    assert {path: path.read_bytes() for path in store.rglob("*") if path.is_file()} == before


def test_a_store_that_is_being_written_is_not_repaired(tmp_path):
    store = write(tmp_path / "store")
    FAULTS["first-pointer"][0](store)
    lock = WriterLock(store)
    with pytest.raises(RuntimeError, match="is being written"):
        check(store, repair=True)
    lock.release()
    assert check(store, repair=True).ok


def test_nothing_is_written_through_a_link(tmp_path):
    store = write(tmp_path / "store")
    FAULTS["zero-pointer"][0](store)
    chunk = store / "meta/atoms_ptr/c/0"
    (store / "meta/atoms_ptr/c/0").rename(tmp_path / "elsewhere")
    chunk.symlink_to(tmp_path / "elsewhere")
    before = (tmp_path / "elsewhere").read_bytes()
    assert check(store).kinds(ERROR) == {"pointers"}
    with pytest.raises(ValueError, match="link"):
        check(store, repair=True, drop=True)
    assert (tmp_path / "elsewhere").read_bytes() == before
    assert chunk.is_symlink()


def test_a_store_that_was_opened_for_reading_is_not_repaired(tmp_path):
    store = write(tmp_path / "store")
    FAULTS["row-mask"][0](store)
    reading = zarr.storage.LocalStore(store, read_only=True)
    assert check(reading).plan() != ()
    with pytest.raises(PermissionError, match="read-only"):
        check(reading, repair=True)


def test_a_store_in_memory_is_repaired():
    store = write({}, config=ZSTD)
    array = zarr.open_array(store, path="meta/atoms_ptr", mode="r+")
    array[17] = 0
    assert check(store, repair=True).findings == ()
    assert_plain_zarr(store, numbered_batch(range(100)), exact=True)


CHANGES = ("write_at", "resize", "rename", "unlink", "remove_folder", "make_folder")


def test_killed_before_any_change_a_repair_is_finished_by_the_next(tmp_path, monkeypatch, seed):
    """Every change of local files goes through one module, whose functions die in turn."""
    kept, store = np.delete(np.arange(100), [3, 60]), write(tmp_path / "store")
    opened(store, "meta/atoms_ptr")[50] = 0
    opened(store, "meta/edges_ptr")[20] = 2
    for name in ("stray-edge", "uncommitted-mask", "partial", "not-closed"):
        FAULTS[name][0](store)
    ids = opened(store, "meta/ids")
    ids[60] = ids[60] + 1

    def attempt(place, left):
        copy = shutil.copytree(store, place / "store")
        (place / ".store.rewrite-0123abcd/meta").mkdir(parents=True)
        with monkeypatch.context() as patch:
            count = mortal(patch, CHANGES, left)
            with suppress(Killed):
                check(copy, repair=True, drop=True)
        return copy, count

    changes = attempt(tmp_path / "whole", 10**9)[1][0]
    assert changes > 15
    for left in sorted(np.random.default_rng(seed).choice(changes, 8, replace=False).tolist()):
        copy, _ = attempt(tmp_path / str(left), left)
        report = check(copy, repair=True, drop=True)
        assert report.of(ERROR) == (), (left, str(report))
        assert_batches_equal(zp.ZarrData(copy).read(), numbered_batch(kept))


def test_no_file_of_another_owner_is_removed(tmp_path):
    store = write(tmp_path / "store")
    for path in (store / "notes.txt", store / "core/mine.txt", tmp_path / ".store.rewrite-x"):
        path.write_text("mine")
    FAULTS["partial"][0](store)
    check(store, repair=True, drop=True)
    assert not (store / "core/forces/c/1.partial").exists()
    for path in (store / "notes.txt", store / "core/mine.txt", tmp_path / ".store.rewrite-x"):
        assert path.read_text() == "mine"


def test_a_cut_chunk_is_not_made_whole_through_a_link(tmp_path, monkeypatch):
    store, outside = write(tmp_path / "store", config=SMALL), tmp_path / "outside"
    chunk = store / "core/forces/c/0/0"
    outside.write_bytes(chunk.read_bytes()[:100])
    chunk.unlink()
    chunk.symlink_to(outside)
    monkeypatch.setattr(repair, "unfinished_files", lambda *_, **__: [])
    with pytest.raises(StoreFormatError, match="is a link to"):
        check(store, repair=True, drop=True)
    assert outside.stat().st_size == 100
