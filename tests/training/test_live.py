"""A sampler process fills the store that two ranks train on."""

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import zarrpipe as zp
from zarrpipe.testing import numbered_batch

SCRIPT = Path(__file__).with_name("live_ranks.py")
FIRST, ADDED = 200, 10_000


def start(*arguments):
    return subprocess.Popen(
        [sys.executable, str(SCRIPT), *map(str, arguments)],
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def test_ten_thousand_samples_arrive_while_two_ranks_train(tmp_path):
    store = tmp_path / "store.zarr"
    with zp.ZarrData(store) as sink:
        sink.write(numbered_batch(range(FIRST)))
    trainer = start("train", store, FIRST + ADDED, tmp_path)
    sampler = start("sample", store, FIRST, ADDED, tmp_path)
    for process in (sampler, trainer):
        _, said = process.communicate(timeout=300)
        assert process.returncode == 0, said
    ranks = [json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in (0, 1)]
    counts = [[epoch["samples"] for epoch in rank] for rank in ranks]
    assert counts[0] == counts[1]
    assert counts[0] == sorted(counts[0])
    assert len(set(counts[0])) > 2, "the store did not grow while training ran"
    for one, other in zip(*ranks, strict=True):
        assert one["steps"] == other["steps"]
        assert Counter(one["seen"] + other["seen"]) == Counter(range(one["samples"]))
    committed = json.loads((tmp_path / "sampler.json").read_text())
    for before, after in zip(ranks[0], ranks[0][1:], strict=False):
        there = max([FIRST, *(count for when, count in committed if when < before["ended"])])
        assert after["samples"] >= there, "samples committed before the epoch are not in it"
