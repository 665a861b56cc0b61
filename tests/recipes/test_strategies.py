"""The comparison of strategies, tiny: what arms choose, how they go on, and the table."""

import numpy as np
import pytest

pytest.importorskip("torch_geometric", reason="the extra 'train' is not installed")
pytest.importorskip("ase", reason="the extra 'ase' is not installed")

import strategies
import zarrpipe as zp
from strategies import Task, labels_needed, run_arm, saved_share, table
from zarrpipe.testing import assert_batches_equal

pytestmark = [
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]


@pytest.fixture(scope="module")
def pool(tmp_path_factory):
    """Directory with the pool, the first labels and the tests, of a quick calculator."""
    out = tmp_path_factory.mktemp("strategies")
    return make(out)


def make(out):
    for path, parts in strategies.frames_to_make(task_in(out)).items():
        found = [strategies.frames("EMT", part, stride=2, burn_in=2) for part in parts]
        strategies.write_frames(path, found)
    return out


def task_in(out, **more):
    tiny = {"pool": 60, "test": 12, "start": 1, "per_round": 4, "rounds": 2, "steps": 4}
    return Task(out, **tiny, first_steps=4, calculator="EMT", **more)


def labelled(out, rule, seed=0):
    return strategies.read_all(out / f"{rule}-{seed}" / "labelled.zarr")


def test_the_pool_has_the_shares(pool):
    dataset = zp.ZarrDataset(pool / "pool.zarr")
    molecules = dataset.read(range(len(dataset))).strings("molecule")
    share = list(molecules).count("CH3CH2OH") / len(molecules)
    assert share == pytest.approx(strategies.SHARES["CH3CH2OH"], abs=0.05)
    assert set(molecules) == set(strategies.SHARES)


@pytest.mark.parametrize("rule", ["random", "diverse"])
def test_each_label_has_its_life_and_is_chosen_once(pool, rule):
    rows = run_arm(task_in(pool), rule, 0)
    assert [row[:4] for row in rows] == [(rule, 0, n, 6 + 4 * n) for n in range(3)]
    found = labelled(pool, rule)
    places = found["place"].flatten().tolist()
    assert len(set(places[6:])) == 8
    assert list(found.strings("selected_by")) == ["start"] * 6 + [rule] * 8
    assert found["round"].flatten().tolist() == [0] * 6 + [1] * 4 + [2] * 4
    source = zp.ZarrDataset(pool / "pool.zarr").read(places[6:])
    assert found.index_select(range(6, 14)).positions.equal(source.positions)
    assert found.index_select(range(6, 14)).forces.equal(source.forces)
    assert np.isfinite(found["deviation"].flatten()[6:].numpy()).all()
    marks = zp.ZarrData(pool / f"{rule}-0" / "labelled.zarr").marks
    assert [mark.count for mark in marks.values()] == [6, 10, 14]


def test_an_arm_that_was_cut_off_goes_on_to_the_same_labels(pool, tmp_path, monkeypatch):
    whole = run_arm(task_in(pool), "diverse", 1)
    out = make(tmp_path)
    train, calls = strategies.train, []

    def interrupted(*given):
        calls.append(given)
        if len(calls) in (2, 4):
            raise KeyboardInterrupt
        train(*given)

    monkeypatch.setattr(strategies, "train", interrupted)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            run_arm(task_in(out), "diverse", 1)
    assert run_arm(task_in(out), "diverse", 1) == whole
    assert_batches_equal(labelled(out, "diverse", 1), labelled(pool, "diverse", 1))
    assert run_arm(task_in(out), "diverse", 1) == whole


def test_labels_needed():
    labels = [10, 20, 30]
    assert labels_needed(labels, [8.0, 4.0, 2.0], 4.0) == 20
    assert labels_needed(labels, [8.0, 4.0, 2.0], 3.0) == 25
    assert labels_needed(labels, [8.0, 4.0, 2.0], 9.0) == 10
    assert labels_needed(labels, [8.0, 4.0, 2.0], 1.0) == float("inf")


def test_the_table_says_what_was_saved():
    curves = {"random": [8.0, 6.0, 4.0], "deviation": [8.0, 4.0, 3.0], "diverse": [8.0, 7.0, 6.0]}
    curves["farthest"] = curves["random"]
    rows = [
        (rule, 0, number, 10 * (number + 1), error, error, 2 * error, error)
        for rule, errors in curves.items()
        for number, error in enumerate(errors)
    ]
    assert saved_share(rows, "deviation", 0, "usual") == pytest.approx(100 / 3)
    assert saved_share(rows, "diverse", 0, "usual") == pytest.approx(-100 / 3)
    assert saved_share(rows, "farthest", 0, "hot") == pytest.approx(0)
    lines = table(rows).splitlines()
    assert lines[3] == "| deviation | 3.0 | 3.00 | 33 % | 6.0 | 3.00 | 33 % |"
