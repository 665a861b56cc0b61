"""Runs of two ranks, and of another number of ranks after a kill.

What is checked is the union over the ranks, and over the interruption. Ranks are processes that
find each other as under torchrun; test_ddp.py has those that Lightning and torchrun start. Some
are tried by default, all with ZARRPIPE_EXHAUSTIVE=1.
"""

import os
import shutil
from collections import Counter

import pytest

from zarrpipe import ZarrData, ZarrDataset

BUDGET = {"batch_size": None, "max_atoms": 12, "max_edges": 14}
FEATURES = {
    "plain": {},
    "budgets": {"module": BUDGET},
    "balance": {"module": {"balance": True}},
    "workers": {"module": {"num_workers": 1}},
    "prefetch": {"module": {"prefetch": 2}},
    "blocks": {"module": {"shuffle": "blocks"}},
    "resident": {"module": {"resident": True}},
    "one sample a batch": {"module": {"batch_size": 1}},
    "accumulated": {"trainer": {"accumulate_grad_batches": 3}},
    "validated inside": {"trainer": {"val_check_interval": 2}},
    "steps": {"trainer": {"max_epochs": -1, "max_steps": 21}, "schedule": "cycle"},
}
CHANGES = {
    "plain": {},
    "budgets": {"module": BUDGET},
    "workers": {"module": {**BUDGET, "num_workers": 1}},
    "accumulated": {
        "trainer": {"accumulate_grad_batches": 2, "val_check_interval": 2},
        "saving": {"every_n_train_steps": 2},
    },
    "steps": {"trainer": {"max_epochs": -1, "max_steps": 40}, "schedule": "cycle"},
}
if not os.environ.get("ZARRPIPE_EXHAUSTIVE"):
    FEATURES = {name: FEATURES[name] for name in ("budgets", "workers", "validated inside")}
    CHANGES = {name: CHANGES[name] for name in ("budgets", "accumulated")}


@pytest.fixture(scope="module")
def stores(tmp_path_factory, data):
    """Stores of 40, 20, 15 and 12 samples; the first two are trained on."""
    root = tmp_path_factory.mktemp("stores")
    for tag, count in enumerate((40, 20, 15, 12)):
        data.append(root / str(tag), data.batch(count, tag=tag))
    return root


@pytest.fixture
def copied(stores, tmp_path):
    """A copy of the stores that are trained on, and what makes them grow to 87 samples."""
    for store in "01":
        shutil.copytree(stores / store, tmp_path / store)
    places = [[str(stores / "2"), str(stores / "3")], [str(tmp_path / "0"), str(tmp_path / "1")]]
    return tmp_path, {"from": places[0], "to": places[1]}


def job_of(root, more):
    """Job that trains on the stores below a directory."""
    module = {"store": [str(root / "0"), str(root / "1")], "split": [0.85, 0.15, 0.0]}
    return {**more, "module": {"batch_size": 5, **module, **more.get("module", {})}}


def serials(run, kind, epoch, until=None):
    """Which samples the ranks saw in an epoch, and how often; before a batch if it is given."""
    return Counter(
        serial
        for rank in range(len(run.ranks))
        for batch, when, *_, seen in run.of(kind, rank)
        if when == epoch and (until is None or batch < until)
        for serial in seen
    )


def batches(run, epoch):
    """Number of batches of each rank in an epoch."""
    return [
        sum(when == epoch for _, when, *_ in run.of("train", rank))
        for rank in range(len(run.ranks))
    ]


def sides_of(root):
    """Training and validation samples that there are now."""
    from zarrpipe import ZarrDataModule  # noqa: PLC0415  Lightning

    module = ZarrDataModule([str(root / "0"), str(root / "1")], split=[0.85, 0.15, 0.0])
    sides = (module.train_dataset, module.val_dataset)
    return [Counter(side.system_field("serial").ravel().tolist()) for side in sides]


@pytest.mark.parametrize(
    "feature",
    [
        pytest.param(name, marks=[] if name in ("budgets", "workers") else pytest.mark.slow)
        for name in FEATURES
    ],
)
def test_two_ranks_share_every_epoch_of_a_store_that_grows(training, copied, feature):
    root, new = copied
    before = sides_of(root)
    more = FEATURES[feature]
    run = training(root / "run", **job_of(root, more), world=2, grow={"at": [0, 2], **new})
    assert run.codes == [0, 0], run.text
    assert run.of("epoch", 0) == run.of("epoch", 1)
    assert run.of("result", 0) == run.of("result", 1)
    sides = [before, sides_of(root), sides_of(root)]
    for epoch, samples, length, counted in run["epoch"]:
        train, val = sides[epoch]
        done = batches(run, epoch)
        assert done[0] == done[1] <= length == counted
        assert samples == train.total()
        if done[0] == length:
            assert serials(run, "train", epoch) == train
            assert set(serials(run, "val", epoch)) == set(val)


@pytest.mark.parametrize(
    "change",
    [pytest.param(name, marks=[] if name == "budgets" else pytest.mark.slow) for name in CHANGES],
)
@pytest.mark.parametrize(("first", "then"), [(2, 1), (1, 2)])
def test_another_number_of_ranks_goes_through_the_rest(training, copied, first, then, change):
    root, new = copied
    train, _ = sides_of(root)
    job = job_of(root, CHANGES[change])
    killed = training(root / "run", **job, world=first, kill=[10 if first == 2 else 16, "start"])
    assert killed.codes == [-9] * first, killed.text
    for source, target in zip(new["from"], new["to"], strict=True):
        with ZarrData(target, capacity=1000) as sink:
            sink.write(ZarrDataset(source).__getitems__(slice(None)))
    run = training(root / "run", **job, world=then, resume=killed.last)
    assert run.codes == [0] * then, run.text
    begun, epoch, place, step, _ = run["train"][0]
    assert place > 0
    assert serials(killed, "train", epoch, begun) + serials(run, "train", epoch) == train
    [[_, length, counted, ready, _]] = run["begin"]
    assert (length, ready, step) == (counted, place, run["begin"][0][-1])
    assert batches(run, epoch) == [length - place] * then
    for later in range(epoch + 1, 3 if "steps" not in change else epoch + 1):
        assert serials(run, "train", later) == sides_of(root)[0]


def test_two_ranks_that_were_killed_end_with_the_bits_of_two_that_were_not(training, copied):
    root, _ = copied
    job = {**job_of(root, {"module": BUDGET, "schedule": "cycle"}), "world": 2}
    whole = training(root / "whole", **job)
    killed = training(root / "run", **job, kill=[13, "update"])
    assert (whole.codes, killed.codes) == ([0, 0], [-9, -9]), whole.text + killed.text
    resumed = training(root / "run", **job, resume=killed.last)
    assert resumed.codes == [0, 0], resumed.text
    first = resumed["train"][0][0]
    assert resumed["train"][0][2] > 0
    for rank in (0, 1):
        assert resumed.of("train", rank) == whole.of("train", rank)[first:]
        assert resumed.of("result", rank) == whole.of("result", rank)


def test_one_validation_sample_waits_for_as_many_as_there_are_ranks(training, copied, data):
    root, new = copied
    data.append(root / "val", data.batch(1, tag=4))
    job = job_of(root, {"module": {"val_store": str(root / "val")}})
    more = {"from": new["from"][:1], "to": [str(root / "val")]}
    run = training(root / "run", **job, world=2, grow={"at": [0, 2], **more})
    assert run.codes == [0, 0], run.text
    assert "val loader has 1 samples for 2 devices" in run.text
    assert serials(run, "val", 0) == Counter()
    assert serials(run, "val", 1) == Counter([4000, *range(2000, 2015)])
