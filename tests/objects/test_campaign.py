"""The campaign of killed writers of an object store, tiny."""

from reliability import objects
from reliability.report import Order


def test_killed_writers_lose_and_tear_nothing(tmp_path):
    found = objects.run(Order(tmp_path, seed=0, count=4, only="kills"))
    assert found.defects == []
    assert found.done["kills"] == 4
    assert found.done["samples compared"] > 0


def test_of_two_writers_at_once_one_gets_in(tmp_path):
    found = objects.run(Order(tmp_path, seed=0, count=20, only="two writers"))
    assert found.defects == []
    assert found.done["pairs of writers"] == 2
