"""Turns, ratios and what is made of them, with clocks that are made up."""

import doctest
import itertools
import json

import numpy as np
import pytest

from benchmarks import report, rows, timing
from benchmarks.bars import Bar, bars_table, measured
from benchmarks.rows import Row, by_case, read_rows, table, write_rows
from benchmarks.timing import Task, Timing, in_turn, speed_ratio, time_ratio


class Clock:
    """Time that passes only when a step says so."""

    def __init__(self, monkeypatch):
        self.now = 0.0
        monkeypatch.setattr(timing, "perf_counter", lambda: self.now)

    def step(self, seconds, log=None):
        """Step that takes a time, or the times of an iterator one after the other."""
        lasting = itertools.repeat(seconds) if isinstance(seconds, float) else seconds

        def run(request):
            self.now += next(lasting)
            if log is not None:
                log.append(request)

        return run


@pytest.fixture
def clock(monkeypatch):
    return Clock(monkeypatch)


def test_ratios_are_taken_in_each_round():
    slow_machine = np.array([1.0, 10.0, 1.0, 10.0, 1.0])
    one, two = Timing("one", 2.0 * slow_machine), Timing("two", 1.0 * slow_machine)
    assert time_ratio(one, two) == 2.0
    assert speed_ratio(one, two) == 0.5
    shuffled = Timing("two", slow_machine[::-1])
    assert time_ratio(one, shuffled) == 2.0


def test_a_ratio_is_over_the_rounds_of_both():
    one = Timing("one", np.array([4.0, np.nan, 8.0]))
    two = Timing("two", np.array([1.0, 5.0, 4.0]))
    assert time_ratio(one, two) == 3.0
    assert one.rounds == 2


def test_quartiles_of_speeds():
    taken = Timing("one", np.array([np.nan, 1.0, 2.0, 4.0, 8.0, 16.0]))
    assert taken.quartiles(lambda seconds: 16 / seconds) == (4.0, 2.0, 8.0)


def test_every_task_reads_the_same_requests_in_every_round(clock):
    one, two = [], []
    tasks = [Task("one", clock.step(0.1, one), "abcd"), Task("two", clock.step(0.2, two), "abcd")]
    found = in_turn(tasks, rounds=3)
    assert "".join(one)[-12:] == "".join(two)[-12:] == "abcd" * 3
    np.testing.assert_allclose([t.seconds for t in found], [[0.1] * 3, [0.2] * 3])


def test_another_task_begins_each_round(clock):
    order = []
    tasks = [
        Task(name, lambda _, name=name: (order.append(name), clock.step(0.5)(None))[1])
        for name in "abc"
    ]
    in_turn(tasks, rounds=3)
    assert "".join(order)[-9:] == "abcbcacab"


def test_a_slow_task_reads_the_first_of_the_requests_and_sits_rounds_out(clock):
    log = []
    tasks = [
        Task("fast", clock.step(0.001), range(100)),
        Task("slow", clock.step(1.0, log), range(100)),
    ]
    fast, slow = in_turn(tasks, rounds=10, round_seconds=0.1, task_seconds=2.0)
    assert fast.rounds == 10
    assert slow.rounds == 2
    np.testing.assert_array_equal(np.isfinite(slow.seconds), np.arange(10) % 5 == 0)
    assert set(log[-2:]) == {0}
    assert time_ratio(slow, fast) == pytest.approx(1000.0)


def test_at_least_so_many_steps_of_a_round_are_done(clock):
    log = []
    in_turn([Task("a", clock.step(1.0, log), range(9), least=7)], rounds=1, round_seconds=0.1)
    assert log[-7:] == list(range(7))


def row(name, value, **more):
    return Row("suite", "case", name, value, "ms", value, value, 3, **more)


def test_rows_come_back_and_later_ones_count(tmp_path):
    first = [row("a", 1.0, ratios={"a": 1.0}), row("b", 2.0, ratios={"a": 2.0}, note="half")]
    write_rows(tmp_path / "one" / "rows.jsonl", first, {"cpu": "old"})
    write_rows(tmp_path / "one" / "rows.jsonl", [row("a", 3.0)], {"cpu": "new"})
    found, facts = read_rows([tmp_path / "one" / "rows.jsonl"])
    assert found == [row("a", 3.0), first[1]]
    assert facts == {"cpu": "new"}
    lines = (tmp_path / "one" / "rows.jsonl").read_text().splitlines()
    assert [json.loads(line)["name"] for line in lines] == ["a", "b", "a"]


def test_tables():
    some = [row("a", 1500.0, ratios={"a": 1.0}), row("b", 0.0123, ratios={"a": 0.1}, note="x")]
    assert table(some).splitlines()[1].split() == [
        "a",
        "1",
        "500",
        "1",
        "500",
        "-",
        "1",
        "500",
        "1.00",
    ]
    markdown = table(some, markdown=True).splitlines()
    assert markdown[0] == "|  | ms | quartiles | / a |"
    assert markdown[3] == "| b * | 0.0123 | 0.0123 - 0.0123 | 0.100 |"
    assert list(by_case(some)) == [("suite", "case", "ms")]


@pytest.mark.parametrize(
    ("bar", "expected"),
    [
        (Bar("least", "suite", "*", "zarrpipe", 1.5, "floor"), (1.2, False)),
        (Bar("least", "suite", "one", "zarrpipe", 1.5, "floor"), (2.0, True)),
        (Bar("most", "suite", "*", "zarrpipe", 2.0, "floor", most=True), (2.0, True)),
        (Bar("inverse", "suite", "*", "slow", 20, "zarrpipe", inverse=True), (25.0, True)),
        (Bar("value", "suite", "*", "zarrpipe", 5.0, most=True), (10.0, False)),
        (Bar("or", "suite", "*", "zarrpipe", 1.0, "floor", most=True, or_value=10), (2.0, True)),
        (Bar("reported", "suite", "*", "zarrpipe", None, "floor"), (1.2, None)),
        (Bar("nothing", "suite", "*", "none", 1.0), None),
        (Bar("no such reference", "suite", "*", "zarrpipe", 1.0, "none"), None),
    ],
)
def test_a_bar_takes_the_worst_case(bar, expected):
    found = [
        Row.single("suite", "one", "zarrpipe", 10.0, "ms", {"floor": 2.0}),
        Row.single("suite", "two", "zarrpipe", 9.0, "ms", {"floor": 1.2}),
        Row.single("suite", "one", "slow", 10.0, "ms", {"zarrpipe": 0.04}),
        Row.single("other", "one", "zarrpipe", 10.0, "ms", {"floor": 0.1}),
    ]
    assert measured(bar, found) == expected
    assert (bar.what in bars_table(found, [bar])) is (expected is not None)


@pytest.mark.parametrize("module", [rows, report])
def test_examples(module):
    assert doctest.testmod(module).failed == 0
