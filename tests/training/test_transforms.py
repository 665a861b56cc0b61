"""Transforms on the way to training: what is drawn belongs to seed, epoch and structure."""

import itertools
import pickle

import numpy as np
import pytest
import torch

from zarrpipe import Batch, GraphBatchSampler, ZarrDataset
from zarrpipe.errors import ArgumentError, ArgumentTypeError
from zarrpipe.training.loader import GraphLoader
from zarrpipe.transforms import (
    Compose,
    ConvertUnits,
    GaussianNoise,
    NeighborList,
    RandomRotation,
    RandomTransform,
    sample_keys,
)

FIELDS = ["serial", "forces"]
AUGMENT = Compose([RandomRotation(), GaussianNoise(0.1)])


def drawn(path, seed, epoch, transform=AUGMENT, fields=FIELDS, copies=None):
    """Positions of each sample by its serial, made one by one."""
    dataset = ZarrDataset(path, fields)
    made = {}
    for row in range(len(dataset)):
        keys = sample_keys(seed, epoch, dataset.ids_of([row]), copies)
        one = transform(dataset.gather([row], fields), keys)
        made[int(one.serial)] = one.positions
    return made


def by_serial(batches):
    return {int(one.serial): one.positions for batch in batches for one in batch.to_data_list()}


def assert_same(got, expected):
    assert sorted(got) == sorted(expected)
    for serial, positions in expected.items():
        assert torch.equal(got[serial], positions), serial


def loader_of(path, *, dataset=None, workers=0, prefetch=0, **settings):
    dataset = ZarrDataset(path, FIELDS, **(dataset or {"transform": AUGMENT}))
    sampler = GraphBatchSampler(dataset, seed=5, **settings)
    return GraphLoader(dataset, sampler, num_workers=workers, prefetch=prefetch)


@pytest.mark.parametrize(
    "settings",
    [
        {"batch_size": 1},
        {"batch_size": 7, "prefetch": 2},
        {"max_atoms": 12, "workers": 2},
        {"batch_size": 16, "dataset": {"transform": AUGMENT, "resident": "cpu"}},
        {"batch_size": 16, "dataset": {"transform": [RandomRotation(), GaussianNoise(0.1)]}},
    ],
)
def test_a_sample_gets_the_same_draw_however_it_is_read(store, settings):
    loader = loader_of(store[0], **settings)
    epochs = [by_serial(loader) for _ in range(2)]
    loader.close()
    for epoch, got in enumerate(epochs):
        assert_same(got, drawn(store[0], 5, epoch))
    assert all(not torch.equal(epochs[0][serial], epochs[1][serial]) for serial in epochs[0])


def test_ranks_draw_what_one_process_draws(store):
    parts = [by_serial(loader_of(store[0], batch_size=3, rank=r, world_size=3)) for r in range(3)]
    assert_same({**parts[0], **parts[1], **parts[2]}, drawn(store[0], 5, 0))


def test_the_rest_of_an_epoch_draws_what_it_would_have(store):
    loader = loader_of(store[0], batch_size=8)
    list(loader)
    states = [loader.state_dict() for _ in itertools.islice(loader, 2)]
    resumed = loader_of(store[0], batch_size=8, workers=1)
    resumed.load_state_dict(states[-1])
    got = by_serial(resumed)
    resumed.close()
    assert len(got) == 24
    expected = drawn(store[0], 5, 1)
    assert_same(got, {serial: expected[serial] for serial in got})


@pytest.mark.parametrize("workers", [0, 1])
def test_copies_of_a_sample_draw_for_themselves(tmp_path, data, workers):
    """With weights a sample may come several times in an epoch."""
    data.append(tmp_path / "store", data.batch(6))
    loader = loader_of(
        tmp_path / "store", batch_size=4, workers=workers, weights=[1.0], samples_per_epoch=18
    )
    first, second = list(loader), list(loader)
    loader.close()
    for epoch, batches in enumerate((first, second)):
        expected = [
            drawn(tmp_path / "store", 5, epoch, copies=np.array([copy])) for copy in range(3)
        ]
        met = {serial: set() for serial in range(6)}
        for one in (one for batch in batches for one in batch.to_data_list()):
            alike = [torch.equal(one.positions, made[int(one.serial)]) for made in expected]
            met[int(one.serial)].add(alike.index(True))
        assert all(copies == {0, 1, 2} for copies in met.values())
        for one, other in itertools.combinations(expected, 2):
            assert all(not torch.equal(one[serial], other[serial]) for serial in one)
    assert_same(
        drawn(tmp_path / "store", 5, 0), drawn(tmp_path / "store", 5, 0, copies=np.zeros(1))
    )


def test_an_order_that_is_not_shuffled_has_the_same_draws_each_epoch(store):
    loader = loader_of(store[0], batch_size=8, shuffle=False)
    for _ in range(2):
        assert_same(by_serial(loader), drawn(store[0], 5, 0))


def test_a_dataset_alone_draws_for_the_epoch_that_it_is_told(store):
    dataset = ZarrDataset(store[0], FIELDS, AUGMENT)
    assert dataset.random
    assert torch.equal(dataset[3].positions, drawn(store[0], 0, 0)[3])
    dataset.set_epoch(4, seed=2)
    chosen = pickle.loads(pickle.dumps(dataset.index_select([5, 3])))
    for one in (dataset.__getitems__([1, 3]).get_data(1), dataset[3], chosen[1]):
        assert torch.equal(one.positions, drawn(store[0], 2, 4)[3])


def test_a_loader_may_have_a_transform_before_the_datasets_own(store):
    convert = ConvertUnits(length="nm")
    dataset = ZarrDataset(store[0], FIELDS, convert)
    loader = GraphLoader(dataset, GraphBatchSampler(dataset, 8, seed=5), transform=AUGMENT)
    assert_same(by_serial(loader), drawn(store[0], 5, 0, Compose([AUGMENT, convert])))
    assert not dataset.random
    plain = ZarrDataset(store[0], FIELDS).__getitems__([0, 1])
    assert torch.equal(dataset.__getitems__([0, 1]).positions, convert(plain).positions)


def test_transforms_follow_each_other_and_draw_independently():
    keys = sample_keys(0, 0, np.arange(3, dtype=np.uint64))
    fields = {"positions": torch.zeros(3, 3), "atomic_numbers": torch.ones(3, dtype=torch.int64)}
    batch = Batch(fields, torch.arange(4))
    noise = GaussianNoise(1.0)
    one = Compose([noise])(batch, keys).positions
    both = Compose([noise, noise])(batch, keys).positions
    assert not torch.isclose(both - one, one).any()
    assert torch.equal(Compose([noise, ConvertUnits(), noise])(batch, keys).positions, both)


def test_compose_says_what_it_needs():
    assert isinstance(AUGMENT, RandomTransform)
    assert not Compose([ConvertUnits()]).random
    assert Compose([Compose([RandomRotation()])]).random


@pytest.mark.parametrize(
    ("transform", "message"),
    [
        (RandomRotation, "transform is the class zarrpipe.transforms.RandomRotation, expected"),
        ([RandomRotation], "a transform is the class .*RandomRotation, expected an instance"),
        (3, "transform is 3, expected a function of a Batch"),
        ("rotate", "transform is 'rotate', expected a function"),
        ([1], "a transform is 1, expected a function"),
    ],
)
def test_what_is_no_transform_is_refused(store, transform, message):
    with pytest.raises(ArgumentTypeError, match=message):
        ZarrDataset(store[0], None, transform)


def test_what_gives_no_batch_is_named(store, transforms):
    dataset = ZarrDataset(store[0], FIELDS, [transforms.gives_a_list, ConvertUnits()])
    with pytest.raises(
        ArgumentTypeError, match=r"gives_a_list.* returned a list, expected the Batch"
    ):
        dataset[0]
    with pytest.raises(ArgumentTypeError, match="call this with keys too"):
        AUGMENT(ZarrDataset(store[0], FIELDS).__getitems__([0]))


def test_fields_that_a_neighbour_list_has_to_see_are_not_left_out(tmp_path, data):
    pytest.importorskip("vesin")
    batch = data.batch(4, edges=False)
    batch.pbc = torch.tensor([[True, True, False]] * 4)
    batch.cell = torch.eye(3, dtype=torch.float64).expand(4, 3, 3) * 5
    data.append(tmp_path / "store", batch)
    chain = [ConvertUnits(), Compose([NeighborList(3.0)])]
    with pytest.raises(ArgumentError, match=r"fields leaves out 'cell', which Compose.* add it"):
        ZarrDataset(tmp_path / "store", ["energy", "pbc"], chain)
    dataset = ZarrDataset(tmp_path / "store", ["energy", "pbc", "cell"], chain)
    assert dataset.__getitems__([0, 1]).num_edges > 0
    plain = ZarrDataset(tmp_path / "store", ["energy"])
    with pytest.raises(ArgumentError, match="fields leaves out 'cell'"):
        plain.preceded_by(NeighborList(3.0))
