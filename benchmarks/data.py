"""The samples that every engine gets, made by seeded generators."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt

AnyArray = npt.NDArray[Any]
Int64Array = npt.NDArray[np.int64]

EDGES_PER_ATOM = 30
LEVELS: Mapping[str, str] = MappingProxyType(
    {
        "positions": "atom",
        "atomic_numbers": "atom",
        "forces": "atom",
        "energy": "system",
        "cell": "system",
        "pbc": "system",
        "neighbor_list": "edge",
        "neighbor_list_shifts": "edge",
        "bond_atoms": "bond",
        "bond_order": "bond",
        "config_type": "system",
    }
)
"""Level of each field."""
ATOM_ROWS = ("neighbor_list", "bond_atoms")
"""Fields whose values are row numbers of atoms."""
CATEGORIES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {"config_type": tuple(f"configuration {number}" for number in range(20))}
)
"""Strings of each field that has codes for values."""


@dataclass(frozen=True)
class DataSet:
    """How a set is made.

    Parameters
    ----------
    name
        Its name.
    least, most
        Atoms of a sample.
    edges
        Whether there are neighbours.
    bonds
        Whether there are bonds, and a string for each sample.
    """

    name: str
    least: int
    most: int
    edges: bool = False
    bonds: bool = False


SETS: Mapping[str, DataSet] = MappingProxyType(
    {
        "molecules": DataSet("molecules", 14, 22),
        "structures": DataSet("structures", 20, 200),
        "edges": DataSet("edges", 20, 200, edges=True),
        "bonds": DataSet("bonds", 14, 22, bonds=True),
        "large": DataSet("large", 20, 200),
    }
)
"""The data sets by name."""


@dataclass(frozen=True)
class Samples:
    """Samples as whole arrays, one after the other.

    Parameters
    ----------
    fields
        ``[V, ...]``, ``[E, ...]`` or ``[N, ...]`` by level. ``ATOM_ROWS`` count the atoms of their
        own sample; ``CATEGORIES`` are codes.
    ptr
        [N + 1] int64 for each level: where the rows of each sample begin.
    """

    fields: Mapping[str, AnyArray]
    ptr: Mapping[str, Int64Array]

    def __len__(self) -> int:
        return len(self.atoms_ptr) - 1

    @property
    def atoms_ptr(self) -> Int64Array:
        """Where the atoms of each sample begin."""
        return self.ptr["atom"]

    @property
    def edges_ptr(self) -> Int64Array:
        """Where the edges of each sample begin."""
        return self.ptr["edge"]

    @property
    def levels(self) -> frozenset[str]:
        """Levels of the fields."""
        return frozenset(LEVELS[name] for name in self.fields)

    @property
    def nbytes(self) -> int:
        """Bytes of the fields."""
        return sum(values.nbytes for values in self.fields.values())

    def rows(self, name: str, sample: int) -> slice:
        """Rows of a field that belong to a sample."""
        ptr = self.ptr[LEVELS[name]]
        return slice(int(ptr[sample]), int(ptr[sample + 1]))

    def record(self, sample: int) -> dict[str, AnyArray]:
        """Fields of one sample; those at system level have a leading 1."""
        return {name: values[self.rows(name, sample)] for name, values in self.fields.items()}

    def records(self) -> Iterator[dict[str, AnyArray]]:
        """Every sample by itself."""
        return map(self.record, range(len(self)))

    def part(self, start: int, stop: int) -> "Samples":
        """Samples from `start` to `stop`."""
        stop = min(stop, len(self))
        first = {name: self.rows(name, start).start for name in self.fields}
        last = {name: self.rows(name, stop - 1).stop for name in self.fields}
        return Samples(
            {name: values[first[name] : last[name]] for name, values in self.fields.items()},
            {level: ptr[start : stop + 1] - ptr[start] for level, ptr in self.ptr.items()},
        )

    def parts(self, size: int) -> Iterator["Samples"]:
        """Runs of up to `size` samples that make up the whole."""
        return (self.part(start, start + size) for start in range(0, len(self), size))

    def batch_bytes(self, index: Int64Array) -> int:
        """Bytes of the fields of a batch."""
        counts = {level: int((p[index + 1] - p[index]).sum()) for level, p in self.ptr.items()}
        return sum(
            counts[LEVELS[name]] * values.itemsize * int(np.prod(values.shape[1:], dtype=int))
            for name, values in self.fields.items()
        )


@dataclass(frozen=True)
class Sizes:
    """As much of a dataset as a sampler asks for, in memory.

    Parameters
    ----------
    num_atoms
        [N] int64.
    fields
        [N] by name.
    stores
        [N] int64, from 0 on.
    """

    num_atoms: Int64Array
    fields: Mapping[str, AnyArray] = field(default_factory=dict)
    stores: Int64Array | None = None
    num_stores: int = 2

    def __len__(self) -> int:
        return len(self.num_atoms)

    def system_field(self, name: str, index: Int64Array) -> AnyArray:
        """Values of a field."""
        return self.fields[name][index]

    def present(self, name: str, index: Int64Array) -> AnyArray:
        """All have all fields."""
        return np.ones(len(index), dtype=bool)

    def store_of(self, index: Int64Array) -> Int64Array:
        """Store of each sample."""
        stores: Int64Array = np.asarray(self.stores)[index]
        return stores


def sizes(kind: DataSet, count: int, seed: int) -> Int64Array:
    """Atoms of each of the first `count` samples of a set, [count] int64."""
    return _generator(kind, seed).integers(kind.least, kind.most + 1, count)


def make(kind: DataSet, count: int, seed: int) -> Samples:
    """The first `count` samples of a set; equal arguments give equal samples."""
    rng = _generator(kind, seed)
    counts = rng.integers(kind.least, kind.most + 1, count)
    atoms_ptr = _pointers(counts)
    atoms = int(atoms_ptr[-1])
    fields: dict[str, AnyArray] = {
        "positions": rng.standard_normal((atoms, 3), dtype=np.float32),
        "atomic_numbers": rng.integers(1, 90, atoms),
        "forces": rng.standard_normal((atoms, 3), dtype=np.float32),
        "energy": rng.standard_normal((count, 1)),
        "cell": rng.standard_normal((count, 3, 3), dtype=np.float32),
        "pbc": rng.integers(0, 2, (count, 3)).astype(bool),
    }
    ptr = {"atom": atoms_ptr, "edge": np.zeros_like(atoms_ptr), "system": np.arange(count + 1)}
    if kind.edges:
        ptr["edge"] = atoms_ptr * EDGES_PER_ATOM
        atom = np.arange(atoms) - np.repeat(atoms_ptr[:-1], counts)
        sender = np.repeat(atom, EDGES_PER_ATOM)
        size = np.repeat(np.repeat(counts, counts), EDGES_PER_ATOM)
        receiver = rng.integers(0, 1 << 32, len(sender)) % size
        fields["neighbor_list"] = np.stack([sender, receiver], axis=1)
        fields["neighbor_list_shifts"] = rng.integers(-1, 2, (len(sender), 3)).astype(np.float32)
    if kind.bonds:  # last, so that the fields before are those of the set without bonds
        bonds = counts + rng.integers(-2, 3, count)
        ptr["bond"] = _pointers(bonds)
        size = np.repeat(counts, bonds)
        first = rng.integers(0, 1 << 32, len(size)) % size
        second = (first + 1 + rng.integers(0, 1 << 32, len(size)) % (size - 1)) % size
        fields["bond_atoms"] = np.stack([first, second], axis=1)
        fields["bond_order"] = rng.choice(np.array([1, 1.5, 2, 3], dtype=np.float32), len(size))
        fields["config_type"] = rng.integers(0, len(CATEGORIES["config_type"]), count, np.int32)
    return Samples(fields, ptr)


def blocks(kind: DataSet, nbytes: int, seed: int, block: int = 20_000) -> Iterator[Samples]:
    """Samples of a set, block by block, until there are `nbytes`."""
    made, number = 0, 0
    while made < nbytes:
        samples = make(kind, block, seed + number)
        if made + samples.nbytes > nbytes:
            samples = samples.part(0, max(1, block * (nbytes - made) // samples.nbytes))
        yield samples
        made, number = made + samples.nbytes + 1, number + 1


def shuffled_batches(count: int, batch_size: int, samples: int, seed: int) -> list[Int64Array]:
    """Batches of shuffled indices of epoch after epoch, of at least `samples` samples in all."""
    rng = np.random.default_rng([seed, batch_size])
    size = min(batch_size, count)
    batches: list[Int64Array] = []
    while size * len(batches) < samples:
        order = rng.permutation(count)
        batches += [order[i : i + size] for i in range(0, count - size + 1, size)]
    return batches


def _generator(kind: DataSet, seed: int) -> np.random.Generator:
    return np.random.default_rng([seed, kind.least, kind.most, int(kind.edges)])


def _pointers(counts: Int64Array) -> Int64Array:
    ptr = np.zeros(len(counts) + 1, dtype=np.int64)
    np.cumsum(counts, out=ptr[1:])
    return ptr
