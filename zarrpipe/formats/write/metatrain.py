"""Memory-mapped arrays of metatrain, which its `MemmapDataset` reads."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch

from zarrpipe.data.batch import Batch
from zarrpipe.data.csr import AnyArray
from zarrpipe.data.levels import Level
from zarrpipe.data.schema import Field
from zarrpipe.formats.write.left_out import empty_rows, reserved, units_of, without_place
from zarrpipe.formats.write.row_files import RowFiles
from zarrpipe.formats.write.samples import Samples

FILES = ("ns.npy", "na.npy", "*.bin")
_NAMES = {"positions": "x", "atomic_numbers": "a", "cell": "c", "atomic_masses": "masses"}
_NAMES |= {"virial": "stress"}
_VIRIAL = "written as stress: minus the virial over the volume"
_WHOLE = ("momenta", "atomic_masses")
"""Fields that metatrain gives to every system, if their file is there."""


def write_metatrain(path: Path, samples: Samples) -> dict[str, str]:
    """Write a directory of arrays in float32, in which NaN stands for a label that is missing.

    metatrain's losses leave NaN out. It takes a direction as periodic if the cell has a vector for
    it, so other vectors are zero, and multiplies a stress by the volume, so that a system without
    one has no stress.
    """
    left_out = _left_out(samples)
    some, counts = samples.without(*(name for name in left_out if name in samples.schema)), [0]
    if "virial" in some.schema:
        left_out["virial"] = _VIRIAL
    path.mkdir()
    with RowFiles(path) as rows:
        for batch in some.batches():
            counts.extend(batch.num_nodes_list)
            for name in some.schema:
                if name == "pbc":
                    continue
                kind = np.int32 if name == "atomic_numbers" else np.float32
                values = _values(batch, name, left_out)
                rows.append(_NAMES.get(name, name), values.astype(kind))
    np.save(path / "ns.npy", len(samples))
    np.save(path / "na.npy", np.cumsum(counts, dtype=np.int64))
    return left_out | units_of(some.schema) | _digits(some.schema)


def _left_out(samples: Samples) -> dict[str, str]:
    schema = samples.schema
    left_out = without_place(schema) | empty_rows(schema)
    left_out |= reserved(schema, _NAMES.values())
    for name, item in schema.items():
        if item.categories is not None:
            left_out[name] = "it has strings, the format has numbers"
        if name in _WHOLE and samples.missing(name):
            left_out[name] = "some samples lack it, and metatrain gives it to every system"
    if "pbc" in schema and "cell" not in schema:
        left_out["pbc"] = "without cells no direction of the format is periodic"
    if "virial" in schema and "stress" in schema:
        left_out["virial"] = "the format has the stress alone, and there is one"
    return left_out


def _values(batch: Batch, name: str, left_out: dict[str, str]) -> AnyArray:
    """Values [K, ...] of a field; NaN where a sample lacks it."""
    values: AnyArray = batch[name].numpy().astype(np.float64)
    if name == "cell":
        return _periodic_cells(batch, left_out)
    has = batch.present(name)
    if name in ("stress", "virial"):
        solid = _periodic(batch).all(1)
        if bool((has & ~solid).any()):
            left_out["stress without a volume"] = (
                "of samples that are not periodic in three directions: metatrain multiplies it by "
                "the determinant of the cell"
            )
        has = has & solid
    rows = has.numpy()
    if batch.levels[name] is Level.ATOM:
        rows = np.repeat(rows, batch.num_nodes_per_graph.numpy())
    if not rows.all():
        values[~rows] = np.nan
    if name == "virial" and "cell" in batch:
        cells = np.where(rows[:, None, None], batch.cell.numpy(), np.eye(3))
        values /= -np.abs(np.linalg.det(cells))[:, None, None]
    return values


def _periodic(batch: Batch) -> torch.Tensor:
    """Which directions are periodic and have a vector of the cell, [B, 3] bool."""
    if "cell" not in batch or "pbc" not in batch:
        return torch.zeros(batch.num_graphs, 3, dtype=torch.bool)
    has = batch.present("cell") & batch.present("pbc")
    return batch.pbc & (batch.cell != 0).any(2) & has[:, None]


def _periodic_cells(batch: Batch, left_out: dict[str, str]) -> AnyArray:
    """Cells [B, 3, 3] whose vectors are zero in directions that are not periodic."""
    here, there = _periodic(batch), (batch.cell != 0).any(2) & batch.present("cell")[:, None]
    if bool((there & ~here).any()):
        left_out["cell vectors of open directions"] = (
            "metatrain takes each direction that has a vector as periodic, so they are zero"
        )
    if "pbc" in batch and bool((batch.pbc & ~there).any()):
        left_out["periodicity without a cell vector"] = "metatrain takes the direction as open"
    cells: AnyArray = batch.cell.masked_fill(~here[:, :, None], 0.0).numpy()
    return cells


def _digits(schema: Mapping[str, Field]) -> dict[str, str]:
    """What float32 takes from fields that have more digits."""
    small = ("atomic_numbers", "pbc")
    wide = [
        name
        for name, item in schema.items()
        if item.dtype.kind in "fiu" and item.dtype.itemsize > 4 and name not in small
    ]
    reason = f"metatrain reads all numbers as float32; {', '.join(wide)} had 64 bits"
    return {"digits beyond the seventh": reason} if wide else {}
