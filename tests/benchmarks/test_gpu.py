"""``make gpu`` on the CPU, tiny: its parts, their limits, its table and its exit codes."""

import json
import math
import time
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from benchmarks.gpu import __main__ as command
from benchmarks.gpu import device, marked, transfers, wait
from benchmarks.gpu.__main__ import Part, report
from benchmarks.rows import Row
from benchmarks.settings import SIZES, Settings

CPU = torch.device("cpu")


@pytest.fixture
def settings(tmp_path):
    return Settings(work=tmp_path, size=SIZES["small"], core=None)


def row(name, value, unit="us", **more):
    return Row("gpu", "case", name, value, unit, value, 2 * value, **more)


def test_without_a_device_it_says_so(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for built, why in (("13.0", "built for CUDA 13.0, finds none"), (None, "built without CUDA")):
        monkeypatch.setattr(torch.version, "cuda", built)
        assert command.main([]) == 2
        said = capsys.readouterr().err
        assert "no CUDA device" in said
        assert why in said
        assert "make gpu PYTHON=python3" in said


def test_a_table_and_the_parts_that_failed():
    ratio = {"pinned copy": 1.25}
    text = report(
        [
            Part("transfers", [row("Batch.to", 12.0, rounds=3, ratios=ratio)], ""),
            Part("wait", [row("wait", 1.5, "%")], "was stopped after 190 s"),
        ]
    )
    assert "| transfers | case | Batch.to | 12.0 us | 12.0 - 24.0 | 1.25 |" in text
    assert "| wait | case | wait | 1.50 % |  |  |" in text
    assert text.endswith("**wait** was stopped after 190 s: see above")
    assert "**transfers**" not in text


@pytest.mark.parametrize(("failure", "code"), [("", 0), ("ended with exit code 1", 1)])
def test_one_part_that_fails_fails_all(monkeypatch, tmp_path, capsys, failure, code):
    asked = []

    def run_part(name, limit, options):
        asked.append((name, limit, options.size))
        return Part(name, [row(name, 2.0)], failure if name == "wait" else "")

    monkeypatch.setattr(command, "run_part", run_part)
    out = tmp_path / "runs" / "gpu.jsonl"
    assert command.main(["--device", "cpu", "--out", str(out)]) == code
    assert asked == [(name, limit, "full") for name, limit in command.LIMITS.items()]
    assert [json.loads(line)["name"] for line in out.read_text().splitlines()] == [*command.LIMITS]
    assert json.loads(out.read_text().splitlines()[0])["facts"]["device"] == "cpu"
    said = capsys.readouterr().out
    assert ("**wait** ended with exit code 1" in said) is bool(code)
    assert f"torch {torch.__version__.partition('+')[0]}" in said


def test_all_parts_together_stay_under_eight_minutes():
    assert sum(command.LIMITS.values()) + 30 < 480


@pytest.fixture
def options(tmp_path):
    return command._arguments(
        ["--device", "cpu", "--size", "small", "--work", str(tmp_path / "work")]
    )


def test_a_part_that_takes_too_long_is_stopped_with_what_it_started(options, monkeypatch, tmp_path):
    mark = tmp_path / "mark"
    stand_in = tmp_path / "python"
    stand_in.write_text(f"#!/bin/sh\n(sleep 3; touch {mark}) &\nwait\n")
    stand_in.chmod(0o755)
    monkeypatch.setattr(command.sys, "executable", str(stand_in))
    part = command.run_part("transfers", 0.5, options)
    assert part == Part("transfers", [], "was stopped after 0 s")
    time.sleep(3)
    assert not mark.exists()


def test_what_a_part_measured_before_it_failed_is_kept(options, monkeypatch, tmp_path):
    line = json.dumps({**vars(row("Batch.to", 3.0)), "facts": {}})
    stand_in = tmp_path / "python"
    stand_in.write_text(f"#!/bin/sh\necho '{line}' > \"$6\"\nexit 3\n")
    stand_in.chmod(0o755)
    monkeypatch.setattr(command.sys, "executable", str(stand_in))
    part = command.run_part("transfers", 60, options)
    assert part == Part("transfers", [row("Batch.to", 3.0)], "ended with exit code 3")


def test_transfers_beside_a_copy(settings, monkeypatch):
    monkeypatch.setattr(transfers, "DRAWN", 400)
    found = list(transfers.rows(settings, CPU))
    assert {one.case for one in found if "epochs" in one.case} == {
        "molecules, batches of 64, 40 kB, epochs",
        "molecules, batches of 300, 190 kB, epochs",
        "structures, batches of 64, 227 kB, epochs",
        "structures, batches of 150, 536 kB, epochs",
    }
    names = [one.name for one in found if one.case == "molecules, batches of 64, 40 kB"]
    assert names == [
        "pinned copy",
        "copy of pageable memory",
        "Batch.to",
        "read, Batch.to",
        "resident gather",
    ]
    for one in found:
        assert one.unit == "us"
        assert all(map(math.isfinite, (one.value, one.low, one.high, *one.ratios.values())))
        assert one.value > 0
        assert (one.ratios["pinned copy"] == 1) or one.name != "pinned copy"


def test_wrong_values_on_the_device_stop_it(settings, monkeypatch):
    monkeypatch.setattr(transfers, "DRAWN", 400)
    right = transfers.moved

    def moved(batch, where):
        there = right(batch, where).clone()
        return there.add_field("energy", there.energy + 1e-6)

    monkeypatch.setattr(transfers, "moved", moved)
    with pytest.raises(AssertionError, match="energy"):
        next(transfers.rows(settings, CPU))


def test_a_plain_copy_has_as_many_bytes_as_the_batch():
    copy = transfers.copies([10, 30], CPU)
    assert [copy(0).nbytes, copy(1).nbytes] == [10, 30]
    assert not device.host_bytes(8, CPU).is_pinned()


XML = """<testsuites><testsuite>
<testcase name="a"/><testcase name="b"><failure/></testcase><testcase name="c"><error/></testcase>
<testcase name="d"><skipped/></testcase><testcase name="e"/>
</testsuite></testsuites>"""
SKIPPED = "<testsuites><testsuite><testcase name='a'><skipped/></testcase></testsuite></testsuites>"
PASSED = SKIPPED.replace("</testsuite>", "<testcase name='b'/></testsuite>")


@pytest.mark.parametrize(
    ("xml", "numbers", "passes"),
    [(XML, (2, 2, 1), False), (SKIPPED, (0, 0, 1), False), (PASSED, (1, 0, 1), True)],
)
def test_outcomes_of_the_marked_tests(settings, monkeypatch, xml, numbers, passes):
    asked = []

    def run(arguments):
        asked.extend(arguments)
        (report,) = (one for one in arguments if one.startswith("--junit-xml="))
        Path(report.partition("=")[2]).write_text(xml)

    monkeypatch.setattr(marked.pytest, "main", run)
    found = marked.rows(settings, CPU)
    rows = [next(found) for _ in marked.OUTCOMES]
    assert tuple(one.value for one in rows) == numbers
    if passes:
        assert list(found) == []
    else:
        with pytest.raises(SystemExit, match="failed, or none passed"):
            next(found)
    assert asked[:2] == ["-m", "gpu"]
    names = {Path(one).name for one in asked}
    assert {"test_resident.py", "test_batch.py", "test_batch_layout.py"} <= names


@pytest.mark.slow
def test_the_wait_of_a_small_mace(tmp_path, monkeypatch):
    if find_spec("mace") is None:
        pytest.skip("MACE is not installed")
    monkeypatch.setattr(wait, "WARM_UP", 2)
    store = wait.written(tmp_path, 12)
    assert wait.written(tmp_path, 12) == store
    for options in wait.WAYS.values():
        flow = wait.trained(store, CPU, 4, 3, **options)
        assert (flow.batches, flow.samples) == (3, 12)
        assert 0 < flow.wait < 1
        assert flow.seconds > flow.waited > 0
