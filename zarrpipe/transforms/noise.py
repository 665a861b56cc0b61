"""Random displacements of positions and other fields."""

import numpy as np
import torch

from zarrpipe.data.batch import Batch
from zarrpipe.data.collate import fill_value
from zarrpipe.data.fields import CORE_FIELDS, check_name
from zarrpipe.data.ids import UInt64Array
from zarrpipe.errors import ArgumentError, FieldError
from zarrpipe.transforms.random_numbers import normal


class GaussianNoise:
    """Add independent normal numbers to each value of a field.

    Labels stay those of the system without noise. Rows of a field that is absent stay NaN.

    Parameters
    ----------
    scale : float
        Standard deviation, in the unit of the field.
    field : str
        A field of floats.
    target : str, optional
        Name of a field that gets the added numbers, with the same shape, dtype and presence, for
        models that learn to remove the noise.

    Raises
    ------
    ValueError
        If `scale` is negative or not finite, or `target` is in the registry.
    FieldError
        When the field is missing or has no floats, or when positions or cell would change under
        edges that were already found: find edges after the noise.

    Examples
    --------
    >>> import numpy as np
    >>> from zarrpipe import AtomicData
    >>> batch = Batch.from_data_list([AtomicData([[0.0, 0.0, 0.0]] * 1000, [1] * 1000)])
    >>> noisy = GaussianNoise(0.1, target="noise")(batch, np.array([7], dtype=np.uint64))
    >>> round(float(noisy.positions.std()), 2), torch.equal(noisy.positions, noisy.noise)
    (0.1, True)
    """

    random = True

    def __init__(self, scale: float, field: str = "positions", target: str | None = None) -> None:
        if not isinstance(scale, int | float | np.number) or not 0 <= scale < float("inf"):
            raise ArgumentError(f"scale is {scale!r}, expected a finite number of 0 or more")
        if target is not None:
            check_name(target)
            if target in CORE_FIELDS:
                raise ArgumentError(
                    f"target is {target!r}, a field of the registry: expected a name of your own"
                )
        self.scale, self.field, self.target = float(scale), field, target

    def __call__(self, batch: Batch, keys: UInt64Array) -> Batch:
        """The batch with the noise that the keys decide."""
        value, level = batch[self.field], batch.levels[self.field]
        if not value.is_floating_point():
            raise FieldError(f"field {self.field!r} has dtype {value.dtype}, expected floats")
        if self.field in ("positions", "cell") and "neighbor_list" in batch:
            raise FieldError(
                f"noise in {self.field!r} leaves edges that were found without it: put "
                "GaussianNoise before NeighborList, and leave a stored neighbor_list out"
            )
        noise = normal(keys, batch, level, tuple(value.shape[1:])).mul_(self.scale)
        noisy = batch._replace({self.field: value + noise.to(value.dtype)})
        return noisy if self.target is None else self._with_target(noisy, noise.to(value.dtype))

    def _with_target(self, batch: Batch, noise: torch.Tensor) -> Batch:
        """The batch with the noise as a field, absent where the noisy field is."""
        name, level = str(self.target), batch.levels[self.field]
        batch.add_field(name, noise, level)
        if self.field in batch.partly_present:
            has = batch.present(self.field)
            counts = batch.rows_per_graph(level)
            noise[~has.repeat_interleave(counts)] = fill_value(noise.dtype)
            batch._present[name] = has
        return batch

    def __repr__(self) -> str:
        return f"GaussianNoise({self.scale}, {self.field!r}, {self.target!r})"
