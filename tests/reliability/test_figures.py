"""Results of campaigns as a table."""

import json

from reliability import figures
from reliability.report import KINDS

FACTS = {"cpu": "A", "cores": 2, "memory_gb": 4.0, "system": "Linux", "python": "3.11",
         "versions": {"zarr": "3"}, "date": "2026-01-02T03:04:05", "commit": "abc"}  # fmt: skip


def row(campaign, seconds, **found):
    counts = dict.fromkeys(KINDS, 0) | found
    arguments = {"count": 7, "minutes": None, "only": ""}
    return {"campaign": campaign, "arguments": arguments, "seed": 3, "seconds": seconds,
            "done": {"rare": 1, "often": 12_345}, **counts, **FACTS}  # fmt: skip


def test_the_last_line_of_each_campaign_goes_into_the_document(tmp_path, capsys):
    results, document = tmp_path / "r.jsonl", tmp_path / "d.md"
    rows = [row("kills", 60, lost=2), row("fuzz", 600), row("kills", 120, torn=1)]
    results.write_text("".join(json.dumps(one) + "\n" for one in rows))
    document.write_text("a <!-- begin figures -->old<!-- end figures --> b")
    figures.main([str(results), "--docs", str(document)])
    text = document.read_text()
    assert text.startswith("a <!-- begin figures -->\n| command")
    assert text.endswith("<!-- end figures --> b")
    lines = text.splitlines()
    zeros = "| 0 " * (len(KINDS) - 2)
    assert lines[3] == (
        "| `python -m reliability kills --count 7 --seed 3` | 12,345 often, 1 rare | 0 | 1 "
        f"{zeros}| 2 | abc |"
    )
    assert lines[4].startswith("| `python -m reliability fuzz --count 7 --seed 3`")
    assert "old" not in text
    assert "A, 2 cores" in capsys.readouterr().out
