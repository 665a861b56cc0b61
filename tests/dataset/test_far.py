"""Training from stores that are read through a cache, and from samples held on a device."""

import itertools

import numpy as np
import pytest
import torch

import zarrpipe as zp
from zarrpipe.dataset.blocks import Blocks
from zarrpipe.testing import assert_batches_equal, numbered_batch
from zarrpipe.training.epoch.batch_plan import Plan, compact_index, first_indices
from zarrpipe.training.loader import GraphLoader
from zarrpipe.training.sampler import GraphBatchSampler

SMALL = {
    group: {"compressors": ("zstd",), "chunk_size": 4096} for group in ("core", "custom", "meta")
}
COUNT, LIMIT = 24_000, 2_200_000


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    place = tmp_path_factory.mktemp("far") / "store"
    with zp.ZarrData(place, config=SMALL) as sink:
        sink.write(numbered_batch(np.arange(COUNT) % 9000))
    return place


def indices(plan: Plan, world_size: int = 1) -> np.ndarray:
    per_rank = [list(plan.batches(rank)) for rank in range(world_size)]
    return np.concatenate(list(itertools.chain(*zip(*per_rank, strict=True))))


def test_a_cache_that_is_too_small_is_known(store):
    assert zp.ZarrDataset(store, cache_bytes=LIMIT).exceeds_cache
    assert not zp.ZarrDataset(store, cache_bytes=10_000_000).exceeds_cache
    assert not zp.ZarrDataset(store).exceeds_cache


def test_groups_fit_the_cache_and_blocks_follow_chunks(store):
    dataset = zp.ZarrDataset(store, cache_bytes=LIMIT)
    bounds, group = dataset.blocks()
    assert bounds[0] == 0
    assert bounds[-1] == COUNT
    assert 1 <= group < len(bounds) - 1
    assert dataset.blocks(5000).bounds[-1] == 5000


def test_blocks_of_the_first_samples_are_those_of_a_store_that_has_no_others(tmp_path):
    """So an epoch that is resumed once its store has grown goes on in the same order."""
    small = {"core": {"compressors": ("zstd",), "chunk_size": 256}}
    datasets = []
    for place, count in enumerate((6000, 2000)):
        with zp.ZarrData(tmp_path / str(place), config=small) as sink:
            sink.write(numbered_batch(np.arange(count)))
        datasets.append(zp.ZarrDataset(tmp_path / str(place), cache_bytes=300_000))
    longer, shorter = datasets
    both = zp.ZarrDataset([tmp_path / "0", tmp_path / "1"], cache_bytes=300_000)
    cut = np.unique(np.minimum(longer.blocks().bounds, 2000))
    assert not np.array_equal(cut, shorter.blocks().bounds)
    for count in (1, 700, 2000):
        bounds, group = shorter.blocks(count)
        for other in (longer, both):
            assert np.array_equal(other.blocks(count).bounds, bounds)
            assert other.blocks(count).group == group
    assert both.blocks(7000).bounds[-1] == 7000


def test_a_state_of_other_blocks_is_refused():
    def blocks(size):
        return lambda count: Blocks(np.arange(0, count + 1, size), 2)

    state = GraphBatchSampler(range(24), 4, blocks=blocks(3)).state_dict()
    GraphBatchSampler(range(24), 4, blocks=blocks(3)).load_state_dict(state)
    with pytest.raises(ValueError, match="in other blocks than there are here"):
        GraphBatchSampler(range(24), 4, blocks=blocks(4)).load_state_dict(state)


@pytest.mark.parametrize("index", [None, np.flatnonzero(np.arange(COUNT) % 3)])
@pytest.mark.parametrize("world_size", [1, 2])
def test_each_sample_once_and_near_each_other(store, index, world_size):
    dataset = zp.ZarrDataset(store, cache_bytes=LIMIT)
    sampler = GraphBatchSampler(
        dataset, 64, seed=3, index=index, blocks=dataset.blocks, rank=0, world_size=world_size
    )
    plan = sampler.plan()
    order = indices(plan, world_size)
    everything = np.arange(COUNT) if index is None else index
    assert not np.array_equal(order, everything)
    assert np.array_equal(np.sort(order), everything)
    near = order[: plan.ahead // 2]
    block_of = np.searchsorted(dataset.blocks().bounds, near, side="right")
    assert len(np.unique(block_of)) <= dataset.blocks().group
    sampler.set_epoch(1)
    assert not np.array_equal(indices(sampler.plan(), world_size), order)


def test_it_resumes_at_another_world_size(store):
    dataset = zp.ZarrDataset(store, cache_bytes=LIMIT)

    def sampler(rank=0, world_size=1):
        return GraphBatchSampler(
            dataset, 64, seed=3, blocks=dataset.blocks, rank=rank, world_size=world_size
        )

    first = sampler()
    begun = iter(first)
    consumed = np.concatenate([next(begun) for _ in range(10)])
    rest = []
    for rank in (0, 1):
        second = sampler(rank, 2)
        second.load_state_dict(first.state_dict())
        rest += list(second)
    assert np.array_equal(np.sort(np.concatenate([consumed, *rest])), np.arange(COUNT))


def test_another_cache_is_refused_at_a_resume(store):
    dataset = zp.ZarrDataset(store, cache_bytes=LIMIT)
    state = GraphBatchSampler(dataset, 64, blocks=dataset.blocks).state_dict()
    with pytest.raises(ValueError, match=r"groups of \d+ blocks, here they have 0"):
        GraphBatchSampler(dataset, 16).load_state_dict(state)


def test_no_samples_have_no_blocks():
    sampler = GraphBatchSampler((), 4, blocks=lambda _: pytest.fail("asked"))
    assert len(sampler.plan()) == 0


def test_growth_waits_for_the_next_epoch():
    samples = list(range(8))
    sampler = GraphBatchSampler(
        samples, 4, blocks=lambda count: Blocks(np.arange(0, count + 1, 2), 2)
    )
    plan = sampler.start()
    samples += range(8, 12)
    assert sorted(indices(plan)) == list(range(8))
    sampler.set_epoch(1)
    assert sorted(indices(sampler.start())) == list(range(12))


@pytest.mark.parametrize("cached", [False, True])
@pytest.mark.parametrize("limit", [None, LIMIT])
def test_a_data_module_over_a_compressed_store(store, tmp_path, cached, limit):
    cache_dir = tmp_path / "cache" if cached else None
    options = {"cache_dir": cache_dir, "cache_bytes": limit, "batch_size": 128, "seed": 1}
    module = zp.ZarrDataModule(store, **options)
    module.setup("fit")
    for epoch in range(2):
        loader = module.train_dataloader()
        loader.sampler.set_epoch(epoch)
        seen = zp.Batch.concatenate(list(loader))
        serial = np.sort(seen.serial.flatten().numpy())
        train = module.train_dataset
        assert np.array_equal(serial, np.sort(train.system_field("serial").ravel()))
        first = seen.index_select([0, 5])
        assert_batches_equal(first, numbered_batch(first.serial.tolist()))
    in_blocks = loader.sampler.state_dict()["group"] > 0
    assert in_blocks == (limit is not None)
    assert (cache_dir is not None and cache_dir.exists()) == cached


def test_shuffling_in_blocks_can_be_asked_for(store):
    module = zp.ZarrDataModule(store, shuffle="blocks")
    module.setup("fit")
    assert module.train_dataloader().sampler.state_dict()["group"] > 0
    with pytest.raises(ValueError, match="shuffle is 'all', expected 'samples', 'blocks' or None"):
        zp.ZarrDataModule(store, shuffle="all")


def test_a_resident_data_module(store):
    module = zp.ZarrDataModule(store, resident=True, batch_size=64)
    plain = zp.ZarrDataModule(store, batch_size=64)
    for one in (module, plain):
        one.setup("fit")
    pairs = zip(module.train_dataloader(), plain.train_dataloader(), strict=True)
    for ours, theirs in pairs:
        assert_batches_equal(ours, theirs)
    assert module.dataset.resident == torch.device("cpu")


def test_resident_samples_are_not_for_workers(store):
    with pytest.raises(ValueError, match="num_workers is 2, expected 0 with resident=True"):
        zp.ZarrDataModule(store, resident=True, num_workers=2)
    dataset = zp.ZarrDataset(store, resident="cpu")
    with pytest.raises(ValueError, match="held on cpu by this process alone"):
        GraphLoader(dataset, GraphBatchSampler(dataset, 4), num_workers=1)


def test_a_split_goes_on_where_it_was(tmp_path):
    with zp.ZarrData(tmp_path / "store") as sink:
        sink.write(numbered_batch(range(300)))
        module = zp.ZarrDataModule(tmp_path / "store", split=(0.5, 0.25, 0.25))
        module.setup("fit")
        before = module.train_dataset.system_field("serial").ravel()
        sink.write(numbered_batch(range(300, 600)))
        module.refresh()
    fresh = zp.ZarrDataModule(tmp_path / "store", split=(0.5, 0.25, 0.25))
    for side in ("train_dataset", "val_dataset", "test_dataset"):
        now = getattr(module, side).system_field("serial")
        np.testing.assert_array_equal(now, getattr(fresh, side).system_field("serial"))
    np.testing.assert_array_equal(
        module.train_dataset.system_field("serial").ravel()[: len(before)], before
    )


def test_indices_take_32_bits_where_they_fit():
    assert compact_index(np.array([0, 2**31 - 1])).dtype == np.int32
    assert compact_index(np.array([0, 2**31])).tolist() == [0, 2**31]
    assert first_indices(3).dtype == np.int32


@pytest.mark.parametrize("amount", [0, -1, "1GB", True, 1.5])
def test_a_cache_of_no_size(store, amount):
    for make in (zp.ZarrDataset, zp.ZarrDataModule):
        with pytest.raises(ValueError, match=f"cache_bytes is {amount!r}, expected an integer"):
            make(store, cache_bytes=amount)


def test_a_cache_where_a_file_is(store, tmp_path):
    (tmp_path / "file").write_text("mine")
    for make in (zp.ZarrDataset, zp.ZarrDataModule):
        with pytest.raises(NotADirectoryError, match="is a file, expected a directory"):
            make(store, cache_dir=tmp_path / "file")
    assert (tmp_path / "file").read_text() == "mine"


def test_a_device_that_is_not_there(store):
    with pytest.raises(ValueError, match="resident='gpu' is no device that torch has here"):
        zp.ZarrDataset(store, resident="gpu")
