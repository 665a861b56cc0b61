"""Processes that are killed lose nothing; and a campaign sees what is lost, torn or wrong."""

import numpy as np
import pytest

from reliability import kills
from reliability.kills import History
from reliability.lives import Told
from reliability.model import State, explain
from reliability.report import Findings, Order
from reliability.truth import STRESSED, everything, numbers_of, samples, wrong_values
from zarrpipe import AtomicDataZarrWriter, ZarrData

STEP = ("write", {"start": 100, "count": 3, "variant": 0})
NEW = numbers_of(100, 3).tolist()


def test_kills_at_moments_that_nobody_chose(tmp_path, seed, quick):
    """How many strike inside of a method depends on how busy the machine is."""
    count = 10 if quick else 50
    found = kills.run(Order(tmp_path, seed, count=count))
    assert found.defects == []
    assert found.done["kills"] == count
    assert found.facts["share_of_kills_inside_a_method"] > (0 if quick else 0.2)
    assert found.done["samples compared"] > 2 * count


@pytest.mark.parametrize(
    ("step", "there", "kind"),
    [
        (None, [0, 1, 2], None),
        (None, [0, 2], "lost"),
        (None, [0, 1, 2, 3], "torn"),
        (None, [0, 2, 1], "wrong"),
        (None, [0, 1, 2, 2], "torn"),
        (STEP, [0, 1, 2, *NEW], None),
        (STEP, [0, 1, 2, *NEW[:1]], None),
        (STEP, [0, 1, 2, *NEW[1:]], "torn"),
        (STEP, [0, 1, *NEW], "lost"),
        (("delete", {"indices": [1]}), [0, 2], None),
        (("delete", {"indices": [1]}), [0, 1, 2], None),
        (("delete", {"indices": [1]}), [0, 1], "lost"),
        (("zero", {}), [], None),
        (("zero", {}), [0, 1], "lost"),
        (("compact", {}), [0, 1, 2], None),
        (("compact", {}), [], "lost"),
    ],
)
def test_what_a_kill_may_leave(step, there, kind):
    defect = explain(State((0, 1, 2)), step, there)
    assert (defect and defect[0]) == kind


def test_samples_are_told_by_their_numbers():
    store, numbers = {}, np.arange(90, 290)
    with ZarrData(store) as sink:
        for start in range(90, 290, 70):
            sink.write(samples(numbers[start - 90 : start - 20]))
    there = everything(store)
    assert there.num_graphs == 200
    assert wrong_values(there) is None
    assert "stress" in there
    assert wrong_values(there.index_select([7, 3, 180])) is None
    for name, row in {"stress": 15, "weight": 60, "neighbor_list": 3, "energy": 60}.items():
        damaged = everything(store)
        damaged[name][row] += 1
        assert wrong_values(damaged).startswith(f"{name!r} differs first at row {row}")


@pytest.mark.parametrize("held", [(), tuple(range(50))])
def test_a_first_write_meets_an_empty_store(tmp_path, held):
    """Otherwise it is refused, rightly, and the campaign would count that as a defect."""
    with ZarrData(tmp_path / "small" / "store", config={"core": {"chunk_size": 4}}):
        pass
    for seed in range(10):
        history = History(tmp_path / str(seed), "small", np.random.default_rng(seed))
        history.store, state = tmp_path / "small" / "store", State(held)
        history.state = state
        steps, armed = history.plan("first")
        assert steps[armed][0] == "first"
        for step in steps[:armed]:
            state = state.after(step)
        assert state.numbers == ()


def test_a_history_sees_samples_that_are_gone(tmp_path):
    """The same check as after a kill, on a store from which another took samples."""
    history = History(tmp_path, "small", np.random.default_rng(0))
    steps = [("write", {"start": 0, "count": 9, "variant": STRESSED})]
    with ZarrData(history.store, config={"core": {"chunk_size": 4}}) as sink:
        sink.write(samples(numbers_of(0, 9, STRESSED)))
    told, found = Told([None], [0.1], 1), Findings()
    assert history.check(steps, told, found) == "nothing"
    assert found.defects == []
    assert history.state.numbers == tuple(numbers_of(0, 9, STRESSED))
    with AtomicDataZarrWriter(history.store) as writer:
        writer.delete([4])
    history.check([], Told(), found)
    assert [kind for kind, _ in found.defects] == ["lost"]
    assert history.state == State()  # it goes on with a new store
    assert not history.store.exists()
