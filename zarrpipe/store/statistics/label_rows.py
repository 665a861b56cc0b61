"""What is summed of samples: their compositions and labels, each sample in a bucket."""

from dataclasses import dataclass

import numpy as np

from zarrpipe.data.csr import AnyArray, Int64Array, pointers, segment_rows
from zarrpipe.data.ids import UInt64Array, unit_places

NUM_ELEMENTS = 119
"""Atomic numbers 0 (a dummy) to 118."""

BUCKETS = 100
"""Buckets of the hash of ids, so that every share of a split in whole per cents is some of them."""


def buckets_of(ids: UInt64Array) -> Int64Array:
    """Bucket [N] of each id, in the order in which a split by id gives sides."""
    return (unit_places(ids) * BUCKETS).astype(np.int64)


@dataclass(frozen=True)
class LabelRows:
    """What is summed of N samples with V atoms.

    Parameters
    ----------
    numbers : array [V]
        Atomic numbers.
    ptr : array [N+1] int64
        Pointers to the atoms of each sample.
    buckets : array [N] int64
        Bucket of each sample.
    edges : array [N] int64
        Number of stored edges.
    energy : array [N], optional
        Total energies, eV.
    has_energy, has_forces : array [N] bool, optional
        Which samples have the label; all by default.
    forces : array [V, 3], optional
        eV/Angstrom.
    """

    numbers: AnyArray
    ptr: Int64Array
    buckets: Int64Array
    edges: Int64Array
    energy: AnyArray | None = None
    has_energy: AnyArray | None = None
    forces: AnyArray | None = None
    has_forces: AnyArray | None = None

    def __len__(self) -> int:
        return len(self.ptr) - 1

    def take(self, chosen: Int64Array) -> "LabelRows":
        """The samples at some places."""
        ptr = pointers(np.diff(self.ptr)[chosen])
        atoms = segment_rows(self.ptr[chosen], ptr)
        return LabelRows(
            self.numbers[atoms],
            ptr,
            self.buckets[chosen],
            self.edges[chosen],
            _taken(self.energy, chosen),
            _taken(self.has_energy, chosen),
            _taken(self.forces, atoms),
            _taken(self.has_forces, chosen),
        )


def _taken(values: AnyArray | None, places: Int64Array) -> AnyArray | None:
    return None if values is None else values[places]
