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
    """Numbers of tests by outcome; raises if one failed or none passed.

    Where the device is there, those are skipped whose library is missing.
    """
    report = settings.work / "marked.xml"
    report.unlink(missing_ok=True)
    options = ["-m", "gpu", "--quiet", "-p", "no:cacheprovider", f"--junit-xml={report}"]
    pytest.main([*options, *map(str, files())])
    numbers = counted(report)
    for outcome in OUTCOMES:
        yield Row.single("gpu", "tests marked gpu", outcome, numbers[outcome], "tests")
    if numbers["failed"] or not numbers["passed"]:
        raise SystemExit(f"tests marked gpu failed, or none passed: {numbers}")


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
