"""A short campaign of killed writers of parts beside readers and two ranks."""

import pytest

from reliability import parts
from reliability.report import Order


@pytest.mark.slow
def test_killed_writers_of_parts(tmp_path):
    found = parts.run(Order(tmp_path, 0, count=3, minutes=0.3))
    assert found.defects == []
    assert found.done["writers killed"] == 3
    assert found.done["batches written"] >= parts.WRITERS
    assert found.done["epochs of ranks"] >= 2
