"""The commit rule: which samples a pointer array says there are."""

from collections.abc import Callable
from dataclasses import dataclass

from zarrpipe.data.batch import Batch
from zarrpipe.data.fields import Level


@dataclass(frozen=True)
class Extent:
    """How much of a store is committed.

    Parameters
    ----------
    samples, atoms, edges
        Counts.
    """

    samples: int = 0
    atoms: int = 0
    edges: int = 0

    def rows(self, level: Level) -> int:
        """Rows of a field of `level`."""
        if level is Level.ATOM:
            return self.atoms
        return self.edges if level is Level.EDGE else self.samples

    def after(self, batch: Batch) -> "Extent":
        """Extent once `batch`, which is on the CPU, is committed."""
        return Extent(
            self.samples + batch.num_graphs,
            self.atoms + batch.num_nodes,
            self.edges + int(batch.edge_ptr.numpy()[-1]),
        )


def committed_samples(entry: Callable[[int], int], entries: int) -> int:
    """Number of samples of a pointer array of which `entries` are allocated.

    A sample exists if and only if its end pointer is non-zero, and samples are a prefix, so the
    last is found by bisection. A first end of zero means none, whatever follows.

    Parameters
    ----------
    entry
        Gives the pointer at a position.
    entries
        Positions that may be asked for.

    Examples
    --------
    >>> pointers = [0, 3, 5, 9, 0, 0, 0]
    >>> committed_samples(pointers.__getitem__, len(pointers))
    3
    """
    low, high = 0, max(entries - 1, 0)
    if high == 0 or entry(1) == 0:
        return 0
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if entry(middle) else (low, middle - 1)
    return low
