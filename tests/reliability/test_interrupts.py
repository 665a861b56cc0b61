"""Calls that are interrupted at some of their lines; and what interrupts leave wrong is seen."""

import threading

from reliability import interrupts
from reliability.interrupts import Interruption, Tracer, interrupt, places
from reliability.report import Findings, Order
from reliability.scenarios import SCENARIOS
from zarrpipe.store.write.store_writer import StoreWriter


def test_some_lines_of_some_calls(tmp_path, seed):
    found = interrupts.run(Order(tmp_path, seed, count=12))
    assert found.defects == []
    assert found.done["interrupted"] >= 8


def test_handlers_at_some_lines_of_a_write(tmp_path, seed):
    found = interrupts._scenario(tmp_path, "plain", "write", seed, 2)
    assert found.defects == []
    assert found.done["handler points"] == 10


def test_no_interrupt_keeps_a_with_statement_from_ending(monkeypatch):
    """A tracer could raise between a block and its end, where Python handles no signal."""
    monkeypatch.setattr(interrupts, "_TRACED", (__file__,))
    lock = threading.Lock()

    def block():
        with lock:
            try:
                return len("a call")
            finally:
                len("another")

    number, interrupted = 0, True
    while interrupted:
        with Tracer(number, interrupt).tracing():
            try:
                interrupted = not block()
            except KeyboardInterrupt:
                assert not lock.locked()
        number += 1
    assert number == 4


def test_a_writer_that_goes_on_with_its_memory_is_seen(tmp_path, monkeypatch):
    """As before there was only one rule: it believes what it remembers, not what is stored."""
    monkeypatch.setattr(StoreWriter, "closed", property(lambda self: self._session.ended))
    monkeypatch.setattr(StoreWriter, "abandon", lambda self: None)
    found, scenario = Findings(), SCENARIOS["write"]
    place = places()["plain"](tmp_path / "place")
    prepared = scenario.prepare(place)
    place.keep()
    trial = Interruption(place, scenario, "write", found)
    lines, _ = interrupts._lines_of(trial, prepared)
    behind = [
        number
        for number, (path, _) in enumerate(lines)
        if path.endswith("store_writer.py") and number > 0.7 * len(lines)
    ]
    for number in behind:
        trial.make_at(prepared, Tracer(number), f"event {number}")
    assert found.defects
