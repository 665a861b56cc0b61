"""Arguments of ZarrDataModule that are assigned later, also by Lightning's tuner."""

import inspect

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.tuner import Tuner, batch_size_scaling

from zarrpipe import ZarrDataModule
from zarrpipe.errors import ArgumentError

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:The number of training batches"),
    pytest.mark.filterwarnings("ignore:Total length of `GraphLoader` across ranks is zero"),
    pytest.mark.filterwarnings("ignore:.*`isinstance.treespec, LeafSpec.` is deprecated"),
]


@pytest.fixture(scope="module")
def store(tmp_path_factory, data):
    """A store of 40 systems, which no test here changes, and the batch that was written."""
    place = tmp_path_factory.mktemp("stored") / "store"
    return place, data.append(place, data.batch(40))


@pytest.fixture(autouse=True)
def uncollected(monkeypatch):
    """Leave out the collections of garbage, two a trial, that cost most of a search."""
    monkeypatch.setattr(batch_size_scaling, "garbage_collection_cuda", lambda: None)


class Energies(LightningModule):
    """Notes the samples of each step: epoch and serials."""

    def __init__(self):
        super().__init__()
        self.net = torch.nn.Linear(1, 1, dtype=torch.float64)
        self.rate, self.seen, self.validated = 1e-4, [], []

    def training_step(self, batch, batch_idx):
        self.seen.append((self.current_epoch, batch.serial.ravel().tolist()))
        return ((self.net(batch.energy) - batch.energy) ** 2).mean()

    def validation_step(self, batch, batch_idx):
        self.validated.append(batch.serial.ravel().tolist())

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=self.rate)


def trainer(tmp_path, *callbacks, epochs=2):
    return Trainer(
        accelerator="cpu",
        max_epochs=epochs,
        default_root_dir=tmp_path,
        callbacks=list(callbacks),
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        num_sanity_val_steps=0,
    )


def sizes(model):
    return [len(serials) for _, serials in model.seen]


@pytest.mark.parametrize("more", [{}, {"num_workers": 1}])
def test_the_batch_size_finder_tries_the_sizes_that_it_says(tmp_path, store, more):
    module = ZarrDataModule(store[0], batch_size=3, split=(1.0, 0.0, 0.0), **more)
    model, runner = Energies(), trainer(tmp_path)
    tuner = Tuner(runner)
    found = tuner.scale_batch_size(
        model, datamodule=module, init_val=5, max_trials=3, steps_per_trial=2
    )
    # Lightning makes its first trial with the loader of before.
    assert sizes(model) == [3, 3, 10, 10, 20, 20]
    assert found == module.batch_size == 20
    model.seen.clear()
    runner.fit(model, module)
    assert [epoch for epoch, _ in model.seen] == [0, 0, 1, 1]
    for epoch in (0, 1):
        serials = [one for own, seen in model.seen for one in seen if own == epoch]
        assert sorted(serials) == list(range(40))


def test_the_batch_size_finder_scales_a_budget_by_its_name(tmp_path, store):
    module = ZarrDataModule(store[0], max_atoms=8, split=(1.0, 0.0, 0.0))
    atoms = module.dataset.num_atoms
    model = Energies()
    with pytest.raises(ArgumentError, match="expected batch_arg_name='max_atoms'"):
        Tuner(trainer(tmp_path)).scale_batch_size(model, datamodule=module)
    found = Tuner(trainer(tmp_path)).scale_batch_size(
        model,
        datamodule=module,
        batch_arg_name="max_atoms",
        init_val=10,
        max_trials=3,
        steps_per_trial=1,
    )
    held = [int(atoms[serials].sum()) for _, serials in model.seen]
    assert found == module.max_atoms == 40
    assert [size <= limit for size, limit in zip(held, (8, 20, 40), strict=True)] == [True] * 3
    assert held[1] > 8
    assert held[2] > 20


def test_a_run_after_the_learning_rate_finder_is_as_one_without(tmp_path, store):
    runs = []
    for tuned in (False, True):
        module = ZarrDataModule(store[0], batch_size=8, split=(0.8, 0.2, 0.0))
        model, runner = Energies(), trainer(tmp_path)
        if tuned:
            Tuner(runner).lr_find(
                model, datamodule=module, num_training=7, attr_name="rate", update_attr=False
            )
            assert len(model.seen) == 7  # into the second epoch
            model.seen.clear()
            model.validated.clear()
        runner.fit(model, module)
        runs.append((model.seen, model.validated))
    assert runs[0] == runs[1]


class Assign(Callback):
    """Assigns attributes of the data module after the first batch of an epoch."""

    def __init__(self, epoch, **given):
        self.epoch, self.given = epoch, given

    def on_train_batch_end(self, trainer, module, outputs, batch, index):
        if (trainer.current_epoch, index) == (self.epoch, 0):
            for name, value in self.given.items():
                setattr(trainer.datamodule, name, value)


@pytest.mark.parametrize("workers", [0, 1])
def test_an_epoch_ends_as_it_began_and_the_next_obeys(tmp_path, store, workers):
    module = ZarrDataModule(
        store[0], batch_size=8, split=(1.0, 0.0, 0.0), seed=3, num_workers=workers
    )
    change = Assign(0, batch_size=20, num_workers=1 - workers)
    trainer(tmp_path, change).fit(model := Energies(), module)
    assert sizes(model) == [8] * 5 + [20] * 2
    assert sorted(one for _, seen in model.seen[5:] for one in seen) == list(range(40))
    whole = ZarrDataModule(store[0], batch_size=20, split=(1.0, 0.0, 0.0), seed=3)
    loader = whole.train_dataloader()
    loader.sampler.set_epoch(1)
    assert [seen for _, seen in model.seen[5:]] == [one.serial.ravel().tolist() for one in loader]


def test_a_loop_of_ones_own_goes_on_with_other_settings(store):
    module = ZarrDataModule(store[0], batch_size=8, split=(0.8, 0.2, 0.0))
    old = module.train_dataloader()
    list(old)
    module.batch_size = module.max_atoms = 16
    new = module.train_dataloader()
    assert old.sampler.batch_size == 8
    assert (new.sampler.epoch, new.sampler.batch_size, new.sampler.max_atoms) == (1, 16, 16)
    assert module.val_dataloader().sampler.max_atoms == 16
    next(batches := iter(new))
    module.seed = 5
    assert (module.train_dataloader().sampler.epoch, module.train_dataloader().sampler.seed) == (
        1,
        5,
    )
    batches.close()


OTHER = {
    "batch_size": 5,
    "max_atoms": 100,
    "max_edges": 100,
    "balance": True,
    "weights": [1.0],
    "samples_per_epoch": 10,
    "train_transform": torch.nn.Identity(),
    "seed": 4,
    "shuffle": "blocks",
    "num_workers": 2,
    "prefetch": 2,
}


@pytest.mark.parametrize("name", OTHER)
def test_what_may_be_assigned_is_as_if_it_had_been_given(store, name):
    given = ZarrDataModule(store[0], **{"batch_size": 8, name: OTHER[name]})
    assigned = ZarrDataModule(store[0], batch_size=8)
    first = assigned.train_dataloader()
    setattr(assigned, name, OTHER[name])
    loaders = given.train_dataloader(), assigned.train_dataloader()
    assert loaders[1] is not first
    assert getattr(assigned, name) == OTHER[name]
    assert loaders[0].state_dict() == loaders[1].state_dict()
    hidden = [
        [getattr(one, part) for part in ("_num_workers", "_prefetch", "_transform")]
        for one in loaders
    ]
    assert hidden[0] == hidden[1]
    plans = [one.sampler.plan() for one in loaders]
    assert np.array_equal(plans[0].order, plans[1].order)
    assert np.array_equal(plans[0].bounds, plans[1].bounds)


WRONG = {
    "batch_size": 0,
    "max_atoms": -1,
    "max_edges": 1.5,
    "balance": "no",
    "weights": [-1.0],
    "samples_per_epoch": 0,
    "train_transform": 3,
    "seed": -1,
    "shuffle": "yes",
    "num_workers": -1,
    "prefetch": "2",
}


@pytest.mark.parametrize("name", WRONG)
def test_what_cannot_be_is_refused_and_changes_nothing(store, name):
    module = ZarrDataModule(store[0], batch_size=8)
    before, loader = getattr(module, name), module.train_dataloader()
    with pytest.raises((ValueError, TypeError), match=f"{name} (is|are) .*expected"):
        setattr(module, name, WRONG[name])
    assert getattr(module, name) == before
    assert module._loaders.current("train") is loader


FIXED = (
    "store",
    "split",
    "split_by",
    "where",
    "at",
    "val_store",
    "test_store",
    "fields",
    "transform",
    "convert",
    "device",
    "resident",
    "cache_dir",
    "cache_bytes",
)


@pytest.mark.parametrize("name", FIXED)
def test_what_decides_the_samples_cannot_be_assigned(store, name):
    module = ZarrDataModule(store[0])
    before = getattr(module, name)
    with pytest.raises(AttributeError, match=f"{name} cannot be assigned.*ZarrDataModule"):
        setattr(module, name, None)
    assert getattr(module, name) is before


def test_every_argument_is_an_attribute(store):
    names = set(inspect.signature(ZarrDataModule).parameters)
    assert names == {*OTHER, *FIXED}
    given = {"batch_size": 4, "val_store": [store[0]], "cache_bytes": 10**6, "resident": True}
    module = ZarrDataModule(store[0], **given)
    assert {name: getattr(module, name) for name in given} == given
    assert module.store == store[0]


def test_a_subclass_may_assign_before_it_is_made(store):
    class Own(ZarrDataModule):
        def __init__(self, store, batch_size):
            with pytest.raises(AttributeError, match="Own has no split yet"):
                self.split  # noqa: B018
            assert not hasattr(self, "seed")
            self.store, self.batch_size, self.seed = store, batch_size, 5
            super().__init__(self.store, batch_size=self.batch_size, split=(1.0, 0.0, 0.0))

    module = Own(store[0], 7)
    assert (module.store, module.batch_size, module.seed) == (store[0], 7, 0)
    assert len(module.train_dataloader()) == 6
    module.batch_size = 20
    assert len(module.train_dataloader()) == 2
    with pytest.raises(AttributeError, match="store cannot be assigned"):
        module.store = store[0]


def test_what_is_there_already_changes_no_loader(store):
    given = {"batch_size": 8, "balance": True, "shuffle": "samples", "max_atoms": None}
    module = ZarrDataModule(store[0], **given)
    loader = module.train_dataloader()
    for name, value in given.items():
        setattr(module, name, value)
        assert module._loaders.current("train") is loader
    module.weights = weights = [1.0]
    first = module.train_dataloader()
    weights[0] = 2.0
    module.weights = weights  # which are the same list with other numbers
    assert module.train_dataloader() is not first
