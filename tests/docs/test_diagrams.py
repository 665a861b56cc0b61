"""The diagrams are what their script draws, and show what the code does."""

import importlib
import re
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from zarrpipe.training.sampler import GraphBatchSampler

DOCS = Path(__file__).parents[2] / "docs"
FOLDER = DOCS / "diagrams"


@pytest.fixture
def make(monkeypatch):
    monkeypatch.syspath_prepend(FOLDER)
    return importlib.import_module("make")


@pytest.fixture
def order(make):
    """Order of the picture of an epoch."""
    return [int(number) for number in importlib.import_module("training_pictures").ORDER]


def test_each_committed_picture_is_what_the_script_draws(make):
    committed = {path.stem: path.read_text(encoding="utf-8") for path in FOLDER.glob("*.svg")}
    assert committed == {name: draw().svg() for name, draw in make.PICTURES.items()}


def test_pictures_are_valid_have_a_title_and_keep_inside_their_card(make):
    for name, draw in make.PICTURES.items():
        root = ET.fromstring(draw().svg())
        _, _, width, height = map(float, root.get("viewBox").split())
        assert width == 800, name
        assert root[0].text.startswith(("A", "E", "H", "S", "T")), name
        for part in root.iter():
            x, y = float(part.get("x", 1)), float(part.get("y", 1))
            assert 0 <= x <= width, (name, part.attrib)
            assert 0 <= y <= height, (name, part.attrib)
            right = x + float(part.get("width", "0")) if part.tag.endswith("rect") else x
            assert right <= width, (name, part.attrib)


def test_each_picture_is_on_a_page():
    pages = "".join(path.read_text() for path in (DOCS / "understanding").glob("*.md"))
    shown = set(re.findall(r"\]\(\.\./diagrams/(\w+)\.svg\)", pages))
    assert shown == {path.stem for path in FOLDER.glob("*.svg")}


def test_the_order_of_the_picture_is_that_of_the_sampler(order):
    alone = GraphBatchSampler(range(10), 2, rank=0, world_size=1)
    assert [index for batch in alone for index in batch.tolist()] == order
    first, second = (
        [batch.tolist() for batch in GraphBatchSampler(range(10), 2, rank=rank, world_size=2)]
        for rank in range(2)
    )
    assert first == [order[0:2], order[4:6], order[8:9]]
    assert second == [order[2:4], order[6:8], order[9:10]]
