"""DataMonitor: how long a run waited for data, by a clock that only the run moves."""

import time

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.loggers import CSVLogger, Logger
from torch.utils.data import DataLoader

import zarrpipe as zp
from zarrpipe.training import loader
from zarrpipe.training import monitor as callbacks
from zarrpipe.training.monitor import DataMonitor
from zarrpipe.watch.facts import State
from zarrpipe.watch.run_watch import RunWatch

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*Checkpoint directory"),
    pytest.mark.filterwarnings("ignore:The number of training batches"),
    pytest.mark.filterwarnings("ignore:Total length of `GraphLoader` across ranks is zero"),
    pytest.mark.filterwarnings("ignore:You defined a `validation_step`"),
]


class Clock:
    """Seconds that pass only when somebody says so."""

    def __init__(self, monkeypatch):
        self.now = 0.0
        for module in (loader, callbacks):
            monkeypatch.setattr(module, "time", self)

    def perf_counter(self):
        return self.now


class Reading:
    """A transform that takes three seconds."""

    def __init__(self, clock):
        self.clock = clock

    def __call__(self, batch):
        self.clock.now += 3.0
        return batch


class Model(LightningModule):
    """Takes a second a step, and a hundred to validate."""

    def __init__(self, clock):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.clock = clock

    def training_step(self, batch, _):
        self.clock.now += 1.0
        return self.weight**2

    def validation_step(self, batch, _):
        self.clock.now += 100.0

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Notes(Logger):
    """Keeps what it is told."""

    name = version = "notes"

    def __init__(self):
        super().__init__()
        self.said, self.counts = [], []

    def log_hyperparams(self, *_):
        pass

    def log_metrics(self, metrics, step=None):
        if "data/wait" in metrics:
            self.said.append((step, dict(metrics)))
        if "data/num_samples" in metrics:
            self.counts.append((step, metrics["data/num_samples"]))


def fit(tmp_path, monitor, model, module, **settings):
    quiet = {"enable_checkpointing": False, "enable_model_summary": False}
    trainer = Trainer(
        accelerator="cpu",
        default_root_dir=tmp_path,
        callbacks=[monitor],
        enable_progress_bar=False,
        **{**quiet, **settings},
    )
    trainer.fit(model, module)
    return trainer


def test_the_share_of_waiting_and_what_went_through(tmp_path, store, monkeypatch):
    clock, notes = Clock(monkeypatch), Notes()
    module = zp.ZarrDataModule(
        store[0], max_atoms=15, max_edges=30, split=(0.8, 0.2, 0.0), transform=Reading(clock)
    )
    monitor = DataMonitor()
    trainer = fit(
        tmp_path,
        monitor,
        Model(clock),
        module,
        max_epochs=2,
        logger=notes,
        log_every_n_steps=4,
        val_check_interval=3,
    )
    train, steps = module.train_dataset, trainer.global_step
    total = monitor.total
    assert total.batches == steps > 8
    assert (total.seconds, total.waited, total.wait) == (4.0 * steps, 3.0 * steps, 0.75)
    assert total.samples == 2 * len(train)
    assert (total.atoms, total.edges) == (2 * train.num_atoms.sum(), 2 * train.num_edges.sum())
    every = train.gather(range(len(train)))
    assert total.bytes == 2 * sum(value.nbytes for value in every.fields.values())
    assert [step for step, _ in notes.said[:2]] == [4, 8]
    figures = notes.said[0][1]
    assert figures["data/wait"] == 0.75
    assert 0.5 < figures["data/fill_atoms"] <= 1.0
    assert 0.0 < figures["data/fill_edges"] <= 1.0
    atoms = sum(said["data/atoms_per_s"] * 16 for _, said in notes.said[:2])
    assert atoms == pytest.approx(2 * figures["data/fill_atoms"] * 15 * 4, rel=0.5)
    assert trainer.progress_bar_metrics["data/wait"] == 0.75


def test_without_budgets_there_is_no_fill(tmp_path, store, monkeypatch):
    clock, notes = Clock(monkeypatch), Notes()
    module = zp.ZarrDataModule(store[0], batch_size=4, split=(1.0, 0.0, 0.0))
    fit(tmp_path, DataMonitor(2), Model(clock), module, max_epochs=1, logger=notes)
    assert [sorted(said) for _, said in notes.said] == [
        ["data/atoms_per_s", "data/bytes_per_s", "data/samples_per_s", "data/wait"]
    ] * 5
    assert [said["data/samples_per_s"] for _, said in notes.said] == [4.0] * 5
    assert [said["data/wait"] for _, said in notes.said] == [0.0] * 5


def test_it_writes_to_a_file_of_figures(tmp_path, store):
    module = zp.ZarrDataModule(store[0], batch_size=8, split=(1.0, 0.0, 0.0))
    logger = CSVLogger(tmp_path, flush_logs_every_n_steps=1)
    clock = type("Still", (), {"now": 0.0})()
    fit(tmp_path, DataMonitor(5), Model(clock), module, max_epochs=2, logger=logger)
    text = next(tmp_path.rglob("metrics.csv")).read_text()
    assert "data/samples_per_s" in text.splitlines()[0]
    # the beginning, what each of two epochs has, and how it went, and the end
    assert len(text.splitlines()) == 1 + 1 + 4 + 1


def test_watch_is_told_of_the_stores_and_of_the_end(tmp_path, store):
    class Failing(Model):
        def training_step(self, batch, at):
            if self.trainer.current_epoch:
                raise FloatingPointError
            return super().training_step(batch, at)

    clock = type("Still", (), {"now": 0.0})()
    module = zp.ZarrDataModule([store[0]], batch_size=8, split=(1.0, 0.0, 0.0))
    logger = CSVLogger(tmp_path / "run", name="", version="", flush_logs_every_n_steps=1)
    limits = {"max_epochs": 2, "max_steps": 90}
    with pytest.raises(FloatingPointError):
        fit(tmp_path, DataMonitor(), Failing(clock), module, logger=logger, **limits)
    run = RunWatch(tmp_path / "run" / "metrics.csv")
    facts = run.look(time.time())
    assert (facts.state, facts.num_samples, facts.max_steps) == (State.RUNNING, 40, 90)
    assert facts.stores == (str(store[0]),)
    fit(tmp_path, DataMonitor(), Model(clock), module, logger=logger, **limits)
    assert run.look(time.time()).state is State.ENDED


def test_an_epoch_says_how_many_samples_it_has(tmp_path, store, data):
    class Growing(Model):
        def on_train_batch_end(self, *_):
            if self.global_step == 3:
                data.append(store[0], data.batch(7, tag=1))

    clock, notes = type("Still", (), {"now": 0.0})(), Notes()
    module = zp.ZarrDataModule(store[0], batch_size=8, split=(1.0, 0.0, 0.0))
    fit(tmp_path, DataMonitor(), Growing(clock), module, max_epochs=3, logger=notes)
    assert notes.counts == [(0, 40.0), (5, 47.0), (11, 47.0)]


def test_another_loader_is_refused_when_training_begins(tmp_path):
    batches = DataLoader(torch.zeros(4, 1), batch_size=2)
    with pytest.raises(TypeError, match="reads from a DataLoader: leave the callback out"):
        fit(tmp_path, DataMonitor(), Model(time), batches, max_epochs=1, logger=False)


def test_every_zero_steps_is_refused():
    with pytest.raises(ValueError, match="every_n_steps is 0"):
        DataMonitor(0)
