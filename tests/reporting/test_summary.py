"""Summary of a report in a notebook."""

import xml.etree.ElementTree as ET
from dataclasses import replace

from . import examples


def test_facts_and_findings():
    root = ET.fromstring(f"<body>{examples.example()._repr_html_()}</body>")
    rows = [[cell.text for cell in row] for row in root.iter("tr")]
    assert ["largest force", "7.2"] in rows
    assert rows[-5][:3] == ["error", "Stress in bar", "30"]
    assert [title.text for title in root.iter("p")] == [
        "report of /data/some where/water.zarr",
        "6 findings",
    ]


def test_facts_are_for_people():
    made = replace(examples.example(), facts={"bytes": 2_500_000, "elements": ["H", "O"]})
    root = ET.fromstring(f"<body>{made._repr_html_()}</body>")
    rows = [[cell.text for cell in row] for row in root.iter("tr")]
    assert rows[1:3] == [["bytes", "2.5 MB"], ["elements", "H, O"]]


def test_strings_are_escaped():
    text = examples.hostile("<script>alert(1)</script>")._repr_html_()
    assert "<script>" not in text
    assert "&lt;script&gt;" in text
