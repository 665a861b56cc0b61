"""Files, objects, pointers and requests of stores that are too large to make, by arithmetic.

``python -m benchmarks.sizes`` prints the table of docs/understanding/scale.md, for molecules of 20
atoms with positions, forces (float32), atomic numbers, energy, cell and pbc.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

import zarrpipe as zp
from zarrpipe.data.levels import Level
from zarrpipe.store.format.layout import ArraySpec, chunk_rows, store_specs
from zarrpipe.store.read.view import StoreView

SAMPLES = (1_000_000, 10_000_000, 100_000_000, 1_000_000_000)
ATOMS = 20
FETCHED = 1 << 20
"""Bytes of an inner chunk of a published store, which is what a reader asks for."""

MEGABYTE, GIGABYTE = 1e6, 1e9


@dataclass(frozen=True)
class Sizes:
    """A store of `samples` samples with `atoms` atoms each and no edges.

    Parameters
    ----------
    specs
        Its arrays.
    samples, atoms
        How many.
    """

    specs: Sequence[ArraySpec]
    samples: int
    atoms: int

    @classmethod
    def of_molecules(cls, samples: int, atoms: int = ATOMS) -> "Sizes":
        """Sizes of a store of molecules."""
        store: dict[str, object] = {}
        with zp.ZarrData(store) as sink:
            sink.write(molecules(1, atoms))
        return cls(store_specs(StoreView(store).schema), samples, atoms)

    def rows(self, spec: ArraySpec) -> int:
        """Rows of an array."""
        per_sample = {Level.SYSTEM: 1, Level.ATOM: self.atoms}.get(spec.level, 0)
        return self.samples * per_sample + spec.path.endswith("_ptr")

    @property
    def data_bytes(self) -> int:
        """Bytes of all rows of fields."""
        return sum(self.rows(one) * one.row_bytes for one in self.specs if "meta/" not in one.path)

    @property
    def pointer_bytes(self) -> int:
        """Bytes of the pointers to atoms and edges."""
        return sum(self.rows(one) * one.row_bytes for one in self.specs if "_ptr" in one.path)

    def files(self) -> int:
        """Chunk files of a local store, each of which is written in place."""
        return self._chunks([chunk_rows(one, self.samples, in_place=True) for one in self.specs])

    def objects(self) -> int:
        """Objects of a store that a sink wrote into an object store."""
        return self._chunks([chunk_rows(one, 1) for one in self.specs])

    def requests(self) -> int:
        """Requests of an epoch over a published store, without compression."""
        return -(-self.data_bytes // FETCHED)

    def _chunks(self, rows_of_chunk: Sequence[int]) -> int:
        """Chunks of all arrays but the masks of atoms and edges, of which no row is written."""
        return sum(
            -(-self.rows(one) // rows)
            for one, rows in zip(self.specs, rows_of_chunk, strict=True)
            if not one.path.endswith(("atoms_mask", "edges_mask"))
        )


def molecules(count: int, atoms: int) -> zp.Batch:
    """Molecules with the fields of the table."""
    rng, rows = np.random.default_rng(count), count * atoms
    values = {
        "positions": rng.normal(size=(rows, 3)).astype(np.float32),
        "forces": rng.normal(size=(rows, 3)).astype(np.float32),
        "atomic_numbers": rng.integers(1, 10, rows),
        "energy": rng.normal(size=(count, 1)),
        "cell": rng.normal(size=(count, 3, 3)).astype(np.float32),
        "pbc": np.ones((count, 3), dtype=bool),
    }
    fields = {name: torch.from_numpy(value) for name, value in values.items()}
    return zp.Batch(fields, torch.arange(count + 1) * atoms)


def table() -> str:
    """Markdown of all sizes."""
    head = [
        "samples",
        "data, GB",
        "files of a local store",
        "objects of a sink's store",
        "pointers, MB",
        "requests of an epoch, published",
    ]
    lines = [head, [*("---:" for _ in head)]]
    for samples in SAMPLES:
        one = Sizes.of_molecules(samples)
        numbers = (one.files(), one.objects(), round(one.pointer_bytes / MEGABYTE), one.requests())
        shown = [f"{samples:,}", f"{one.data_bytes / GIGABYTE:,.1f}", *(f"{n:,}" for n in numbers)]
        lines.append([shown[0], shown[1], *shown[2:]])
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


if __name__ == "__main__":
    print(table())
