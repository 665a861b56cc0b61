"""Active learning in one file: simulate, select, label, train, repeat.

    python recipes/closed_loop.py --out runs/ethanol --seed 0

A committee of force fields drives molecular dynamics. Frames that it still trusts are candidates; a
rule chooses some of them, the oracle labels these, they are appended to the labelled store, and the
committee goes on training from it. Change `MOLECULE`, `oracle` and `--rule` to make it yours.

The stores are the state. A mark ``round-<n>`` of the labelled store says that the labels of a round
are complete; what comes after it is a function of the seed and of the marked samples, or is in a
checkpoint. Killed at any moment and started again, the loop gives the same labels.
"""

import csv
import warnings
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import islice
from multiprocessing import get_context, parent_process
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ase import Atoms, units
from ase.build import molecule
from ase.md.langevin import Langevin

import zarrpipe as zp
from xtb import start_worker
from zarrpipe.adapters import from_ase, to_ase
from zarrpipe.ml import ForceField, ForceFieldCalculator, Selection, load

# ruff: noqa: PLC0415  what a worker process does not need is imported where it is used

MOLECULE = "CH3CH2OH"  # a name of ASE's collection; `start` makes the structure
HEADER = ("round", "labels", "deviation", "mae_500", "mae_800", "max_500", "max_800")


@dataclass(frozen=True)
class Settings:
    """What defines a run.

    Parameters
    ----------
    out
        Directory of the run.
    seed
        Seed of everything but the test set.
    rule
        How candidates are chosen: diverse, deviation, farthest or random.
    labels
        Labels of the first round, of xTB's own dynamics, and labels that each later round adds.
    rounds
        Rounds after the first.
    members, steps, batch_size
        Size of the committee, training steps of a member in a round, and frames in a step.
    walkers, snapshots, stride
        Simulations of a round, frames of each, and steps of 0.5 fs between these.
    temperatures
        In K; walkers take them in turn.
    ceiling
        Deviation in eV/Angstrom at which a walker is stopped.
    test_frames
        Frames of each of the two test trajectories, at 500 and 800 K.
    processes
        Processes that simulate, label and train.
    """

    out: Path = Path("runs/ethanol")
    seed: int = 0
    rule: str = "diverse"
    labels: tuple[int, int] = (30, 50)
    rounds: int = 5
    members: int = 3
    steps: int = 500
    batch_size: int = 10
    walkers: int = 10
    snapshots: int = 15
    stride: int = 20
    temperatures: tuple[float, ...] = (500.0, 650.0, 800.0)
    ceiling: float = 1.0
    test_frames: int = 200
    processes: int = 2

    def __post_init__(self) -> None:
        if self.rule not in ("diverse", "deviation", "farthest", "random"):
            raise ValueError(f"rule={self.rule!r}, expected diverse, deviation, farthest or random")
        if self.labels[0] < self.walkers or self.labels[1] < 1 or self.rounds < 0:
            raise ValueError(
                f"labels={self.labels}, rounds={self.rounds}: expected a first label for each of "
                f"{self.walkers} walkers, one or more for each round, and no negative rounds"
            )


def oracle() -> Any:
    """ASE calculator whose energies and forces are the labels."""
    from tblite.ase import TBLite

    return TBLite(method="GFN2-xTB", verbosity=0)


def start() -> Atoms:
    """The structure from which the first trajectories begin."""
    return molecule(MOLECULE)


def main(settings: Settings, run: Callable[..., Iterable[Any]] | None = None) -> None:
    """Do the rounds that are not done yet, then draw the figures and the report.

    Parameters
    ----------
    settings
        What defines the run.
    run
        What maps a function over arguments, such as the map of a pool; by default of processes.
    """
    from tqdm import tqdm

    if run is None:
        with ProcessPoolExecutor(settings.processes, get_context("spawn"), quiet) as pool:
            main(settings, pool.map)
        return
    settings.out.mkdir(parents=True, exist_ok=True)
    for kelvin in (500, 800):
        write_test(settings, kelvin, run)
    stages = tqdm(total=4 * (settings.rounds + 1), unit="stage", leave=False)
    stages.write("".join(f"{name:>11}" for name in HEADER))
    with (
        zp.ZarrData(settings.out / "labelled.zarr") as labelled,
        zp.ZarrData(settings.out / "candidates.zarr") as candidates,
    ):
        for number in range(settings.rounds + 1):
            members = [checkpoint(settings, number - 1, one) for one in range(settings.members)]
            if f"round-{number}" not in labelled.marks:
                candidates.zero()  # what a killed round left
                stages.set_postfix_str("simulate")
                for batch in simulate(settings, number, members, labelled, run):
                    candidates.write(batch, mask=batch["trusted"].flatten())
                if not len(candidates):
                    raise RuntimeError(
                        f"no frame of round {number} deviates by less than {settings.ceiling} "
                        "eV/Angstrom: raise 'ceiling', or 'steps' for a better committee"
                    )
                stages.update()
                stages.set_postfix_str("select and label")
                found = select(settings, number, members, candidates.drain(), labelled)
                done, failed = label(found, run)
                set_aside(settings, number, failed)
                labelled.write(done, batch_id=f"round-{number}")
                labelled.mark(f"round-{number}", note=f"{settings.rule}, seed {settings.seed}")
            stages.n = 4 * number + 2
            stages.set_postfix_str("train")
            new = [checkpoint(settings, number, one) for one in range(settings.members)]
            missing = [one for one, path in enumerate(new) if not path.exists()]
            list(run(partial(train, settings, number), missing))
            stages.update()
            row = evaluate(settings, number, new, labelled)
            stages.update()
            stages.write("".join(f"{value:>11}" for value in row))
    stages.close()
    finish(settings)


def quiet() -> None:
    """Prepare a process: one thread, no messages of Lightning, no life after its parent's death."""
    import logging

    if parent_process() is not None:
        start_worker()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)


def checkpoint(settings: Settings, number: int, member: int) -> Path:
    """Where a member is after a round."""
    return settings.out / "checkpoints" / f"round-{number}-member-{member}.ckpt"


def walk(calculator: Any, atoms: Atoms, kelvin: float, seed: int, stride: int) -> Iterable[Atoms]:
    """Langevin dynamics without end, every `stride` steps of 0.5 fs."""
    rng = np.random.default_rng(seed)
    atoms.calc = calculator
    spread = np.sqrt(atoms.get_masses() * units.kB * kelvin)
    atoms.set_momenta(rng.normal(size=(len(atoms), 3)) * spread[:, None])
    dynamics = Langevin(
        atoms, 0.5 * units.fs, temperature_K=kelvin, friction=0.02 / units.fs, fixcm=False, rng=rng
    )
    while True:
        dynamics.run(stride)
        yield atoms


def reference_frames(count: int, kelvin: float, seed: int) -> zp.Batch:
    """Frames of dynamics on the oracle's own forces, after 400 steps, without labels."""
    frames = islice(walk(oracle(), start(), kelvin, seed, 20), 20, 20 + count)
    return bare([one.copy() for one in frames], [np.nan] * count)


def bare(frames: list[Atoms], deviations: list[float]) -> zp.Batch:
    """Structures alone, in single precision, with the committee's deviation in eV/Angstrom."""
    batch = from_ase([Atoms(one.numbers, one.positions) for one in frames], dtype=torch.float32)
    return batch.add_field("deviation", torch.tensor(deviations).float().reshape(-1, 1), "system")


def simulate(
    settings: Settings,
    number: int,
    members: list[Path],
    labelled: zp.ZarrData,
    run: Callable[..., Iterable[Any]],
) -> Iterable[zp.Batch]:
    """Candidates of a round, with their temperature as source; `trusted` is the mask."""
    each = range(settings.walkers)
    kelvins = [settings.temperatures[one % len(settings.temperatures)] for one in each]
    seeds = [seed_of(settings, "walk", number, one) for one in each]
    if number == 0:
        counts = [len(part) for part in np.array_split(range(settings.labels[0]), settings.walkers)]
        frames = run(reference_frames, counts, kelvins, seeds)
    else:
        rng = np.random.default_rng(seed_of(settings, "begin", number))
        known = labelled.read()
        drawn = rng.integers(known.num_graphs, size=settings.walkers)
        begins = to_ase(known.index_select(drawn))
        frames = run(partial(explore, settings, members), begins, kelvins, seeds)
    for kelvin, batch in zip(kelvins, frames, strict=True):
        source = [f"{kelvin:.0f} K"] * batch.num_graphs
        trusted = ~(batch["deviation"] >= settings.ceiling)
        yield batch.add_field("source", source, "system").add_field("trusted", trusted, "system")


def explore(
    settings: Settings, members: list[Path], atoms: Atoms, kelvin: float, seed: int
) -> zp.Batch:
    """Dynamics on the committee's mean forces until it deviates too much, with its deviation."""
    calculator, frames, deviations = ForceFieldCalculator(members), [], []
    for frame in walk(calculator, atoms, kelvin, seed, settings.stride):
        deviations.append(float(frame.calc.results["forces_std"].max()))
        frames.append(frame.copy())
        if len(frames) == settings.snapshots or not deviations[-1] < settings.ceiling:
            break
    return bare(frames, deviations)


def select(
    settings: Settings, number: int, members: list[Path], found: zp.Batch, labelled: zp.ZarrData
) -> zp.Batch:
    """The candidates that are labelled, with what is to be known of them later."""
    rule, model = "dynamics of the oracle", "none"
    if number:
        committee, rule = load(members), settings.rule
        selection = Selection(
            rule,  # type: ignore[arg-type]
            settings.labels[1],
            seed=seed_of(settings, "select", number),
        )
        more = {}
        if selection.needs_features:
            known = committee.features(labelled.read())
            more = {"features": committee.features(found), "known": known}
        found, model = found.index_select(selection.choose(found, **more)), committee.fingerprint()
    count = found.num_graphs
    life = {
        "round": torch.full((count, 1), number),
        "selected_by": [rule] * count,
        "model": [model] * count,
        "status": ["candidate"] * count,
    }
    found = found.without("trusted")
    for name, values in life.items():
        found = found.add_field(name, values, "system")
    return found


def label(found: zp.Batch, run: Callable[..., Iterable[Any]]) -> tuple[zp.Batch, zp.Batch]:
    """Candidates with energy and forces, and those of which the oracle failed, with the reason."""
    results = [*run(label_one, to_ase(found), chunksize=5)]
    good = [place for place, (_, reason) in enumerate(results) if reason == "labelled"]
    bad = [place for place in range(len(results)) if place not in good]
    status = [reason for _, reason in results]
    done = found.index_select(good).without("status")
    failed = found.index_select(bad).without("status")
    energies, forces = zip(*[results[place][0] for place in good], strict=True)
    done = done.add_field(
        "energy", torch.tensor(energies, dtype=torch.float64).reshape(-1, 1), "system"
    )
    done = done.add_field("forces", torch.tensor(np.concatenate(forces)).float(), "atom")
    done = done.add_field("status", [status[place] for place in good], "system")
    return done, failed.add_field("status", [status[place] for place in bad], "system")


def label_one(atoms: Atoms) -> tuple[tuple[float, np.ndarray] | None, str]:
    """Energy in eV and forces [n, 3] in eV/Angstrom, and "labelled" or why there are none."""
    plain = Atoms(atoms.numbers, atoms.positions)
    plain.calc = oracle()
    try:
        return (float(plain.get_potential_energy()), plain.get_forces()), "labelled"
    except Exception as error:  # noqa: BLE001  the candidate is set aside with the reason
        return None, f"failed: {type(error).__name__}"


def set_aside(settings: Settings, number: int, failed: zp.Batch) -> None:
    """Keep the candidates that could not be labelled."""
    if failed.num_graphs:
        with zp.ZarrData(settings.out / "failed.zarr") as sink:
            sink.write(failed, batch_id=f"round-{number}")


def train(settings: Settings, number: int, member: int) -> None:
    """Train a member on from where the round before left it, on the samples of the mark."""
    import lightning.pytorch as pl

    path = checkpoint(settings, number, member)
    if number:
        field = ForceField.load_from_checkpoint(checkpoint(settings, number - 1, member))
    else:  # an energy counts as much as a fifth of a force
        field = ForceField("schnet", energy_weight=0.18, seed=seed_of(settings, "member", member))
    data = zp.ZarrDataModule(
        str(settings.out / "labelled.zarr"),
        at=f"round-{number}",
        batch_size=settings.batch_size,
        split=(1.0, 0.0, 0.0),
        seed=seed_of(settings, "order", number, member),
    )
    trainer = pl.Trainer(
        max_steps=settings.steps, accelerator="cpu", devices=1, limit_val_batches=0, barebones=True
    )
    trainer.fit(field, datamodule=data)
    path.parent.mkdir(parents=True, exist_ok=True)
    trainer.save_checkpoint(path.with_suffix(".partial"), weights_only=True)
    path.with_suffix(".partial").replace(path)


def write_test(settings: Settings, kelvin: int, run: Callable[..., Iterable[Any]]) -> None:
    """Make a test trajectory of the oracle's dynamics, unless it is there."""
    path, count = settings.out / f"test-{kelvin}.zarr", settings.test_frames
    with zp.ZarrData(path) as sink:
        if len(sink) != count:
            sink.zero()
            (found,) = run(reference_frames, [count], [float(kelvin)], [kelvin])
            sink.write(label(found.add_field("status", ["test"] * count, "system"), run)[0])


def evaluate(
    settings: Settings, number: int, members: list[Path], labelled: zp.ZarrData
) -> list[Any]:
    """Row of a round: labels, and errors of the mean forces on both tests; kept in a table."""
    table = settings.out / "metrics.csv"
    rows = list(csv.reader(table.open(newline=""))) if table.exists() else [list(HEADER)]
    if len(rows) > number + 1:
        return rows[number + 1]
    committee, errors = load(members), []
    for kelvin in (500, 800):
        test = zp.ZarrData(settings.out / f"test-{kelvin}.zarr").read()
        errors.append((committee.predict(test)[0].forces - test.forces).abs())
    batch = labelled.read()
    own = batch["round"].flatten() == number
    row = [
        number,
        labelled.marks[f"round-{number}"].count,
        f"{float(batch['deviation'].flatten()[own].mean()):.3f}",
        *(f"{1000 * float(error.mean()):.1f}" for error in errors),
        *(f"{float(error.max()):.2f}" for error in errors),
    ]
    partial_table = table.with_suffix(".partial")
    with partial_table.open("w", newline="") as file:
        csv.writer(file).writerows([*rows, row])
    partial_table.replace(table)
    return row


def finish(settings: Settings) -> None:
    """Draw the errors against the number of labels, and write the report of the labelled store."""
    from matplotlib.figure import Figure

    from zarrpipe.reporting.page import write_page

    rows = np.genfromtxt(settings.out / "metrics.csv", delimiter=",", names=True, ndmin=1)
    figure = Figure((9.0, 3.6), layout="constrained")
    axes = figure.subplots(1, 2)
    for axis, kind, unit in zip(axes, ("mae", "max"), ("meV/\u00c5", "eV/\u00c5"), strict=True):
        for kelvin in (500, 800):
            axis.plot(rows["labels"], rows[f"{kind}_{kelvin}"], marker="o", label=f"{kelvin} K")
        axis.set(xlabel="labels", ylabel=f"force error, {kind} ({unit})", ylim=(0, None))
    axes[0].legend(frameon=False)
    figure.savefig(settings.out / "learning_curve.png", dpi=130)
    page = write_page(zp.report(settings.out / "labelled.zarr"), settings.out / "report.html")
    print(f"wrote {settings.out / 'metrics.csv'}, learning_curve.png and {page.name}")


def seed_of(settings: Settings, *parts: str | int) -> int:
    """Seed of one draw: a function of the run's seed and of what is drawn."""
    text = "/".join(map(str, parts)).encode()
    return int(np.random.SeedSequence([settings.seed, *text]).generate_state(1)[0])


def read_settings(args: list[str] | None = None) -> Settings:
    """Settings from the command line, or from `args`."""
    from jsonargparse import ArgumentParser

    parser = ArgumentParser(description="Active learning of a molecule, from one command.")
    parser.add_class_arguments(Settings)
    return Settings(**parser.parse_args(args).as_dict())


if __name__ == "__main__":
    quiet()
    main(read_settings())
