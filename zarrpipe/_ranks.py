"""What all ranks of a training run have to see alike."""

from typing import Any

import torch.distributed as dist

from zarrpipe.dataset import ZarrDataset
from zarrpipe.errors import StoreFormatError, ZarrPipeError

_TRIALS = 100


def rank() -> int:
    """Rank of this process; 0 without torch.distributed."""
    return dist.get_rank() if _distributed() else 0


def world_size() -> int:
    """Number of ranks; 1 without torch.distributed."""
    return dist.get_world_size() if _distributed() else 1


def refresh_together(dataset: ZarrDataset) -> None:
    """Let a dataset see what was committed since: on every rank the samples that rank 0 sees.

    Raises
    ------
    StoreFormatError
        On every rank, if the store can no longer be read on one of them.
    """
    if not _distributed():
        dataset.refresh()
        return
    for _ in range(_TRIALS):
        failed = None
        try:
            dataset.refresh()
        except (ZarrPipeError, OSError) as error:
            failed = error
        told: list[Any] = [None] * world_size()
        text = None if failed is None else f"{type(failed).__name__}: {failed}"
        dist.all_gather_object(told, (text, dataset.state_dict(), sorted(dataset.schema)))
        if failed is not None:
            raise failed
        for other, (text, _, _) in enumerate(told):
            if text is not None:
                raise StoreFormatError(f"rank {other} cannot go on with its stores: {text}")
        dataset.load_state_dict(told[0][1])
        if all(names == told[0][2] for _, _, names in told):
            return
    raise StoreFormatError(
        f"the ranks saw different fields of a store {_TRIALS} times in turn: let the writer add "
        "its fields before training begins"
    )


def _distributed() -> bool:
    return dist.is_available() and dist.is_initialized()
