"""What all tests share."""

import os
import secrets

import pytest
from hypothesis import HealthCheck, settings

# No deadline, since the time of a test on a shared runner says nothing about the code. On a desk
# examples differ from run to run: few are drawn each time, and many runs see more of the space than
# one fixed sample would; a failing example is printed as a blob that reproduces it. In continuous
# integration they are always the same, so that a change fails for what it changed.
for name, same in (("desk", False), ("ci", True)):
    settings.register_profile(
        name,
        deadline=None,
        max_examples=25,
        derandomize=same,
        print_blob=True,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )
settings.load_profile("ci" if os.environ.get("CI") else "desk")


_REPEATED = ("benchmarks", "peers", "recipes", "reliability")
"""Folders of tests that do again and again what the tests of each part do once."""


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave repetitions out of coverage: with its tracing a test takes up to twice as long."""
    if not config.pluginmanager.hasplugin("_cov"):
        return
    for item in items:
        drawn = getattr(getattr(item, "obj", None), "is_hypothesis_test", False)
        if drawn or item.path.parent.name in _REPEATED:
            item.add_marker(pytest.mark.no_cover)


@pytest.fixture
def seed() -> int:
    """Differs from run to run on a desk, as examples do, unless ZARRPIPE_SEED says which."""
    given = os.environ.get("ZARRPIPE_SEED", "0" if os.environ.get("CI") else "")
    chosen = int(given) if given else secrets.randbelow(2**32)
    print(f"ZARRPIPE_SEED={chosen}")  # noqa: T201  shown when the test fails
    return chosen


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """Undo what importing mace-torch does, before any fixture: it lets torch.load unpickle all."""
    os.environ.pop("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", None)
