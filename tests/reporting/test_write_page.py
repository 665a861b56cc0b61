"""The file of a page is the old one or the new one, and no part of it."""

import os
from pathlib import Path

import pytest

from zarrpipe.reporting.page import write_page

from . import examples

pytest.importorskip("jinja2")
pytest.importorskip("matplotlib")


def test_a_full_disk_leaves_the_page_that_was_there(tmp_path, monkeypatch):
    place = tmp_path / "report.html"
    place.write_text("the old one")

    def fill(path: Path, text: str, **_: object) -> int:
        path.write_bytes(text.encode()[:100])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", fill)
    with pytest.raises(OSError, match="No space"):
        write_page(examples.example(), place)
    monkeypatch.undo()
    assert place.read_text() == "the old one"
    assert os.listdir(tmp_path) == ["report.html"]  # noqa: PTH208


def test_a_page_replaces_the_target_of_a_link(tmp_path):
    (tmp_path / "real.html").write_text("the old one")
    (tmp_path / "report.html").symlink_to("real.html")
    assert write_page(examples.example(), tmp_path / "report.html") == tmp_path / "report.html"
    assert (tmp_path / "report.html").is_symlink()
    assert "</html>" in (tmp_path / "real.html").read_text(encoding="utf-8")


def test_a_page_goes_to_a_device():
    assert write_page(examples.example(), os.devnull) == Path(os.devnull)
