"""Every promise of docs/promises.md is held by tests that `make test` runs too."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "promises.md"


def test_each_promise_has_a_test_that_is_not_slow(pytestconfig, modules_not_slow):
    if {Path(one).name for one in pytestconfig.args} != {"tests", "zarrpipe"}:
        pytest.skip("a part of the tests was asked for")
    for line in PAGE.read_text().splitlines():
        places = re.findall(r"\]\(\.\./(tests/[^)]+)\)", line)
        assert bool(places) == line.startswith("| ") or line.startswith("| promise"), line
        for place in places:
            held = any(path.is_relative_to(ROOT / place) for path in modules_not_slow)
            assert held, f"{place} has no test that is not slow, but holds: {line}"
