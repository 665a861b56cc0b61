"""The table of docs/reference/import_formats.md has every format and no other."""

import re
from pathlib import Path

from zarrpipe.formats.read.sources import FORMATS

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "import_formats.md"


def test_the_table_has_all_formats():
    rows = re.findall(r"^\| `([\w-]+)` \|", PAGE.read_text(), re.MULTILINE)
    assert rows == [row.name for row in FORMATS if row.name != "pyg-trusted"]
    assert "`--format pyg-trusted`" in PAGE.read_text()
