"""Agreement between the ranks of a training run."""

import os
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, TypeVar

import torch.distributed as dist

from zarrpipe.dataset.stores import common_state
from zarrpipe.dataset.zarr_dataset import ZarrDataset
from zarrpipe.errors import ArgumentError, StoreFormatError

_TRIALS = 100

T = TypeVar("T")


def rank() -> int:
    """Rank of this process; 0 without torch.distributed."""
    return dist.get_rank() if _distributed() else 0


def world_size() -> int:
    """Number of ranks; 1 without torch.distributed."""
    return dist.get_world_size() if _distributed() else 1


def refresh_all_ranks(dataset: ZarrDataset) -> None:
    """Refresh a dataset on every rank to the samples that rank 0 sees.

    Those of a new part wait until all ranks see the part.
    """
    if not _distributed():
        dataset.refresh()
        return
    for _ in range(_TRIALS):
        state = common_state(all_ranks(partial(_look, dataset)))
        first, *others = all_ranks(partial(_restore, dataset, state))
        if all(names == first for names in others):
            return
    raise StoreFormatError(
        f"the ranks saw different fields of a store {_TRIALS} times in turn: let the writer add "
        "its fields before training begins"
    )


def _look(dataset: ZarrDataset) -> Mapping[str, Any]:
    """Refresh a dataset and return its state."""
    dataset.refresh()
    return dataset.state_dict()


def _restore(dataset: ZarrDataset, state: Mapping[str, Any]) -> list[str]:
    """Restore a state of a dataset and return its fields."""
    dataset.load_state_dict(state)
    return sorted(dataset.schema)


def all_ranks(look: Callable[[], T]) -> list[T]:
    """Gather a result from all ranks; raise on all of them if one fails.

    `look` must not communicate between ranks itself.
    """
    if not _distributed():
        return [look()]
    found, failed, text = None, None, None
    try:
        found = look()
    except Exception as error:  # noqa: BLE001  raised below, after the exchange
        failed, text = error, f"{type(error).__name__}: {error}"
    results: list[Any] = [None] * world_size()
    dist.all_gather_object(results, (text, found))
    if failed is not None:
        raise failed
    for other, (why, _) in enumerate(results):
        if why is not None:
            raise StoreFormatError(f"rank {other} cannot go on with its stores: {why}")
    return [found for _, found in results]


def check_alike(look: Callable[[], Mapping[str, Any]]) -> None:
    """Refuse to begin an epoch with a state that differs between ranks."""
    first, *others = all_ranks(look)
    for number, own in enumerate(others, 1):
        names = [name for name in {**first, **own} if first.get(name) != own.get(name)]
        if names:
            raise StoreFormatError(
                f"ranks 0 and {number} begin an epoch of other {names}: "
                f"{[first.get(name) for name in names]} and {[own.get(name) for name in names]}; "
                "give all of them the same stores, index files and settings"
            )


def check_slurm_tasks() -> None:
    """Refuse to train in several SLURM tasks that are not ranks of one training run.

    Each of them would train the same model. `srun` says how many tasks a step has; a batch script
    and an interactive shell have no step.
    """
    tasks = os.environ.get("SLURM_STEP_NUM_TASKS", "")
    if _distributed() or not tasks.isdecimal() or int(tasks) < 2:
        return
    number = os.environ.get("SLURM_PROCID", "?")
    raise ArgumentError(
        f"this is task {number} of {tasks} of a SLURM step, and no rank of a distributed run, so "
        "that each task would train the same model: give Trainer(devices=..., num_nodes=..., "
        "strategy='ddp') the tasks as ranks, or start one task (srun --ntasks=1); for runs that "
        "are meant to be independent unset SLURM_STEP_NUM_TASKS"
    )


def _distributed() -> bool:
    return dist.is_available() and dist.is_initialized()
