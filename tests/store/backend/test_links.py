"""A writer changes what is in the store and nothing else: links and odd things are refused."""

import os
import shutil

import numpy as np
import pytest
import zarr

from zarrpipe import AtomicDataZarrWriter, ZarrData, compact
from zarrpipe.errors import SchemaError, StoreFormatError
from zarrpipe.store.format.layout import ATOMS_MASK
from zarrpipe.store.read.view import StoreView
from zarrpipe.store.write.open_for_writing import unfinished_files
from zarrpipe.testing import assert_batches_equal, assert_plain_zarr, numbered_batch

PLACES = (
    *("zarr.json", "meta", "core", "core/zarr.json", "core/positions", "meta/atoms_ptr/zarr.json"),
    *("core/positions/c", "core/positions/c/0", "core/positions/c/0/0", "meta/atoms_ptr/c/0"),
    *("meta/atoms_ptr", "custom/serial", "meta/atoms_ptr/.lock"),
)


def everything_in(folder):
    return {
        path.relative_to(folder): path.read_bytes() if path.is_file() else None
        for path in folder.rglob("*")
    }


@pytest.fixture
def store(tmp_path):
    with ZarrData(tmp_path / "store") as sink:
        sink.write(numbered_batch(range(5)))
    return tmp_path / "store"


@pytest.mark.parametrize("place", PLACES)
def test_a_link_is_refused_before_anything_is_changed(tmp_path, store, place):
    """The reader goes on reading through it."""
    (store / place).rename(tmp_path / "elsewhere")
    (store / place).symlink_to(tmp_path / "elsewhere")
    before = everything_in(tmp_path)
    calls = (
        lambda: ZarrData(store).write(numbered_batch([5])),
        ZarrData(store).zero,
        lambda: AtomicDataZarrWriter(store).delete([0]),
        lambda: compact(store),
    )
    for call in calls:
        with pytest.raises(StoreFormatError, match=f"{store / place} is a link to .*elsewhere"):
            call()
        assert everything_in(tmp_path) == before
    view = StoreView(store)
    assert_batches_equal(view.gather(np.arange(5)), numbered_batch(range(5)))


@pytest.mark.parametrize("place", ["core/positions/c/0/0", "meta/ids/c/0", "core/forces/x"])
@pytest.mark.parametrize("kind", ["fifo", "folder"])
def test_what_is_no_file_is_refused(store, place, kind):
    """A FIFO does not block; a directory in the place of the last chunk is named."""
    (store / place).unlink(missing_ok=True)
    os.mkfifo(store / place) if kind == "fifo" else (store / place).mkdir()
    if (place, kind) == ("core/forces/x", "folder"):
        return
    sink = ZarrData(store)
    with pytest.raises(StoreFormatError, match="not a regular file"):
        sink.write(numbered_batch([5]))


@pytest.mark.parametrize("place", ["core/positions/c/0/0", "meta/atoms_ptr/c/0", "meta/ids/c/0"])
def test_a_chunk_of_two_stores_is_not_written_into(tmp_path, store, place):
    """A snapshot of hard links shares them: what one writer cuts off is lost to the other."""
    before = everything_in(store)
    snapshot = tmp_path / "snapshot"
    shutil.copytree(store, snapshot)
    (snapshot / place).unlink()
    os.link(store / place, snapshot / place)
    for one in (snapshot, store):
        for call in (lambda one=one: ZarrData(one).write(numbered_batch([5])), ZarrData(one).zero):
            with pytest.raises(StoreFormatError, match=f"{one / place} has 2 names"):
                call()
    assert everything_in(store) == before
    shutil.rmtree(snapshot)
    with ZarrData(store) as sink:
        sink.write(numbered_batch([5]))
    assert_plain_zarr(store, numbered_batch(range(6)), exact=True)


def test_an_early_chunk_of_two_stores_is_not_written_into(tmp_path):
    """Which opening does not look for."""
    config = {"core": {"chunk_size": 512}}
    with ZarrData(tmp_path / "store", config=config) as sink:
        sink.write(numbered_batch([0]))
        column = sink._writer.array("core/positions")
        column.write(0, np.ones((512 * 8, 3), column._dtype))
        first = tmp_path / "store/core/positions/c/0/0"
        os.link(first, tmp_path / "other")
        with pytest.raises(StoreFormatError, match="c/0/0 has 2 names"):
            column.write(0, np.zeros((1, 3), column._dtype))
        with pytest.raises(StoreFormatError, match="c/0/0 has 2 names"):
            column.clear_from(0)
    assert np.frombuffer((tmp_path / "other").read_bytes(), column._dtype).all()


def test_opening_a_writer_looks_into_the_last_chunks(tmp_path, monkeypatch):
    """Not into a folder for each chunk; a link in an early one is refused when it is reached."""
    with ZarrData(tmp_path / "store", config={"core": {"chunk_size": 512}}) as sink:
        sink.write(numbered_batch([0]))
        column = sink._writer.array("core/positions")
        column.write(0, np.ones((512 * 40, 3), column._dtype))
    arrays, scandir, seen = ["core/positions"], os.scandir, []
    monkeypatch.setattr(os, "scandir", lambda path: (seen.append(path), scandir(path))[1])
    assert unfinished_files(tmp_path / "store", arrays) == []
    assert len(seen) < 15
    del seen[:]
    unfinished_files(tmp_path / "store", arrays, whole=True)
    assert len(seen) > 40
    folder = tmp_path / "store/core/positions/c/3"
    folder.rename(tmp_path / "elsewhere")
    folder.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(StoreFormatError, match="c/3 is a link"):
        unfinished_files(tmp_path / "store", arrays)
    for change in (lambda: column.write(512 * 3, np.zeros((1, 3))), lambda: column.clear_from(9)):
        with pytest.raises(StoreFormatError, match="c/3 is a link"):
            change()
    assert np.frombuffer((tmp_path / "elsewhere/0").read_bytes(), column._dtype).all()


def test_the_store_itself_may_be_reached_by_a_link(tmp_path, store):
    (tmp_path / "link").symlink_to(store)
    with ZarrData(tmp_path / "link") as sink:
        sink.write(numbered_batch([5]))
    assert_plain_zarr(store, numbered_batch(range(6)), exact=True)
    assert (tmp_path / "link").is_symlink()


def test_a_link_beside_what_is_ours_is_left_alone(tmp_path, store):
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "text").write_text("mine")
    (store / "custom" / "notes").symlink_to(tmp_path / "notes")
    (store / "README").symlink_to(tmp_path / "notes" / "text")
    with ZarrData(store) as sink:
        sink.write(numbered_batch([5]))
        sink.zero()
    assert (store / "custom" / "notes" / "text").read_text() == "mine"
    assert (store / "README").read_text() == "mine"


def new_field(store):
    batch = numbered_batch([5])
    batch.add_field("tag", np.ones(1), "system")
    with ZarrData(store) as sink:
        sink.write(batch)


def test_an_array_of_somebody_else_is_not_replaced_by_a_new_field(tmp_path, store):
    """Nor a group, a folder or a link; the store stays as it is."""
    group = zarr.open_group(store, mode="r+")
    makers = {
        "array": lambda: group.create_array("custom/tag", data=np.arange(3)),
        "group": lambda: group.create_group("custom/tag"),
        "folder": lambda: (store / "custom/tag").mkdir() or (store / "custom/tag/x").touch(),
    }
    for make in makers.values():
        make()
        before = everything_in(store)
        with pytest.raises(SchemaError, match="has custom/tag that zarrpipe did not make"):
            new_field(store)
        with (
            AtomicDataZarrWriter(store) as writer,
            pytest.raises(SchemaError, match="has custom/tag that zarrpipe did not make"),
        ):
            writer.add_custom("tag", np.ones(5), "system")
        after = everything_in(store)
        assert {path: after[path] for path in before if path.name != ".lock"} == {
            path: text for path, text in before.items() if path.name != ".lock"
        }
        del group["custom/tag"]
    (store / "custom/tag").symlink_to(tmp_path)
    with pytest.raises(StoreFormatError, match="custom/tag is a link to"):
        new_field(store)


@pytest.mark.parametrize("left", ["array", "partial"])
def test_what_a_killed_writer_left_of_a_field_is_replaced(store, left):
    new_field(store)
    group = zarr.open_group(store, mode="r+")
    fields = group.attrs["fields"]
    del fields["custom"]["tag"]
    own = group.attrs["zarrpipe"]
    own["partly_present"] = []
    group.update_attributes({"fields": fields, "zarrpipe": own})
    if left == "partial":
        del group["custom/tag"]
        (store / "custom/tag").mkdir()
        (store / "custom/tag/zarr.json.0.partial").touch()
    new_field(store)
    assert len(ZarrData(store)) == 7
    assert ZarrData(store).read()["tag"].reshape(-1)[-1] == 1
    assert not (store / "custom/tag/zarr.json.0.partial").exists()


def test_unfinished_files_of_a_killed_writer_are_removed(store):
    left = ["zarr.json.0a.partial", "meta/ids/zarr.json.1b.partial", "core/positions/c/1.partial"]
    for name in left:
        (store / name).write_bytes(b"half")
    (store / "mine.partial").touch()
    with ZarrData(store) as sink:
        sink.write(numbered_batch([5]))
    assert [*store.rglob("*.partial")] == [store / "mine.partial"]


def test_a_killed_deletion_is_completed_for_atoms_and_edges(store):
    """The masks of samples and their number were written; an unpublished one is taken back."""
    group = zarr.open_group(store, mode="r+")
    group["meta/samples_mask"][1] = False
    with AtomicDataZarrWriter(store) as writer:
        writer.delete([])
    assert group["meta/samples_mask"][1]
    group["meta/samples_mask"][3] = False
    group.update_attributes({"zarrpipe": {**group.attrs["zarrpipe"], "deleted": 1}})
    batch = numbered_batch(range(5))
    with ZarrData(store) as sink:
        sink.write(numbered_batch([5]))
        assert len(sink) == 5
    group = zarr.open_group(store, mode="r")
    for path, ptr in (
        (ATOMS_MASK, batch.batch_ptr.tolist()),
        ("meta/edges_mask", batch.edge_ptr.tolist()),
    ):
        gone = np.arange(ptr[3], ptr[4])
        np.testing.assert_array_equal(np.flatnonzero(~group[path][:]), gone)
    assert group.attrs["zarrpipe"]["deleted"] == 1
