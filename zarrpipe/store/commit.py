"""The commit rule: which samples a pointer array says there are."""

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from zarrpipe.data.batch import Batch
from zarrpipe.data.csr import AnyArray
from zarrpipe.data.fields import Level
from zarrpipe.errors import StoreFormatError

_BLOCK = 1 << 20


class Entries(Protocol):
    """Pointers of which single ones, or slices, can be looked at."""

    def __len__(self) -> int:
        """Entries that are allocated."""
        ...

    def __getitem__(self, key: int | slice) -> Any:
        """An entry, or several."""
        ...


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


def committed_samples(pointers: AnyArray | Entries, known: int = 0) -> int:
    """Number of samples that a pointer array says there are.

    A sample exists if and only if its end pointer and all before it are non-zero. The last is found
    by steps from `known` on that double, and bisection, and what is new up to there is searched for
    a zero: after a cut of power an entry may be missing between others. A first end of zero means
    none, whatever follows.

    Parameters
    ----------
    pointers : array [M] integer
        Entries that are allocated, from the first on.
    known
        Samples of which it is known that they were committed; they are not searched again, unless
        the store was emptied.

    Examples
    --------
    >>> committed_samples(np.array([0, 3, 5, 9, 0, 0, 0]))
    3
    >>> committed_samples(np.array([0, 3, 5, 0, 12, 14, 0]), known=1)
    2
    """
    low, high = 0, max(len(pointers) - 1, 0)
    if high == 0 or not pointers[1]:
        return 0
    if known <= high and pointers[known]:
        low = known
    first, step = low, 1
    while low + step < high:
        if not pointers[low + step]:
            high = low + step - 1
            break
        low, step = low + step, 2 * step
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if pointers[middle] else (low, middle - 1)
    zeros = np.flatnonzero(pointers[first + 1 : low + 1] == 0)
    return first + int(zeros[0]) if len(zeros) else low


def check_pointers(place: str, pointers: AnyArray, known: int, least: int) -> None:
    """Refuse pointers that do not rise from zero.

    Parameters
    ----------
    place
        Their name, for the message.
    pointers : array [N + 1] integer
        Those of samples that are committed.
    known
        Samples whose pointers were looked at before.
    least
        Rows that a sample has at least.

    Raises
    ------
    StoreFormatError
        If they do not.
    """
    if pointers[0] != 0:
        raise StoreFormatError(f"{place} begins with {pointers[0]}, expected 0: it is damaged")
    for start in range(known, len(pointers) - 1, _BLOCK):
        block = np.asarray(pointers[start : start + _BLOCK + 1], dtype=np.int64)
        wrong = block[1:] <= block[:-1] if least else block[1:] < block[:-1]
        if wrong.any():
            at = start + int(np.argmax(wrong))
            raise StoreFormatError(
                f"{place} falls, is negative or has a sample without atoms: sample {at} would "
                f"have rows {pointers[at]} to {pointers[at + 1]}; it is damaged"
            )
