"""Conditions on samples, over real stores: presence, values, several stores, growth."""

import numpy as np
import pytest
import torch

from zarrpipe.dataset import ZarrDataset
from zarrpipe.errors import SchemaError


def rounds(data, count, tag, *, labelled=True, **system):
    """Batch of samples, `serial` from 1000 * tag, with some further fields at system level."""
    batch = data.batch(count, tag=tag)
    for name, value in system.items():
        batch.add_field(name, torch.as_tensor(value).reshape(count, -1), "system")
    return batch if labelled else batch.without("forces", "energy")


def test_presence_is_of_the_samples_that_are_asked_for(tmp_path, data):
    partly, whole, without = (tmp_path / name for name in "abc")
    data.append(partly, data.batch(4, tag=0))
    data.append(partly, rounds(data, 3, 1, labelled=False))
    data.append(whole, data.batch(2, tag=2))
    data.append(without, rounds(data, 2, 3, labelled=False))
    dataset = ZarrDataset([partly, whole, without])
    expected = np.array([True] * 4 + [False] * 3 + [True] * 2 + [False] * 2)
    assert np.array_equal(dataset.present("forces"), expected)
    index = [10, 0, 5, 8, 5]
    assert np.array_equal(dataset.present("forces", index), expected[index])
    assert np.array_equal(dataset.index_select(index).present("energy"), expected[index])
    assert not dataset.present("stress").any()
    with pytest.raises(SchemaError, match="no store has a field 'force'"):
        dataset.present("force")
