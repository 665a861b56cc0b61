"""The table of docs/guides/export.md has every format."""

import re
from pathlib import Path

from zarrpipe.formats.write.formats import FORMATS

PAGE = Path(__file__).parents[2] / "docs" / "guides" / "export.md"


def test_the_table_has_every_format_and_suffix():
    rows = re.findall(r"^\| `(\w+)` \| ([^|]*) \|", PAGE.read_text(), re.MULTILINE)
    table = {name: {*re.findall(r"\.\w+", suffixes)} for name, suffixes in rows}
    formats = {one.name: {*one.suffixes} for one in FORMATS.values()}
    assert {name: own for name, own in table.items() if name in formats} == formats
