"""One store for nvalchemi 0.3 and zarrpipe: each reads, appends to and trains on the other's."""

import importlib

import numpy as np
import pytest
import torch
import zarr
from seeded_systems import assert_batches_equal, check_store, make_batches, make_system

import zarrpipe as zp
from zarrpipe.adapters import (
    as_batch,
    nvalchemi_dataset,
    nvalchemi_reader,
    nvalchemi_sink,
    to_nvalchemi,
)
from zarrpipe.data.ids import batch_ids

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:nvalchemi")

SIZES = [3, 1, 4]
ZSTD = {"compressors": (zarr.codecs.ZstdCodec(level=3),), "chunk_size": 8}
KINDS = {
    "plain": (lambda path: path, None),
    "memory": (lambda path: zarr.storage.MemoryStore(), None),
    "dict": (lambda path: {}, None),
    "zstd": (lambda path: path, dict.fromkeys(("meta", "core", "custom"), ZSTD)),
    "sharded": (
        lambda path: path,
        {group: {**ZSTD, "shard_size": 16} for group in ("meta", "core", "custom")},
    ),
}


@pytest.fixture(params=KINDS)
def place(request, tmp_path):
    """A new store and a config, of each kind."""
    make, config = KINDS[request.param]
    return make(tmp_path / "s.zarr"), config


def theirs(batches):
    return [to_nvalchemi(batch) for batch in batches]


def without_edges(batch):
    """Edges that nvalchemi appends count from their batch; see test_nvalchemi."""
    return batch.without("neighbor_list", "neighbor_list_shifts", "weight")


def new_in_03(reader):
    if not hasattr(reader, "check_integrity"):
        pytest.skip("nvalchemi 0.2 has no check_integrity")
    return reader


def test_ours_is_described_and_found_whole_by_its_reader(nvalchemi, place):
    store, config = place
    batches = make_batches(SIZES)
    with zp.ZarrData(store, config=config) as sink:
        for batch in batches:
            sink.write(batch)
    whole = zp.Batch.concatenate(batches)
    reader = new_in_03(nvalchemi.AtomicDataZarrReader(store))
    reader.check_integrity()
    assert reader.level_sizes() == {
        "atom": whole.num_nodes,
        "edge": whole.num_edges,
        "system": len(whole),
    }
    assert reader.level_schema is None
    assert reader.num_samples == len(whole)
    ours = zp.AtomicDataZarrReader(store)
    assert ours.level_sizes() == reader.level_sizes()
    for name, found in reader.schema().items():
        expected = ours.schema()[name]
        assert (found.level, found.dtype, tuple(found.row_shape)) == (
            expected.level,
            expected.dtype,
            expected.row_shape,
        )
    assert reader.schema().keys() == ours.schema().keys()
    for index in range(len(whole)):
        assert reader.get_metadata(index) == ours.get_metadata(index)
    chosen = ["energy", "positions"]
    projected = nvalchemi.AtomicDataZarrReader(store, fields=chosen)
    same = zp.AtomicDataZarrReader(store, fields=chosen)
    for index in range(len(whole)):
        (one, _), (two, _) = projected[index], same[index]
        assert list(one) == list(two) == chosen
        for name in chosen:
            assert torch.equal(one[name], two[name])


def test_every_call_of_our_writer_is_whole_for_its_reader(nvalchemi, place):
    store, config = place
    batches = make_batches(SIZES)
    writer = zp.AtomicDataZarrWriter(store, config)
    written = []
    for call, batch in zip((writer.write, writer.append, writer.append), batches, strict=True):
        call(batch)
        written += batch.to_data_list()
        new_in_03(nvalchemi.AtomicDataZarrReader(store)).check_integrity()
        check_store(nvalchemi, store, written)
    writer.delete([2])
    del written[2]
    nvalchemi.AtomicDataZarrReader(store).check_integrity()
    check_store(nvalchemi, store, written)


def test_it_appends_to_ours_and_we_to_what_it_left(nvalchemi, place):
    store, config = place
    batches = [without_edges(batch) for batch in make_batches([3, 1, 4, 2, 2])]
    batches = [as_batch(batch) for batch in theirs(batches)]  # with the fields that it adds
    done = []
    for number, batch in enumerate(batches):
        done.append(batch)
        if number % 2 == 0:
            with zp.ZarrData(store, config=config) as sink:
                sink.write(batch)
        else:
            nvalchemi.AtomicDataZarrWriter(store).append(to_nvalchemi(batch))
        whole = zp.Batch.concatenate(done)
        dataset = zp.ZarrDataset(store)
        assert_batches_equal(dataset.read(range(len(whole))), whole)
        assert np.array_equal(dataset.ids, batch_ids(whole))
        report = zp.check(store)
        assert report.ok, str(report)
        reader = nvalchemi.AtomicDataZarrReader(store)
        assert len(reader) == len(whole)
        for index, system in enumerate(whole.to_data_list()):
            for name, value in reader[index][0].items():
                assert torch.equal(value, system[name]), name
        new_in_03(reader).check_integrity()


def test_edges_that_it_appends_to_ours_are_refused_and_put_right(nvalchemi, tmp_path):
    store = tmp_path / "s.zarr"
    first, second = [as_batch(batch) for batch in theirs(make_batches([4, 5]))]
    with zp.ZarrData(store) as sink:
        sink.write(first)
    new_in_03(nvalchemi.AtomicDataZarrReader(store))  # 0.2 leaves out fields of the user's own
    nvalchemi.AtomicDataZarrWriter(store).append(to_nvalchemi(second))
    with pytest.raises(ValueError, match="`zarrpipe check --repair`"):
        zp.ZarrDataset(store).read(range(9))
    for refused in (lambda: zp.merge(store, {}), lambda: zp.ZarrData(store).write(first)):
        with pytest.raises(ValueError, match="`zarrpipe check --repair`"):
            refused()
    assert zp.check(store, repair=True).ok
    whole = zp.Batch.concatenate([first, second])
    assert_batches_equal(zp.ZarrDataset(store).read(range(9)), whole)
    check_store(nvalchemi, store, whole.to_data_list())


def test_what_it_deletes_of_ours_is_taken_over_by_the_next_writer(nvalchemi, tmp_path):
    """It masks rows and says so nowhere else; see docs/guides/nvalchemi.md."""
    store = tmp_path / "s.zarr"
    whole = zp.Batch.concatenate(make_batches(SIZES))
    with zp.ZarrData(store) as sink:
        sink.write(whole)
    nvalchemi.AtomicDataZarrWriter(store).delete([2, 5])
    assert "deleted" in zp.check(store).kinds("warning")
    with zp.ZarrData(store) as sink:
        sink.write(whole)
    kept = [0, 1, 3, 4, 6, 7]
    expected = zp.Batch.concatenate([whole.index_select(kept), whole])
    assert_batches_equal(zp.ZarrDataset(store).read(range(len(expected))), expected)
    check_store(nvalchemi, store, expected.to_data_list())


def test_a_copy_of_its_store_is_ours_and_read_by_it(nvalchemi, tmp_path):
    store, whole = tmp_path / "theirs.zarr", zp.Batch.concatenate(make_batches(SIZES))
    nvalchemi.AtomicDataZarrWriter(store).write(to_nvalchemi(whole))
    assert zp.copy(store, tmp_path / "copy.zarr") == len(whole)
    assert_batches_equal(
        zp.ZarrDataset(tmp_path / "copy.zarr").read(range(len(whole))),
        zp.ZarrDataset(store).read(range(len(whole))),
    )
    assert np.array_equal(zp.ZarrDataset(tmp_path / "copy.zarr").ids, batch_ids(whole))
    assert len(nvalchemi.AtomicDataZarrReader(tmp_path / "copy.zarr")) == len(whole)
    with zp.ZarrData(tmp_path / "copy.zarr") as sink:
        assert len(sink) == len(whole)
    assert zp.check(tmp_path / "copy.zarr").ok


def test_its_store_is_adopted_and_continued_by_both(nvalchemi, tmp_path):
    store = tmp_path / "s.zarr"
    first, second, third = [as_batch(batch) for batch in theirs(make_batches([4, 5, 2]))]
    writer = nvalchemi.AtomicDataZarrWriter(store)
    writer.write(to_nvalchemi(first))
    writer.append(to_nvalchemi(second))
    writer.delete([1, 6])
    kept = [0, 2, 3, 4, 5, 7, 8]
    with pytest.raises(ValueError, match="`zarrpipe adopt "):
        zp.ZarrData(store).write(third)
    assert zp.adopt(store) == 7
    expected = zp.Batch.concatenate([first, second]).index_select(kept)
    with zp.ZarrData(store) as sink:
        sink.write(third)
    expected = zp.Batch.concatenate([expected, third])
    assert_batches_equal(zp.ZarrDataset(store).read(range(9)), expected)
    check_store(nvalchemi, store, expected.to_data_list())
    new_in_03(nvalchemi.AtomicDataZarrReader(store)).check_integrity()


@pytest.fixture
def store(tmp_path):
    with zp.ZarrData(tmp_path / "s.zarr") as sink:
        for batch in make_batches(SIZES):
            sink.write(batch)
    return tmp_path / "s.zarr"


def same_batches(found, expected):
    """Two batches of nvalchemi, by value, dtype and shape."""
    assert torch.equal(found.batch_ptr, expected.batch_ptr)
    assert found.num_nodes_list == expected.num_nodes_list
    assert found.num_edges_list == expected.num_edges_list
    assert {name: set(keys) for name, keys in found.keys.items()} == {
        name: set(keys) for name, keys in expected.keys.items()
    }
    left, right = found.to_dict(), expected.to_dict()
    assert left.keys() == right.keys()
    for name, value in right.items():
        if isinstance(value, torch.Tensor):
            assert left[name].dtype == value.dtype, name
            assert torch.equal(left[name], value), name


@pytest.mark.parametrize("skip_validation", [False, True])
def test_its_dataset_reads_ours_by_our_gather(nvalchemi, store, skip_validation):
    ours = nvalchemi.Dataset(
        nvalchemi_reader(zp.ZarrDataset(store)), device="cpu", skip_validation=skip_validation
    )
    reference = nvalchemi.Dataset(
        nvalchemi.AtomicDataZarrReader(store), device="cpu", skip_validation=skip_validation
    )
    assert len(ours) == len(reference) == sum(SIZES)
    lists = [[0, 7, 3], [5], [2, 2]]
    for found, expected in zip(
        ours.load_batches(lists), reference.load_batches(lists), strict=True
    ):
        same_batches(found, expected)
    for index in range(len(ours)):
        assert ours.get_metadata(index) == reference.get_metadata(index)
        one, two = ours[index][0], reference[index][0]
        for name, value in two.to_dict().items():
            if isinstance(value, torch.Tensor):
                assert torch.equal(one.to_dict()[name], value), name
    assert set(ours.field_names) == set(reference.field_names)


@pytest.mark.parametrize("prefetch", [0, 2])
def test_its_loader_gathers_whole_batches_of_ours(nvalchemi, store, prefetch):
    samples = zp.ZarrDataset(store)
    options = {"batch_size": 3, "prefetch_factor": prefetch, "use_streams": False}
    ours = nvalchemi.DataLoader(nvalchemi_dataset(samples, device="cpu"), **options)
    reader = nvalchemi.AtomicDataZarrReader(store)
    reference = nvalchemi.DataLoader(
        nvalchemi.Dataset(reader, device="cpu", skip_validation=True), **options
    )
    count = 0
    for found, expected in zip(ours, reference, strict=True):
        same_batches(found, expected)
        assert_batches_equal(as_batch(found), as_batch(expected))
        count += found.num_graphs
    assert count == sum(SIZES)
    ours.dataset.close()


def test_its_loader_can_select_index_and_sample_what_it_got(nvalchemi, store):
    (batch,) = nvalchemi_dataset(zp.ZarrDataset(store), device="cpu").load_batches([[4, 1, 6]])
    expected = zp.ZarrDataset(store).read([4, 1, 6])
    assert torch.equal(batch.positions, expected.positions)
    picked = as_batch(batch.index_select([2, 0]))
    wanted = expected.index_select([2, 0])
    for name, value in wanted.fields.items():
        assert torch.equal(picked[name], value), name
    systems = batch.to_data_list()
    assert [system.num_nodes for system in systems] == expected.num_nodes_list
    assert torch.equal(batch.clone().forces, expected.forces)


def test_a_training_loop_of_its_own_follows_a_store_that_grows(nvalchemi, store):
    """Energies as sums over elements, fitted out of its DataLoader while our sink writes."""
    samples = zp.ZarrDataset(store)
    loader = nvalchemi.DataLoader(nvalchemi_dataset(samples, device="cpu"), batch_size=4)
    weights = torch.zeros(100, 1, requires_grad=True)
    optimizer = torch.optim.SGD([weights], lr=1e-3)
    seen = []
    with zp.ZarrData(store) as sink:
        for epoch in range(3):
            count = 0
            for batch in loader:
                atoms = weights[batch.atomic_numbers]
                energy = torch.zeros(batch.num_graphs, 1).index_add(
                    0, batch.batch_idx.long(), atoms
                )
                loss = (energy - batch.energy).square().mean()
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                count += batch.num_graphs
            seen.append(count)
            sink.write(make_system(100 + epoch))
            samples.refresh()
    assert seen == [8, 9, 10]
    assert weights.abs().sum() > 0


def test_levels_of_the_users_own_go_both_ways(nvalchemi, tmp_path):
    """Its store with bonds is read, adopted, continued, read by it, appended to by it, and read."""
    store, bonds = tmp_path / "s.zarr", [1, 3, 0]
    batch = to_nvalchemi(without_edges(make_batches([3])[0]))
    if not hasattr(batch, "add_level"):
        pytest.skip("nvalchemi 0.2 has no levels of the user's own")
    batch.add_level("bond", segmented=True)
    batch.add_key("order", [torch.arange(float(count)) for count in bonds], level="bond")

    def check(count):
        reader = nvalchemi.AtomicDataZarrReader(store)
        reader.check_integrity()
        ours, dataset = zp.AtomicDataZarrReader(store), zp.ZarrDataset(store)
        ours.check_integrity()
        assert ours.level_sizes() == reader.level_sizes()
        assert ours.level_schema.level_kinds["bond"] == "segmented"
        assert len(dataset) == len(ours) == len(reader) == count
        assert dataset.read(range(count)).level_ptr("bond").diff().tolist() == (
            bonds * (count // 3)
        )
        for index in range(count):
            expected = torch.arange(float(bonds[index % 3]))
            for found in (reader[index][0], ours[index][0], dataset[index].fields):
                assert torch.equal(found["order"].flatten(), expected)

    nvalchemi.AtomicDataZarrWriter(store).write(batch)
    check(3)
    assert zp.adopt(store) == 3
    check(3)
    with zp.ZarrData(store) as sink:
        sink.write(batch)
    check(6)
    nvalchemi.AtomicDataZarrWriter(store).append(batch)
    check(9)
    with zp.ZarrData(store) as sink:
        sink.write(batch)
    check(12)
    assert zp.check(store).ok
    samples = zp.ZarrDataset(store)
    with pytest.raises(ValueError, match=r"levels.*bond"):
        nvalchemi_dataset(samples, device="cpu").load_batches([[0]])


@pytest.fixture
def sinks(nvalchemi):
    assert nvalchemi
    return importlib.import_module("nvalchemi.dynamics.sinks")


@pytest.mark.parametrize("buffer", [None, 4])
def test_our_sink_is_one_of_its_sinks(sinks, tmp_path, buffer):
    with zp.ZarrData(tmp_path / "s", capacity=2, buffer=buffer) as ours:
        sink = nvalchemi_sink(ours)
        assert isinstance(sink, sinks.DataSink)
        if hasattr(sinks, "ResizableSink"):
            assert isinstance(sink, sinks.ResizableSink)
            assert isinstance(ours, sinks.ResizableSink)
        sink.resize(10)
        reference = sinks.HostMemory(10)
        batch = theirs(make_batches([3]))[0]
        for one in (sink, reference):
            for mask in (None, torch.tensor([True, False, True]), torch.zeros(3, dtype=torch.bool)):
                one.write(batch, mask)
        assert (len(sink), sink.capacity, sink.is_full) == (5, 10, False)
        same_batches(sink.read(), reference.read())
        same_batches(sink.drain(), reference.drain())
        assert len(sink) == 0
        with pytest.raises(RuntimeError, match="empty"):
            sink.read()
        sink.write(batch)
        sink.zero()
        assert len(sink) == 0


def test_its_dynamics_overflows_into_our_sink_and_takes_it_back(nvalchemi, tmp_path):
    base = importlib.import_module("nvalchemi.dynamics.base")
    mixin = base._CommunicationMixin
    with zp.ZarrData(tmp_path / "s") as ours:
        stage = mixin(sinks=[nvalchemi_sink(ours)], max_batch_size=8)
        batch = theirs(make_batches([3]))[0]
        stage._overflow_to_sinks(batch)
        stage._overflow_to_sinks(batch, torch.tensor([False, True, False]))
        assert len(ours) == 4
        stage._drain_sinks_to_batch()
        assert len(ours) == 0
        found = as_batch(stage.active_batch)
        expected = as_batch(batch)
        assert_batches_equal(found, zp.Batch.concatenate([expected, expected.index_select([1])]))
