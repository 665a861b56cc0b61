"""ZarrDataModule: splits, growth and resume in real Lightning runs."""

import warnings

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from zarr.storage import LocalStore, MemoryStore

from zarrpipe.dataset.zarr_dataset import ZarrDataset
from zarrpipe.errors import StoreEmptyError, StoreFormatError
from zarrpipe.training.data_module import ZarrDataModule
from zarrpipe.training.statistics import measure

pytestmark = [
    # Lightning says that a test set is small or that workers would help; and its own deprecations.
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:The number of training batches"),
    pytest.mark.filterwarnings("ignore:Total length of `GraphLoader` across ranks is zero"),
    pytest.mark.filterwarnings("ignore:.*Checkpoint directory"),
    pytest.mark.filterwarnings("ignore:.*`isinstance.treespec, LeafSpec.` is deprecated"),
]


class Energies(LightningModule):
    """A linear potential that notes the samples of each step by epoch."""

    def __init__(self, total_steps: bool = False):
        super().__init__()
        self.weights = torch.nn.Linear(3, 1, dtype=torch.float64)
        torch.nn.init.constant_(self.weights.weight, 0.1)
        torch.nn.init.zeros_(self.weights.bias)
        self.total_steps = total_steps
        self.seen, self.validated = {}, {}

    def loss(self, batch):
        moments = torch.zeros(batch.num_graphs, 3, dtype=torch.float64)
        moments = moments.index_add(0, batch.batch_idx, batch.positions)
        return ((self.weights(moments) - batch.energy) ** 2).mean()

    def training_step(self, batch, batch_idx):
        self.seen.setdefault(self.current_epoch, []).append(batch.serial.tolist())
        return self.loss(batch)

    def validation_step(self, batch, batch_idx):
        self.validated.setdefault(self.current_epoch, []).append(batch.serial.tolist())

    test_step = validation_step

    def predict_step(self, batch, batch_idx):
        return batch.serial.tolist()

    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), lr=0.01, momentum=0.9)
        if not self.total_steps:
            return optimizer
        steps = self.trainer.estimated_stepping_batches
        return [optimizer], [torch.optim.lr_scheduler.LinearLR(optimizer, total_iters=steps)]


class Kill(Exception):
    pass


class KillAt(Callback):
    def __init__(self, step):
        self.step = step

    def on_train_batch_end(self, trainer, *_):
        if trainer.global_step == self.step:
            raise Kill


class GrowAt(Callback):
    """Append in the middle of an epoch."""

    def __init__(self, grow, epoch=0):
        self.grow, self.epoch = grow, epoch

    def on_train_batch_end(self, trainer, *_):
        if (trainer.current_epoch, trainer.fit_loop.epoch_loop.batch_idx) == (self.epoch, 1):
            self.grow()


def trainer(tmp_path, *callbacks, epochs=2, **settings):
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    if not any(isinstance(one, ModelCheckpoint) for one in callbacks):
        quiet["enable_checkpointing"] = False
    return Trainer(
        accelerator="cpu",
        max_epochs=epochs,
        default_root_dir=tmp_path,
        callbacks=list(callbacks),
        **{**quiet, **settings},
    )


def checkpoints(tmp_path, every=3):
    return ModelCheckpoint(tmp_path / "checkpoints", every_n_train_steps=every, save_top_k=-1)


def last_checkpoint(tmp_path):
    found = (tmp_path / "checkpoints").glob("*.ckpt")
    return max(found, key=lambda path: int(path.stem.split("step=")[1]))


def flat(batches):
    return [serial for batch in batches for serial in batch]


@pytest.mark.parametrize("kind", [str, LocalStore, lambda path: path])
def test_sides_share_the_samples(store, kind):
    path, _ = store
    module = ZarrDataModule(kind(path), split=(0.5, 0.3, 0.2))
    sides = [module.train_dataset, module.val_dataset, module.test_dataset]
    assert all(len(side) > 2 for side in sides)
    every = np.concatenate([side.system_field("serial") for side in sides]).ravel()
    assert sorted(every.tolist()) == list(range(40))


def test_a_dict_is_a_store(data):
    held = {}
    data.append(held, data.batch(10))
    module = ZarrDataModule(MemoryStore(held), split=(1, 0, 0))
    assert len(module.train_dataset) == len(ZarrDataModule(held).dataset) == 10


def test_groups_stay_together(tmp_path, data):
    batch = data.batch(60)
    batch.add_field("molecule", torch.arange(60)[:, None] // 6, "system")
    data.append(tmp_path / "store", batch)
    module = ZarrDataModule(tmp_path / "store", split=(0.5, 0.25, 0.25), split_by="molecule")
    sides = [module.train_dataset, module.val_dataset, module.test_dataset]
    groups = [set(side.system_field("molecule").ravel().tolist()) for side in sides]
    assert sum(map(len, groups)) == 10
    assert sorted(set.union(*groups)) == list(range(10))
    assert len(groups[0]) > 2


def test_no_sample_changes_sides_while_stores_grow(tmp_path, data):
    places = [tmp_path / "a", tmp_path / "b"]
    for tag, place in enumerate(places):
        data.append(place, data.batch(20, tag=tag))
    module = ZarrDataModule(places, split=(0.6, 0.2, 0.2))
    before = {name: getattr(module, f"{name}_dataset") for name in ("train", "val", "test")}
    data.append(places[0], data.batch(30, tag=2))
    assert module.refresh() == 30
    for name, side in before.items():
        now = getattr(module, f"{name}_dataset")
        assert len(now) > len(side)
        assert np.array_equal(now.ids[: len(side)], side.ids)


def test_other_stores_for_validation_and_test(tmp_path, data):
    for tag, name in enumerate(("train", "val", "test")):
        data.append(tmp_path / name, data.batch(20, tag=tag))
    module = ZarrDataModule(tmp_path / "train", val_store=tmp_path / "val", split=(0.5, 0.1, 0.4))
    assert len(module.val_dataset) == 20
    assert len(module.train_dataset) + len(module.test_dataset) == 20
    module = ZarrDataModule(
        tmp_path / "train", val_store=tmp_path / "val", test_store=tmp_path / "test"
    )
    assert len(module.train_dataset) == 20
    assert module.test_dataset[0].serial.tolist() == [2000]


def test_a_run_sees_each_sample_once_an_epoch(tmp_path, store):
    module = ZarrDataModule(store[0], batch_size=4, split=(0.7, 0.3, 0.0))
    model = Energies()
    trainer(tmp_path).fit(model, module)
    train = sorted(module.train_dataset.system_field("serial").ravel().tolist())
    val = module.val_dataset.system_field("serial").ravel().tolist()
    for epoch in (0, 1):
        assert sorted(flat(model.seen[epoch])) == train
    assert model.seen[0] != model.seen[1]
    # Sanity check: two batches of the first epoch.
    assert flat(model.validated[0]) == val[:8] + val
    assert flat(model.validated[1]) == val


@pytest.mark.parametrize("more", [{"max_edges": 9}, {"batch_size": 2}, {"cache_bytes": 2000}])
def test_batches_of_a_run_fill_a_budget(tmp_path, store, more):
    module = ZarrDataModule(store[0], max_atoms=12, split=(0.7, 0.3, 0.0), shuffle="blocks", **more)
    model = Energies()
    trainer(tmp_path).fit(model, module)
    serials = module.train_dataset.system_field("serial").ravel().tolist()
    sizes = dict(zip(serials, module.train_dataset.num_atoms.tolist(), strict=True))
    for epoch in (0, 1):
        assert sorted(flat(model.seen[epoch])) == sorted(serials)
        assert max(sum(map(sizes.get, batch)) for batch in model.seen[epoch]) <= 12
        assert max(map(len, model.seen[epoch])) <= more.get("batch_size", 12)
    assert model.seen[0] != model.seen[1]
    held = ZarrDataset(store[0]).num_atoms[flat(model.validated[1])].tolist()
    assert sum(held) == module.val_dataset.num_atoms.sum()
    assert (
        model.validated[1][0]
        == module.val_dataset.system_field("serial")[: len(model.validated[1][0])].ravel().tolist()
    )


def test_workers_read_for_a_run(tmp_path, store):
    seen = []
    for workers in (0, 1):
        module = ZarrDataModule(store[0], batch_size=8, split=(0.8, 0.2, 0.0), num_workers=workers)
        trainer(tmp_path).fit(model := Energies(), module)
        seen.append((model.seen, model.validated, model.weights.weight.tolist()))
    assert seen[0] == seen[1]


def test_test_and_predict_go_through_in_order(tmp_path, store):
    module = ZarrDataModule(store[0], batch_size=16, split=(0.5, 0.0, 0.5))
    model = Energies()
    runner = trainer(tmp_path)
    runner.test(model, module, verbose=False)
    test = module.test_dataset.system_field("serial").ravel().tolist()
    assert flat(model.validated[0]) == test
    assert flat(runner.predict(model, module)) == list(range(40))


def test_an_empty_side_has_no_loop(tmp_path, store):
    module = ZarrDataModule(store[0], split=(1.0, 0.0, 0.0))
    model = Energies()
    trainer(tmp_path, epochs=1).fit(model, module)
    assert model.validated == {}
    assert len(module.test_dataloader()) == 0


@pytest.mark.parametrize(("batches", "said"), [(1.0, 1), (0, 0)])
def test_validation_without_a_sample_is_said_where_a_fit_validates(tmp_path, data, batches, said):
    data.append(tmp_path / "few", data.batch(4))
    runner = trainer(tmp_path, epochs=1)
    runner.limit_val_batches = batches
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        runner.fit(Energies(), ZarrDataModule(tmp_path / "few"))
    told = [one for one in caught if "validation split (val)" in str(one.message)]
    assert len(told) == said


def test_nothing_to_train_on_is_said(tmp_path, store):
    module = ZarrDataModule(store[0], split=(0.0, 0.5, 0.5))
    with pytest.raises(StoreEmptyError, match=r"of 40 samples split=.* gives none to training"):
        trainer(tmp_path).fit(Energies(), module)


@pytest.mark.parametrize(
    ("every", "step", "batching"),
    [
        *((*when, {"batch_size": 5}) for when in [(3, 5), (3, 7), (4, 9), (4, 15), (8, 17)]),
        (3, 7, {"max_atoms": 20, "max_edges": 25}),
    ],
)
@pytest.mark.parametrize("total_steps", [False, True])
def test_a_killed_run_goes_on_as_if_it_had_not_been(
    tmp_path, store, every, step, batching, total_steps
):
    def module():
        return ZarrDataModule(store[0], **batching, split=(0.9, 0.1, 0.0), seed=1)

    whole = Energies(total_steps)
    trainer(tmp_path, epochs=3).fit(whole, module())
    assert [len(batches) for batches in whole.seen.values()] == [8, 8, 8]

    killed = Energies(total_steps)
    with pytest.raises(Kill):
        trainer(tmp_path, checkpoints(tmp_path, every), KillAt(step), epochs=3).fit(
            killed, module()
        )
    resumed = Energies(total_steps)
    runner = trainer(tmp_path, checkpoints(tmp_path, every), epochs=3)
    runner.fit(resumed, module(), ckpt_path=last_checkpoint(tmp_path))
    saved = step - step % every
    assert flat(resumed.seen.values()) == flat(whole.seen.values())[saved:]
    assert torch.equal(resumed.weights.weight, whole.weights.weight)


def test_an_epoch_keeps_its_samples_and_the_next_has_the_new_ones(tmp_path, store, data):
    path, _ = store
    module = ZarrDataModule(path, batch_size=8, split=(0.9, 0.1, 0.0))
    model = Energies()
    grow = GrowAt(lambda: data.append(path, data.batch(30, tag=1)))
    trainer(tmp_path, grow, epochs=3).fit(model, module)
    every = sorted(module.train_dataset.system_field("serial").ravel().tolist())
    assert max(flat(model.seen[0])) < 40
    assert sorted(flat(model.seen[1])) == sorted(flat(model.seen[2])) == every
    assert max(every) >= 1000
    assert len(flat(model.validated[1])) > len(flat(model.validated[0])) / 2


def test_a_resumed_epoch_has_the_samples_that_it_began_with(tmp_path, data):
    places = [tmp_path / "a", tmp_path / "b"]
    for tag, place in enumerate(places):
        data.append(place, data.batch(20, tag=tag))

    def module():
        return ZarrDataModule(places, batch_size=5, split=(1.0, 0.0, 0.0))

    model = Energies()
    grow = GrowAt(lambda: data.append(places[0], data.batch(20, tag=2)))
    runner = trainer(tmp_path, grow, checkpoints(tmp_path), KillAt(13))
    with pytest.raises(Kill):
        runner.fit(model, module())
    data.append(places[1], data.batch(5, tag=3))
    resumed = Energies()
    again = module()
    runner = trainer(tmp_path, checkpoints(tmp_path), epochs=3)
    runner.fit(resumed, again, ckpt_path=last_checkpoint(tmp_path))
    second = flat(model.seen[1])[:20] + flat(resumed.seen[1])
    assert sorted(second) == [*range(20), *range(1000, 1020), *range(2000, 2020)]
    assert len(flat(resumed.seen[2])) == 65
    assert again.dataset.state_dict()["arrivals"] == [[0, 20], [1, 20], [0, 20], [1, 5]]


def test_each_fit_of_one_module_begins_anew_with_what_is_there(tmp_path, store, data):
    path, _ = store
    module = ZarrDataModule(path, batch_size=8, split=(1.0, 0.0, 0.0))
    for round_ in range(3):
        model = Energies()
        trainer(tmp_path, epochs=None, max_steps=3).fit(model, module)
        assert len(set(flat(model.seen[0]))) == 24
        assert len(module.train_dataset) == 40 + 10 * round_
        data.append(path, data.batch(10, tag=round_ + 1))


def test_a_checkpoint_to_test_does_not_move_the_next_fit(tmp_path, store):
    module = ZarrDataModule(store[0], batch_size=8, split=(0.8, 0.0, 0.2))
    runner = trainer(tmp_path, checkpoints(tmp_path), epochs=1)
    runner.fit(first := Energies(), module)
    runner.test(first, module, ckpt_path=last_checkpoint(tmp_path), verbose=False)
    trainer(tmp_path, epochs=1).fit(again := Energies(), module)
    assert again.seen == first.seen


@pytest.mark.filterwarnings("ignore:You requested to overfit")
def test_overfitting_repeats_the_same_batches(tmp_path, store):
    module = ZarrDataModule(store[0], batch_size=4, split=(1.0, 0.0, 0.0))
    model = Energies()
    trainer(tmp_path, overfit_batches=2).fit(model, module)
    assert model.seen[0] == model.seen[1]
    assert len(model.seen[0]) == 2


def test_without_lightning_a_loop_reads_and_grows(store, data):
    path, _ = store
    module = ZarrDataModule(path, batch_size=8, split=(1.0, 0.0, 0.0))
    first = [batch.serial.tolist() for batch in module.train_dataloader()]
    data.append(path, data.batch(10, tag=1))
    second = [batch.serial.tolist() for batch in module.train_dataloader()]
    assert (len(flat(first)), len(flat(second))) == (40, 50)
    assert flat(first) != flat(second)[:40]


def test_a_loop_of_ones_own_resumes_through_the_module(store):
    module = ZarrDataModule(store[0], batch_size=8, split=(1.0, 0.0, 0.0))
    assert module.state_dict() == {}
    batches = iter(module.train_dataloader())
    next(batches)
    state = module.state_dict()
    rest = [batch.serial.tolist() for batch in batches]
    other = ZarrDataModule(store[0], batch_size=8, split=(1.0, 0.0, 0.0))
    other.load_state_dict(state)
    assert [batch.serial.tolist() for batch in other.train_dataloader()] == rest


def test_a_resumed_run_has_the_seed_of_its_checkpoint_and_says_so(store):
    first = ZarrDataModule(store[0], batch_size=8, split=(1.0, 0.0, 0.0), seed=1)
    next(batches := iter(first.train_dataloader()))
    state = first.state_dict()
    rest = [batch.serial.tolist() for batch in batches]
    other = ZarrDataModule(store[0], batch_size=8, split=(1.0, 0.0, 0.0), seed=3)
    other.load_state_dict(state)
    with pytest.warns(UserWarning, match="seed is 3, and the checkpoint is .* with seed 1, with"):
        loader = other.train_dataloader()
    assert [batch.serial.tolist() for batch in loader] == rest
    again = [[batch.serial.tolist() for batch in one.train_dataloader()] for one in (first, other)]
    assert again[0] == again[1] != rest


def test_a_checkpoint_of_other_stores_is_refused(store, tmp_path, data):
    data.append(tmp_path / "other", data.batch(40, tag=1))
    module = ZarrDataModule(store[0])
    module.train_dataloader()
    with pytest.raises(StoreFormatError, match="as they were"):
        ZarrDataModule(tmp_path / "other").load_state_dict(module.state_dict())


def test_a_state_from_after_the_last_batch_is_of_the_next_epoch(store):
    module = ZarrDataModule(store[0], batch_size=8, split=(1.0, 0.0, 0.0))
    list(loader := module.train_dataloader())
    other = ZarrDataModule(store[0], batch_size=8, split=(1.0, 0.0, 0.0))
    other.load_state_dict(module.state_dict())
    rest = [batch.serial.tolist() for batch in other.train_dataloader()]
    assert rest == [batch.serial.tolist() for batch in loader]


def test_statistics_are_of_the_training_samples_and_follow_growth(store, data, monkeypatch):
    path, _ = store
    module = ZarrDataModule(path, split=(0.6, 0.2, 0.2), fields=["energy"])
    assert module.statistics.num_samples == len(module.train_dataset)
    measured = []
    monkeypatch.setattr(
        "zarrpipe.training.statistics.measure",
        lambda new: measured.append(len(new)) or measure(new),
    )
    data.append(path, data.batch(30, tag=1))
    known = len(module.train_dataset)
    module.refresh()
    assert module.statistics == module.statistics
    assert measured == [len(module.train_dataset) - known]
    train = module.train_dataset.gather(np.arange(len(module.train_dataset)), ["forces"])
    rms = float((train.forces**2).mean().sqrt())
    assert module.statistics.forces_rms == pytest.approx(rms)
    assert module.statistics.num_atoms == train.num_nodes


@pytest.mark.parametrize("workers", [0, 1])
def test_a_transform_is_applied_on_every_side(tmp_path, store, transforms, workers):
    module = ZarrDataModule(
        store[0],
        batch_size=8,
        split=(0.5, 0.3, 0.2),
        transform=transforms.shifted,
        num_workers=workers,
    )
    module.setup("fit")
    plain = ZarrDataset(store[0]).__getitems__(range(40))
    seen = 0
    for loader in (module.train_dataloader(), module.val_dataloader(), module.test_dataloader()):
        for batch in loader:
            expected = plain.index_select(batch.serial.ravel())
            assert torch.equal(batch.positions, expected.positions + 1)
            seen += batch.num_graphs
    assert seen == 40
    module.teardown("fit")


@pytest.mark.filterwarnings("ignore")  # jsonargparse's own deprecations, which LightningCLI uses
@pytest.mark.parametrize(
    ("text", "applied"),
    [
        ("transforms.shifted", lambda built, own: built is own.shifted),
        (
            "{class_path: transforms.Neighbours, init_args: {cutoff: 1.5}}",
            lambda built, own: type(built) is own.Neighbours and built.cutoff == 1.5,
        ),
        ("null", lambda built, _: built is None),
    ],
)
def test_a_configuration_file_says_the_transform(store, transforms, text, applied):
    parser = pytest.importorskip("jsonargparse").ArgumentParser()
    parser.add_class_arguments(ZarrDataModule, "data")
    settings = f"data:\n  store: {store[0]}\n  num_workers: 1\n  transform: {text}\n"
    module = parser.instantiate_classes(parser.parse_string(settings)).data
    assert applied(module.transform, transforms)
    assert len(module.dataset) == 40


def test_batches_are_moved_where_they_are_to_go(store, data):
    batch = ZarrDataset(store[0]).__getitems__([1, 2])
    module = ZarrDataModule(store[0], device="meta")
    moved = module.transfer_batch_to_device(batch, torch.device("cpu"), 0)
    assert moved.device == torch.device("meta")
    here = ZarrDataModule(store[0]).transfer_batch_to_device(batch, torch.device("cpu"), 0)
    assert here is batch


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"split": (0.5, 0.4, 0.2)}, "sum to 1"),
        ({"split": (0.5, 0.5)}, "expected shares of train, val, test"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"max_atoms": 0}, "max_atoms is 0"),
        ({"num_workers": -1}, "num_workers is -1"),
        ({"seed": -1}, "seed is -1"),
    ],
)
def test_arguments_out_of_range_are_refused_at_once(arguments, message):
    with pytest.raises(ValueError, match=message):
        ZarrDataModule("nowhere", **arguments)
