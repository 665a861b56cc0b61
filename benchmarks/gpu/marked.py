"""The tests that are marked ``gpu``."""

import xml.etree.ElementTree as ET
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from benchmarks.rows import Row
from benchmarks.settings import Settings

ROOT = Path(__file__).parents[2]
MARK = "mark.gpu"
OUTCOMES = ("passed", "failed", "skipped")


def rows(settings: Settings, device: torch.device) -> Iterator[Row]:
    """Numbers of tests that passed, failed and were skipped; raises unless all passed."""
    report = settings.work / "marked.xml"
    report.unlink(missing_ok=True)
    options = ["-m", "gpu", "--quiet", "-p", "no:cacheprovider", f"--junit-xml={report}"]
    pytest.main([*options, *map(str, files())])
    numbers = counted(report)
    for outcome in OUTCOMES:
        yield Row.single("gpu", "tests marked gpu", outcome, numbers[outcome], "tests")
    if not numbers["passed"] or numbers["failed"] or numbers["skipped"]:
        raise SystemExit(f"of the tests marked gpu not all passed: {numbers}")


def files() -> list[Path]:
    """Files with such tests; others are not imported."""
    return sorted(p for p in (ROOT / "tests").rglob("test_*.py") if MARK in p.read_text())


def counted(report: Path) -> dict[str, int]:
    """Tests by outcome in pytest's JUnit file; one that raised outside of its body has failed."""
    counts = dict.fromkeys(OUTCOMES, 0)
    for case in ET.parse(report).iter("testcase"):
        found = {child.tag for child in case}
        outcome = "failed" if found & {"failure", "error"} else "passed"
        counts["skipped" if "skipped" in found else outcome] += 1
    return counts
