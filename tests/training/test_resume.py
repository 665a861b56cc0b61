"""Runs that are killed in the middle of an epoch and resumed, beside runs that never were.

Every kill is a SIGKILL of a process of its own. The batches at which runs are killed are drawn by a
seed (ZARRPIPE_SEED, by default 0) and printed; ZARRPIPE_EXHAUSTIVE=1 tries more kinds of runs, and
kills each at five batches instead of one.
"""

import os
import random
import shutil
import zlib

import pytest

from zarrpipe import ZarrData, ZarrDataset

SEED = int(os.environ.get("ZARRPIPE_SEED", "0"))
MANY = 5 if os.environ.get("ZARRPIPE_EXHAUSTIVE") else 1
KINDS = {
    "plain": {},
    "workers": {"module": {"num_workers": 2}},
    "prefetch": {"module": {"prefetch": 3}},
    "accumulated": {"trainer": {"accumulate_grad_batches": 2}},
    "validated inside": {"trainer": {"val_check_interval": 4}},
    "validated by share": {"trainer": {"val_check_interval": 0.3}},
    "budgets": {"module": {"batch_size": None, "max_atoms": 20, "max_edges": 14}},
    "balance": {"module": {"balance": True}},
    "blocks": {"module": {"shuffle": "blocks"}},
    "weights": {"module": {"weights": [0.3, 0.7], "samples_per_epoch": 48}},
    "where": {"module": {"where": "num_atoms < 6", "split_by": "serial"}},
    "cycle": {"schedule": "cycle"},
    "steps": {"trainer": {"max_epochs": -1, "max_steps": 29}, "schedule": "cycle"},
    "limited": {"trainer": {"limit_train_batches": 7}},
    "everything": {
        "module": {"batch_size": None, "max_atoms": 20, "num_workers": 2},
        "trainer": {"accumulate_grad_batches": 3, "val_check_interval": 4, "max_steps": 15},
        "schedule": "cycle",
    },
}
FIVE = ("plain", "workers")
RARE = ("prefetch", "validated by share", "balance", "where", "steps", "limited")
"""Kinds that only ZARRPIPE_EXHAUSTIVE=1 tries."""

QUICK = ("plain", "workers", "budgets", "weights", "everything")
TRIED = [
    pytest.param(kind, marks=[] if kind in QUICK else pytest.mark.slow)
    for kind in KINDS
    if MANY > 1 or kind not in RARE
]
MOMENTS = ("start", "update", "end")
SAVED = {
    "inside": {"every_n_train_steps": 3},
    "last batch": {"every_n_train_steps": 20},
    "epoch end": {"every_n_epochs": 1, "save_on_train_epoch_end": True},
    "validation end": {"every_n_epochs": 1, "save_on_train_epoch_end": False},
}
SAVED_WITH_STEPS = SAVED if MANY > 1 else ["epoch end"]
BUDGET = {"batch_size": None, "max_atoms": 12}


@pytest.fixture(scope="module")
def stores(tmp_path_factory, data):
    """Two stores, of 40 and 20 samples."""
    root = tmp_path_factory.mktemp("stores")
    for tag, count in enumerate((40, 20)):
        data.append(root / str(tag), data.batch(count, tag=tag))
    return root


def job_of(root, kind=None):
    """Job of a kind, that trains on the stores below a directory."""
    more = KINDS.get(kind, {})
    module = {"store": [str(root / "0"), str(root / "1")], "split": [0.85, 0.15, 0.0]}
    return {**more, "module": {"batch_size": 5, **module, **more.get("module", {})}}


@pytest.fixture(scope="module")
def wholes(training, stores, tmp_path_factory):
    """Gives the uninterrupted run of a kind, which runs once."""
    known = {}

    def whole(kind):
        if kind not in known:
            output = tmp_path_factory.mktemp("whole")
            known[kind] = training(output, **job_of(stores, kind))
            assert known[kind].codes == [0], known[kind].text
        return known[kind]

    return whole


def assert_goes_on(resumed, whole):
    """The resumed run did the rest of the whole one, and ends with every bit of it."""
    assert resumed.codes == [0], resumed.text
    first = resumed["train"][0][0]
    assert resumed["train"] == whole["train"][first:]
    assert [one for one in resumed["val"] if one[0] >= first] == [
        one for one in whole["val"] if one[0] >= first
    ]
    assert resumed["result"] == whole["result"]
    return first


def draws(kind, whole, count):
    """Batches inside of an epoch, and moments in them, at which runs of a kind are killed."""
    chosen = random.Random(zlib.crc32(kind.encode()) + SEED)
    trainer = KINDS[kind].get("trainer", {})
    moments = ["start", "end"] if "accumulate_grad_batches" in trainer else list(MOMENTS)
    steps = whole["train"]
    inside = [
        steps[place][0]
        for place in range(1, len(steps) - 1)
        if len({steps[place + one][1] for one in (-1, 0, 1)}) == 1 and steps[place][3] > 3
    ]
    drawn = [(batch, chosen.choice(moments)) for batch in chosen.sample(inside, count)]
    between = sorted({validated[0] for validated in whole["val"]} & set(inside))
    return [*drawn, *((batch, "validation") for batch in between[-1:])]


@pytest.mark.parametrize("kind", TRIED)
def test_a_run_that_was_killed_ends_with_the_bits_of_one_that_was_not(
    training, stores, wholes, tmp_path, kind, quick
):
    whole = wholes(kind)
    assert len({epoch for _, epoch, *_ in whole["train"]}) == 3
    for number, drawn in enumerate(draws(kind, whole, 5 if kind in FIVE and not quick else MANY)):
        print(f"{kind}: killed at {drawn}, seed {SEED}")  # noqa: T201  shown when the test fails
        output = tmp_path / str(number)
        killed = training(output, **job_of(stores, kind), kill=drawn)
        assert killed.codes == [-9], killed.text
        assert killed["train"] == whole["train"][: drawn[0] + 1]
        resumed = training(output, **job_of(stores, kind), resume=killed.last)
        assert 0 < assert_goes_on(resumed, whole) <= drawn[0] + 1


@pytest.mark.parametrize("moment", ["transfer", "start", "update", "end"])
@pytest.mark.parametrize("kind", ["plain", "budgets"] if MANY > 1 else ["budgets"])
def test_a_batch_that_was_not_trained_on_comes_again(
    training, stores, wholes, tmp_path, kind, moment
):
    whole = wholes(kind)
    batch = random.Random(f"{kind} {moment} {SEED}").randrange(2, 9)
    job = {**job_of(stores, kind), "saving": {"save_on_exception": True, "save_last": True}}
    broken = training(tmp_path / "run", **job, kill=[batch, f"{moment}, raised"])
    assert broken.codes == [1]
    assert f"RuntimeError: raised at [{batch}, " in broken.text
    resumed = training(tmp_path / "run", **job, resume=broken.last)
    assert resumed.codes == [0], resumed.text
    # A batch whose transfer failed comes after the one that Lightning has counted.
    first = batch if moment in ("start", "update") else batch + 1
    assert [rest for _, *rest in resumed["train"]] == [rest for _, *rest in whole["train"][first:]]
    assert resumed["result"] == whole["result"]


@pytest.mark.parametrize("moment", [[7, "start, raised"], [4, "end, raised"], [6, "start"]])
def test_gradients_that_were_being_accumulated_are_computed_again(
    training, stores, tmp_path, moment
):
    accumulate = {"accumulate_grad_batches": 3, "val_check_interval": 5}
    job = {**job_of(stores), "trainer": accumulate}
    whole = training(tmp_path / "whole", **job)
    always = {"save_on_exception": True, "save_on_train_epoch_end": False, "save_last": True}
    broken = training(tmp_path / "run", **job, saving=always, kill=moment)
    assert broken.codes != [0]
    resumed = training(tmp_path / "run", **job, resume=broken.last)
    assert resumed.codes == [0], resumed.text
    first = resumed["train"][0][2]
    assert first == (6 if moment[0] == 7 else 3)
    assert [rest for _, *rest in resumed["train"]] == [rest for _, *rest in whole["train"][first:]]
    assert resumed["result"] == whole["result"]


def test_workers_and_reading_ahead_change_no_bit(wholes):
    for kind in ("workers", "prefetch"):
        assert wholes(kind).lines == wholes("plain").lines


@pytest.fixture(scope="module")
def growing(tmp_path_factory, stores, data):
    """Gives a copy of the stores, and what makes them grow: 27 samples in both."""
    root = tmp_path_factory.mktemp("growing")
    new = [root / "2", root / "3"]
    for tag, (count, place) in enumerate(zip((15, 12), new, strict=True), 2):
        data.append(place, data.batch(count, tag=tag))

    def copied(name):
        for store in "01":
            shutil.copytree(stores / store, root / name / store)
        targets = [root / name / store for store in "01"]
        return root / name, {"from": list(map(str, new)), "to": list(map(str, targets))}

    return copied


def grow(what):
    """Append now, as a job does in the middle of an epoch."""
    for source, target in zip(what["from"], what["to"], strict=True):
        with ZarrData(target, capacity=10_000) as sink:
            sink.write(ZarrDataset(source).__getitems__(slice(None)))


@pytest.fixture(scope="module")
def grown(training, growing, tmp_path_factory):
    """A run whose stores grew in its first epoch, of 20 batches; later ones have 27."""
    root, new = growing("whole")
    job = job_of(root)
    output = tmp_path_factory.mktemp("grown")
    job["module"].update(BUDGET)
    whole = training(output, **job, grow={"at": [0, 3], **new})
    assert whole.codes == [0], whole.text
    assert [rest[:3] for rest in whole["epoch"]] == [[0, 54, 20], [1, 77, 27], [2, 77, 27]]
    return whole


@pytest.mark.parametrize(
    ("saved", "steps"),
    [*((saved, -1) for saved in SAVED), *((saved, 1000) for saved in SAVED_WITH_STEPS)],
)
def test_a_store_may_grow_before_a_run_is_resumed(training, growing, grown, tmp_path, saved, steps):
    root, new = growing(f"{saved} {steps}")
    job = {**job_of(root), "saving": SAVED[saved], "trainer": {"max_steps": steps}}
    job["module"].update(BUDGET)
    batch = 18 if saved == "inside" else 22
    more = {} if saved == "inside" else {"grow": {"at": [0, 3], **new}}
    killed = training(tmp_path / "run", **job, **more, kill=[batch, "start"])
    assert killed.codes == [-9], killed.text
    if saved == "inside":
        grow(new)
    resumed = training(tmp_path / "run", **job, resume=killed.last)
    assert assert_goes_on(resumed, grown) == (18 if saved == "inside" else 20)
    assert resumed["epoch"] == grown["epoch"][1:]


def test_a_run_that_came_to_its_end_goes_on_with_what_is_new(training, growing, grown, tmp_path):
    root, new = growing("ended")
    job = {**job_of(root), "saving": SAVED["epoch end"]}
    job["module"].update(BUDGET)
    first = training(tmp_path / "run", **job, trainer={"max_epochs": 1})
    assert first.codes == [0], first.text
    grow(new)
    resumed = training(tmp_path / "run", **job, resume=first.last)
    assert assert_goes_on(resumed, grown) == 20
    assert resumed["epoch"] == grown["epoch"][1:]


def test_a_second_fit_of_a_trainer_begins_with_what_is_new(training, growing, grown, tmp_path):
    root, new = growing("again")
    job = {**job_of(root), "trainer": {"max_epochs": 1}, "fits": [{}, {"max_epochs": 3}]}
    job["module"].update(BUDGET)
    run = training(tmp_path / "run", **job, grow={"at": [0, 3], **new})
    assert run.codes == [0], run.text
    assert run["epoch"] == grown["epoch"]
    assert run["train"] == grown["train"]


def test_parts_may_come_before_a_run_is_resumed(training, stores, growing, tmp_path):
    """A part that sorts before the others comes after them, as in the run that was not killed."""
    _, new = growing("of parts")

    def union(name):
        ZarrData(tmp_path / name, part="1").close()  # the parent
        for store, part in (("0", "part-1"), ("1", "part-2")):
            shutil.copytree(stores / store, tmp_path / name / part)
        targets = [str(tmp_path / name / part) for part in ("part-1", "part-0")]
        module = {"store": str(tmp_path / name), "split": [0.85, 0.15, 0.0], **BUDGET}
        return {"module": module, "saving": SAVED["inside"]}, {**new, "to": targets}

    job, more = union("whole")
    whole = training(tmp_path / "whole run", **job, grow={"at": [0, 3], **more})
    assert whole.codes == [0], whole.text
    assert [rest[1] for rest in whole["epoch"]] == [54, 77, 77]
    job, more = union("killed")
    killed = training(tmp_path / "run", **job, kill=[18, "start"])
    assert killed.codes == [-9], killed.text
    grow(more)
    resumed = training(tmp_path / "run", **job, resume=killed.last)
    assert assert_goes_on(resumed, whole) == 18
