"""Epochs that are drawn: by stores, a field or its values; fair, exact, growing, resumable."""

from collections import Counter
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from zarrpipe.data.levels import Level
from zarrpipe.dataset.zarr_dataset import ZarrDataset
from zarrpipe.training.data_module import ZarrDataModule
from zarrpipe.training.epoch.mixing import Mixture
from zarrpipe.training.epoch.weighted_draws import Expected, _systematic, copies_in, draw, scattered
from zarrpipe.training.sampler import GraphBatchSampler


def rounds(data, count, number, *, weight=None, tag=0, field="round"):
    """Batch of samples of one round."""
    batch = data.batch(count, tag=tag)
    batch.add_field(field, torch.full((count, 1), number), Level.SYSTEM)
    if weight is not None:
        batch.add_field("weight", torch.as_tensor(weight, dtype=torch.float32), Level.SYSTEM)
    return batch


def epoch_of(sampler: GraphBatchSampler, epoch: int = 0) -> np.ndarray:
    sampler.set_epoch(epoch)
    return np.concatenate(list(sampler))


def alone(data, **settings) -> GraphBatchSampler:
    return GraphBatchSampler(data, 4, rank=0, world_size=1, **settings)


@given(
    st.lists(st.sampled_from([0.0, 1e-9, 0.25, 0.5, 1.0, 3.0, 1e6]), min_size=1, max_size=80),
    st.integers(1, 300),
    st.integers(0, 3),
    st.booleans(),
)
def test_a_draw_has_its_total_and_rounds_every_expectation(weights, total, epoch, grouped):
    weights = [Fraction(weight) for weight in weights]
    weights[0] = Fraction(1)
    exact = [total * weight / sum(weights) for weight in weights]
    groups = np.arange(len(weights)) % 3 if grouped else None
    counts = draw(7, epoch, Expected(np.array(exact, dtype=float), groups), total)
    assert counts.sum() == total
    for count, times in zip(counts.tolist(), exact, strict=True):
        assert times.__floor__() <= count <= times.__ceil__()
    if grouped:
        for group in range(3):
            together = sum(exact[group::3])
            assert together.__floor__() <= counts[group::3].sum() <= together.__ceil__()


def test_every_sample_comes_as_often_as_expected_over_many_epochs():
    expected = np.array([0.1, 0.5, 0.5, 0.9, 1.75, 0.25, 2.0])
    counts = np.stack([draw(0, epoch, Expected(expected), 6) for epoch in range(4000)])
    assert np.allclose(counts.mean(0), expected, atol=0.03)
    together = (counts[:, 1] * counts[:, 2]).mean()
    assert 0.05 < together < 0.4  # neighbours are neither always nor never drawn together


@given(st.integers(0, 3) | st.integers(4000, 9000), st.integers(0, 9))
def test_scattered_integers_are_all_there(count, seed):
    order = scattered(count, np.random.default_rng(seed))
    assert np.array_equal(np.sort(order), np.arange(count))
    assert count < 4000 or not np.array_equal(order, np.arange(count))


def test_halves_of_long_epochs_are_other_ones_each_time():
    count, seen = 20_000, []
    for epoch in range(3):
        seen.append(draw(0, epoch, Expected(np.full(count, 0.5)), count // 2) > 0)
        assert np.bincount(np.arange(count) // 4096, seen[-1])[:4].tolist() == [2048.0] * 4
    shared = [np.count_nonzero(seen[a] & seen[b]) / (count // 2) for a, b in ((0, 1), (1, 2))]
    assert np.allclose(shared, 0.5, atol=0.03)


def test_long_draws_follow_their_expectation_all_along():
    expected = np.random.default_rng(0).random(100_000) * 3
    expected *= 120_000 / expected.sum()
    ahead = np.cumsum(draw(0, 0, Expected(expected), 120_000) - expected)[4095::4096]
    assert len(ahead) == 24
    assert np.abs(ahead).max() < 1 + 1e-6


@pytest.mark.parametrize("offset", [0.0, np.nextafter(1.0, 0.0)])
def test_a_grid_that_begins_at_an_end_takes_as_many(offset):
    random = np.random.default_rng(0)
    for count in range(2, 200):
        fractions = random.random(count)
        fractions[random.random(count) < 0.2] = 0.0
        fractions[0] = 0.5
        left = max(1, int(fractions.sum()))
        more = _systematic(fractions.copy(), left, offset)
        assert (more.sum(), more.min()) == (left, 0)
        assert not more[fractions == 0].any()


def test_copies_are_counted():
    assert copies_in(np.array([1, 2, 4])) is None
    assert copies_in(np.zeros(0, dtype=np.int64)) is None
    plan = alone(range(3), samples_per_epoch=8).plan()
    items = plan.items(0, (0, 0), 0)
    pairs = np.concatenate([np.stack((item.samples, item.copies), 1) for item in items])
    assert len(np.unique(pairs, axis=0)) == 8
    assert Counter(pairs[:, 1].tolist()) == {0: 3, 1: 3, 2: 2}
    assert all(item.copies is None for item in alone(range(3)).plan().items(0, (0, 0), 0))


def test_stores_share_an_epoch_whatever_arrives(tmp_path, data):
    paths = [tmp_path / name for name in "abc"]
    for tag, count in enumerate((40, 10, 0)):
        data.append(paths[tag], data.batch(max(count, 1), tag=tag))
    dataset = ZarrDataset(paths)
    sampler = alone(dataset, weights=[0.5, 0.25, 0.25], samples_per_epoch=200)
    assert np.bincount(dataset.store_of(epoch_of(sampler))).tolist() == [100, 50, 50]
    for tag, count in ((1, 15), (0, 5), (1, 7), (2, 3)):
        data.append(paths[tag], data.batch(count, tag=tag))
        dataset.refresh()
    assert len(epoch_of(sampler, 1)) == 200
    again = epoch_of(sampler, 1)
    assert np.bincount(dataset.store_of(again)).tolist() == [100, 50, 50]
    times = np.bincount(again, minlength=len(dataset))
    stores = dataset.store_of()
    assert times[stores == 0].min() == 2  # 100 of 45
    assert times[stores == 0].max() == 3
    assert set(times[stores == 1]) == {1, 2}  # 50 of 32
    assert set(times[stores == 2]) == {12, 13}  # 50 of 4


def test_an_epoch_under_way_keeps_the_weights_of_its_samples(tmp_path, data):
    data.append(tmp_path / "a", rounds(data, 30, 0))
    dataset = ZarrDataset(tmp_path / "a")
    sampler = alone(dataset, weights={"round": {0: 1, 1: 4}})
    batches = iter(sampler)
    next(batches)
    state = sampler.state_dict()
    data.append(tmp_path / "a", rounds(data, 6, 1, tag=1))
    dataset.refresh()
    assert (len(sampler), sampler.num_samples) == (8, 30)
    rest = np.concatenate(list(batches))
    assert rest.max() < 30
    other = alone(dataset, weights={"round": {0: 1, 1: 4}})
    other.load_state_dict(state)
    assert np.array_equal(np.concatenate(list(other)), rest)
    new = epoch_of(sampler, 1)
    assert np.count_nonzero(new >= 30) in (28, 29)  # 4 / 5 of 36
    assert len(new) == 36


def test_a_data_module_goes_on_with_an_epoch_of_stores_that_grew(tmp_path, data):
    paths = [tmp_path / "a", tmp_path / "b"]
    for tag in range(2):
        data.append(paths[tag], data.batch(30, tag=tag))

    def module():
        made = ZarrDataModule(
            paths, batch_size=4, weights=[1, 3], samples_per_epoch=40, split=(0.8, 0.2, 0.0)
        )
        made.setup("fit")
        return made

    first = module()
    batches = iter(first.train_dataloader())
    begun = [next(batches).serial for _ in range(3)]
    state = first.state_dict()
    for tag in (1, 0):
        data.append(paths[tag], data.batch(9, seed=5, tag=tag + 2))
    second = module()
    second.load_state_dict(state)
    rest = [batch.serial for batch in second.train_dataloader()]
    assert [batch.tolist() for batch in rest] == [batch.serial.tolist() for batch in batches]
    every = torch.cat([*begun, *rest]).ravel()
    assert torch.bincount(every // 1000).tolist() == [10, 30]
    assert len(second.train_dataloader()) == 10
    following = torch.cat([batch.serial for batch in second.train_dataloader()]).ravel()
    assert torch.bincount(following // 1000 % 2).tolist() == [10, 30]
    assert (following >= 2000).any()
    for one in (first, second):
        one.teardown("fit")


def test_a_field_says_the_weight_of_each_sample(tmp_path, data):
    weights = np.arange(8.0)
    data.append(tmp_path / "a", rounds(data, 8, 0, weight=weights))
    sampler = alone(ZarrDataset(tmp_path / "a"), weights="weight", samples_per_epoch=56)
    assert np.array_equal(np.bincount(epoch_of(sampler)), 2 * np.arange(8))
    split = alone(ZarrDataset(tmp_path / "a"), weights="weight", index=[1, 5, 6])
    times = np.bincount(epoch_of(split), minlength=8)
    assert times.tolist() in (
        [0, 0, 0, 0, 0, 1, 2, 0],
        [0, 1, 0, 0, 0, 1, 1, 0],
        [0] * 5 + [2, 1, 0],
    )


def test_samples_without_the_field_are_others(tmp_path, data):
    data.append(tmp_path / "a", rounds(data, 10, 0))
    data.append(tmp_path / "a", data.batch(10, tag=1))
    data.append(tmp_path / "b", data.batch(10, tag=2))
    dataset = ZarrDataset([tmp_path / "a", tmp_path / "b"])
    named = {"round": {0: 0.75, "other": 0.25}}
    drawn = epoch_of(alone(dataset, weights=named, samples_per_epoch=80))
    assert np.bincount(drawn < 10).tolist() == [20, 60]
    with pytest.raises(ValueError, match="sample 10 has no field 'round', and weights name"):
        alone(dataset, weights={"round": {0: 1.0}})
    with pytest.raises(ValueError, match="sample 10 has no field 'round', expected a weight"):
        alone(dataset, weights="round")


def test_values_of_other_widths_are_the_same(tmp_path, data):
    batch = data.batch(6)
    for name, values in (("grade", torch.tensor([0.1, 0.2] * 3)), ("old", torch.arange(6) > 3)):
        batch.add_field(name, values, Level.SYSTEM)
    data.append(tmp_path / "a", batch)
    dataset = ZarrDataset(tmp_path / "a")
    drawn = epoch_of(alone(dataset, weights={"grade": {0.1: 1, 0.2: 2}}, samples_per_epoch=30))
    assert np.bincount(drawn % 2).tolist() == [10, 20]
    drawn = epoch_of(alone(dataset, weights={"old": {True: 1, False: 1}}, samples_per_epoch=30))
    assert np.bincount(drawn > 3).tolist() == [15, 15]


def test_without_weights_an_epoch_is_a_part_or_several_times_all():
    part = [epoch_of(alone(range(100), samples_per_epoch=30), epoch) for epoch in range(2)]
    assert [len(np.unique(drawn)) for drawn in part] == [30, 30]
    assert set(part[0].tolist()) != set(part[1].tolist())
    assert set(np.bincount(epoch_of(alone(range(100), samples_per_epoch=250)))) == {2, 3}
    assert alone([], samples_per_epoch=5).num_samples == 0
    in_order = alone(range(9), samples_per_epoch=12, shuffle=False)
    assert (np.diff(epoch_of(in_order)) >= 0).all()


def test_a_state_of_other_weights_is_refused(tmp_path, data):
    data.append(tmp_path / "a", rounds(data, 9, 0, weight=np.ones(9)))
    dataset = ZarrDataset(tmp_path / "a")
    state = alone(dataset, weights={"round": {0: 0.5, 1: 0.5}}).state_dict()
    alone(dataset, weights={"round": {1: 0.5, 0: 0.5}}).load_state_dict(state)
    for weights in (None, "weight", [1.0], {"round": {0: 0.4, 1: 0.6}}):
        with pytest.raises(ValueError, match="the state is of batches with weights="):
            alone(dataset, weights=weights).load_state_dict(state)
    with pytest.raises(ValueError, match="samples_per_epoch=0 and here it is 20"):
        alone(dataset, weights={"round": {0: 0.5, 1: 0.5}}, samples_per_epoch=20).load_state_dict(
            state
        )
    plain = alone(dataset).state_dict()
    with pytest.raises(ValueError, match="weights=0 and here it is"):
        alone(dataset, weights="weight").load_state_dict(plain)


def test_a_sample_that_is_never_drawn_may_be_larger_than_a_budget(tmp_path, data):
    large = torch.tensor([float(atoms < 6) for atoms in data.batch(40).num_nodes_list])
    assert 0 < large.sum() < 40
    data.append(tmp_path / "a", rounds(data, 40, 0, weight=large))
    dataset = ZarrDataset(tmp_path / "a")
    settings = {"max_atoms": 5, "weights": "weight", "rank": 0, "world_size": 1}
    assert dataset.num_atoms[epoch_of(GraphBatchSampler(dataset, **settings))].max() <= 5
    with pytest.raises(ValueError, match="has 6 atoms, more than max_atoms=5"):
        GraphBatchSampler(dataset, **{**settings, "weights": [1.0]})


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ([1.0, 2.0], "weights are shares of 2 stores, and the dataset has 1"),
        ({"round": {7: 1.0}}, r"sample 0 has round = 0, and weights name \[7\]"),
        ({"round": {0: 0.0, 7: 1.0}}, "every sample has the share 0"),
        ("weight", r"sample 2 has weight = -1.0, expected a weight of 0 or more"),
        ("serials", "'serials'"),
        ("forces", "'forces', which is at level 'atom': expected one with a number for each"),
        ("cells", r"rows of shape \(3,\): expected one with a number for each sample"),
    ],
)
def test_weights_that_do_not_fit_the_data_are_refused_before_training(
    tmp_path, data, weights, message
):
    batch = rounds(data, 4, 0, weight=[1.0, 0.0, -1.0, np.nan])
    batch.add_field("cells", torch.ones((4, 3)), Level.SYSTEM)
    data.append(tmp_path / "a", batch)
    with pytest.raises(ValueError, match=message):
        alone(ZarrDataset(tmp_path / "a"), weights=weights)


@pytest.mark.parametrize(
    ("weights", "kind", "message"),
    [
        (0.5, TypeError, "weights is 0.5, expected a share for each store"),
        (["a"], TypeError, r"weights are \['a'\], expected numbers"),
        ([1.0, -1.0], ValueError, "expected numbers of 0 or more, not all 0"),
        ([0.0, 0.0], ValueError, "not all 0"),
        ([np.nan], ValueError, "not all 0"),
        ([], ValueError, "not all 0"),
        ({"a": {0: 1.0}, "b": {0: 1.0}}, ValueError, "expected one field and its shares"),
        ({"round": 0.5}, ValueError, "expected one field and its shares"),
        ({"round": {"other": 1.0}}, ValueError, "expected one field and its shares"),
        ({"round": {0: 1.0, "0": 2.0}}, ValueError, "name a value twice"),
    ],
)
def test_weights_that_are_none_are_refused(weights, kind, message):
    with pytest.raises(kind, match=message):
        ZarrDataModule("nowhere", weights=weights)


@pytest.mark.parametrize(("given", "kind"), [(0, ValueError), (2.5, TypeError), (True, TypeError)])
def test_a_total_out_of_range_is_refused(given, kind):
    with pytest.raises(kind, match=f"samples_per_epoch is {given}, expected"):
        Mixture.of(None, given)


@pytest.mark.filterwarnings("ignore")  # jsonargparse's own deprecations, which LightningCLI uses
@pytest.mark.parametrize(
    ("text", "new"),
    [
        ("{round: {0: 0.2, 1: 0.8}}", 80),
        ("{round: {1: 3, other: 1}}", 75),
        ("[0.5, 0.5]", 50),
        ("importance", 40),
        ("null", None),
    ],
)
def test_a_configuration_file_says_the_weights(tmp_path, data, text, new):
    for number in (0, 1):
        batch = rounds(data, 20, number, tag=number)
        importance = torch.full((20,), (3.0, 2.0)[number])
        batch.add_field("importance", importance, Level.SYSTEM)
        data.append(tmp_path / str(number), batch)
    parser = pytest.importorskip("jsonargparse").ArgumentParser()
    parser.add_class_arguments(ZarrDataModule, "data")
    settings = (
        f"data:\n  store: [{tmp_path}/0, {tmp_path}/1]\n  split: [1.0, 0.0, 0.0]\n"
        f"  weights: {text}\n  samples_per_epoch: {100 if new else 'null'}\n"
    )
    module = parser.instantiate_classes(parser.parse_string(settings)).data
    module.setup("fit")
    drawn = torch.cat([batch["round"] for batch in module.train_dataloader()])
    assert int(drawn.sum()) == (new or 20)
    assert len(drawn) == (100 if new else 40)
    assert sum(batch.num_graphs for batch in module.predict_dataloader()) == 40
    module.teardown("fit")
