"""Another Zarr writer appends to a store of ours, without chunks of fill, ids and presence."""

import numpy as np
import pytest
import torch
import zarr
from zarr.storage import MemoryStore

import zarrpipe as zp
from zarrpipe.data.ids import batch_ids
from zarrpipe.errors import StoreFormatError
from zarrpipe.store.backend import files
from zarrpipe.store.check.report import Severity
from zarrpipe.store.format.layout import is_dense
from zarrpipe.testing import assert_batches_equal

GROUPS = ("meta", "core", "custom")
CONFIGS = {
    "plain": {group: {"chunk_size": 512} for group in GROUPS},
    "zstd": {group: {"chunk_size": 16, "compressors": "zstd"} for group in GROUPS},
    "sharded": {
        group: {"chunk_size": 8, "shard_size": 16, "compressors": "zstd"} for group in GROUPS
    },
}
LOST = "is not there, and should hold"


def systems(first, count):
    """Systems whose `tag` is the fill value, and with some samples whose energies are NaN."""
    return zp.Batch.from_data_list(
        [
            zp.AtomicData(
                torch.full((2, 3), float(number)),
                [1, 8],
                pbc=torch.zeros(1, 3, dtype=torch.bool),
                energy=float("nan") if number >= 600 else float(number),
                atom={"tag": torch.zeros(2, dtype=torch.int64)},
                system={"serial": torch.tensor([number])},
            )
            for number in range(first, first + count)
        ]
    )


def zarr_resize(store, path, rows):
    array = zarr.open_group(store, mode="r+", use_consolidated=False)[path]
    array.resize((rows, *array.shape[1:]))


def zarr_write(store, path, start, values):
    zarr.open_group(store, mode="r+", use_consolidated=False)[path][start:] = values


def tensorstore_array(store, path):
    tensorstore = pytest.importorskip("tensorstore")
    spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": str(store / path)}}
    return tensorstore.open(spec, open=True).result()


def tensorstore_resize(store, path, rows):
    array = tensorstore_array(store, path)
    array.resize(exclusive_max=[rows, *array.shape[1:]]).result()


def tensorstore_write(store, path, start, values):
    tensorstore_array(store, path)[start:].write(values).result()


WRITERS = {
    "zarr": (zarr_resize, zarr_write),
    "tensorstore": (tensorstore_resize, tensorstore_write),
}


def append(store, batch, writer="zarr"):
    """Append as nvalchemi does: to every array but ids and presence, pointers first."""
    resize, write = WRITERS[writer]
    group = zarr.open_group(store, mode="r", use_consolidated=False)
    samples, atoms = group["meta/atoms_ptr"].shape[0] - 1, int(group["meta/atoms_ptr"][-1])
    rows = {
        "meta/atoms_ptr": (samples + 1, atoms + batch.batch_ptr.numpy()[1:]),
        "meta/edges_ptr": (samples + 1, np.zeros(len(batch), dtype=np.int64)),
        "meta/samples_mask": (samples, np.ones(len(batch), dtype=bool)),
        "meta/atoms_mask": (atoms, np.ones(batch.num_nodes, dtype=bool)),
    }
    for name, value in batch.fields.items():
        part = "core" if name in group["core"] else "custom"
        start = samples if batch.levels[name] == "system" else atoms
        rows[f"{part}/{name}"] = (start, value.numpy())
    for path, (start, values) in rows.items():
        resize(store, path, start + len(values))
        write(store, path, start, values)
    attributes = zarr.open_group(store, mode="r+", use_consolidated=False).attrs
    attributes["num_samples"] = samples + len(batch)


def written(store, config, count=40):
    with zp.ZarrData(store, config=config) as sink:
        sink.write(systems(0, count))
    return store


def kinds(report):
    return {(item.kind, item.place): item.severity for item in report.findings}


@pytest.mark.parametrize("writer", WRITERS)
@pytest.mark.parametrize("config", CONFIGS)
def test_what_another_writer_appended_is_read_and_continued(tmp_path, config, writer):
    store = written(tmp_path / "store", CONFIGS[config])
    append(store, systems(40, 9), writer)
    last = 0 if config == "plain" else 97 // 16
    assert not (store / f"custom/tag/c/{last}").exists()  # a chunk of zeros
    expected = systems(0, 49)
    dataset = zp.ZarrDataset(store)
    assert_batches_equal(dataset.read(range(49)), expected)
    assert np.array_equal(dataset.ids, batch_ids(expected))
    assert zp.merge(store, tmp_path / "merged") == 49
    merged = zp.ZarrDataset(tmp_path / "merged")
    assert_batches_equal(merged.read(range(49)), expected)
    assert np.array_equal(merged.ids, batch_ids(expected))
    report = zp.check(store)
    assert report.ok, str(report)
    found = kinds(report)
    assert found["fill-chunk", "custom/tag"] is Severity.NOTE
    assert found["appended", "meta/ids"] is Severity.NOTE
    with zp.ZarrData(store) as sink:
        sink.write(systems(49, 3))
    assert_batches_equal(zp.ZarrData(store).read(), systems(0, 52))
    assert np.array_equal(zp.ZarrDataset(store).ids, batch_ids(systems(0, 52)))
    assert kinds(zp.check(store)) == {}


@pytest.mark.parametrize("config", CONFIGS)
def test_a_chunk_that_is_lost_after_ours_went_on_is_missed_again(tmp_path, config):
    """The writer that went on has stored the chunks of fill that the other one left out."""
    store = written(tmp_path / "store", CONFIGS[config])
    append(store, systems(40, 9))
    with zp.ZarrData(store) as sink:
        sink.flush()
        sink.write(systems(49, 1))
    for path in ("custom/tag/c/0", "custom/serial/c/0"):
        kept = (store / path).read_bytes()
        (store / path).unlink()
        with pytest.raises(StoreFormatError, match=LOST):
            zp.ZarrDataset(store).read(range(50))
        assert "missing-chunk" in zp.check(store).kinds(Severity.ERROR)
        (store / path).write_bytes(kept)
    assert_batches_equal(zp.ZarrData(store).read(), systems(0, 50))


def test_a_chunk_of_an_array_that_no_other_writer_has_resized_is_missed(tmp_path):
    store = written(tmp_path / "store", CONFIGS["plain"])
    append(store, systems(40, 9))
    (store / "meta/ids/c/0").unlink()
    with pytest.raises(StoreFormatError, match=LOST):
        zp.merge(store, tmp_path / "merged")


def test_rows_of_a_nullable_field_that_another_writer_appended_are_present(tmp_path):
    store = written(tmp_path / "store", CONFIGS["plain"])
    with zp.ZarrData(store) as sink:
        sink.write(systems(40, 5).without("energy", "serial"))
    append(store, systems(45, 4))
    expected = np.ones(49, dtype=bool)
    expected[40:45] = False
    for _ in range(2):
        batch = zp.ZarrDataset(store).read(range(49))
        assert np.array_equal(batch.present("energy").numpy(), expected)
        assert batch.serial[batch.present("serial")].flatten().tolist() == [
            *range(40),
            *range(45, 49),
        ]
        zp.merge(store, copy := {})
        assert np.array_equal(
            zp.ZarrDataset(copy).read(range(49)).present("energy").numpy(), expected
        )
        with zp.ZarrData(store) as sink:  # stores what was computed
            sink.flush()
            sink.write(systems(49, 1))
        with zp.AtomicDataZarrWriter(store) as writer:
            writer.delete([49])
            writer.defragment()
    assert zp.check(store).ok


def test_a_reader_that_is_open_says_so_or_follows(tmp_path):
    """zarr-python replaces chunk files, and the first one of pointers tells which store it is."""
    store = written(tmp_path / "store", CONFIGS["plain"])
    dataset = zp.ZarrDataset(store)
    first = dataset.read(range(40))
    append(store, systems(40, 9))
    with pytest.raises(StoreFormatError, match="open it again"):
        dataset.refresh()
    assert_batches_equal(first, systems(0, 40))
    memory = MemoryStore()
    written(memory, CONFIGS["zstd"])
    dataset = zp.ZarrDataset(memory)
    dataset.read(range(40))
    assert np.array_equal(dataset.ids, batch_ids(systems(0, 40)))
    append(memory, systems(40, 9))
    assert dataset.refresh() == 9
    assert_batches_equal(dataset.read(range(49)), systems(0, 49))
    assert np.array_equal(dataset.ids, batch_ids(systems(0, 49)))


@pytest.mark.parametrize("config", CONFIGS)
def test_every_shape_that_ours_writes_is_said_to_be_ours(tmp_path, config):
    def check():
        for path, array in zarr.open_group(store, mode="r").members(max_depth=None):
            if isinstance(array, zarr.Array) and path != "meta/sums":
                assert array.attrs["zarrpipe"]["rows"] == array.shape[0], path
                assert is_dense(array) is array.attrs["zarrpipe"]["dense"]

    store = tmp_path / "store"
    with zp.ZarrData(store, config=CONFIGS[config]) as sink:
        for number in range(0, 60, 20):
            sink.write(systems(number, 20))
            check()
    check()
    with zp.AtomicDataZarrWriter(store) as writer:
        writer.delete([3])
        check()
        writer.defragment()
        check()
    zp.compact(store)
    check()


def test_chunks_that_a_killed_writer_had_still_to_store_are_stored_by_the_next(
    tmp_path, monkeypatch
):
    store = written(tmp_path / "store", CONFIGS["plain"])
    append(store, systems(40, 9))
    made = files.create_sized

    def fail(path, size, **options):
        raise OSError("killed")

    monkeypatch.setattr(files, "create_sized", fail)
    with pytest.raises(OSError, match="killed"):
        zp.ZarrData(store).write(systems(49, 1))
    monkeypatch.setattr(files, "create_sized", made)
    assert_batches_equal(zp.ZarrDataset(store).read(range(49)), systems(0, 49))
    with zp.ZarrData(store) as sink:
        sink.write(systems(49, 1))
    assert_batches_equal(zp.ZarrData(store).read(), systems(0, 50))
    assert kinds(zp.check(store)) == {}


@pytest.mark.parametrize("config", CONFIGS)
def test_a_chunk_that_is_not_a_number_is_not_made_of_zeros(tmp_path, config):
    """The next append goes on in a chunk of NaN that another writer left out."""
    store = written(tmp_path / "store", CONFIGS[config] | {"core": {"chunk_size": 16}}, 16)
    append(store, systems(600, 9))
    assert not (store / "core/energy/c/1").is_dir() or not any(
        (store / "core/energy/c/1").iterdir()
    )
    with zp.ZarrData(store) as sink:
        sink.write(systems(30, 2))
    energy = zp.ZarrData(store).read().energy.flatten()
    assert energy[:16].tolist() == list(range(16))
    assert energy[16:25].isnan().all()
    assert energy[25:].tolist() == [30.0, 31.0]


def test_a_field_that_another_writer_did_not_extend_is_refused_by_a_writer(tmp_path):
    store = written(tmp_path / "store", CONFIGS["plain"])
    append(store, systems(40, 9).without("energy"))
    with pytest.raises(StoreFormatError, match="core/energy has 40 rows, the pointers say 49"):
        zp.ZarrData(store).write(systems(49, 1))
    found = kinds(zp.check(store))
    assert found["length", "core/energy"] is Severity.ERROR


def test_row_numbers_at_system_level_that_another_writer_appended(tmp_path):
    store = tmp_path / "store"
    sites = [
        zp.AtomicData(
            [[0.0, 0.0, 0.0], [0.0, 0.0, float(number)]],
            [1, 8],
            system={"site": torch.tensor([[1]])},
            index_of={"site": "atom"},
        )
        for number in range(1, 6)
    ]
    with zp.ZarrData(store) as sink:
        sink.write(sites[:3])
    append(store, zp.Batch.from_data_list(sites[3:4]))
    zarr_write(store, "custom/site", 3, np.array([[6 + 1]]))
    with zp.ZarrData(store) as sink:
        sink.write(sites[4])
        assert_batches_equal(sink.read(), zp.Batch.from_data_list(sites))
    append(store, zp.Batch.from_data_list(sites[:1]))  # relative to the batch
    with pytest.raises(StoreFormatError, match="custom/site of samples 5 to 6"):
        zp.ZarrData(store).write(sites[0])
