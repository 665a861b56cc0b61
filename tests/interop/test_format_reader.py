"""The reader of docs/reference/format.md reads stores of nvalchemi, and those that it continued."""

import re
from pathlib import Path

import numpy as np
import pytest
from seeded_systems import make_batches

import zarrpipe as zp
from zarrpipe.adapters import to_nvalchemi

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:nvalchemi")

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "format.md"


@pytest.fixture(scope="module")
def read():
    names = {}
    exec(re.search(r"^```python\n(.*?)^```$", PAGE.read_text(), re.S | re.M)[1], names)
    return names["read"]


def assert_same(read, store, count):
    dataset, found = zp.ZarrDataset(store), list(read(store))
    assert len(found) == len(dataset) == count
    for sample, expected in zip(found, dataset, strict=True):
        assert sample.keys() == expected.fields.keys()
        for name, value in expected.fields.items():
            np.testing.assert_array_equal(sample[name], value.numpy(), err_msg=name, strict=True)


def without_edges(batch):
    return batch.without("neighbor_list", "neighbor_list_shifts", "weight")


def test_its_store_with_edges_appends_and_deletions(nvalchemi, tmp_path, read):
    first, *others = make_batches([3, 1, 4])
    nvalchemi.AtomicDataZarrWriter(tmp_path / "edges").write(to_nvalchemi(first))
    assert_same(read, tmp_path / "edges", 3)
    writer = nvalchemi.AtomicDataZarrWriter(tmp_path / "grown")
    writer.write(to_nvalchemi(without_edges(first)))
    for batch in others:
        writer.append(to_nvalchemi(without_edges(batch)))
    assert_same(read, tmp_path / "grown", 8)
    writer.delete([1, 5])
    assert_same(read, tmp_path / "grown", 6)


def test_ours_that_it_continued(nvalchemi, tmp_path, read):
    first, second = (without_edges(batch) for batch in make_batches([3, 4]))
    with zp.ZarrData(tmp_path / "ours") as sink:
        sink.write(first)
    nvalchemi.AtomicDataZarrWriter(tmp_path / "ours").append(to_nvalchemi(second))
    assert_same(read, tmp_path / "ours", 7)
