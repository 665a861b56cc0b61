"""ZarrDataset: values, order, growth, other loaders."""

import operator
import pickle

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Subset

from zarrpipe import AtomicData, AtomicDataZarrWriter, Batch
from zarrpipe.data.batch import collate
from zarrpipe.dataset.zarr_dataset import ZarrDataset
from zarrpipe.errors import (
    FieldError,
    SampleIndexTypeError,
    SchemaError,
    StoreFormatError,
    StoreNotFoundError,
)


def test_samples_are_what_was_written(store, data):
    path, truth = store
    dataset = ZarrDataset(path)
    assert len(dataset) == 40
    for index in (0, 7, 39, -1, -40, np.int64(3)):
        sample, expected = dataset[index], truth.get_data(int(index) % 40)
        assert isinstance(sample, AtomicData)
        assert set(sample.fields) == set(expected.fields)
        for name, value in expected.fields.items():
            assert torch.equal(sample[name], value), name
    assert np.array_equal(dataset.num_atoms, truth.num_nodes_per_graph.numpy())
    assert np.array_equal(dataset.num_edges, truth.num_edges_per_graph.numpy())
    assert len(set(dataset.ids.tolist())) > 30


@pytest.mark.parametrize("kind", [list, np.array, torch.tensor, lambda i: np.array(i, np.int32)])
def test_batches_are_what_was_written(store, data, kind):
    path, truth = store
    wanted = [5, 0, 39, 5, -1]
    batch = ZarrDataset(path).__getitems__(kind(wanted))
    data.same(batch, truth.index_select(wanted))


@pytest.mark.parametrize("index", [40, -41])
def test_no_sample_beyond_the_end(store, index):
    dataset = ZarrDataset(store[0])
    with pytest.raises(IndexError, match=f"sample {index} of a dataset of 40"):
        dataset[index]
    with pytest.raises(IndexError, match=f"sample {index} of a dataset of 40"):
        dataset.__getitems__([0, index])
    assert sum(1 for _ in dataset) == 40


def test_indices_are_integers(store):
    with pytest.raises(TypeError, match="float64"):
        ZarrDataset(store[0]).__getitems__([0.5])
    with pytest.raises(TypeError, match="float"):
        ZarrDataset(store[0])[1.0]


@pytest.mark.parametrize("index", [slice(1, 3), [1, 2], np.array([1]), None, "1", 1.0])
def test_what_is_no_index_of_one_sample_names_what_takes_several(store, index):
    with pytest.raises(SampleIndexTypeError, match=r"read\(\) gives a batch of several"):
        ZarrDataset(store[0])[index]


def test_it_says_what_it_has(store):
    path, _ = store
    dataset = ZarrDataset([path, path], fields=["energy"])
    fields = "positions, atomic_numbers, energy"
    assert repr(dataset) == f"<ZarrDataset of 80 samples in 2 stores: {fields}>"
    assert repr(dataset.index_select([3])).startswith("<ZarrDataset of 1 sample in 2")


def test_fields_are_chosen(store, data):
    path, truth = store
    batch = ZarrDataset(path, fields=["energy"]).__getitems__([3, 1])
    expected = truth.without("forces", "serial", "neighbor_list").index_select([3, 1])
    assert set(batch.fields) == {"positions", "atomic_numbers", "energy"}
    assert torch.equal(batch.energy, expected.energy)
    with pytest.raises(SchemaError, match=r"no store has a field 'stress', they have .*'forces'"):
        ZarrDataset(path, fields=["stress"])


def test_a_transform_sees_batches(store):
    path, truth = store
    dataset = ZarrDataset(path, transform=operator.methodcaller("to", dtype=torch.float32))
    assert torch.equal(dataset.__getitems__([4, 2]).forces, truth[[4, 2]].forces.float())
    assert dataset[4].forces.dtype is torch.float32


def test_stores_follow_each_other(tmp_path, data):
    parts = [data.append(tmp_path / str(tag), data.batch(10, tag=tag)) for tag in range(3)]
    truth = Batch.concatenate(parts)
    dataset = ZarrDataset([tmp_path / str(tag) for tag in range(3)])
    order = np.random.default_rng(0).permutation(30)
    data.same(dataset.__getitems__(order), truth.index_select(order.tolist()))
    data.same(dataset.__getitems__([25, 21]), truth.index_select([25, 21]))
    assert dataset[-1].serial.tolist() == [2009]
    assert np.array_equal(dataset.num_atoms, truth.num_nodes_per_graph.numpy())
    assert np.array_equal(dataset.system_field("serial"), truth.serial.numpy())
    assert dataset.num_stores == 3
    assert np.array_equal(dataset.store_of(), np.repeat([0, 1, 2], 10))
    assert np.array_equal(dataset.store_of([25, 3, 14, 29]), [2, 0, 1, 2])
    assert np.array_equal(dataset.index_select([25, 3]).store_of(), [2, 0])


def test_a_field_that_one_store_lacks_is_absent_in_every_batch(tmp_path, data):
    with_edges = data.append(tmp_path / "a", data.batch(5))
    without = data.append(tmp_path / "b", data.batch(5, tag=1, edges=False).without("energy"))
    dataset = ZarrDataset([tmp_path / "a", tmp_path / "b"])
    for wanted in ([7, 1], [8, 6], [2]):
        batch = dataset.__getitems__(wanted)
        assert set(batch.fields) == set(with_edges.fields)
        first = torch.tensor([index < 5 for index in wanted])
        for name in ("energy", "neighbor_list"):
            assert torch.equal(batch.present(name), first)
        assert torch.equal(batch.energy.isnan().squeeze(1), ~first)
        assert torch.equal(batch.present("forces"), torch.ones(len(wanted), dtype=torch.bool))
    assert torch.equal(dataset[6].forces, without.get_data(1).forces)
    with pytest.raises(SchemaError, match="store 1 has no field 'energy'"):
        dataset.system_field("energy")
    energy = with_edges.energy.numpy()
    assert np.array_equal(dataset.system_field("energy", [3, 0]), energy[[3, 0]])
    with pytest.raises(SchemaError, match="store 1 has no field 'energy'"):
        dataset.system_field("energy", [3, 5])


def test_stores_that_differ_in_a_dtype_are_refused(tmp_path, data):
    data.append(tmp_path / "a", data.batch(2))
    data.append(tmp_path / "b", data.batch(2).to(dtype=torch.float32))
    with pytest.raises(SchemaError, match=r"store 1 has field 'positions' .*float32.*float64"):
        ZarrDataset([tmp_path / "a", tmp_path / "b"])


def test_no_stores_and_no_store_are_refused(tmp_path):
    with pytest.raises(ValueError, match="at least one"):
        ZarrDataset([])
    with pytest.raises(StoreNotFoundError):
        ZarrDataset(tmp_path / "nothing")


def test_an_index_keeps_its_sample_while_stores_grow(tmp_path, data):
    places = [tmp_path / "a", tmp_path / "b"]
    seen = [data.append(place, data.batch(5, tag=tag)) for tag, place in enumerate(places)]
    dataset = ZarrDataset(places)
    assert dataset.refresh() == 0
    seen.append(data.append(places[0], data.batch(3, tag=2)))
    assert len(dataset) == 10
    assert dataset.refresh() == 3
    seen.append(data.append(places[1], data.batch(2, tag=3)))
    seen.insert(3, data.append(places[0], data.batch(4, tag=4)))
    assert dataset.refresh() == 6
    truth = Batch.concatenate(seen)
    data.same(dataset.__getitems__(range(19)), truth)
    state = dataset.state_dict()
    assert state["arrivals"] == [[0, 5], [1, 5], [0, 7], [1, 2]]
    anew = ZarrDataset(places)
    assert anew[5].serial.tolist() == [2000]
    anew.load_state_dict(state)
    data.same(anew.__getitems__(range(19)), truth)


def test_a_state_hides_what_came_later(store, data):
    path, _ = store
    state = ZarrDataset(path).state_dict()
    early = ZarrDataset(path)
    data.append(path, data.batch(5, tag=1))
    dataset = ZarrDataset(path)
    dataset.load_state_dict(state)
    assert len(dataset) == 40
    assert dataset.refresh() == 5
    early.load_state_dict(dataset.state_dict())
    assert early[44].serial.tolist() == [1004]


def test_a_state_of_other_stores_is_refused(store, tmp_path, data):
    data.append(tmp_path / "other", data.batch(3))
    state = ZarrDataset(store[0]).state_dict()
    with pytest.raises(StoreFormatError, match="store 0 has 3 samples, the state counts 40"):
        ZarrDataset(tmp_path / "other").load_state_dict(state)
    with pytest.raises(StoreFormatError, match="of 1 stores, here are 2"):
        ZarrDataset([store[0], tmp_path / "other"]).load_state_dict(state)


def test_a_selection_stays_as_it_is(store, data):
    path, truth = store
    dataset = ZarrDataset(path)
    chosen = dataset.index_select([9, 3, -1])
    data.append(path, data.batch(5, tag=1))
    assert (dataset.refresh(), chosen.refresh(), len(chosen)) == (5, 0, 3)
    data.same(chosen.__getitems__([2, 0]), truth.index_select([39, 9]))
    data.same(chosen.index_select([1]).__getitems__([0]), truth.index_select([3]))
    assert np.array_equal(chosen.ids, dataset.ids[[9, 3, 39]])


def test_it_is_pickled_by_reopening(store, data):
    path, truth = store
    dataset = ZarrDataset(path, fields=["energy"])
    data.append(path, data.batch(5, tag=1))
    again = pickle.loads(pickle.dumps(dataset))
    assert (len(again), set(again[1].fields)) == (40, set(dataset[1].fields))
    assert torch.equal(again.__getitems__([1, 30]).energy, truth[[1, 30]].energy)


def test_collate_makes_a_batch(store, data):
    _, truth = store
    data.same(collate(truth.to_data_list()), truth)
    assert collate(truth) is truth
    with pytest.raises(FieldError, match="at least one"):
        collate([])


@pytest.mark.parametrize("workers", [0, 2])
def test_torch_data_loader_needs_no_collate(store, data, workers):
    path, truth = store
    context = "forkserver" if workers else None
    loader = DataLoader(
        ZarrDataset(path), batch_size=16, num_workers=workers, multiprocessing_context=context
    )
    batches = list(loader)
    assert [batch.num_graphs for batch in batches] == [16, 16, 8]
    data.same(Batch.concatenate(batches), truth)


def test_torch_data_loader_shuffles_and_takes_subsets(store, data):
    path, truth = store
    chosen = [30, 2, 17, 9]
    loader = DataLoader(Subset(ZarrDataset(path), chosen), batch_size=4, shuffle=True)
    (batch,) = loader
    assert sorted(batch.serial.tolist()) == sorted(chosen)
    data.same(batch, truth.index_select(batch.serial.tolist()))


def test_lists_of_batches_are_collated(store, data):
    path, truth = store
    samples = [ZarrDataset(path).__getitems__([1, 2]), ZarrDataset(path).__getitems__([3])]
    loader = DataLoader(samples, batch_size=2)
    data.same(next(iter(loader)), truth.index_select([1, 2, 3]))


def test_what_was_rewritten_is_read_no_more(tmp_path, data):
    """Once a refresh was refused, nothing that was made of the dataset gives other samples."""
    first = data.append(tmp_path / "a", data.batch(5))
    data.append(tmp_path / "b", data.batch(10, tag=1))
    dataset = ZarrDataset([tmp_path / "a", tmp_path / "b"])
    state, chosen = dataset.state_dict(), dataset.index_select([3, 7])
    with AtomicDataZarrWriter(tmp_path / "b") as writer:
        writer.delete([0, 4])
    data.append(tmp_path / "b", data.batch(4, tag=2))
    data.same(dataset.__getitems__(range(5)), first)
    uses = [
        ZarrDataset.refresh,
        lambda held: held.ids_of([7]),
        lambda held: held.num_atoms,
        lambda held: held.system_field("serial", [7]),
        lambda held: held.present("energy"),
        lambda held: held.where("num_atoms > 2"),
        lambda held: held.kept_sums(),
        lambda held: held.blocks(),
        lambda held: held.__getitems__([7]),
        lambda held: held.index_select([7]),
        lambda held: held.preceded_by(None),
        lambda held: pickle.loads(pickle.dumps(held)),
        ZarrDataset.refresh,
    ]
    for use in uses:
        with pytest.raises(StoreFormatError, match=r"was rewritten: .* open a new dataset"):
            use(dataset)
    for use in (lambda held: held.ids, lambda held: held.__getitems__([1])):
        with pytest.raises(StoreFormatError, match=r"was rewritten: .* open a new dataset"):
            use(chosen)
    assert (dataset.state_dict(), len(dataset)) == (state, 15)


def test_a_state_leads_to_samples_after_a_rewriting(tmp_path, data):
    """As where one rank opened a store before samples were deleted, and rank 0 after."""
    data.append(tmp_path / "a", data.batch(5))
    early = ZarrDataset(tmp_path / "a")
    with AtomicDataZarrWriter(tmp_path / "a") as writer:
        writer.delete([0, 4])
    added = data.append(tmp_path / "a", data.batch(4, tag=2))
    late = ZarrDataset(tmp_path / "a")
    early.load_state_dict(late.state_dict())
    data.same(early.__getitems__([3, 6]), added.index_select([0, 3]))
    assert np.array_equal(early.ids, late.ids)
    assert early.state_dict() == late.state_dict()
