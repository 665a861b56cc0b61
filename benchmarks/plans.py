"""Plans of epochs: how full and how even batches by budget are, and what long epochs cost."""

import itertools

import numpy as np

import zarrpipe as zp
from benchmarks.data import SETS, Sizes, sizes
from benchmarks.probe import ask
from benchmarks.rows import Row
from benchmarks.settings import Settings

SUITE = "plans"
MAX_ATOMS, RANKS = 1024, 8
LONG = {
    "each sample once": {"batch_size": 64},
    "each sample once, batches by atoms": {"max_atoms": MAX_ATOMS},
    "drawn by a field": {"batch_size": 64, "weights": "weight"},
    "drawn by the values of a field": {
        "batch_size": 64,
        "weights": {"round": {0: 0.2, 1: 0.3, 2: 0.5}},
    },
    "drawn by stores": {"batch_size": 64, "weights": [0.2, 0.8]},
    "drawn by a field, batches by atoms": {"max_atoms": MAX_ATOMS, "weights": "weight"},
}
"""Settings of the sampler by what they do."""


def run(settings: Settings) -> list[Row]:
    """Fill and imbalance on structures; seconds and MB of plans, each in a fresh process."""
    count = settings.size.samples["structures"]
    atoms = sizes(SETS["structures"], count, settings.seed)
    case = f"{count:,} structures, batches of at most {MAX_ATOMS:,} atoms"
    long = settings.size.planned
    found = {
        name: ask("epoch", count=long, seed=settings.seed, settings=arguments)
        for name, arguments in LONG.items()
    }
    return [
        *(Row.single(SUITE, case, name, value, "") for name, value in evenness(atoms).items()),
        *(
            Row.single(SUITE, f"{long:,} samples, {what}", name, one[key], unit)
            for key, what, unit in (
                ("seconds", "seconds", "s"),
                ("spent", "processor time", "s"),
                ("extra", "memory beyond the data", "MB"),
            )
            for name, one in found.items()
        ),
    ]


def evenness(atoms: np.ndarray, max_atoms: int = MAX_ATOMS) -> dict[str, float]:
    """Share of the budget that batches fill, and what the heaviest rank has more than the mean."""
    sampler = zp.GraphBatchSampler(Sizes(atoms), max_atoms=max_atoms, rank=0, world_size=RANKS)
    plan = sampler.plan()
    held = np.array([atoms[plan.order[a:b]].sum() for a, b in itertools.pairwise(plan.bounds)])
    steps = held.reshape(-1, RANKS)
    beyond = steps.max(1) / steps.mean(1) - 1
    return {
        "share of the budget that is filled": float(held.mean() / max_atoms),
        f"heaviest of {RANKS} ranks beyond their mean, worst step": float(beyond.max()),
        f"heaviest of {RANKS} ranks beyond their mean, mean step": float(beyond.mean()),
    }
