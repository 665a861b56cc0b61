"""Two real processes under Lightning's ddp, started by it or by torchrun: no flag needed."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from zarrpipe.training.data_module import ZarrDataModule

SCRIPT = Path(__file__).with_name("two_ranks.py")


def samples(steps, epoch):
    return Counter(serial for when, batch in steps if when == epoch for serial in batch)


TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")


@pytest.fixture(
    scope="module",
    params=[
        pytest.param((), id="lightning"),
        pytest.param(TORCHRUN, id="torchrun", marks=pytest.mark.slow),
    ],
)
def started(request, tmp_path_factory, two_ranks_store):
    """What two processes saw that Lightning started, or torchrun, and the store they made grow."""
    output = tmp_path_factory.mktemp("two_ranks")
    store = shutil.copytree(two_ranks_store, output / "store")
    command = [sys.executable, *request.param, str(SCRIPT), str(store), str(output)]
    alone = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run(command, check=True, timeout=600, capture_output=True, env=alone)
    ranks = [json.loads((output / f"rank{rank}.json").read_text()) for rank in (0, 1)]
    return output, ranks


def test_two_ranks_see_each_sample_once_and_agree_on_growth(started):
    _, ranks = started
    assert [rank["N"] for rank in ranks] == [60, 60]
    assert ranks[0]["splits"] == ranks[1]["splits"]
    for side, place in (("train", 0), ("val", 1)):
        for epoch in (0, 1):
            expected = ranks[0]["splits"][place]
            if (side, epoch) == ("train", 0):
                expected = [serial for serial in expected if serial < 1000]
            by_rank = [samples(rank[side], epoch) for rank in ranks]
            if side == "train":
                assert by_rank[0] + by_rank[1] == Counter(expected)
            assert max((by_rank[0] + by_rank[1]).values()) == 1
            steps = [sum(when == epoch for when, _ in rank[side]) for rank in ranks]
            assert steps[0] == steps[1]


@pytest.mark.filterwarnings("ignore:.*does not have many workers")
@pytest.mark.filterwarnings("ignore:.*Checkpoint directory")
@pytest.mark.filterwarnings("ignore:.*`isinstance.treespec, LeafSpec.` is deprecated")
def test_one_process_goes_through_the_rest_of_what_two_began(started):
    output, ranks = started
    spec = importlib.util.spec_from_file_location("two_ranks", SCRIPT)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    model = script.Model()
    module = ZarrDataModule(output / "store", batch_size=3, split=(0.8, 0.2, 0.0))
    Trainer(
        accelerator="cpu",
        max_epochs=3,
        callbacks=[ModelCheckpoint(output, every_n_train_steps=7, save_top_k=-1)],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    ).fit(model, module, ckpt_path=output / "step=7.ckpt")
    begun = [step for rank in ranks for step in [s for s in rank["train"] if s[0] == 1][:1]]
    every = Counter(ranks[0]["splits"][0])
    assert samples(begun, 1) + samples(model.seen, 1) == every
    assert samples(model.seen, 2) == every
