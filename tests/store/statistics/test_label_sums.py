"""What sums can still tell after samples were taken back."""

import numpy as np
import pytest

from zarrpipe.store.statistics.label_rows import LabelRows
from zarrpipe.store.statistics.sums import LabelSums


def rows_of(energies, forces):
    """One atom of hydrogen a sample, all in one bucket."""
    count = len(energies)
    return LabelRows(
        np.ones(count, dtype=np.int64),
        np.arange(count + 1),
        np.zeros(count, dtype=np.int64),
        np.zeros(count, dtype=np.int64),
        np.array(energies, dtype=np.float64),
        np.ones(count, dtype=bool),
        np.array(forces, dtype=np.float64)[:, None] * np.ones(3),
        np.ones(count, dtype=bool),
    )


def test_outliers_that_go_one_by_one_lose_no_more_than_is_allowed():
    """Each loses little of what was there before it, and all together what is left."""
    random = np.random.default_rng(0)
    sizes = random.normal(size=3000).tolist()
    outliers = [1e9, 3e6, 1e4, 100.0]
    sums = LabelSums.empty(1).add(rows_of(np.zeros(3004), sizes + outliers))
    for place, size in enumerate(outliers):
        exact = sums.take_back(rows_of([0.0], [size]))
        left = sizes + outliers[place + 1 :]
        if not exact:
            break
        assert sums.total("force_square") == pytest.approx(3 * np.square(left).sum(), rel=1e-6)
    assert not exact, "what is left is noise, and it is not said"
