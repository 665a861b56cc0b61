"""Ranks that write parts and train on their union, stopped and started with other ranks."""

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

import zarrpipe as zp

pytestmark = pytest.mark.slow
SCRIPT = Path(__file__).parents[2] / "recipes" / "ranks.py"


def run(out, ranks, trajectories, epochs):
    """What the recipe prints under torchrun."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += [f"--nproc-per-node={ranks}", str(SCRIPT), "--out", str(out), "--frames", "8"]
    command += ["--trajectories", str(trajectories), "--epochs", str(epochs)]
    alone = {**os.environ, "OMP_NUM_THREADS": "1"}
    options = {"timeout": 1200, "capture_output": True, "text": True, "env": alone}
    done = subprocess.run(command, check=False, **options)
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout


def test_another_number_of_ranks_goes_on(tmp_path):
    assert "16 frames of 2 ranks" in run(tmp_path / "a", 2, 2, 1)
    first = zp.ZarrDataset(tmp_path / "a" / "ethanol.zarr").ids
    said = run(tmp_path / "a", 3, 5, 2)
    assert "40 frames of 3 ranks" in said
    assert [*zp.parts(tmp_path / "a" / "ethanol.zarr")] == ["0", "1", "2"]
    dataset = zp.ZarrDataset(tmp_path / "a" / "ethanol.zarr")
    counts = Counter(dataset.to_dict(["trajectory"])["trajectory"])
    assert counts == dict.fromkeys(range(5), 8)
    assert set(first.tolist()) <= set(dataset.ids.tolist())

    run(tmp_path / "b", 1, 5, 1)
    undisturbed = zp.ZarrDataset(tmp_path / "b" / "ethanol.zarr")
    here, there = (one.read(np.argsort(one.ids)) for one in (dataset, undisturbed))
    assert here.positions.equal(there.positions)
    assert here.energy.equal(there.energy)
