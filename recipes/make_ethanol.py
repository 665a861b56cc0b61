"""Write ethanol frames, labelled by GFN2-xTB, into a store that ``train.py`` reads.

    python recipes/make_ethanol.py --frames 1000

Takes 40 seconds on two cores and writes 1000 frames, 10 fs apart, of trajectories at 500 to 800 K
into ``runs/ethanol.zarr``. A store that exists is continued: another seed adds other frames.
"""

from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np

from xtb import start_worker, trajectory

# ruff: noqa: PLC0415  worker processes import this module: it imports torch where it is used


def main(
    store: Path = Path("runs/ethanol.zarr"),
    frames: int = 1000,
    seed: int = 0,
    temperatures: tuple[float, ...] = (500.0, 600.0, 700.0, 800.0),
    processes: int = 2,
) -> None:
    """Run a trajectory at each temperature and write its frames.

    Parameters
    ----------
    store
        Where to write.
    frames
        Number of frames in all.
    seed
        Seed of the trajectories.
    temperatures
        In K; a trajectory each.
    processes
        Number of trajectories at a time.
    """
    counts = [len(part) for part in np.array_split(np.arange(frames), len(temperatures))]
    seeds = [seed * len(temperatures) + number for number in range(len(temperatures))]
    with ProcessPoolExecutor(processes, get_context("spawn"), initializer=start_worker) as pool:
        found = list(pool.map(trajectory, temperatures, counts, seeds))
    _write(store, found)


def _write(path: Path, found: list) -> None:
    import zarrpipe as zp
    from stores import batch_of_frames

    path.parent.mkdir(parents=True, exist_ok=True)
    with zp.ZarrData(path) as sink:
        for frames in found:
            sink.write(batch_of_frames(frames))
        print(f"{path}: {len(sink)} frames")


if __name__ == "__main__":
    from jsonargparse import auto_cli

    auto_cli(main, as_positional=False)
