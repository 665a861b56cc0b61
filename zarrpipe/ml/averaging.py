"""An exponential average of the weights that forgets where they started."""

from functools import partial

from lightning.pytorch.callbacks import WeightAveraging
from torch import Tensor

from zarrpipe.errors import ArgumentError

_RAMP = 10


class WeightEMA(WeightAveraging):  # type: ignore[misc]  # lightning is not followed
    """Exponential moving average of the weights, which is validated, tested and saved.

    After n steps the decay is ``(1 + n) / (10 + n)``, at most `decay`: the average of a short run
    would be made of the weights at its start otherwise, of which 0.99 keeps 13 % after 200 steps.
    Buffers are those of the last step, as averages of whole numbers are none.

    Parameters
    ----------
    decay : float
        Weight of the average beside the new weights, 0 to 1.

    Raises
    ------
    ValueError
        If `decay` is not from 0 to 1.
    """

    def __init__(self, decay: float = 0.99) -> None:
        if not 0 <= decay < 1:
            raise ArgumentError(f"decay is {decay}, expected 0 or more and less than 1")
        super().__init__(use_buffers=False, avg_fn=partial(_averaged, decay))


def _averaged(decay: float, average: Tensor, new: Tensor, updates: Tensor | int) -> Tensor:
    """Next average after so many updates."""
    keep = min(decay, (1 + int(updates)) / (_RAMP + int(updates)))
    return average.lerp(new, 1 - keep)
