"""What an arm of the closed loop does, round by round; ``closed_loop.py`` starts it."""

import logging
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import Executor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from torch import Tensor

import zarrpipe as zp
from records import Row, read_rows, write_rows
from settings import TEST_TEMPERATURES, Settings
from stores import batch_of_frames, read_all
from walkers import Band, Exploration, Walkers, explore
from xtb import Frames, label, trajectory
from zarrpipe.ml import ForceField, TorchSimModel, load
from zarrpipe.ml.committee import force_deviation

MEV = 1000.0
MEV = 1000.0
START_TEMPERATURES = (500.0, 650.0, 800.0)
MAX_STRETCHES = 5


@dataclass(frozen=True)
class Sampled:
    """What a round's sampling leaves for the next one; kept as ``sampled-<round>.pt``.

    Attributes
    ----------
    walkers
        Where they stand, as a mapping.
    visited, selected, restarts
        As in `walkers.Exploration`.
    simulating, labelling
        Seconds.
    """

    walkers: dict[str, Tensor]
    visited: int = 0
    selected: int = 0
    restarts: int = 0
    simulating: float = 0.0
    labelling: float = 0.0


@dataclass(frozen=True)
class Arm:
    """An arm at work.

    Attributes
    ----------
    name
        "committee" or "random".
    settings
        Of the run.
    directory
        Where its state is.
    labelled, candidates
        The two sinks.
    oracle
        Processes that label.
    say
        Called after each stage with what comes next.
    """

    name: str
    settings: Settings
    directory: Path
    labelled: zp.ZarrData
    candidates: zp.ZarrData
    oracle: Executor
    say: Callable[[str], None]

    def run(self, finished: Callable[[Row], None]) -> None:
        """Do the rounds that are not in the arm's table yet."""
        table = self.directory / "metrics.csv"
        rows = read_rows(table)
        for number in range(len(rows), len(self.settings.labels)):
            before = rows[-1].labels if rows else 0
            sampled = self.sample(number, before)
            started = time.perf_counter()
            self.train(number)
            training = time.perf_counter() - started
            rows.append(self.evaluate(number, sampled, training))
            write_rows(table, rows)
            finished(rows[-1])

    def sample(self, number: int, before: int) -> Sampled:
        """Bring the labels of round `number` into the store, which held `before` of them.

        What was cut off is done again and gives the same frames; those that are labelled already
        are not written a second time.
        """
        record = self.directory / f"sampled-{number}.pt"
        if not record.exists():
            frames, sampled = self.start() if number == 0 else self.explore(number, before)
            missing = frames.index_select(slice(len(self.labelled) - before, None))
            if missing.num_graphs:
                self.labelled.write(missing)
            _save(asdict(sampled), record)
        self.say("train")
        return Sampled(**torch.load(record, weights_only=True))

    def start(self) -> tuple[zp.Batch, Sampled]:
        """First labels, the same in both arms: short xTB trajectories from ethanol at rest."""
        started = time.perf_counter()
        settings = self.settings
        counts = [len(part) for part in np.array_split(range(settings.labels[0]), 3)]
        seeds = [settings.seed_of("start", number) for number in range(3)]
        run = partial(trajectory, burn_in=settings.burn_in)
        found = list(self.oracle.map(run, START_TEMPERATURES, counts, seeds))
        batch = zp.Batch.concatenate([batch_of_frames(frames) for frames in found])
        atoms = len(found[0].numbers)
        walkers = Walkers.start(
            torch.from_numpy(found[0].numbers),
            batch.positions.view(-1, atoms, 3),
            torch.linspace(500.0, 800.0, settings.walkers),
            settings.seed_of("walkers"),
        )
        seconds = time.perf_counter() - started
        return batch, Sampled(vars(walkers), simulating=seconds)

    def explore(self, number: int, before: int) -> tuple[zp.Batch, Sampled]:
        """Move the walkers until the sink holds enough candidates; label some of these."""
        started = time.perf_counter()
        last = torch.load(self.directory / f"sampled-{number - 1}.pt", weights_only=True)
        wanted = self.settings.labels[number] - before
        known = self.labelled.read().index_select(slice(0, before))
        walk = self.collect(number, Walkers(**last["walkers"]), known, wanted)
        found = self.candidates.drain()
        simulated = time.perf_counter()
        self.say("label")
        frames = self.label(found, wanted, self.settings.seed_of(self.name, "draw", number))
        return frames, Sampled(
            vars(walk.walkers),
            walk.visited,
            walk.selected,
            walk.restarts,
            simulated - started,
            time.perf_counter() - simulated,
        )

    def collect(self, number: int, walkers: Walkers, known: zp.Batch, wanted: int) -> Exploration:
        """Explore in stretches until `candidates` holds as many frames as are wanted.

        What a killed run left in the sink is cleared: it is simulated again. After a stretch that
        brought too few, a committee that is so sure is content with half the deviation.
        """
        settings, committee = self.settings, self.committee(number - 1)
        band = self.trust_band(committee, known)
        walk = Exploration(walkers)
        self.candidates.zero()
        for stretch in range(MAX_STRETCHES):
            walk += explore(
                committee,
                walk.walkers,
                self.candidates,
                band,
                known.positions.view(known.num_graphs, -1, 3),
                snapshots=settings.snapshots,
                stride=settings.stride,
                seed=settings.seed_of(self.name, "explore", number, stretch),
            )
            if walk.selected >= wanted:
                break
            band = Band(band.low / 2, band.high)
        if walk.selected == 0:
            raise RuntimeError(
                f"no frame of {walk.visited} has a deviation inside of {band}, {wanted} are "
                "wanted: raise 'trust', or 'steps' for a better committee"
            )
        return walk

    def trust_band(self, committee: TorchSimModel, known: zp.Batch) -> Band:
        """Trust levels of a round.

        The lower level is a high quantile of the committee's deviation on the frames that it was
        trained on: where it deviates less, there is little to learn. At random there is none.
        """
        if self.name == "random":
            return Band(-1.0, self.settings.trust)
        forces = committee.committee.predict_members(known).forces
        on_known = force_deviation(forces, known)
        low = float(on_known.quantile(self.settings.known_quantile))
        return Band(min(low, self.settings.trust / 2), self.settings.trust)

    def label(self, found: zp.Batch, wanted: int, seed: int) -> zp.Batch:
        """Label `wanted` of the frames, drawn at random; others are drawn for those that fail."""
        drawn = torch.randperm(found.num_graphs, generator=torch.Generator().manual_seed(seed))
        numbers = found.atomic_numbers[: found.num_nodes // found.num_graphs].numpy()
        positions = found.positions.double().view(found.num_graphs, -1, 3)[drawn].numpy()
        done: list[tuple[np.ndarray, float, np.ndarray]] = []
        first = 0
        while len(done) < wanted and first < len(positions):
            part = positions[first : first + wanted - len(done)]
            results = self.oracle.map(label, [numbers] * len(part), part, chunksize=5)
            done += [(frame, *r) for frame, r in zip(part, results, strict=True) if r is not None]
            first += len(part)
        frames, energies, forces = (np.array(column) for column in zip(*done, strict=True))
        return batch_of_frames(Frames(numbers, frames, energies, forces))

    def train(self, number: int) -> None:
        """Train each member on from where the round before left it."""
        for member in range(self.settings.members):
            path = self.checkpoint(number, member)
            if not path.exists():
                self.train_member(number, member, path)
            self.say("train" if member + 1 < self.settings.members else "test")

    def train_member(self, number: int, member: int, path: Path) -> None:
        """Fit one member to the store as it is, and save its checkpoint."""
        settings = self.settings
        if number == 0:
            field = ForceField(
                settings.potential,
                settings.options,
                energy_weight=0.18,  # an energy counts as much as a fifth of a force
                scale=1.0,
                seed=settings.seed_of("member", member),
            )
        else:
            field = ForceField.load_from_checkpoint(self.checkpoint(number - 1, member))
        data = zp.ZarrDataModule(
            str(self.directory / "labelled.zarr"),
            batch_size=settings.batch_size,
            split=(1.0, 0.0, 0.0),
            seed=settings.seed_of("order", number, member),
        )
        trainer = pl.Trainer(
            max_steps=settings.steps,
            accelerator="cpu",
            devices=1,
            limit_val_batches=0,
            barebones=True,  # no logger, bar or checkpoints of its own
        )
        trainer.fit(field, datamodule=data)
        path.parent.mkdir(parents=True, exist_ok=True)
        trainer.save_checkpoint(path.with_suffix(".partial"), weights_only=True)
        path.with_suffix(".partial").replace(path)

    def checkpoint(self, number: int, member: int) -> Path:
        """Where a member is after a round."""
        return self.directory / "checkpoints" / f"round-{number}-member-{member}.ckpt"

    def committee(self, number: int) -> TorchSimModel:
        """The committee after a round."""
        paths = [self.checkpoint(number, member) for member in range(self.settings.members)]
        return TorchSimModel(load(paths))

    def evaluate(self, number: int, sampled: Sampled, training: float) -> Row:
        """Compare the committee's mean forces with the test sets, and keep them for the plot."""
        committee = self.committee(number)
        errors: dict[str, float] = {}
        forces: dict[str, np.ndarray] = {}
        for kelvin in TEST_TEMPERATURES:
            test = read_all(self.settings.test_store(kelvin))
            predicted = committee.committee.predict(test)[0].forces
            error = (predicted - test.forces).abs()
            errors[f"mae_{kelvin}"] = float(error.mean()) * MEV
            errors[f"largest_{kelvin}"] = float(error.max())
            forces |= {f"xtb_{kelvin}": test.forces.numpy(), f"{kelvin}": predicted.numpy()}
        np.savez(self.directory / "test_forces.npz", **forces)  # type: ignore[arg-type]
        return Row(
            arm=self.name,
            round=number,
            labels=len(self.labelled),
            share=sampled.selected / max(sampled.visited, 1),
            restarts=sampled.restarts,
            simulating=sampled.simulating,
            labelling=sampled.labelling,
            training=training,
            **errors,
        )


def _save(record: dict[str, Any], path: Path) -> None:
    """Write a file in one piece."""
    partial = path.with_suffix(".partial")
    torch.save(record, partial)
    partial.replace(path)


@contextmanager
def open_arm(
    settings: Settings, name: str, oracle: Executor, say: Callable[[str], None]
) -> Iterator[Arm]:
    """Open the arm's two sinks, where they are or new."""
    directory = settings.out / name
    directory.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)  # small networks are several times slower with two
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", ".*LeafSpec.*")  # Lightning 2.6 with torch 2.13
    with (
        zp.ZarrData(directory / "labelled.zarr", capacity=settings.labels[-1]) as labelled,
        zp.ZarrData(directory / "candidates.zarr", capacity=settings.candidates) as candidates,
    ):
        yield Arm(name, settings, directory, labelled, candidates, oracle, say)
