"""Which samples made a loss that is not finite."""

from collections.abc import Sequence

import torch
from torch import Tensor

from zarrpipe.data.batch import Batch
from zarrpipe.data.levels import Level
from zarrpipe.ml.labels import Prediction

_SHOWN = 10


def reason(
    batch: Batch, prediction: Prediction, labels: Sequence[str], samples: Sequence[int], step: int
) -> str:
    """Message that names the samples whose labels or predictions are not finite.

    `labels` are those that the loss counts, `samples` the places of the batch's samples in the
    dataset; without them systems are named by their place in the batch.
    """
    for label in (*labels, *(["virial"] if "stress" in labels else [])):
        if label in batch:
            bad = not_finite(batch, batch[label], batch.levels[label]) & batch.has(label)
            if bool(bad.any()):
                return (
                    f"the loss of step {step} is not finite, as the {label} of "
                    f"{_named(bad, samples)} has NaN or infinite values: leave these samples out "
                    "(data.where, AtomicDataZarrWriter.delete), or store them without the label"
                )
    bad = not_finite(batch, prediction.energy, Level.SYSTEM)
    bad |= not_finite(batch, prediction.forces, Level.ATOM)
    if prediction.stress is not None and "cell" in batch:
        stress = prediction.stress.where((batch.cell.det() != 0)[:, None, None], 0.0)
        bad |= not_finite(batch, stress, Level.SYSTEM)
    if not bool(bad.any()):
        return (
            f"the loss of step {step} is not finite although all labels and predictions are: their "
            "difference is too large to be squared; lower lr, or choose loss='mae'"
        )
    return (
        f"the loss of step {step} is not finite although all labels are: the potential gives NaN "
        f"or infinite values for {_named(bad, samples)}. Training has diverged: lower lr, or set "
        "trainer.gradient_clip_val=10; if it is in the first steps, look at these structures"
    )


def not_finite(batch: Batch, values: Tensor, level: Level) -> Tensor:
    """Systems with a value that is not finite, [B] bool."""
    bad = ~values.detach().flatten(1).isfinite().all(1)
    if level is Level.SYSTEM:
        return bad
    found = torch.zeros(batch.num_graphs, dtype=torch.bool, device=bad.device)
    found[batch.batch_idx[bad]] = True
    return found


def _named(bad: Tensor, samples: Sequence[int]) -> str:
    """The systems of a mask [B], as samples of the dataset where they are known."""
    places = torch.nonzero(bad).flatten().tolist()
    kind, numbers = (
        ("sample", [samples[place] for place in places]) if samples else ("system", places)
    )
    shown = ", ".join(map(str, numbers[:_SHOWN]))
    more = f" and {len(numbers) - _SHOWN} more" if len(numbers) > _SHOWN else ""
    where = " of the dataset" if samples else " of the batch"
    return f"{kind}{'s' if len(numbers) != 1 else ''} {shown}{more}{where}"
