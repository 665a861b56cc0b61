"""Random rotations of systems."""

from collections.abc import Mapping

import numpy as np
import torch

from zarrpipe.data.batch import Batch
from zarrpipe.data.fields import CORE_FIELDS
from zarrpipe.data.ids import UInt64Array
from zarrpipe.data.levels import Level
from zarrpipe.errors import ArgumentError, ArgumentTypeError, FieldError
from zarrpipe.transforms.random_numbers import FloatArray, uniform

_RANKS = (0, 1, 2)


class RandomRotation:
    """Turn each system about the origin, with all that belongs to it, by a rotation of its own.

    Rotations are proper and uniform over SO(3). Positions, cells, forces, velocities, momenta,
    dipoles and shifts turn as vectors, stresses and virials as tensors of rank two; shifts in units
    of the cell stay. A user's own fields and embeddings stay if they are integers, bools or a
    single number a row; `ranks` says how others turn.

    Parameters
    ----------
    ranks : mapping of str to int, optional
        Of fields that the registry leaves open: 0 stays, 1 turns as vectors along the last axis, 2
        as tensors along the last two axes.

    Raises
    ------
    FieldError
        When a batch has a field whose rank is not known.

    Examples
    --------
    >>> from zarrpipe import AtomicData
    >>> batch = Batch.from_data_list([AtomicData([[3.0, 0.0, 4.0]], [1], energy=-13.6)])
    >>> turned = RandomRotation()(batch, np.array([7], dtype=np.uint64))
    >>> round(float(turned.positions.norm()), 5), float(turned.energy), batch.positions.tolist()
    (5.0, -13.6, [[3.0, 0.0, 4.0]])
    """

    random = True

    def __init__(self, ranks: Mapping[str, int] | None = None) -> None:
        if ranks is not None and not isinstance(ranks, Mapping):
            raise ArgumentTypeError(
                f"ranks is {ranks!r}, expected ranks by field, such as {{'dipole_moment': 1}}"
            )
        self.ranks = dict(ranks or {})
        for name, rank in self.ranks.items():
            known = CORE_FIELDS.get(name)
            if rank not in _RANKS or (known is not None and known.rank not in (None, rank)):
                fixed = "0, 1 or 2" if known is None or known.rank is None else known.rank
                raise ArgumentError(f"the rank of {name!r} is {rank!r}, expected {fixed}")

    def __call__(self, batch: Batch, keys: UInt64Array) -> Batch:
        """The batch with each system turned as its key decides."""
        ranks = {name: self._rank_of(batch, name) for name in batch.fields}
        turns = torch.from_numpy(rotations(uniform(keys, 3))).to(batch.device)
        by_row: dict[tuple[Level, torch.dtype], torch.Tensor] = {}
        turned = {}
        for name, rank in ranks.items():
            if rank == 0:
                continue
            value, level = batch[name], batch.levels[name]
            # float16 has no room for the sums of products.
            dtype = torch.promote_types(value.dtype, torch.float32)
            if (level, dtype) not in by_row:
                by_row[level, dtype] = _rows(batch, level, turns.to(dtype))
            rotate = _turned if rank == 1 else _turned_twice
            turned[name] = rotate(value, by_row[level, dtype]).to(value.dtype)
        return batch._replace(turned)

    def _rank_of(self, batch: Batch, name: str) -> int:
        """Rank of a field; refuses one that is not known or does not fit the field's shape."""
        value, known = batch[name], CORE_FIELDS.get(name)
        rank = self.ranks.get(name)
        if rank is None and known is not None:
            rank = known.rank
        if rank is None or (known is None and name not in self.ranks):
            single = value[:1].numel() <= 1 and value.shape[1:].numel() == 1
            if value.is_floating_point() and not single:
                raise FieldError(
                    f"field {name!r} has rows of shape {tuple(value.shape[1:])}, and how they turn "
                    f"is not known: give RandomRotation(ranks={{{name!r}: ...}}), 0 if "
                    "they stay, 1 for vectors and 2 for tensors, or leave the field out"
                )
            return 0
        if rank and (
            tuple(value.shape[1:][-rank:]) != (3,) * rank or not value.is_floating_point()
        ):
            raise FieldError(
                f"field {name!r} has rows of shape {tuple(value.shape[1:])} and dtype "
                f"{value.dtype}, expected floats with last axes of {(3,) * rank} for rank {rank}"
            )
        return rank

    def __repr__(self) -> str:
        return f"RandomRotation({self.ranks or ''})"


def rotations(numbers: FloatArray) -> FloatArray:
    """Rotation matrices [B, 3, 3] of three uniform numbers [B, 3] in [0, 1) each.

    They are uniform over SO(3) (K. Shoemake, Graphics Gems III, 1992).
    """
    share, first, second = numbers[:, 0], 2 * np.pi * numbers[:, 1], 2 * np.pi * numbers[:, 2]
    x, y = np.sqrt(1 - share) * np.sin(first), np.sqrt(1 - share) * np.cos(first)
    z, w = np.sqrt(share) * np.sin(second), np.sqrt(share) * np.cos(second)
    rows = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
        [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
        [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
    ]
    return np.moveaxis(np.array(rows), -1, 0)


def _rows(batch: Batch, level: Level, turns: torch.Tensor) -> torch.Tensor:
    """Rotation [rows, 3, 3] of each row of a level."""
    if not level.has_pointers:
        return turns
    rows = batch.rows_per_graph(level)
    return turns.repeat_interleave(rows, 0, output_size=batch.num_rows(level))


def _turned(value: torch.Tensor, turns: torch.Tensor) -> torch.Tensor:
    """Rotate vectors along the last axis of ``[rows, ..., 3]`` by the matrix [3, 3] of their row.

    Sums of products round independently of the rest of the batch, unlike a matrix product.
    """
    turns = turns.reshape(-1, *[1] * (value.ndim - 2), 3, 3)
    x, y, z = (value[..., axis : axis + 1] * turns[..., axis] for axis in range(3))
    return x + y + z


def _turned_twice(value: torch.Tensor, turns: torch.Tensor) -> torch.Tensor:
    """Rotate tensors of rank two along the last axes of ``[rows, ..., 3, 3]``."""
    return _turned(_turned(value, turns).mT, turns).mT
