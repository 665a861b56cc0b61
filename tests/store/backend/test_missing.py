"""A chunk that is not there: fill where the array leaves some out, and a refusal elsewhere."""

import json
import shutil

import numpy as np
import pytest
import torch
import zarr
from zarr.storage import MemoryStore

import zarrpipe as zp
from zarrpipe.errors import StoreFormatError
from zarrpipe.store.backend import files
from zarrpipe.store.check.report import Severity
from zarrpipe.testing import assert_batches_equal, numbered_batch

GROUPS = ("meta", "core", "custom")
PLAIN = {group: {"chunk_size": 512} for group in GROUPS}
ZSTD = {group: {"chunk_size": 64, "compressors": "zstd"} for group in GROUPS}
SHARDED = {group: {**ZSTD[group], "shard_size": 128} for group in GROUPS}
LOST = r"is not there, and should hold"


def write(store, config, batch):
    with zp.ZarrData(store, config=config) as sink:
        sink.write(batch)
    return store


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Gives the store of 300 samples that a config makes, which is written once."""
    known = {}

    def of(config):
        key = repr(config)
        if key not in known:
            place = tmp_path_factory.mktemp("whole") / "store"
            known[key] = write(place, config, numbered_batch(range(300)))
        return known[key]

    return of


@pytest.fixture
def copy(whole, tmp_path):
    """Copies the store that a config makes into the directory of the test."""
    return lambda config: shutil.copytree(whole(config), tmp_path / "store")


def files_of(store):
    """Files of a store, but for locks, with what is in them."""
    names = (path for path in store.rglob("*") if path.is_file() and path.name != ".lock")
    return {path: path.read_bytes() for path in names}


def all_fill(count):
    """Systems of which every field is the fill value, without edges."""
    return zp.Batch.from_data_list(
        [
            zp.AtomicData(
                torch.full((2, 3), torch.nan),
                torch.zeros(2, dtype=torch.int64),
                pbc=torch.zeros(1, 3, dtype=torch.bool),
                neighbor_list=torch.zeros(0, 2, dtype=torch.int64),
                system={"label": torch.zeros(1, dtype=torch.int64)},
            )
        ]
        * count
    )


def copied(source, target, *, marked):
    """Copy of a store as zarr-python makes it, which leaves out chunks of fill."""
    root = zarr.open_group(source, mode="r")
    made = zarr.create_group(target, attributes=root.attrs.asdict())
    for path, found in root.members(max_depth=None):
        if isinstance(found, zarr.Group):
            made.require_group(path)
            continue
        array = made.create_array(
            path,
            shape=found.shape,
            chunks=found.chunks,
            dtype=found.dtype,
            fill_value=found.fill_value,
            compressors=None,
            attributes=found.attrs.asdict() if marked else None,
        )
        array[...] = found[...]
    return target


def rewrites(store, target):
    """Every call that copies the rows of a store."""

    def defragment():
        with zp.AtomicDataZarrWriter(store) as writer:
            writer.delete([0])
            writer.defragment()

    return {
        "merge": lambda: zp.merge([store], target),
        "shuffle": lambda: zp.merge([store], target, shuffle=1),
        "compact": lambda: zp.compact(store),
        "defragment": defragment,
    }


@pytest.mark.parametrize("way", ["merge", "shuffle", "compact", "defragment"])
@pytest.mark.parametrize(
    ("config", "lost"),
    [
        (PLAIN, "core/forces/c/1/0"),
        (PLAIN, "custom/serial/c/0"),
        (ZSTD, "core/energy/c/1/0"),
        (SHARDED, "custom/serial/c/2"),
        (ZSTD, "meta/ids/c/4"),
    ],
    ids=["plain", "own", "zstd", "sharded", "ids"],
)
def test_no_rewrite_turns_a_lost_chunk_into_fill(tmp_path, copy, config, lost, way):
    store = copy(config)
    (store / lost).unlink()
    with pytest.raises(StoreFormatError, match=LOST):
        rewrites(store, tmp_path / "new")[way]()
    assert not (tmp_path / "new").exists()
    with pytest.raises(StoreFormatError, match=LOST):
        zp.ZarrDataset(store).ids.sum() if "ids" in lost else zp.ZarrData(store).read()


@pytest.mark.parametrize("config", [PLAIN, ZSTD, SHARDED], ids=["plain", "zstd", "sharded"])
@pytest.mark.parametrize(
    "path", ["core/positions", "core/energy", "custom/serial", "meta/ids", "meta/samples_mask"]
)
def test_a_writer_does_not_go_on_with_a_lost_chunk(copy, config, path):
    """It would make the chunk anew, and the rows that are gone would be there again, as zeros."""
    store = copy(config)
    last = max(
        (one for one in (store / path / "c").rglob("*") if one.is_file()),
        key=lambda one: int(one.relative_to(store / path / "c").parts[0]),
    )
    last.unlink()
    before = files_of(store)
    with pytest.raises(StoreFormatError, match=f"{last} {LOST}"), zp.ZarrData(store) as sink:
        sink.write(numbered_batch([999]))
    with pytest.raises(StoreFormatError, match=LOST), zp.AtomicDataZarrWriter(store) as writer:
        writer.delete([0])
    assert files_of(store) == before


@pytest.mark.parametrize("config", [PLAIN, ZSTD], ids=["plain", "zstd"])
def test_a_writer_misses_every_chunk_of_the_mask(tmp_path, config):
    """Samples of a chunk that is not there would be taken for deleted."""
    store = write(tmp_path / "store", config, numbered_batch(range(1100)))
    with zp.AtomicDataZarrWriter(store) as writer:
        writer.delete([3])
    (store / "meta/samples_mask/c/0").unlink()
    lost = f"samples_mask/c/0 {LOST}"
    with pytest.raises(StoreFormatError, match=lost), zp.AtomicDataZarrWriter(store) as writer:
        writer.append(numbered_batch([999]))
    with pytest.raises(StoreFormatError, match=lost):
        zp.ZarrDataset(store)


def test_a_store_of_before_arrays_said_what_they_leave_out_goes_on(copy):
    """Chunks of masks of rows are only made by deletions."""
    store = copy(PLAIN)
    for path in store.rglob("zarr.json"):
        document = json.loads(path.read_text())
        if document["node_type"] == "array":
            del document["attributes"]["zarrpipe"]["dense"]
            path.write_text(json.dumps(document))
    assert not (store / "meta/atoms_mask/c").exists()
    with zp.ZarrData(store) as sink:
        sink.write(numbered_batch([999]))
    (store / "core/energy/c/0/0").unlink()
    with pytest.raises(StoreFormatError, match=LOST), zp.ZarrData(store) as sink:
        sink.write(numbered_batch([1000]))


@pytest.mark.parametrize("config", [PLAIN, ZSTD], ids=["plain", "zstd"])
def test_rows_without_values_have_no_chunks_to_lose(tmp_path, config):
    system = zp.AtomicData(torch.zeros(3, 3), [1, 1, 8], atom={"none": torch.zeros(3, 0)})
    batch = zp.Batch.from_data_list([system] * 5)
    store = write(tmp_path / "store", config, batch)
    with zp.ZarrData(store) as sink:
        sink.write(batch)
    assert zp.ZarrData(store).read()["none"].shape == (30, 0)
    document = store / "custom/none/zarr.json"
    metadata = json.loads(document.read_text())
    grid = metadata["chunk_grid"]["configuration"]
    grid["chunk_shape"][1] = 0  # as zarr 3.1 took it
    document.write_text(json.dumps(metadata))
    with zp.ZarrData(store) as sink:
        sink.write(batch)
    assert zp.ZarrData(store).read()["none"].shape == (45, 0)


def test_a_check_misses_what_says_who_has_a_field(copy):
    store = copy(PLAIN)
    with zp.ZarrData(store) as sink:
        sink.write(numbered_batch(range(3)).without("energy"))
    (store / "present/energy/c/0").unlink()
    found = [item for item in zp.check(store).findings if item.kind == "missing-chunk"]
    assert [item.place for item in found] == ["present/energy"]
    assert "the last 303 samples" in found[0].message


def test_a_chunk_of_deleted_samples_is_no_lost_one(copy):
    store = copy(ZSTD)
    with zp.AtomicDataZarrWriter(store) as writer:
        writer.delete(range(200))
    with zp.ZarrData(store) as sink:
        sink.write(numbered_batch([999]))
    assert zp.ZarrData(store).read().serial.tolist() == [*range(200, 300), 999]


@pytest.mark.parametrize("config", [ZSTD, SHARDED], ids=["zstd", "sharded"])
@pytest.mark.parametrize("lost", ["core/energy/c/1/0", "core/neighbor_list/c/1/0"])
def test_an_encoded_chunk_that_was_removed_is_told(copy, config, lost):
    store = copy(config)
    (store / lost).unlink()
    with pytest.raises(StoreFormatError, match=f"{lost} {LOST}.*write_empty_chunks"):
        zp.ZarrData(store).read()
    report = zp.check(store)
    assert ("missing-chunk", lost.partition("/c/")[0]) in {
        (item.kind, item.place) for item in report.of(Severity.ERROR)
    }
    assert zp.check(store, repair=True, drop=True).ok
    kept = zp.ZarrData(store).read()
    assert 0 < len(kept.serial) < 300
    assert_batches_equal(kept, numbered_batch(kept.serial.tolist()))


@pytest.mark.parametrize("config", [ZSTD, SHARDED], ids=["zstd", "sharded"])
def test_lost_pointers_are_told_where_they_are_decoded(tmp_path, config):
    """Edges of none look sound; those behind would fall."""
    systems = [zp.AtomicData(torch.zeros(2, 3), [1, 1], energy=1.0)] * 200
    store = write(tmp_path / "store", config, zp.Batch.from_data_list(systems))
    (store / "meta/edges_ptr/c/1").unlink()
    with pytest.raises(StoreFormatError, match=LOST):
        zp.ZarrDataset(store)


@pytest.mark.parametrize("config", [PLAIN, ZSTD, SHARDED], ids=["plain", "zstd", "sharded"])
@pytest.mark.parametrize("memory", [False, True], ids=["local", "memory"])
def test_what_is_all_fill_is_written_also_by_a_later_writer(tmp_path, config, memory):
    store = MemoryStore() if memory else tmp_path / "store"
    for _ in range(2):
        write(store, config, all_fill(100))
    assert torch.equal(zp.ZarrData(store).read().label, torch.zeros(200, dtype=torch.int64))
    assert "missing-chunk" not in zp.check(store).kinds(Severity.ERROR)
    assert "empty-chunk" not in zp.check(store).kinds(Severity.WARNING)
    assert zp.merge(store, tmp_path / "new") == 200


@pytest.mark.parametrize("config", [PLAIN, ZSTD], ids=["plain", "zstd"])
def test_chunks_before_a_field_came_may_lack_and_no_others(tmp_path, config):
    store = write(tmp_path / "store", config, numbered_batch(range(600)))
    later = zp.Batch.from_data_list(
        [zp.AtomicData(torch.zeros(1, 3), [1], system={"label": torch.full((1,), 7.0).double()})]
        * 600
    )
    write(store, config, later)
    read = zp.ZarrData(store).read()
    assert torch.equal(read.present("label"), torch.arange(1200) >= 600)
    assert bool((read.label[600:] == 7).all())
    assert zp.merge(store, tmp_path / "new") == 1200
    there = [int(path.name) for path in (store / "custom/label/c").iterdir()]
    assert min(there) > 0
    (store / f"custom/label/c/{max(there)}").unlink()
    with pytest.raises(StoreFormatError, match=LOST):
        zp.ZarrData(store).read()
    with pytest.raises(StoreFormatError, match=LOST):
        zp.merge(store, tmp_path / "other")
    assert "missing-chunk" in zp.check(store).kinds(Severity.ERROR)


def test_a_copy_by_zarr_that_leaves_fill_out_is_read_and_kept(tmp_path):
    """Its arrays say nothing about chunks, so nothing can be told to be lost, nor be given up."""
    store = write(tmp_path / "store", None, all_fill(4))
    copy = copied(store, tmp_path / "copy", marked=False)
    assert not (copy / "meta/edges_ptr/c/0").exists()
    expected = zp.ZarrData(store).read()
    assert_batches_equal(zp.ZarrDataset(copy).__getitems__(np.arange(4)), expected)
    report = zp.check(copy)
    assert report.ok
    told = [item for item in report.findings if item.kind == "empty-chunk"]
    assert {item.place for item in told} >= {"core/pbc", "meta/edges_ptr"}
    assert not any(item.drop for item in told)
    assert zp.check(copy, repair=True, drop=True).deleted == 0
    assert zp.merge(copy, tmp_path / "new") == 4
    assert_batches_equal(zp.ZarrData(tmp_path / "new").read(), expected)


def test_a_copy_that_claims_to_have_all_chunks_says_the_way_out(tmp_path):
    store = write(tmp_path / "store", None, all_fill(4))
    copy = copied(store, tmp_path / "copy", marked=True)
    with pytest.raises(StoreFormatError, match="write_empty_chunks=True"):
        zp.ZarrDataset(copy)
    (told, *_) = [item for item in zp.check(copy).findings if item.kind == "missing-chunk"]
    assert "write_empty_chunks=True" in told.message


def test_chunks_that_a_writer_was_told_to_leave_out_are_fill(tmp_path):
    options = {"compressors": "zstd", "chunk_size": 16, "write_empty_chunks": False}
    store = write(tmp_path / "store", dict.fromkeys(GROUPS, options), all_fill(100))
    assert not (store / "custom/label/c/0").exists()
    assert np.array_equal(zp.ZarrData(store).read().label, np.zeros(100))
    assert zp.check(store, repair=True, drop=True).deleted == 0
    assert zp.merge(store, tmp_path / "new") == 100


def test_edges_that_count_from_their_batch_name_the_repair(tmp_path):
    """As nvalchemi stores those of every write but the first."""
    store = write(tmp_path / "store", None, numbered_batch(range(4)))
    group = zarr.open_group(store, mode="r+")
    group.attrs.put({key: group.attrs[key] for key in ("num_samples", "fields")})
    edges = group["core/neighbor_list"]
    edges[...] = np.zeros(edges.shape, dtype=edges.dtype)
    with pytest.raises(StoreFormatError, match="`zarrpipe check --repair`"):
        zp.ZarrDataset(store).__getitems__([1, 2])


def test_what_others_keep_in_a_store_is_copied_where_it_cannot_be_linked(tmp_path, monkeypatch):
    store = write(tmp_path / "store", None, numbered_batch(range(4)))
    (store / "notes/deep").mkdir(parents=True)
    (store / "notes/deep/a.txt").write_text("kept")
    (store / "notes/link").symlink_to("deep/a.txt")
    made, create, link = [], files.create, files.link

    def fail(source, target):
        if source.name == "a.txt":
            raise OSError("a file has one name here")
        link(source, target)

    monkeypatch.setattr(files, "link", fail)
    monkeypatch.setattr(files, "create", lambda path: made.append(path.name) or create(path))
    zp.compact(store)
    assert (store / "notes/deep/a.txt").read_text() == "kept"
    assert (store / "notes/link").readlink().as_posix() == "deep/a.txt"
    assert made.count("a.txt") == 1
