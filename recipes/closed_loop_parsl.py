"""Active learning on Parsl: sample and label in many processes, train the committee meanwhile.

    python recipes/closed_loop_parsl.py --out runs/parsl --workers 4
    python recipes/closed_loop_parsl.py --out runs/parsl --config configs/parsl/slurm.py

In round r walkers move on the committee that has learnt from rounds 0 to r - 2, and each of their
frames is labelled; meanwhile the committee of round r - 1 trains on the live store. So all three
go on at the same time, and yet what is sampled depends on the seed alone: not on which task ends
first, nor on which worker is killed.

Tasks return what they have made to this process, which alone writes. ``labelled.zarr`` gets the
labels; ``set_aside.zarr`` gets each structure without one, and why (``status``). Both have the
fields ``round``, ``walker`` and ``frame``. A task whose worker is lost, that fails or that takes
too long is done again; a label that fails on each try is set aside.

What is on disk is the only state, so the same command goes on where a killed run was. Rounds whose
committee is there are done; the others are sampled again, which gives the same frames, and frames
that are in a store are not labelled again.
"""

import json
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from runpy import run_path
from typing import Any

import numpy as np
import parsl
import torch
from parsl.app.errors import AppTimeout
from parsl.executors.high_throughput.errors import ManagerLost, WorkerLost

import parsl_tasks
import zarrpipe as zp
from parsl_tasks import Key, checkpoint

CONFIGS = Path(__file__).resolve().parents[1] / "configs" / "parsl"

LOST = 0.25
"""What a lost worker counts as of a failure, as it says little about the task."""


@dataclass(frozen=True)
class Settings:
    """What defines a run.

    Parameters
    ----------
    out
        Directory of the run.
    config
        File with a function ``config(run_dir, workers, **config_options)`` that makes Parsl's.
    config_options
        Its further arguments.
    workers
        Number of workers that sample and label, on a cluster of each node.
    queue
        Most tasks in flight.
    timeout
        Seconds that a label may take.
    retries
        How often a task that fails is done again. A lost worker counts as a quarter.
    patience
        Seconds without the end of a task, more than the longest takes, after which the pools are
        started anew.
    seed, molecule, rounds, walkers, frames, stride, trust
        Each of `walkers` gives up to `frames` frames in a round, `stride` steps of 0.5 fs apart,
        until the committee's deviation passes `trust` in eV/Angstrom. Their temperatures go from
        300 to 800 K.
    calculator, calculator_options
        Import path of the ASE calculator that labels, and its arguments.
    members, steps, batch_size
        Size of the committee, and training steps of a member in a round.
    """

    out: Path = Path("runs/parsl")
    config: Path = CONFIGS / "local.py"
    config_options: dict[str, Any] = field(default_factory=dict)
    workers: int = 4
    queue: int = 16
    timeout: float = 60.0
    retries: int = 2
    patience: float = 600.0
    seed: int = 0
    molecule: str = "CH3CH2OH"
    rounds: int = 6
    walkers: int = 8
    frames: int = 10
    stride: int = 10
    trust: float = 5.0
    calculator: str = "tblite.ase.TBLite"
    calculator_options: dict[str, Any] = field(
        default_factory=lambda: {"method": "GFN2-xTB", "verbosity": 0}
    )
    members: int = 2
    steps: int = 300
    batch_size: int = 10

    def __post_init__(self) -> None:
        for name in ("workers", "queue", "rounds", "walkers", "frames", "stride", "members"):
            if getattr(self, name) < 1:
                raise SystemExit(f"{name} is {getattr(self, name)}, expected at least 1")
        if self.patience <= 2 * self.timeout:
            raise SystemExit(
                f"patience is {self.patience} s, expected more than twice the timeout of a label, "
                f"{self.timeout} s"
            )


class StalledError(Exception):
    """No task has ended for so long that the pools are taken for lost."""


@dataclass
class Loop:
    """A run at work: its two sinks, what they have, and the trainings that were begun."""

    settings: Settings
    labelled: zp.ZarrData
    set_aside: zp.ZarrData
    stored: set[Key]
    trainings: dict[int, "Future[tuple[float, float]]"] = field(default_factory=dict)
    began_training: float = 0.0

    def run(self) -> None:
        """Do the rounds whose committee is not there, and wait for the last committee."""
        self.trainings = {}
        rounds = range(self.settings.rounds)
        for number in rounds:
            if not self._has_committee(number):
                self._sample_and_label(number)
                self._train(number)
        self._wait_for(rounds[-1])

    def _sample_and_label(self, number: int) -> None:
        """Sample a round, and label what it gives; at most `queue` tasks are in flight."""
        settings, checkpoints = self.settings, []
        if number >= 2:
            self._wait_for(number - 2)
            members = range(settings.members)
            checkpoints = [str(checkpoint(self._committee, number - 2, one)) for one in members]
        submit = parsl.python_app(parsl_tasks.sample, executors=["work"])
        todo: deque[tuple[Callable[[], Future[Any]], Callable[[Future[Any]], Any]]] = deque()
        for walker, kelvin in enumerate(np.linspace(300, 800, settings.walkers).tolist()):
            task = {
                "molecule": settings.molecule,
                "checkpoints": checkpoints,
                "seed": (settings.seed, number, walker),
                "frames": settings.frames,
                "stride": settings.stride,
                "temperature": kelvin,
                "trust": settings.trust,
            }
            todo.append((partial(submit, task), partial(self._labels_of, number, walker)))
        running: dict[Future[Any], Callable[[Future[Any]], Any]] = {}
        while todo or running:
            while todo and len(running) < settings.queue:
                start, then = todo.popleft()
                running[start()] = then
            done = wait(running, settings.patience, FIRST_COMPLETED).done
            if not done:
                raise StalledError
            for future in done:
                todo.extendleft(running.pop(future)(future) or ())
        print(f"round {number}: {len(self.labelled)} labels, {len(self.set_aside)} set aside")

    def _labels_of(self, number: int, walker: int, sampled: "Future[Any]") -> list[Any]:
        """Tasks that label the frames of a walker that are in no store."""
        settings = self.settings
        numbers, positions, deviations = sampled.result()
        submit = parsl.python_app(parsl_tasks.label, executors=["work"])
        tasks = []
        for frame, (geometry, deviation) in enumerate(zip(positions, deviations, strict=True)):
            key = (number, walker, frame)
            if key not in self.stored:
                start = partial(
                    submit,
                    settings.calculator,
                    settings.calculator_options,
                    numbers,
                    geometry,
                    walltime=settings.timeout,
                )
                structure = _structure(key, numbers, geometry, deviation)
                tasks.append((start, partial(self._store, key, structure)))
        return tasks[::-1]

    def _store(self, key: Key, structure: zp.Batch, labelled: "Future[Any]") -> None:
        """Write a structure with its label, or set it aside with the reason."""
        try:
            status, energy, forces = labelled.result()
        except AppTimeout:
            status = "timeout"
        except (WorkerLost, ManagerLost):
            status = "worker lost"
        except Exception as error:  # noqa: BLE001  whatever a calculator raises is a reason
            status = f"{type(error).__name__}: {error}"[:200]
        structure = structure.add_field("status", [status], "system")
        if status == "ok":
            structure = structure.add_field("energy", torch.tensor([[energy]]), "system")
            forces = torch.from_numpy(forces).float()
            self.labelled.write(structure.add_field("forces", forces, "atom"))
        else:
            self.set_aside.write(structure)
            print(f"round, walker and frame {key}: {status}")
        self.stored.add(key)

    def _train(self, number: int) -> None:
        """Begin to train the committee of a round, after that of the round before."""
        settings = self.settings
        if len(self.labelled) == 0:
            raise SystemExit(f"none of the structures has a label: see {self.set_aside.store}")
        if not self.trainings:
            self.began_training = time.perf_counter()
        self.trainings[number] = parsl.python_app(parsl_tasks.train, executors=["train"])(
            str(settings.out / "labelled.zarr"),
            str(self._committee),
            number,
            settings.members,
            settings.steps,
            settings.batch_size,
            settings.seed,
            before=self.trainings.get(number - 1),
        )

    def _wait_for(self, number: int) -> None:
        """Wait for the committee of a round; raises what its task has raised on each try."""
        training = self.trainings.get(number)
        if training is None:
            return
        if not wait([training], self.settings.patience).done:
            raise StalledError
        training.result()

    def idle(self) -> float:
        """Share of the time since the first training began in which the trainer had no data."""
        span = time.perf_counter() - self.began_training
        done = [one.result() for one in self.trainings.values()]
        return 1.0 - sum(busy - waited for busy, waited in done) / span if done else 0.0

    def _has_committee(self, number: int) -> bool:
        members = range(self.settings.members)
        return all(checkpoint(self._committee, number, one).exists() for one in members)

    @property
    def _committee(self) -> Path:
        return self.settings.out / "committee"


def _structure(key: Key, numbers: Any, positions: Any, deviation: float) -> zp.Batch:
    """One structure and where it comes from."""
    given = {
        "positions": torch.from_numpy(positions).float(),
        "atomic_numbers": torch.from_numpy(numbers),
    }
    batch = zp.Batch(given, torch.tensor([0, len(numbers)]))
    for name, value in zip(("round", "walker", "frame"), key, strict=True):
        batch = batch.add_field(name, torch.tensor([value]), "system")
    return batch.add_field("deviation", torch.tensor([deviation]), "system")


def main(settings: Settings) -> None:
    """Run the loop to its end, with other pools of workers where those that were there are lost."""
    check_same_run(settings)
    config_of = run_path(str(settings.config))["config"]
    frames = settings.rounds * settings.walkers * settings.frames
    with (
        zp.ZarrData(settings.out / "labelled.zarr", capacity=frames) as labelled,
        zp.ZarrData(settings.out / "set_aside.zarr", capacity=frames) as set_aside,
    ):
        stored = {key for sink in (labelled, set_aside) for key in keys_of(sink)}
        loop = Loop(settings, labelled, set_aside, stored)
        while True:
            config = config_of(settings.out / "parsl", settings.workers, **settings.config_options)
            config.retries, config.retry_handler = settings.retries, cost
            parsl.load(config)
            try:
                loop.run()
                break
            except StalledError:
                print(f"no task has ended for {settings.patience} s: the pools are started anew")
            finally:
                parsl.dfk().cleanup()
                parsl.clear()
        print(f"{len(labelled)} labels, {len(set_aside)} structures set aside")
        print(f"the trainer waited for data {100 * loop.idle():.1f} % of its time")


def cost(error: Exception, _: Any) -> float:
    """What a failure counts as; a task is done again until `retries` are used up."""
    return LOST if isinstance(error, WorkerLost | ManagerLost) else 1.0


def keys_of(sink: zp.ZarrData) -> list[Key]:
    """Round, walker and frame of what a store has."""
    if len(sink) == 0:
        return []
    batch = sink.read()
    columns = [batch[name].flatten().tolist() for name in ("round", "walker", "frame")]
    return list(zip(*columns, strict=True))


def check_same_run(settings: Settings) -> None:
    """Note what decides the labels, and refuse the directory of a run that had it otherwise."""
    free = {"out", "config", "config_options", "workers", "queue", "retries", "patience", "rounds"}
    given = {name: value for name, value in asdict(settings).items() if name not in free}
    path = settings.out / "settings.json"
    if path.exists():
        known = json.loads(path.read_text())
        changed = sorted(name for name in given if known.get(name) != given[name])
        if changed:
            raise SystemExit(
                f"{settings.out} has a run with other values of {', '.join(changed)}: expected "
                f"those in {path}, or another --out"
            )
        return
    settings.out.mkdir(parents=True, exist_ok=True)
    partial_path = path.with_suffix(".partial")
    partial_path.write_text(json.dumps(given, indent=2) + "\n")
    partial_path.replace(path)


def read_settings(args: list[str] | None = None) -> Settings:
    """Settings from the command line, or from `args`."""
    from jsonargparse import ArgumentParser  # noqa: PLC0415

    parser = ArgumentParser(description="Active learning of a molecule on Parsl.")
    parser.add_class_arguments(Settings)
    return Settings(**parser.parse_args(args).as_dict())


if __name__ == "__main__":
    main(read_settings())
