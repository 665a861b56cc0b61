"""Neighbour lists, found by vesin."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch

from zarrpipe.data.batch import Batch
from zarrpipe.data.csr import AnyArray, Int64Array, pointers, segment_rows
from zarrpipe.data.fields import CORE_FIELDS
from zarrpipe.data.levels import Level
from zarrpipe.errors import ArgumentError, FieldError
from zarrpipe.libraries import require

_FOUND = ("neighbor_list", "neighbor_list_shifts")
_LARGEST = 1e6
"""Angstrom; vesin 0.6 crashes where the cells of its grid are too many to count."""
_MARGIN = 1e-9


class NeighborList:
    """Find the edges of each system: all pairs of atoms that are nearer than a cutoff.

    It sets ``neighbor_list [E, 2]`` and ``neighbor_list_shifts [E, 3]``, whole numbers in the dtype
    of the positions, so that the vector of an edge is ``positions[j] + shift @ cell -
    positions[i]``. Both directions of a pair are there, and images of an atom itself where a
    cell is small. Edges are sorted by i. They are searched on the CPU, molecules all at once and
    periodic systems one by one, for which worker processes are of use. A budget of edges
    (``max_edges``) counts those that are stored, not these.

    Parameters
    ----------
    cutoff : float
        In the unit of the positions, Angstrom unless they were converted before.

    Raises
    ------
    ValueError
        If `cutoff` is not a positive finite number.
    MissingLibraryError
        If vesin is not installed.
    FieldError
        When a position is not finite, a periodic system has no cell, or the batch has other fields
        at edge level, which new edges would not fit.
    """

    reads = ("cell", "pbc")
    """Fields that change what is found; a dataset that has them must not leave them out."""

    def __init__(self, cutoff: float) -> None:
        if not isinstance(cutoff, int | float | np.number) or not 0 < cutoff < float("inf"):
            raise ArgumentError(f"cutoff is {cutoff!r}, expected a positive finite number")
        require("vesin", "train")
        self.cutoff = float(cutoff)

    def __call__(self, batch: Batch) -> Batch:
        """The batch with its edges."""
        others = batch.keys[Level.EDGE] - set(_FOUND)
        if others:
            raise FieldError(
                f"fields {sorted(others)} belong to edges that would be replaced: leave them out "
                "with fields=, or set them after NeighborList"
            )
        found, like = find(batch, self.cutoff), batch.positions
        edges = {
            "neighbor_list": torch.from_numpy(found.edges).to(like.device),
            "neighbor_list_shifts": torch.from_numpy(found.shifts).to(like.device, like.dtype),
        }
        return Batch._trusted(
            {**batch.fields, **edges},
            {**batch.roles, **{name: CORE_FIELDS[name].role for name in edges}},
            {
                **batch._pointers,
                Level.EDGE: torch.from_numpy(pointers(found.counts)).to(like.device),
            },
            {name: batch.present(name) for name in batch.partly_present if name not in edges},
            buffer=None if "neighbor_list" in batch else batch._buffer,
        )

    def __repr__(self) -> str:
        return f"NeighborList({self.cutoff})"


@dataclass(frozen=True)
class Edges:
    """Edges of a batch, system after system.

    `edges` [E, 2] int64 are atoms i and j of the whole batch, ascending in i; `shifts` [E, 3] int32
    count the cells from j to its image, `counts` [B] the edges of each system.
    """

    edges: Int64Array
    shifts: AnyArray
    counts: Int64Array


def find(batch: Batch, cutoff: float) -> Edges:
    """Both directions of all pairs of atoms of one system that are nearer than `cutoff`."""
    positions = batch.positions.detach().cpu().numpy().astype(np.float64)
    ptr = batch.batch_ptr.cpu().numpy()
    extents = _extents(positions, ptr)
    periodic = np.zeros(extents.spans.shape, dtype=bool)
    if "pbc" in batch:
        periodic = batch.pbc.cpu().numpy()
    in_cells = np.asarray(periodic.any(1))
    found = [
        _of_molecules(positions, ptr, group, extents, cutoff)
        for group in _groups(np.flatnonzero(~in_cells), extents.spans[:, 0] + 2 * cutoff)
    ]
    if in_cells.any():
        found += _of_crystals(batch, positions, periodic, cutoff)
    edges = np.concatenate([np.zeros((0, 2), dtype=np.int64), *(pairs for pairs, _ in found)])
    shifts = np.concatenate([np.zeros((0, 3), dtype=np.int32), *(cells for _, cells in found)])
    system = np.searchsorted(ptr, edges[:, 0], side="right") - 1
    if in_cells.any() and not in_cells.all():
        order = np.argsort(system, kind="stable")
        edges, shifts = edges[order], shifts[order]
    return Edges(edges, shifts, np.bincount(system, minlength=len(in_cells)))


class _Extents(NamedTuple):
    """Least coordinates of each system and how far it extends from there, both [B, 3]."""

    lows: AnyArray
    spans: AnyArray


def _extents(positions: AnyArray, ptr: Int64Array) -> _Extents:
    """Extents of all systems; refuses positions that vesin cannot search."""
    if len(ptr) == 1:
        return _Extents(np.zeros((0, 3)), np.zeros((0, 3)))
    low = np.minimum.reduceat(positions, ptr[:-1])
    span = np.maximum.reduceat(positions, ptr[:-1]) - low
    bad = np.flatnonzero(~(span < _LARGEST).all(1) | ~(abs(low) < _LARGEST).all(1))
    if len(bad):
        raise FieldError(
            f"the positions of system {bad[0]} of the batch extend from {low[bad[0]].tolist()} by "
            f"{span[bad[0]].tolist()}, expected finite numbers below {_LARGEST:.0e} for a "
            "neighbor_list: leave out what has blown up"
        )
    return _Extents(low, span)


def _groups(systems: Int64Array, widths: AnyArray) -> list[Int64Array]:
    """Groups of systems for one search each; all are one group unless their row gets too long."""
    if not len(systems):
        return []
    return [systems] if widths[systems].sum() < _LARGEST else np.split(systems, len(systems))


def _of_molecules(
    positions: AnyArray,
    ptr: Int64Array,
    systems: Int64Array,
    extents: _Extents,
    cutoff: float,
) -> tuple[Int64Array, AnyArray]:
    """Edges and shifts of systems without a cell, placed in a row and searched in one call."""
    counts = ptr[systems + 1] - ptr[systems]
    rows = segment_rows(ptr[systems], pointers(counts))
    origins = -extents.lows[systems]
    widths = extents.spans[systems, 0] + 2 * cutoff
    origins[:, 0] += np.cumsum(widths) - widths
    row = positions[rows] + np.repeat(origins, counts, axis=0)
    (pairs,) = _search(cutoff * (1 + _MARGIN)).compute(row, np.zeros((3, 3)), False, "P")
    edges = rows[pairs.astype(np.int64)]
    # Distances in the row depend on a molecule's place through rounding: compute them anew.
    vectors = positions[edges[:, 1]] - positions[edges[:, 0]]
    edges = edges[np.einsum("ek,ek->e", vectors, vectors) < cutoff**2]
    edges = edges[np.argsort(edges[:, 0] * len(positions) + edges[:, 1])]
    return edges, np.zeros((len(edges), 3), dtype=np.int32)


def _of_crystals(
    batch: Batch, positions: AnyArray, periodic: AnyArray, cutoff: float
) -> list[tuple[Int64Array, AnyArray]]:
    """Edges and shifts of systems that are periodic in some direction, one call for each."""
    systems = np.flatnonzero(periodic.any(1)).tolist()
    if "cell" not in batch:
        raise FieldError(
            f"system {systems[0]} of the batch is periodic and the batch has no cell: add 'cell' "
            "to fields="
        )
    ptr, boxes = batch.batch_ptr.tolist(), batch.cell.detach().cpu().numpy().astype(np.float64)
    search, found = _search(cutoff), []
    for system in systems:
        atoms, box = slice(ptr[system], ptr[system + 1]), boxes[system]
        try:
            box = np.asarray_chkfinite(box)  # vesin 0.6 crashes where it is not
            pairs, shifts = search.compute(
                positions[atoms], box, periodic[system], "PS", copy=False
            )
        except (RuntimeError, ValueError) as error:
            raise FieldError(
                f"system {system} of the batch has pbc={periodic[system].tolist()} and "
                f"cell={box.tolist()}, and its neighbor_list cannot be found ({error})"
            ) from error
        found.append((pairs.astype(np.int64) + atoms.start, shifts.copy()))
    return found


def _search(cutoff: float) -> Any:
    vesin = require("vesin", "train")
    return vesin.NeighborList(cutoff=cutoff, full_list=True, sorted=True, n_threads=1)
