"""What the findings do not judge, so that a store without any promises no more than it should."""

from collections.abc import Iterator

import numpy as np

from zarrpipe.reporting.findings.stresses import pressures_by_volume
from zarrpipe.reporting.values.measured import Measured
from zarrpipe.reporting.values.scan import floats_to_check
from zarrpipe.store.query.derived import BoolArray


def unchecked(one: Measured, broken: BoolArray) -> Iterator[str]:
    """What could not be checked, each with the reason."""
    values, count = one.values, len(one)
    if not count:
        return
    if not values.complete:
        yield f"labels of {count - len(values):,} samples (not read)"
    looked = int(np.isfinite(one.distances.ratio).sum() + np.isinf(one.distances.ratio).sum())
    if looked < count:
        yield f"distances in {count - looked:,} samples (not searched)"
    if _any(one, "energy"):
        yield "a unit or functional that all energies share (no reference)"
    if _any(one, "energy") and _any(one, "forces"):
        yield "whether forces are the gradients of the energies (structures are not connected)"
    if _any(one, "stress") and not pressures_by_volume(one, broken)[0]:
        yield "sign of the stress (volumes do not vary within a composition)"
    wide = [name for name in floats_to_check(one.dataset.schema, wide=True) if _any(one, name)]
    if wide:
        yield f"NaN in {', '.join(wide)} (many numbers for each atom)"


def _any(one: Measured, name: str) -> bool:
    has = one.values.present.get(name)
    return has is not None and bool(has.any())
