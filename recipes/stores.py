"""From what the oracle returns to what a store holds."""

from collections.abc import Callable
from pathlib import Path

import torch

import zarrpipe as zp
from xtb import Frames


def batch_of_frames(frames: Frames) -> zp.Batch:
    """Batch of labelled frames: positions and forces in float32, energies in float64."""
    count, atoms = frames.positions.shape[:2]
    return zp.Batch(
        {
            "positions": torch.from_numpy(frames.positions).float().reshape(-1, 3),
            "atomic_numbers": torch.from_numpy(frames.numbers).repeat(count),
            "energy": torch.from_numpy(frames.energies).reshape(-1, 1),
            "forces": torch.from_numpy(frames.forces).float().reshape(-1, 3),
        },
        torch.arange(count + 1) * atoms,
    )


def write_once(path: Path, count: int, make: Callable[[], Frames]) -> None:
    """Make a store of `count` frames, unless `path` holds just that many."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with zp.ZarrData(path, capacity=count) as store:
        if len(store) == count:
            return
        store.zero()
        store.write(batch_of_frames(make()))


def read_all(path: Path) -> zp.Batch:
    """Everything in a store, as one batch."""
    dataset = zp.ZarrDataset(path)
    return dataset.__getitems__(range(len(dataset)))
