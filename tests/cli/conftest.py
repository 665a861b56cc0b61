"""A store of samples that lack labels, and a way to run a command."""

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import zarrpipe as zp
from zarrpipe.cli import main

KINDS = ("bulk", "slab")


def labelled(count: int, seed: int = 0) -> list[zp.AtomicData]:
    """Systems of 2 to 4 atoms in rounds of ten; sample 3 has no forces, sample 7 no energy."""
    random, made = np.random.default_rng(seed), []
    for serial in range(count):
        atoms = int(random.integers(2, 5))
        fields: dict[str, Any] = {"energy": -5.0 * atoms + random.normal()}
        fields["forces"] = random.normal(size=(atoms, 3))
        if serial in (3, 7):
            del fields["forces" if serial == 3 else "energy"]
        own = {"round": [serial // 10], "config_type": KINDS[serial % 2]}
        own["moment"] = random.normal(size=(1, 3))
        numbers = random.choice([1, 6, 8], size=atoms)
        made.append(zp.AtomicData(random.normal(size=(atoms, 3)), numbers, system=own, **fields))
    return made


@pytest.fixture
def samples(tmp_path: Path) -> SimpleNamespace:
    """The path of a store of 30 samples, and the samples."""
    made = labelled(30)
    with zp.ZarrData(tmp_path / "run") as sink:
        sink.write(made)
    return SimpleNamespace(path=tmp_path / "run", made=made)


@pytest.fixture
def printed(capsys: pytest.CaptureFixture[str]) -> Callable[..., Any]:
    """Runs a command that ends well: its text, or with --json what it printed as objects."""

    def run(*arguments: object) -> Any:
        assert main([*map(str, arguments)]) == 0, capsys.readouterr().err
        shown = capsys.readouterr()
        assert shown.err == ""
        return json.loads(shown.out) if "--json" in arguments else shown.out

    return run
