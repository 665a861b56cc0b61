"""A dataset held on a device: the same batches as from the store, through growth and resume."""

import pickle
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

import zarrpipe as zp
from zarrpipe.testing import assert_batches_equal, random_batch

DEVICES = [
    "cpu",
    pytest.param(
        "cuda",
        marks=[
            pytest.mark.gpu,
            pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
        ],
    ),
]
pytestmark = pytest.mark.parametrize("device", DEVICES)
FIELDS = ("energy", "forces", "stress")


def batch_of(seed: int, count: int = 30, **options) -> zp.Batch:
    options = {"fields": FIELDS, "edges": (0, 5), "absent": 0.2, **options}
    return random_batch(np.random.default_rng(seed), count, **options)


def write(place, *batches) -> None:
    with zp.ZarrData(place) as sink:
        for batch in batches:
            sink.write(batch)


@pytest.mark.parametrize(
    "index",
    [[3], [5, 5, 0], range(10, 20), [-1, 2], []],
    ids=["one", "repeated", "run", "end", "none"],
)
def test_it_gives_what_the_store_gives(tmp_path, device, index):
    write(tmp_path / "store", batch_of(0))
    resident = zp.ZarrDataset(tmp_path / "store", resident=device)
    expected = zp.ZarrDataset(tmp_path / "store").__getitems__(list(index))
    got = resident.__getitems__(list(index))
    assert got.device.type == device
    assert_batches_equal(got.cpu(), expected)


def test_a_choice_of_fields_and_a_transform(tmp_path, device):
    write(tmp_path / "store", batch_of(0))

    def doubled(batch: zp.Batch) -> zp.Batch:
        return batch.add_field("forces", batch.forces * 2)

    dataset = zp.ZarrDataset(tmp_path / "store", ["forces"], doubled, resident=device)
    plain = zp.ZarrDataset(tmp_path / "store", ["forces"])
    got, expected = dataset.__getitems__([7, 1]), plain.__getitems__([7, 1])
    assert set(got.fields) == {"positions", "atomic_numbers", "forces"}
    np.testing.assert_array_equal(got.forces.cpu(), 2 * expected.forces)


def test_several_stores_that_grow_and_get_new_fields(tmp_path, device):
    first, second, third = batch_of(0), batch_of(1, fields=("energy",)), batch_of(2, 9)
    write(tmp_path / "a", first.without("stress", "forces"))
    write(tmp_path / "b", second)
    dataset = zp.ZarrDataset([tmp_path / "a", tmp_path / "b"], resident=device)
    dataset.__getitems__([0])
    write(tmp_path / "a", third)
    write(tmp_path / "b", third)
    assert dataset.refresh() == 18
    index = np.random.default_rng(0).permutation(len(dataset))
    known = zp.ZarrDataset([tmp_path / "a", tmp_path / "b"])
    known.load_state_dict(dataset.state_dict())
    assert_batches_equal(dataset.__getitems__(index).cpu(), known.__getitems__(index))


def test_a_selection_shares_it(tmp_path, device):
    whole = batch_of(0)
    write(tmp_path / "store", whole)
    dataset = zp.ZarrDataset(tmp_path / "store", resident=device)
    odd = dataset.index_select(np.arange(1, 30, 2))
    assert_batches_equal(odd.__getitems__([2, 0]).cpu(), whole.index_select([5, 1]))
    assert odd._resident is dataset._resident


def test_another_order_of_arrival_is_read_anew(tmp_path, device):
    write(tmp_path / "a", batch_of(0, 4))
    write(tmp_path / "b", batch_of(1, 4))
    early = zp.ZarrDataset([tmp_path / "a", tmp_path / "b"])
    write(tmp_path / "a", batch_of(2, 3))
    early.refresh()
    dataset = zp.ZarrDataset([tmp_path / "a", tmp_path / "b"], resident=device)
    dataset.__getitems__(range(11))
    dataset.load_state_dict(early.state_dict())
    index = list(range(11))
    assert_batches_equal(dataset.__getitems__(index).cpu(), early.__getitems__(index))


def test_it_is_pickled_without_its_samples(tmp_path, device):
    write(tmp_path / "store", batch_of(0))
    dataset = zp.ZarrDataset(tmp_path / "store", resident=device)
    expected = dataset.__getitems__([1, 4])
    small = pickle.dumps(dataset)
    assert len(small) < 5000
    assert_batches_equal(pickle.loads(small).__getitems__([1, 4]).cpu(), expected.cpu())


@pytest.mark.parametrize("index", [[30], [-31]])
def test_a_sample_that_is_not_there(tmp_path, device, index):
    write(tmp_path / "store", batch_of(0))
    with pytest.raises(IndexError, match="of a dataset of 30"):
        zp.ZarrDataset(tmp_path / "store", resident=device).__getitems__(index)


def test_a_gather_does_not_wait_for_the_device(tmp_path, device):
    if device != "cuda":
        pytest.skip("only a GPU is waited for")
    write(tmp_path / "store", batch_of(0))
    dataset = zp.ZarrDataset(tmp_path / "store", resident=device)
    dataset.__getitems__([1])
    torch.cuda.set_sync_debug_mode("error")
    try:
        dataset.__getitems__([3, 1, 2])
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_what_was_interrupted_is_read_again(tmp_path, device, monkeypatch):
    whole = batch_of(0)
    write(tmp_path / "store", whole)
    dataset = zp.ZarrDataset(tmp_path / "store", resident=device)
    put, left = dataset._resident._put, [2]

    def interrupted(*arguments):
        if left[0] == 0:
            raise KeyboardInterrupt
        left[0] -= 1
        put(*arguments)

    monkeypatch.setattr(dataset._resident, "_put", interrupted)
    with pytest.raises(KeyboardInterrupt):
        dataset.__getitems__([1])
    left[0] = 1000
    assert_batches_equal(dataset.__getitems__([1, 8]).cpu(), whole.index_select([1, 8]))


def test_two_threads_bring_the_samples_once(tmp_path, device):
    whole = batch_of(0)
    write(tmp_path / "store", whole)
    dataset = zp.ZarrDataset(tmp_path / "store", resident=device)
    with ThreadPoolExecutor(4) as threads:
        batches = list(threads.map(dataset.__getitems__, [[number] for number in range(8)]))
    assert len(dataset._resident) == 30
    for number, batch in enumerate(batches):
        assert_batches_equal(batch.cpu(), whole.index_select([number]))


def test_a_selection_keeps_its_samples_when_another_order_is_loaded(tmp_path, device):
    write(tmp_path / "a", batch_of(0, 4))
    write(tmp_path / "b", batch_of(1, 4))
    early = zp.ZarrDataset([tmp_path / "a", tmp_path / "b"])
    write(tmp_path / "a", batch_of(2, 3))
    early.refresh()
    dataset = zp.ZarrDataset([tmp_path / "a", tmp_path / "b"], resident=device)
    some = dataset.index_select([3, 4, 8])
    before = some.__getitems__([0, 1, 2])
    dataset.load_state_dict(early.state_dict())
    dataset.__getitems__([0])
    assert_batches_equal(some.__getitems__([0, 1, 2]).cpu(), before.cpu())


def test_who_looked_later_than_others_keeps_its_samples(tmp_path, device):
    """A rank that sees more than rank 0 goes back to what that sees."""
    write(tmp_path / "store", batch_of(0))
    resident = zp.ZarrDataset(tmp_path / "store", resident=device)
    resident.__getitems__([0])
    held, state = resident._resident, resident.state_dict()
    write(tmp_path / "store", batch_of(1))
    resident.refresh()
    resident.load_state_dict(state)
    assert resident._resident is held
    resident.refresh()
    resident.__getitems__([0])
    resident.load_state_dict(state)
    assert resident._resident is not held
    expected = zp.ZarrDataset(tmp_path / "store").__getitems__([29, 3])
    assert_batches_equal(resident.__getitems__([29, 3]).cpu(), expected)


@pytest.mark.parametrize("by", ["refresh", "state"])
def test_two_that_grow_by_other_orders_hold_their_own(tmp_path, device, by):
    places = [tmp_path / "a", tmp_path / "b"]
    write(places[0], batch_of(0, 4))
    write(places[1], batch_of(1, 4))
    dataset, plain = zp.ZarrDataset(places, resident=device), zp.ZarrDataset(places)
    dataset.__getitems__([0])
    other = dataset.preceded_by(None)
    write(places[1], batch_of(2, 2))
    assert dataset.refresh() == 2
    write(places[0], batch_of(3, 2))
    assert plain.refresh() == 4
    if by == "refresh":
        other.refresh()
    else:
        other.load_state_dict(plain.state_dict())
    assert dataset.refresh() == 2
    dataset.__getitems__([0])
    assert other.state_dict() == plain.state_dict() != dataset.state_dict()
    index = list(range(12))
    assert_batches_equal(other.__getitems__(index).cpu(), plain.__getitems__(index))
    plain.load_state_dict(dataset.state_dict())
    assert_batches_equal(dataset.__getitems__(index).cpu(), plain.__getitems__(index))


@pytest.mark.parametrize("first", ["dataset", "selection"])
def test_a_selection_from_before_another_order_was_loaded(tmp_path, device, first):
    """Nothing is held yet when the order is loaded, and either comes first."""
    write(tmp_path / "a", batch_of(0, 4))
    write(tmp_path / "b", batch_of(1, 4))
    early = zp.ZarrDataset([tmp_path / "a", tmp_path / "b"])
    write(tmp_path / "a", batch_of(2, 3))
    early.refresh()
    dataset = zp.ZarrDataset([tmp_path / "a", tmp_path / "b"], resident=device)
    plain = zp.ZarrDataset([tmp_path / "a", tmp_path / "b"])
    some = dataset.index_select([3, 4, 8])
    dataset.load_state_dict(early.state_dict())
    pairs = [(dataset, early, list(range(11))), (some, plain.index_select([3, 4, 8]), [2, 0, 1])]
    for held, truth, index in pairs if first == "dataset" else pairs[::-1]:
        assert_batches_equal(held.__getitems__(index).cpu(), truth.__getitems__(index))


def test_a_selection_shares_what_comes_later(tmp_path, device):
    write(tmp_path / "store", batch_of(0))
    dataset = zp.ZarrDataset(tmp_path / "store", resident=device)
    some = dataset.index_select([7, 2])
    before = some.__getitems__([0, 1])
    write(tmp_path / "store", batch_of(1))
    dataset.refresh()
    dataset.__getitems__([0])
    assert_batches_equal(some.__getitems__([0, 1]).cpu(), before.cpu())
    assert some._resident is dataset._resident
    assert len(some._resident) == 60
