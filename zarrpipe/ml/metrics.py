"""Mean, root mean square and largest error of a label, over batches and devices."""

from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

UNITS = {"energy": "meV_atom", "forces": "meV_A", "stress": "meV_A3"}
"""Unit of each label's errors, as in ``val/forces_mae_meV_A``."""

_MILLI = 1000.0


class LabelErrors(Metric):  # type: ignore[misc]  # torchmetrics is not followed
    """Mean absolute, root mean square and largest error of the components of a label, in milli.

    All are NaN without any label.
    """

    full_state_update = False
    absolute: Tensor
    square: Tensor
    largest: Tensor
    count: Tensor

    def __init__(self) -> None:
        super().__init__()
        zero = torch.zeros((), dtype=torch.float64)
        for name in ("absolute", "square", "count"):
            self.add_state(name, zero.clone(), dist_reduce_fx="sum")
        self.add_state("largest", zero.clone(), dist_reduce_fx="max")

    def update(self, error: Tensor) -> None:
        """Count errors of any shape."""
        size = error.detach().double().abs()
        self.absolute += size.sum()
        self.square += size.square().sum()
        self.count += size.numel()
        if size.numel():
            self.largest = torch.maximum(self.largest, size.max())

    def compute(self) -> dict[str, Tensor]:
        """Errors by the name of their kind."""
        none = torch.where(self.count > 0, 0.0, torch.nan)
        return {
            "mae": self.absolute / self.count * _MILLI,
            "rmse": (self.square / self.count).sqrt() * _MILLI,
            "max": self.largest * _MILLI + none,
        }

    def named(self, part: str, label: str) -> dict[str, Any]:
        """Errors by the names that they are logged by."""
        found = self.compute()
        return {f"{part}/{label}_{kind}_{UNITS[label]}": value for kind, value in found.items()}
