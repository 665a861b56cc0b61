"""Neighbour lists whose indices count from their batch, as nvalchemi writes them."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from zarrpipe.data.csr import Int64Array
from zarrpipe.store.check.blocks import SampleBlock
from zarrpipe.store.check.borders import edge_shifts
from zarrpipe.store.check.report import Finding, Severity, some

RELATIVE = "add to the indices of each sample what makes them count from the store"
_NONE = np.iinfo(np.int64).max


@dataclass(frozen=True)
class Shifts:
    """What is to be added to the indices of samples.

    Parameters
    ----------
    by : array [N] int64
        For each sample.
    unknown : array [K] int64
        Samples of which it is not known.
    edges : array [N+1] int64
        Pointers to the edges.
    """

    by: Int64Array
    unknown: Int64Array
    edges: Int64Array

    @property
    def explains(self) -> bool:
        """Whether some indices count from a batch."""
        return bool(self.by.any())


def shifts_of(pieces: Iterable[SampleBlock], samples: int) -> Shifts | None:
    """What makes the indices of all samples count from the store; None without all pointers.

    It takes 40 bytes of memory a sample.
    """
    atoms, edges = np.zeros((2, samples + 1), dtype=np.int64)
    least, greatest = np.full(samples, _NONE), np.full(samples, -1, dtype=np.int64)
    seen = 0
    for piece in pieces:
        here = slice(piece.first, piece.first + len(piece))
        ends = slice(piece.first, piece.first + len(piece) + 1)
        atoms[ends], edges[ends] = piece.atoms, piece.edges
        least[here], greatest[here] = _ranges(piece)
        seen += len(piece)
    if seen < samples:
        return None
    least[greatest < 0] = _NONE // 2  # none, without an overflow when differences are taken
    by, known = edge_shifts(atoms, least, greatest)
    return Shifts(np.where(known, by, 0), np.flatnonzero(~known), edges)


def _ranges(piece: SampleBlock) -> tuple[Int64Array, Int64Array]:
    """Least and greatest index of each sample [n]; of one that has no edges, least is greater."""
    least, greatest = np.full(len(piece), _NONE), np.full(len(piece), -1, dtype=np.int64)
    path = piece.subject.paths["neighbor_list"]
    values, good = piece.rows(path)
    counts = np.diff(piece.edges)
    has = counts > 0
    if has.any():
        starts = (piece.edges[:-1] - piece.edges[0])[has]
        least[has] = np.minimum.reduceat(values.min(axis=1), starts)
        greatest[has] = np.maximum.reduceat(values.max(axis=1), starts)
    none = ~(has & good & piece.active & piece.present("neighbor_list"))
    least[none], greatest[none] = _NONE, -1
    return least, greatest


def explained(finding: Finding, shifts: Shifts) -> Finding:
    """What to tell instead of edges outside their samples."""
    if len(shifts.unknown):
        text = (
            "indices count from the batch in which they were written instead of from the store, "
            "as nvalchemi writes them, and which batch that was cannot be derived for "
            f"{some(shifts.unknown, 'sample')}: find the neighbours anew"
        )
        return Finding("relative-edges", Severity.ERROR, finding.place, text)
    moved = np.flatnonzero(shifts.by)
    text = (
        f"{some(moved, 'sample')} with indices that count from the batch in which they were "
        "written instead of from the store, as nvalchemi writes them: readers take their "
        "neighbours for other atoms"
    )
    return Finding("relative-edges", Severity.ERROR, finding.place, text, RELATIVE)
