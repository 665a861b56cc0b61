"""Several transforms as one."""

import numpy as np

from zarrpipe.testing import numbered_batch
from zarrpipe.transforms import Compose


class Notes:
    """A random transform that keeps the keys it gets."""

    random = True

    def __init__(self):
        self.keys = None

    def __call__(self, batch, keys):
        self.keys = keys
        return batch


def test_random_ones_draw_independently_however_they_are_nested():
    notes = [Notes() for _ in range(5)]
    inner = Compose([notes[0], Compose([notes[1], notes[2]])])
    keys = np.arange(4, dtype=np.uint64)
    Compose([inner, notes[3], notes[4]])(numbered_batch(range(4)), keys)
    every = np.stack([note.keys for note in notes])
    assert len(np.unique(every)) == every.size
