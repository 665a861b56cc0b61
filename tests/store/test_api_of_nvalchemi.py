"""What users of nvalchemi's reader and writer rely on, call by call."""

import warnings

import numpy as np
import pytest
import torch
import zarr

import zarrpipe as zp
from zarrpipe.errors import ArgumentError, ArgumentTypeError, FieldError, StoreFormatError
from zarrpipe.store.backend import files
from zarrpipe.store.reader import FieldSchema
from zarrpipe.testing import assert_batches_equal, numbered_batch


def shapes(store):
    """First extent of each array, by path, but for the sums of statistics."""
    return {
        path: array.shape[0]
        for path, array in zarr.open_group(store, mode="r").members(max_depth=None)
        if isinstance(array, zarr.Array) and path != "meta/sums"
    }


def exact_shapes(batch, store):
    sizes = {
        "atom": batch.num_nodes,
        "edge": batch.num_edges,
        "system": batch.num_graphs,
    }
    wanted = {"meta/atoms_ptr": len(batch) + 1, "meta/edges_ptr": len(batch) + 1}
    wanted |= {"meta/ids": len(batch), "meta/samples_mask": len(batch)}
    wanted |= {"meta/atoms_mask": sizes["atom"], "meta/edges_mask": sizes["edge"]}
    group = zarr.open_group(store, mode="r")
    for name, level in batch.levels.items():
        part = "core" if name in group["core"] else "custom"
        wanted[f"{part}/{name}"] = sizes[str(level)]
    return wanted


@pytest.mark.parametrize("config", [None, {"core": {"compressors": "zstd", "chunk_size": 16}}])
def test_every_call_of_the_writer_leaves_arrays_exact(tmp_path, config):
    """Its users open the arrays at once, and never close it."""
    store = tmp_path / "s"
    writer = zp.AtomicDataZarrWriter(store, config)

    def check(batch):
        assert shapes(store) == exact_shapes(batch, store)
        group = zarr.open_group(store, mode="r")
        assert group.attrs["num_samples"] == len(batch)
        for name in ("positions", "energy"):
            np.testing.assert_array_equal(group[f"core/{name}"][:], batch[name].numpy())

    writer.write(numbered_batch(range(5)))
    check(numbered_batch(range(5)))
    writer.append(numbered_batch(range(5, 12)))
    check(numbered_batch(range(12)))
    writer.add_custom("extra", np.arange(12.0), "system")
    whole = numbered_batch(range(12)).add_field("extra", torch.arange(12.0).double(), "system")
    check(whole)
    writer.delete([3, 4])
    check(whole)
    group = zarr.open_group(store, mode="r")
    kept = np.ones(12, dtype=bool)
    kept[[3, 4]] = False
    np.testing.assert_array_equal(group["meta/samples_mask"][:], kept)
    np.testing.assert_array_equal(
        group["meta/atoms_mask"][:], np.repeat(kept, whole.num_nodes_list)
    )
    writer.append(whole.index_select([0]))
    check(zp.Batch.concatenate([whole, whole.index_select([0])]))
    writer.defragment()
    left = [*np.flatnonzero(kept).tolist(), 0]
    check(whole.index_select(left))
    writer.close()


def test_a_call_that_cannot_make_shapes_exact_has_succeeded(tmp_path, monkeypatch):
    writer = zp.AtomicDataZarrWriter(tmp_path / "s")
    writer.write(numbered_batch(range(3)))
    write_json = files.write_json

    def fail(path, document, **options):
        if document.get("shape", [0])[0] < 1000:  # those of chunks run ahead
            raise OSError(28, "No space left on device")
        write_json(path, document, **options)

    monkeypatch.setattr(files, "write_json", fail)
    with pytest.warns(RuntimeWarning, match="is stored, but the shapes"):
        writer.append(numbered_batch(range(3, 6)))
    monkeypatch.setattr(files, "write_json", write_json)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        writer.append(numbered_batch(range(6, 8)))
    assert shapes(tmp_path / "s") == exact_shapes(numbered_batch(range(8)), tmp_path / "s")
    assert_batches_equal(zp.ZarrData(tmp_path / "s").read(), numbered_batch(range(8)))


@pytest.fixture
def store(tmp_path):
    with zp.ZarrData(tmp_path / "s") as sink:
        sink.write(numbered_batch(range(6)))
    return tmp_path / "s"


def test_the_reader_gives_the_fields_that_are_asked_for_in_order(store):
    expected = numbered_batch(range(6))
    with zp.AtomicDataZarrReader(store, fields=["energy", "neighbor_list", "serial"]) as reader:
        assert reader.field_names == ["energy", "neighbor_list", "serial"]
        for index, system in enumerate(expected.to_data_list()):
            found = reader[index][0]
            assert list(found) == ["energy", "neighbor_list", "serial"]
            for name, value in found.items():
                assert torch.equal(value, system[name])
        assert set(reader.schema()) == set(expected.fields)
    assert set(zp.AtomicDataZarrReader(store).field_names) == set(expected.fields)


@pytest.mark.parametrize(
    ("fields", "error"),
    [
        ("energy", ArgumentTypeError),
        ([1], ArgumentTypeError),
        ([], ArgumentError),
        (["energy", "energy"], ArgumentError),
        (["energy", "nothing"], FieldError),
    ],
)
def test_wrong_fields_are_refused(store, fields, error):
    with pytest.raises(error):
        zp.AtomicDataZarrReader(store, fields=fields)


def test_the_reader_describes_the_store(store):
    batch = numbered_batch(range(6))
    with zp.AtomicDataZarrWriter(store) as writer:
        writer.delete([1])
    with zp.AtomicDataZarrReader(store) as reader:
        assert (len(reader), reader.num_samples, reader.store) == (5, 6, store)
        assert reader.level_schema is None
        assert reader.level_sizes() == {
            "system": 6,
            "atom": batch.num_nodes,
            "edge": batch.num_edges,
        }
        for name, value in batch.fields.items():
            level, row = str(batch.levels[name]), tuple(value.shape[1:])
            assert reader.schema()[name] == FieldSchema(level, value.dtype, row)
            array = reader.field_array(name)
            assert array.read_only
            assert array.path.endswith(f"/{name}")
        np.testing.assert_array_equal(reader.field_array("energy")[:6], batch.energy.numpy())
        with pytest.raises(FieldError, match="no field 'nothing'"):
            reader.field_array("nothing")
        for index, kept in enumerate([0, 2, 3, 4, 5]):
            system = batch.get_data(kept)
            assert reader.get_metadata(index) == (system.num_nodes, system.num_edges)
            assert reader.get_metadata(index - 5) == (system.num_nodes, system.num_edges)
        with pytest.raises(IndexError):
            reader.get_metadata(5)


def test_integrity(store):
    with zp.AtomicDataZarrReader(store) as reader:
        reader.check_integrity()
        with zp.ZarrData(store) as sink:
            sink.write(numbered_batch([6]))
            reader.check_integrity()  # shapes run ahead while a sink is open
        zarr.open_group(store, mode="r+")["core/energy"].resize((5, 1))
        with pytest.raises(StoreFormatError, match=r"core/energy has 5 rows instead of 7"):
            reader.check_integrity()


def test_a_sink_can_be_given_more_room(tmp_path):
    sink = zp.ZarrData(tmp_path / "s", 3)
    sink.write(numbered_batch(range(3)))
    with pytest.raises(RuntimeError, match="full"):
        sink.write(numbered_batch([3]))
    sink.resize(4)
    assert (sink.capacity, sink.is_full) == (4, False)
    sink.write(numbered_batch([3]))
    sink.resize(1)
    assert sink.capacity == 4
    for wrong in (0, -1, 2.5, True):
        with pytest.raises(ArgumentError, match="capacity"):
            sink.resize(wrong)
    sink.close()
    assert_batches_equal(zp.ZarrData(tmp_path / "s").read(), numbered_batch(range(4)))
