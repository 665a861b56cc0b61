"""Ranks that look into stores at different moments, as two threads that take turns."""

import threading
from functools import partial
from types import SimpleNamespace

import pytest
import torch

from zarrpipe import (
    AtomicDataZarrWriter,
    Batch,
    ZarrData,
    ZarrDataModule,
    ZarrDataset,
)
from zarrpipe.errors import StoreFormatError
from zarrpipe.testing import numbered_batch
from zarrpipe.training import ranks as ranks_module


class Ranks:
    """What `training.ranks` asks of torch.distributed, for two threads."""

    def __init__(self):
        self.barrier = threading.Barrier(2, timeout=300)
        self.told = [None, None]
        self.here = threading.local()

    def is_available(self):
        return True

    is_initialized = is_available

    def get_rank(self):
        return self.here.rank

    def get_world_size(self):
        return 2

    def all_gather_object(self, gathered, mine):
        self.told[self.here.rank] = mine
        self.barrier.wait()
        gathered[:] = self.told
        self.barrier.wait()

    def run(self, functions):
        """Call a function on each rank; what they gave or raised."""
        found = [None, None]

        def call(rank):
            self.here.rank = rank
            try:
                found[rank] = functions[rank]()
            except Exception as error:  # noqa: BLE001  it is looked at
                found[rank] = error

        threads = [threading.Thread(target=call, args=(rank,)) for rank in (0, 1)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return found


@pytest.fixture
def ranks(monkeypatch):
    ranks = Ranks()
    monkeypatch.setattr(ranks_module, "dist", ranks)
    return ranks


def test_a_field_that_comes_between_the_looks_of_two_ranks(tmp_path, ranks):
    """Both have it in the end, and the same samples."""
    store = tmp_path / "store"
    with ZarrData(store) as sink:
        sink.write(numbered_batch(range(4)))
    datasets = [ZarrDataset(store), ZarrDataset(store)]
    looked, grown = threading.Event(), threading.Event()
    first = datasets[0].refresh

    def refresh():
        new = first()
        if not looked.is_set():
            looked.set()
            grown.wait(300)
        return new

    datasets[0].refresh = refresh

    def other():
        looked.wait(300)
        new = numbered_batch(range(4, 9))
        fields = {**new.fields, "round": torch.full((5, 1), 3)}
        levels = {"serial": "system", "round": "system"}
        with ZarrData(store) as sink:
            sink.write(Batch(fields, new.batch_ptr, new.edge_ptr, levels=levels))
        grown.set()
        ranks_module.refresh_all_ranks(datasets[1])

    assert ranks.run([lambda: ranks_module.refresh_all_ranks(datasets[0]), other]) == [None, None]
    assert [len(dataset) for dataset in datasets] == [9, 9]
    for dataset in datasets:
        assert dataset.where("round == 3").tolist() == [4, 5, 6, 7, 8]


def test_a_rank_that_cannot_read_its_stores_ends_both(tmp_path, ranks):
    store = tmp_path / "store"
    with ZarrData(store) as sink:
        sink.write(numbered_batch(range(4)))
    datasets = [ZarrDataset(store), ZarrDataset(store)]

    def refresh():
        raise StoreFormatError("the array is damaged")

    datasets[1].refresh = refresh
    told = ranks.run([lambda d=d: ranks_module.refresh_all_ranks(d) for d in datasets])
    assert str(told[0]) == (
        "rank 1 cannot go on with its stores: StoreFormatError: the array is damaged"
    )
    assert (type(told[0]), str(told[1])) == (StoreFormatError, "the array is damaged")


def test_a_data_module_is_printed_without_reading(tmp_path):
    module = ZarrDataModule([tmp_path / "a", "b"], val_store={"c": 1})
    expected = f"ZarrDataModule([{str(tmp_path / 'a')!r}, 'b'], val=<dict>)"
    assert (str(module), repr(module)) == (expected, expected)


def test_ranks_that_begin_other_epochs_are_told_so(ranks):
    states = [{"num_samples": 4, "group": 0}, {"num_samples": 4, "group": 2}]
    told = ranks.run([lambda s=s: ranks_module.check_alike(lambda: s) for s in states])
    for error in told:
        assert "ranks 0 and 1 begin an epoch of other ['group']: [0] and [2]" in str(error)
    assert ranks.run([lambda: ranks_module.check_alike(lambda: states[0])] * 2) == [None, None]


def test_a_store_that_outgrows_its_cache_is_shuffled_as_its_epoch_began(tmp_path):
    """So a run can be resumed, and ranks that look at different moments do the same."""
    store, small = tmp_path / "store", {"batch_size": 7, "cache_bytes": 400_000}
    config = {
        group: {"chunk_size": 16, "compressors": ({"name": "zstd"},)}
        for group in ("core", "custom")
    }
    with ZarrData(store, config=config) as sink:
        sink.write(numbered_batch(range(40)))
    dataset = ZarrDataset(store, cache_bytes=small["cache_bytes"])
    module = ZarrDataModule(store, split=(1.0, 0.0, 0.0), **small)
    module.setup("fit")
    batches = iter(module.train_dataloader())
    seen = next(batches)["serial"].flatten().tolist()
    state = module.state_dict()
    rest = [serial for batch in batches for serial in batch["serial"].flatten().tolist()]
    with ZarrData(store) as sink:
        sink.write(numbered_batch(range(40, 4000)))
    grown = ZarrDataset(store, cache_bytes=small["cache_bytes"])
    assert (dataset.exceeds_cache, grown.exceeds_cache) == (False, True)
    grown.load_state_dict(dataset.state_dict())
    assert not grown.exceeds_cache
    again = ZarrDataModule(store, split=(1.0, 0.0, 0.0), **small)
    again.setup("fit")
    again.load_state_dict(state)
    left = [s for batch in again.train_dataloader() for s in batch["serial"].flatten().tolist()]
    assert left == rest
    assert sorted(seen + left) == list(range(40))


def test_a_deletion_is_said_on_every_rank(tmp_path, ranks):
    with ZarrData(tmp_path / "store") as sink:
        sink.write(numbered_batch(range(6)))
    modules = [ZarrDataModule(tmp_path / "store") for _ in (0, 1)]
    assert ranks.run([module.refresh for module in modules]) == [6, 6]
    with AtomicDataZarrWriter(tmp_path / "store") as writer:
        writer.delete([0])
    for error in ranks.run([module.refresh for module in modules]):
        assert type(error) is StoreFormatError
        assert "were deleted or moved" in str(error)
    assert ranks.run([module.refresh for module in modules]) == [0, 0]
    assert [len(module.dataset) for module in modules] == [5, 5]


@pytest.fixture
def modules(tmp_path):
    """Data modules of two ranks, of a store of 6 samples."""
    with ZarrData(tmp_path / "store") as sink:
        sink.write(numbered_batch(range(6)))
    return [ZarrDataModule(tmp_path / "store", split=(1.0, 0.0, 0.0)) for _ in (0, 1)]


def fail(*_, **__):
    raise OSError("the disk is gone")


def assert_both_end(told, failed, error, says):
    """The rank that failed raised its own error, the other one says so."""
    assert type(told[failed]) is error
    assert says in str(told[failed])
    other = told[1 - failed]
    assert type(other) is StoreFormatError
    assert f"rank {failed} cannot go on with its stores: {error.__name__}: " in str(other)
    assert says in str(other)


@pytest.mark.parametrize("failed", [0, 1])
def test_an_error_of_one_rank_ends_both_where_a_run_is_set_up(ranks, modules, monkeypatch, failed):
    set_up = [lambda module=module: module.setup("fit") for module in modules]
    with monkeypatch.context() as patched:  # before its first look
        patched.setattr(modules[failed]._splits, "_opened", fail)
        assert_both_end(ranks.run(set_up), failed, OSError, "the disk is gone")
    assert ranks.run(set_up) == [None, None]
    modules[failed].dataset.refresh = fail  # between two runs
    assert_both_end(ranks.run(set_up), failed, OSError, "the disk is gone")
    assert ranks.run(set_up) == [None, None]
    with monkeypatch.context() as patched:  # after the look
        patched.setattr(modules[failed]._splits, "check_trained", fail)
        assert_both_end(ranks.run(set_up), failed, OSError, "the disk is gone")
    fetch = [module.train_dataloader for module in modules]
    with monkeypatch.context() as patched:
        patched.setattr(modules[failed], "_loader", fail)
        assert_both_end(ranks.run(fetch), failed, OSError, "the disk is gone")
    assert ranks.run(set_up) == [None, None]
    assert [len(loader) for loader in ranks.run(fetch)] == [1, 1]


def test_a_store_that_one_rank_saw_rewritten_is_set_up_by_both(tmp_path, ranks, modules):
    ranks.run([lambda: modules[0].setup("fit"), lambda: modules[1].setup("fit")])
    with AtomicDataZarrWriter(tmp_path / "store") as writer:
        writer.delete([0])
    modules[0]._splits.open_anew()  # as if it had been opened a moment later
    set_up = [lambda module=module: module.setup("fit") for module in modules]
    assert ranks.run(set_up) == [None, None]
    assert [len(module.train_dataset) for module in modules] == [5, 5]


def test_a_warning_of_rank_0_that_is_an_error_ends_both(tmp_path, ranks, modules):
    modules = [ZarrDataModule(tmp_path / "store", val_store=tmp_path / "store") for _ in (0, 1)]
    told = ranks.run([lambda module=module: module.setup("fit") for module in modules])
    assert_both_end(told, 0, UserWarning, "6 of the 6 val samples have the same structure")


def test_a_setting_that_one_rank_assigned_inside_of_an_epoch_ends_both(ranks, modules):
    fetch = [module.train_dataloader for module in modules]
    first = ranks.run(fetch)
    for module in modules:
        module.trainer = SimpleNamespace(
            current_epoch=0, overfit_batches=0, training=False, validating=False
        )
    again = ranks.run(fetch)
    assert [one is other for one, other in zip(again, first, strict=True)] == [True, True]
    modules[1].batch_size = 3
    for error in ranks.run(fetch):
        assert type(error) is StoreFormatError
        assert "ranks 0 and 1 begin an epoch of other ['settings assigned']" in str(error)
    modules[0].batch_size = 3
    assert [loader.sampler.batch_size for loader in ranks.run(fetch)] == [3, 3]


def test_a_new_part_that_only_one_rank_sees(tmp_path, ranks):
    """It waits until both see it, so that the samples of both are the same in every epoch."""
    store = tmp_path / "store"
    with ZarrData(store, part="b") as sink:
        sink.write(numbered_batch(range(4)))
    datasets = [ZarrDataset(store), ZarrDataset(store)]
    with ZarrData(store, part="a") as sink:
        sink.write(numbered_batch(range(10, 13)))
    with ZarrData(store, part="b") as sink:
        sink.write(numbered_batch(range(4, 6)))
    blind = datasets[1]._stores.given[0]
    blind.found = lambda but=None: {"b": blind.view("b")}  # as of a directory on another machine
    agreed = [partial(ranks_module.refresh_all_ranks, dataset) for dataset in datasets]
    assert ranks.run(agreed) == [None, None]
    first, second = (dataset.system_field("serial").tolist() for dataset in datasets)
    assert first == second == [0, 1, 2, 3, 4, 5]
    del blind.found
    assert ranks.run(agreed) == [None, None]
    first, second = (dataset.system_field("serial").tolist() for dataset in datasets)
    assert first == second == [0, 1, 2, 3, 4, 5, 10, 11, 12]
    assert datasets[0].state_dict() == datasets[1].state_dict()
