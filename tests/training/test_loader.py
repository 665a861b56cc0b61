"""GraphLoader: batches, exact positions, workers, growth."""

import contextlib
import operator

import numpy as np
import pytest
import torch

from zarrpipe.dataset.zarr_dataset import ZarrDataset
from zarrpipe.training.loader import GraphLoader
from zarrpipe.training.sampler import GraphBatchSampler


def make(path, *, batch_size=8, workers=0, fields=("serial",), transform=None, **settings):
    dataset = ZarrDataset(path, fields, transform)
    sampler = GraphBatchSampler(dataset, batch_size, **settings)
    return dataset, GraphLoader(dataset, sampler, num_workers=workers)


def flat(batches):
    return [serial for batch in batches for serial in batch]


def serials(batches):
    return [batch.serial.tolist() for batch in batches]


def test_an_epoch_has_each_sample_once(store, data):
    path, truth = store
    _, loader = make(path, batch_size=16, fields=None)
    assert len(loader) == 3
    batches = list(loader)
    assert [batch.num_graphs for batch in batches] == [16, 16, 8]
    for batch in batches:
        data.same(batch, truth.index_select(batch.serial.tolist()))
    assert sorted(flat(serials(batches))) == list(range(40))


@pytest.mark.parametrize("workers", [0, 1])
def test_a_state_counts_what_was_handed_out_and_not_what_was_read_ahead(store, workers):
    path, _ = store
    _, loader = make(path, workers=workers)
    whole = serials(loader)
    state = None
    _, loader = make(path, workers=workers)
    for step, _ in enumerate(loader):
        if step == 1:
            state = loader.state_dict()
            break
    assert (state["step"], state["position"]) == (2, 16)
    _, other = make(path)
    other.load_state_dict(state)
    assert len(other) == 5
    assert serials(other) == whole[2:]
    loader.load_state_dict(state)
    assert serials(loader) == whole[2:]
    assert serials(loader) == serials(other)
    loader.close()


@pytest.mark.parametrize(
    ("where", "settings"),
    [
        *(
            (where, more)
            for where in ("dataset", "loader", "list")
            for more in ({}, {"prefetch": 2})
        ),
        ("loader", {"num_workers": 1}),  # a worker takes a second to start
    ],
    ids=str,
)
@pytest.mark.parametrize(
    ("transform", "error", "says"),
    [
        (
            "forgets_to_return",
            TypeError,
            "forgets_to_return.* returned a NoneType, expected the Batch",
        ),
        ("stops", RuntimeError, "stops.* raised StopIteration"),
    ],
)
def test_no_transform_ends_an_epoch_in_silence(
    store, transforms, settings, transform, error, says, where
):
    transform = getattr(transforms, transform)
    given = [transform] if where == "list" else transform
    dataset = ZarrDataset(store[0], None, None if where == "loader" else given)
    sampler = GraphBatchSampler(dataset, 8)
    before = transform if where == "loader" else None
    loader = GraphLoader(dataset, sampler, transform=before, **settings)
    with contextlib.closing(loader), pytest.raises(error, match=says):
        list(loader)


def test_iter_does_not_decide_the_epoch_yet(store):
    _, loader = make(store[0])
    first = serials(loader)
    batches = iter(loader)
    loader.sampler.set_epoch(0)
    assert serials(batches) == first


def test_a_broken_off_iteration_starts_again(store):
    _, loader = make(store[0])
    first = serials([next(iter(loader))])
    assert serials(loader)[:1] == first


def test_workers_give_the_same_batches_and_leave_the_global_random_state(store, data):
    path, _ = store
    to_float = operator.methodcaller("to", dtype=torch.float32)
    _, loader = make(path, workers=2, fields=None, transform=to_float)
    torch.manual_seed(0)
    before = torch.get_rng_state()
    batches = list(loader)
    assert torch.equal(torch.get_rng_state(), before)
    _, here = make(path, fields=None, transform=to_float)
    for batch, expected in zip(batches, here, strict=True):
        data.same(batch, expected)
        batch.positions.zero_()
    loader.close()


def test_workers_follow_growth(tmp_path, data):
    places = [tmp_path / "a", tmp_path / "b"]
    for tag, place in enumerate(places):
        data.append(place, data.batch(10, tag=tag))
    dataset, loader = make(places, workers=1, shuffle=False, batch_size=10)
    assert serials(loader) == [list(range(10)), list(range(1000, 1010))]
    data.append(places[0], data.batch(3, tag=2))
    assert dataset.refresh() == 3
    assert serials(loader)[2] == [2000, 2001, 2002]
    loader.close()


def test_a_resume_restores_the_order_of_arrival(tmp_path, data):
    places = [tmp_path / "a", tmp_path / "b"]
    for tag, place in enumerate(places):
        data.append(place, data.batch(10, tag=tag))
    dataset, loader = make(places)
    data.append(places[0], data.batch(10, tag=2))
    dataset.refresh()
    loader.sampler.set_epoch(1)
    whole = serials(loader)
    loader.sampler.set_epoch(1)
    next(iter(loader))
    state = loader.state_dict()
    data.append(places[1], data.batch(5, tag=3))
    dataset, again = make(places)
    again.load_state_dict(state)
    assert serials(again) == whole[1:]
    dataset.refresh()
    assert len(flat(serials(again))) == 35


def test_a_read_that_fails_is_not_counted(store, monkeypatch):
    dataset, loader = make(store[0])
    batches = iter(loader)
    next(batches)
    monkeypatch.setattr(dataset, "gather", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        next(batches)
    assert loader.state_dict()["step"] == 1


def test_ranks_share_an_epoch(store):
    path, _ = store
    parts = [serials(make(path, rank=rank, world_size=3)[1]) for rank in range(3)]
    assert {len(part) for part in parts} == {2}
    assert np.sort(flat(map(flat, parts))).tolist() == list(range(40))


def test_a_negative_number_of_workers_is_refused(store):
    with pytest.raises(ValueError, match="num_workers is -1"):
        make(store[0], workers=-1)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_transform_finds_the_neighbours_of_each_batch(tmp_path, data, transforms, workers):
    pytest.importorskip("vesin")
    truth = data.append(tmp_path / "store", data.batch(20, edges=False))
    _, loader = make(
        tmp_path / "store", workers=workers, fields=None, transform=transforms.Neighbours(1.5)
    )
    found = 0
    for batch in loader:
        expected = truth.index_select(batch.serial.ravel())
        starts = expected.batch_ptr
        distances = torch.cdist(expected.positions, expected.positions)
        near = (distances < 1.5) & ~torch.eye(len(distances), dtype=torch.bool)
        near &= batch.batch_idx[:, None] == batch.batch_idx
        assert set(map(tuple, batch.neighbor_list.tolist())) == set(
            map(tuple, near.nonzero().tolist())
        )
        counts = torch.bincount(
            batch.batch_idx[batch.neighbor_list[:, 0]], minlength=len(starts) - 1
        )
        assert torch.equal(batch.edge_ptr.diff(), counts)
        found += batch.num_edges
    assert found > 20
    loader.close()
