"""Which samples of a dataset are on which side, decided once and kept while it grows."""

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from zarrpipe._arrivals import Arrivals
from zarrpipe._plans import IndexArray, index_dtype
from zarrpipe.data.csr import Int64Array
from zarrpipe.dataset import ZarrDataset
from zarrpipe.splits import group_keys, hash_split

SIDES = ("train", "val", "test")
_BLOCK = 1 << 20


class Sides:
    """The side of each sample of a dataset that may grow: what is known is not decided again.

    Parameters
    ----------
    shares : sequence of float
        Shares of training, validation and test.
    split_by : str
        "id", or the name of a field at system level that keeps samples together.
    """

    def __init__(self, shares: Sequence[float], split_by: str) -> None:
        self.shares, self.split_by = tuple(shares), split_by
        self._arrivals = Arrivals(())
        self._sides = np.zeros(0, dtype=np.int8)
        self._rows: dict[str, IndexArray] = {}

    def rows(self, dataset: ZarrDataset) -> Mapping[str, IndexArray]:
        """Positions in `dataset` on each side, ascending."""
        arrivals = Arrivals(dataset.state_dict()["arrivals"])
        if not arrivals.continues(self._arrivals):
            self._sides, self._rows = self._sides[:0], {}
        known, count = len(self._sides), len(dataset)
        if known != count or not self._rows:
            new = [
                self._sides_of(dataset, np.arange(start, min(start + _BLOCK, count)))
                for start in range(known, count, _BLOCK)
            ]
            self._sides = np.concatenate([self._sides, *new])
            self._rows = {name: _places(self._sides == side) for side, name in enumerate(SIDES)}
        self._arrivals = arrivals
        return self._rows

    def _sides_of(self, dataset: ZarrDataset, samples: Int64Array) -> npt.NDArray[np.int8]:
        """Side of each of some samples."""
        if self.split_by == "id":
            keys = dataset.ids_of(samples)
        else:
            keys = group_keys(dataset.system_field(self.split_by, samples))
        return hash_split(keys, self.shares)


def _places(mask: npt.NDArray[np.bool_]) -> IndexArray:
    """Where a mask is True, in as few bits as do; by blocks, as it may be long."""
    places = np.empty(np.count_nonzero(mask), dtype=index_dtype(len(mask)))
    end = 0
    for start in range(0, len(mask), _BLOCK):
        here = np.flatnonzero(mask[start : start + _BLOCK])
        places[end : end + len(here)] = here + start
        end += len(here)
    return places
