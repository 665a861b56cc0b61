"""Every promise of docs/promises.md is held by tests that `make test` runs too."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "promises.md"


def test_each_promise_has_a_test_in_this_run(request):
    """A module of which all tests are slow would be missing from `make test`."""
    if {Path(one).name for one in request.config.args} != {"tests", "zarrpipe"}:
        pytest.skip("a part of the tests was asked for")
    collected = {item.path for item in request.session.items}
    for line in PAGE.read_text().splitlines():
        places = re.findall(r"\]\(\.\./(tests/[^)]+)\)", line)
        assert bool(places) == line.startswith("| ") or line.startswith("| promise"), line
        for place in places:
            missing = not any(path.is_relative_to(ROOT / place) for path in collected)
            assert not missing, f"{place} has no test in this run, but holds: {line}"
