"""Files: an extended XYZ file into a store, beside what ASE takes to read it."""

import shutil
from pathlib import Path

import ase.io
import numpy as np
from ase.calculators.singlepoint import SinglePointCalculator

import zarrpipe as zp
from benchmarks.data import Samples
from benchmarks.engines.ours import as_batch
from benchmarks.keeping import code, kept, samples_of
from benchmarks.machine import every_core, on_cores
from benchmarks.rows import Row
from benchmarks.settings import Settings
from benchmarks.timing import Task, in_turn, speed_ratio

SUITE = "files"
ASE = "ase.io.read"
MOST_FRAMES, ROUNDS = 10_000, 5


def run(settings: Settings) -> list[Row]:
    """Frames/s of `zarrpipe.read_into` on all cores, alone and with two processes, and of ASE."""
    count = min(MOST_FRAMES, settings.size.samples["molecules"])
    samples = samples_of(settings, "molecules").part(0, count)
    place = kept(
        settings.work, f"extxyz-{count}", code() + str(count), lambda at: write(samples, at)
    )
    file, store = place / "frames.xyz", settings.work / "imported.zarr"
    _check(file, store, samples)
    tasks = [
        Task("zarrpipe, one process", lambda _: _imported(file, store, 1)),
        Task("zarrpipe, two processes", lambda _: _imported(file, store, 2)),
        Task(ASE, lambda _: ase.io.read(file, ":")),
    ]
    with on_cores(None if settings.core is None else every_core()):
        timings = in_turn(tasks, rounds=min(ROUNDS, settings.size.rounds))
    shutil.rmtree(store)
    case = f"{count:,} frames of extxyz, {file.stat().st_size / 1e6:.0f} MB"
    rows = []
    for timing in timings:
        value, low, high = timing.quartiles(lambda seconds: count / seconds)
        ratios = {ASE: speed_ratio(timing, timings[-1])}
        rows.append(
            Row(SUITE, case, timing.name, value, "frames/s", low, high, timing.rounds, ratios)
        )
    return rows


def write(samples: Samples, place: Path) -> None:
    """File of the samples as ASE writes them, with energies and forces of a calculator."""
    frames = zp.adapters.to_ase(as_batch(samples))
    for number, atoms in enumerate(frames):
        atoms.info.update(round=number % 7, config_type=("bulk", "slab")[number % 2])
        if atoms.calc is None:
            atoms.calc = SinglePointCalculator(atoms, energy=0.0, forces=np.zeros((len(atoms), 3)))
    ase.io.write(place / "frames.xyz", frames, format="extxyz")


def _imported(file: Path, store: Path, processes: int) -> None:
    """Import a file into a new store."""
    shutil.rmtree(store, ignore_errors=True)
    zp.read_into(store, file, processes=processes, force=True)


def _check(file: Path, store: Path, samples: Samples) -> None:
    """Raise unless the store of an import has what ASE reads."""
    _imported(file, store, 1)
    batch = zp.ZarrDataset(store).read(slice(None))
    frames = ase.io.read(file, ":")
    energies = [atoms.get_potential_energy() for atoms in frames]
    forces = np.concatenate([atoms.get_forces() for atoms in frames])
    same = np.array_equal(batch.energy.flatten().numpy(), energies)
    if len(frames) != len(samples) or not (same and np.array_equal(batch.forces.numpy(), forces)):
        raise RuntimeError(f"the store of {file} has other labels than the file")
