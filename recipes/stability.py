"""Share of 10 ps trajectories at 500 K that stay intact on the potentials of a closed loop.

    python recipes/stability.py --run runs/ethanol

Takes 5 minutes on two idle cores and writes ``<run>/stability.csv``. A trajectory is intact if at
every look, 10 fs apart, no bond is broken and none is formed with respect to the bonds of ethanol
at rest: every bonded pair is nearer than 1.5 times, and every other pair further than 1.25 times,
the sum of its covalent radii. Langevin dynamics with steps of 1 fs, on the committee's mean forces.
"""

import csv
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from ase.data import covalent_radii

from settings import Settings
from xtb import ethanol, start_worker

# ruff: noqa: PLC0415  worker processes import this module: it imports torch where it is used

if TYPE_CHECKING:
    from walkers import Walkers
    from zarrpipe.ml import TorchSimModel

BROKEN, FORMED = 1.5, 1.25
LOOK_EVERY = 10


def main(
    run: Path,
    trajectories: int = 16,
    picoseconds: float = 10.0,
    temperature: float = 500.0,
    seed: int = 0,
    test_dir: Path | None = None,
) -> dict[str, float]:
    """Count the intact trajectories of each arm, one process for each.

    Parameters
    ----------
    run
        Directory of a finished closed loop.
    trajectories
        Number of trajectories of each arm.
    picoseconds
        Length of each.
    temperature
        In K.
    seed
        Seed of the starts and of the thermostat.
    test_dir
        Where the loop kept its test set, from which the trajectories start.
    """
    settings = Settings(out=run, test_dir=test_dir)
    arms = [name for name in settings.names if (run / name / "metrics.csv").exists()]
    with ProcessPoolExecutor(2, get_context("spawn"), initializer=start_worker) as pool:
        futures = {
            name: pool.submit(
                count_intact, settings, name, trajectories, picoseconds, temperature, seed
            )
            for name in arms
        }
        shares = {name: future.result() / trajectories for name, future in futures.items()}
    rows = [(name, trajectories, share) for name, share in shares.items()]
    with (run / "stability.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("arm", "trajectories", "intact_share"), *rows])
    print("\n".join(f"{name:<10} {share:.0%} of {count} intact" for name, count, share in rows))
    return shares


def count_intact(
    settings: Settings,
    arm: str,
    trajectories: int,
    picoseconds: float,
    temperature: float,
    seed: int,
) -> int:
    """Run an arm's trajectories as one batch and count the intact ones."""
    import torch

    from stores import read_all
    from walkers import Walkers
    from zarrpipe.ml import TorchSimModel, load

    torch.set_num_threads(1)
    last = max(
        int(path.name.split("-")[1])
        for path in (settings.out / arm / "checkpoints").glob("round-*-member-0.ckpt")
    )
    paths = sorted((settings.out / arm / "checkpoints").glob(f"round-{last}-member-*.ckpt"))
    committee = TorchSimModel(load(paths))
    numbers = torch.tensor(ethanol().numbers)
    pool = read_all(next(settings.test_store(500).parent.glob("500K-*.zarr"))).positions
    walkers = Walkers.start(
        numbers, pool.view(-1, len(numbers), 3), torch.full((trajectories,), temperature), seed
    )
    return int(stay_intact(committee, walkers, round(picoseconds * 1000), seed).sum())


def stay_intact(
    committee: "TorchSimModel", walkers: "Walkers", steps: int, seed: int
) -> np.ndarray:
    """Which walkers are intact after so many steps of 1 fs, [W] bool."""
    import torch

    from walkers import dynamics, restart

    whole = np.ones(len(walkers.temperatures), dtype=bool)
    start, state = walkers, walkers.state(committee)
    with dynamics(committee, walkers.temperatures, seed, timestep=1.0) as step:
        for done in range(1, steps + 1):
            state = step(state)
            if done % LOOK_EVERY == 0:
                positions = state.positions.view_as(start.positions).numpy()
                bad = ~intact(positions, start.numbers.numpy())
                whole &= ~bad
                if bad.any():  # it is counted; put back, so that it cannot disturb the others
                    here = start.moved(state, start.age)
                    state = restart(committee, here, start, torch.from_numpy(bad))
    return whole


def intact(positions: np.ndarray, numbers: np.ndarray) -> np.ndarray:
    """Which geometries [W, n, 3] have the bonds of ethanol at rest and no others, [W] bool."""
    radii = covalent_radii[numbers]
    scale = radii[:, None] + radii[None, :]
    first, second = np.triu_indices(len(numbers), 1)
    bonded = (ethanol().get_all_distances() < FORMED * scale)[first, second]
    distances = np.linalg.norm(positions[:, first] - positions[:, second], axis=-1)
    ratio = distances / scale[first, second]
    return np.where(bonded, ratio < BROKEN, ratio > FORMED).all(-1)


if __name__ == "__main__":
    from jsonargparse import auto_cli

    auto_cli(main, as_positional=False)
