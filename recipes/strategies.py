"""Which labels are worth their cost: four ways to choose them from one pool, on six molecules.

    python recipes/strategies.py --task.out runs/strategies

The pool holds frames of GFN2-xTB dynamics at 300, 500 and 1000 K, half of them of two molecules at
300 K. Every arm starts from the same few labels. In each round its committee chooses frames from
the pool, whose labels are then uncovered; they are appended to the arm's store, and the committee
goes on training from it. Two tests are fixed: "usual" is drawn like the pool, "hot" has as many
frames of each molecule, all at 1000 K.

Arms and seeds run in two processes. What is on disk is the state: the same command goes on. Takes
twenty minutes on two cores. Writes ``summary.csv`` and ``strategies.png``, and
prints a table.
"""

import csv
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import islice
from multiprocessing import get_context
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np
import torch
from ase import Atoms, units
from ase.build import molecule
from ase.md.langevin import Langevin

import zarrpipe as zp
from xtb import start_worker

# ruff: noqa: PLC0415  what a worker process does not always need is imported where it is used

RULES = ("random", "deviation", "diverse", "farthest")
SHARES = {
    "CH3CH2OH": 0.42,
    "CH3OH": 0.30,
    "CH3COCH3": 0.12,
    "HCOOCH3": 0.08,
    "CH3CH2OCH3": 0.05,
    "CH3CONH2": 0.03,
}
"""Molecules, and the share of each in the pool."""

TEMPERATURES = {300: 0.70, 500: 0.25, 1000: 0.05}
"""Temperatures in K, and the share of each in the frames of a molecule."""

TESTS = ("usual", "hot")
COLOURS = {"random": "#d9772b", "deviation": "#1f6fb4", "diverse": "#2a8a57", "farthest": "#7a52a8"}
HEADER = ("rule", "seed", "round", "labels", "usual", "usual_largest", "hot", "hot_largest")
MEV = 1000.0


@dataclass(frozen=True)
class Task:
    """What is asked of each arm.

    Parameters
    ----------
    out
        Directory of all arms.
    pool, test
        Frames of the pool, and of each test.
    start
        Labels of each molecule that every arm begins with.
    per_round, rounds
        Labels that a round adds, and number of rounds after the first.
    members, steps, first_steps
        Size of the committee, and training steps of a member in a round and in the first one.
    batch_size
        Frames in a training step.
    calculator
        "GFN2-xTB", or "EMT" for a quick try without tblite.
    """

    out: Path = Path("runs/strategies")
    pool: int = 3000
    test: int = 300
    start: int = 6
    per_round: int = 36
    rounds: int = 6
    members: int = 2
    steps: int = 600
    first_steps: int = 1000
    batch_size: int = 8
    calculator: str = "GFN2-xTB"


def main(task: Task = Task(), seeds: tuple[int, ...] = (0, 1, 2), processes: int = 2) -> None:
    """Run what is missing, and compare the arms.

    Parameters
    ----------
    task
        What is asked of each arm.
    seeds
        Seeds of the arms; pool and tests are the same for all.
    processes
        Number of arms that run at a time.
    """
    from tqdm import tqdm

    with ProcessPoolExecutor(processes, get_context("spawn"), start_worker) as pool:
        for path, parts in frames_to_make(task).items():
            if not is_complete(path, sum(count for *_, count, _ in parts)):
                write_frames(path, pool.map(partial(frames, task.calculator), parts))
        arms = [(rule, seed) for seed in seeds for rule in RULES]
        running = [pool.submit(run_arm, task, rule, seed) for rule, seed in arms]
        rows = [row for one in tqdm(running, unit="arm") for row in one.result()]
    with (task.out / "summary.csv").open("w", newline="") as file:
        csv.writer(file).writerows([HEADER, *rows])
    draw(rows, task.out / "strategies.png")
    print(table(rows))
    print(f"wrote {task.out / 'summary.csv'} and strategies.png")


Part = tuple[str, int, int, int]
"""Molecule, temperature in K, number of frames, and seed of a trajectory."""


def frames_to_make(task: Task) -> dict[Path, list[Part]]:
    """Trajectories of the pool, of the first labels and of the tests, by store."""

    def like_pool(count: int, seed: int) -> list[Part]:
        return [
            (name, kelvin, max(1, round(count * share * part)), seed + number)
            for number, (name, share) in enumerate(SHARES.items())
            for kelvin, part in TEMPERATURES.items()
        ]

    each = max(1, task.test // len(SHARES))
    return {
        task.out / "pool.zarr": like_pool(task.pool, 100),
        task.out / "start.zarr": [(name, 300, task.start, 200) for name in SHARES],
        task.out / "usual.zarr": like_pool(task.test, 300),
        task.out / "hot.zarr": [(name, 1000, each, 400) for name in SHARES],
    }


def frames(calculator: str, part: Part, stride: int = 20, burn_in: int = 400) -> zp.Batch:
    """Labelled frames of Langevin dynamics of one molecule, every `stride` steps of 0.5 fs."""
    name, kelvin, count, seed = part
    rng, atoms = np.random.default_rng([seed, kelvin]), molecule(name)
    atoms.calc = calculator_of(calculator)
    spread = np.sqrt(atoms.get_masses() * units.kB * kelvin)
    atoms.set_momenta(rng.normal(size=(len(atoms), 3)) * spread[:, None])
    dynamics = Langevin(
        atoms, 0.5 * units.fs, temperature_K=kelvin, friction=0.02 / units.fs, fixcm=False, rng=rng
    )
    found = islice(dynamics.irun(burn_in + stride * count), burn_in + stride, None, stride)
    batch = zp.Batch.from_data_list([labelled(atoms) for _ in found])
    count = batch.num_graphs
    kinds = {"molecule": [name] * count, "temperature": torch.full((count, 1), float(kelvin))}
    for field, values in kinds.items():
        batch = batch.add_field(field, values, "system")
    return batch


def calculator_of(name: str) -> Any:
    """ASE calculator of the reference."""
    if name == "EMT":
        from ase.calculators.emt import EMT

        return EMT()
    from tblite.ase import TBLite

    return TBLite(method=name, verbosity=0)


def labelled(atoms: Atoms) -> zp.AtomicData:
    """Structure with its energy and forces."""
    return zp.AtomicData(
        torch.from_numpy(atoms.get_positions()).float(),
        torch.from_numpy(atoms.numbers),
        energy=float(atoms.get_potential_energy()),
        forces=torch.from_numpy(atoms.get_forces()).float(),
    )


def is_complete(path: Path, count: int) -> bool:
    """Whether a store has so many frames."""
    return path.exists() and len(zp.ZarrDataset(path)) == count


def write_frames(path: Path, batches: Any) -> None:
    """Write a store anew."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with zp.ZarrData(path) as sink:
        sink.zero()
        for batch in batches:
            sink.write(batch)


def run_arm(task: Task, rule: str, seed: int) -> list[tuple[Any, ...]]:
    """Rows of one arm, round by round."""
    torch.set_num_threads(1)
    place = task.out / f"{rule}-{seed}"
    place.mkdir(parents=True, exist_ok=True)
    with zp.ZarrData(place / "labelled.zarr") as sink:
        return [run_round(task, rule, seed, number, sink) for number in range(task.rounds + 1)]


def run_round(task: Task, rule: str, seed: int, number: int, sink: zp.ZarrData) -> tuple[Any, ...]:
    """Choose, label, train, and test; what is done already is read."""
    from zarrpipe.ml import load

    place = task.out / f"{rule}-{seed}"
    result = place / f"round-{number}.csv"
    if result.exists():
        with result.open(newline="") as file:
            words, values = next(csv.reader(file)), (str, int, int, int, *(float,) * 4)
            return tuple(kind(word) for kind, word in zip(values, words, strict=True))
    paths = [[place / f"{n}-{member}.ckpt" for member in range(task.members)] for n in (-1, number)]
    paths[0] = [place / f"{number - 1}-{member}.ckpt" for member in range(task.members)]
    if f"round-{number}" not in sink.marks:
        chosen = first_labels(task) if number == 0 else choose(task, rule, seed, number, paths[0])
        sink.write(chosen, batch_id=f"round-{number}")
        sink.mark(f"round-{number}")
    for member, path in enumerate(paths[1]):
        if not path.exists():
            train(task, seed, number, member, paths[0][member], path)
    row: list[Any] = [rule, seed, number, sink.marks[f"round-{number}"].count]
    committee = load(paths[1])
    for name in TESTS:
        test = read_all(task.out / f"{name}.zarr")
        error = (committee.predict(test)[0].forces - test.forces).abs()
        row += [MEV * float(error.mean()), float(error.max())]
    partial_file = result.with_suffix(".partial")
    with partial_file.open("w", newline="") as file:
        csv.writer(file).writerow(row)
    partial_file.replace(result)
    return tuple(row)


def read_all(path: Path) -> zp.Batch:
    """Everything in a store, as one batch."""
    dataset = zp.ZarrDataset(path)
    return dataset.read(range(len(dataset)))


def lived(
    batch: zp.Batch, places: torch.Tensor, deviation: torch.Tensor, rule: str, number: int
) -> Any:
    """The batch with what is to be known of its labels later."""
    count = batch.num_graphs
    life = {
        "place": places.reshape(-1, 1),
        "deviation": deviation.float().reshape(-1, 1),
        "round": torch.full((count, 1), number),
        "selected_by": [rule] * count,
    }
    for name, values in life.items():
        batch = batch.add_field(name, values, "system")
    return batch


def first_labels(task: Task) -> zp.Batch:
    """The labels that every arm begins with; they are not in the pool."""
    batch = read_all(task.out / "start.zarr")
    none = torch.full((batch.num_graphs,), -1)
    return lived(batch, none, torch.full((batch.num_graphs,), torch.nan), "start", 0)


def choose(task: Task, rule: str, seed: int, number: int, members: Sequence[Path]) -> zp.Batch:
    """Frames of the pool that are not labelled yet, as a rule has them."""
    from zarrpipe.ml import Selection, load

    pool = zp.ZarrDataset(task.out / "pool.zarr")
    known = read_all(task.out / f"{rule}-{seed}" / "labelled.zarr")
    taken = known["place"].flatten().numpy()
    left = np.setdiff1d(np.arange(len(pool)), taken)
    candidates = pool.read(left)
    committee = load(members)
    deviation = committee.deviation(candidates)
    selection = Selection(rule, task.per_round, seed=1000 * seed + number)  # type: ignore[arg-type]
    more = {}
    if selection.needs_features:
        more = {"features": committee.features(candidates), "known": committee.features(known)}
    chosen = selection.choose(candidates, deviation=deviation, **more)
    batch = candidates.index_select(chosen)
    return lived(batch, torch.from_numpy(left)[chosen], deviation[chosen], rule, number)


def train(task: Task, seed: int, number: int, member: int, before: Path, path: Path) -> None:
    """Train one member on from where the round before left it."""
    import lightning.pytorch as pl

    from zarrpipe.ml import ForceField

    if number == 0:
        field = ForceField("schnet", energy_weight=0.18, seed=100 * seed + member)
    else:
        field = ForceField.load_from_checkpoint(before)
    data = zp.ZarrDataModule(
        str(path.parent / "labelled.zarr"),
        at=f"round-{number}",
        batch_size=task.batch_size,
        split=(1.0, 0.0, 0.0),
        seed=10_000 * seed + 100 * number + member,
    )
    trainer = pl.Trainer(
        max_steps=task.steps if number else task.first_steps,
        accelerator="cpu",
        devices=1,
        limit_val_batches=0,
        barebones=True,
    )
    trainer.fit(field, datamodule=data)
    trainer.save_checkpoint(path.with_suffix(".partial"), weights_only=True)
    path.with_suffix(".partial").replace(path)


def labels_needed(labels: Sequence[float], errors: Sequence[float], error: float) -> float:
    """Labels at which a curve first reaches an error, by interpolation; infinity if it does not."""
    for place, now in enumerate(errors):
        if now <= error:
            if place == 0:
                return labels[0]
            share = (errors[place - 1] - error) / (errors[place - 1] - now)
            return labels[place - 1] + share * (labels[place] - labels[place - 1])
    return float("inf")


def curve(rows: Sequence[tuple[Any, ...]], rule: str, seed: int, column: str) -> list[float]:
    """Values of an arm, round by round."""
    place = HEADER.index(column)
    return [row[place] for row in rows if row[:2] == (rule, seed)]


def table(rows: Sequence[tuple[Any, ...]]) -> str:
    """What each rule reached with its last label, and the labels that it saved, as Markdown."""
    seeds = sorted({row[1] for row in rows})
    head = ["rule"]
    for name in TESTS:
        head += [f"{name}: MAE (meV/\u00c5)", "largest (eV/\u00c5)", "labels saved"]
    lines = [head, ["---"] * len(head)]
    for rule in RULES:
        cells = [rule]
        for name in TESTS:
            for column, digits in ((name, 1), (f"{name}_largest", 2)):
                cells.append(
                    spread([curve(rows, rule, seed, column)[-1] for seed in seeds], digits)
                )
            saved = [saved_share(rows, rule, seed, name) for seed in seeds]
            cells.append("" if rule == "random" else f"{spread(saved, 0)} %")
        lines.append(cells)
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def saved_share(rows: Sequence[tuple[Any, ...]], rule: str, seed: int, name: str) -> float:
    """Percentage of random's labels that a rule does without at random's last error.

    Negative where it does not reach that error: then by the labels that random needs for the error
    of the rule.
    """
    labels = curve(rows, rule, seed, "labels")
    mine, other = (curve(rows, one, seed, name) for one in (rule, "random"))
    needed = labels_needed(labels, mine, other[-1])
    if needed < float("inf"):
        return 100.0 * (1.0 - needed / labels[-1])
    return 100.0 * (labels_needed(labels, other, mine[-1]) / labels[-1] - 1.0)


def spread(values: Sequence[float], digits: int) -> str:
    """Mean and standard deviation."""
    middle = f"{mean(values):.{digits}f}"
    return f"{middle} \u00b1 {stdev(values):.{digits}f}" if len(values) > 1 else middle


def draw(rows: Sequence[tuple[Any, ...]], path: Path) -> None:
    """Errors of each rule against the number of labels: mean of the seeds and their range."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.0, 6.4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(2, 2, sharex=True)
    seeds = sorted({row[1] for row in rows})
    for place, name in enumerate(TESTS):
        for axis, column in zip(axes[:, place], (name, f"{name}_largest"), strict=True):
            for rule in RULES:
                values = np.array([curve(rows, rule, seed, column) for seed in seeds])
                labels = curve(rows, rule, seeds[0], "labels")
                colour = COLOURS[rule]
                axis.plot(labels, values.mean(0), marker="o", ms=4, color=colour, label=rule)
                axis.fill_between(
                    labels, values.min(0), values.max(0), color=colour, alpha=0.15, lw=0
                )
            if column == name:
                axis.set_yscale("log")
                axis.yaxis.set_major_formatter("{x:.0f}")
                axis.yaxis.set_minor_formatter("{x:.0f}")
            else:
                axis.set_ylim(bottom=0)
        axes[0, place].set_title(f"test: {name}")
        axes[1, place].set_xlabel("labels")
    axes[0, 0].set_ylabel("force MAE (meV/\u00c5)")
    axes[1, 0].set_ylabel("largest force error (eV/\u00c5)")
    axes[0, 0].legend(frameon=False)
    figure.savefig(path, dpi=130)


if __name__ == "__main__":
    from jsonargparse import auto_cli

    auto_cli(main, as_positional=False)
