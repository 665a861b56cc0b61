"""Whether pointers, presence and edges that a user gives make a batch."""

import torch

from zarrpipe.errors import FieldError


def checked_pointers(name: str, ptr: torch.Tensor, at_least: int) -> torch.Tensor:
    """Pointers [B+1] int64 by which every system has `at_least` so many rows.

    Raises
    ------
    FieldError
        If they are not.
    """
    _check_tensor(name, ptr)
    if ptr.ndim != 1 or ptr.dtype is not torch.int64 or ptr.shape[0] < 1 or int(ptr[0]) != 0:
        raise FieldError(
            f"{name} has shape {tuple(ptr.shape)} and dtype {ptr.dtype}, expected (B + 1,) int64 "
            "beginning with 0"
        )
    short = (ptr.diff() < at_least).nonzero()
    if short.numel():
        system = int(short[0])
        raise FieldError(
            f"{name} goes from {int(ptr[system])} to {int(ptr[system + 1])} at system {system}, "
            f"expected at least {at_least} more: pointers never fall and no system is empty"
        )
    return ptr


def check_presence(name: str, mask: torch.Tensor, systems: int) -> None:
    """Refuse what does not say of each system whether it has a field.

    Raises
    ------
    FieldError
        If it is no tensor of bool with a row for each.
    """
    _check_tensor(f"presence of {name!r}", mask)
    if mask.dtype is not torch.bool or mask.shape != (systems,):
        raise FieldError(
            f"presence of {name!r} has dtype {mask.dtype} and shape {tuple(mask.shape)}, "
            f"expected bool and ({systems},)"
        )


def check_edges(edges: torch.Tensor, batch_ptr: torch.Tensor, edge_ptr: torch.Tensor) -> None:
    """Refuse an edge that leaves the atoms of its own system; a wrong shape is told elsewhere.

    Raises
    ------
    FieldError
        If there is one.
    """
    if edges.ndim != 2 or edges.shape[0] != int(edge_ptr[-1]) or edges.numel() == 0:
        return
    systems = torch.arange(len(edge_ptr) - 1, device=edges.device)
    owner = torch.repeat_interleave(systems, edge_ptr.diff())
    low, high = batch_ptr[:-1][owner, None], batch_ptr[1:][owner, None]
    bad = ((edges < low) | (edges >= high)).any(1).nonzero()
    if bad.numel():
        edge = int(bad[0])
        raise FieldError(
            f"edge {edge} is {edges[edge].tolist()}, its system {int(owner[edge])} has the "
            f"atoms {int(low[edge])} to {int(high[edge]) - 1}: in a batch the neighbor_list "
            "counts the atoms of the whole batch"
        )


def _check_tensor(what: str, value: object) -> None:
    if not isinstance(value, torch.Tensor):
        raise FieldError(f"{what} is a {type(value).__name__}, expected a torch.Tensor")
