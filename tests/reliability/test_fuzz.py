"""Damaged stores are refused or read right; and the campaign sees what is not."""

import numpy as np
import pytest

from reliability import fuzz, fuzz_damage
from reliability.fuzz import Outcome
from reliability.report import Findings, Order
from zarrpipe.store.read.view import StoreView
from zarrpipe.testing import numbered_batch


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2])
def test_damaged_stores(tmp_path, seed):
    check(fuzz.run(Order(tmp_path, seed, count=100)), 100)


def test_damaged_stores_that_are_drawn(tmp_path, seed, quick):
    count = 40 if quick else 100
    check(fuzz.run(Order(tmp_path, seed, count=count)), count)


def test_a_document_that_does_not_end_is_no_document_to_edit(tmp_path):
    (tmp_path / "zarr.json").symlink_to("/dev/zero")
    for change in (fuzz_damage._edit, fuzz_damage._text):
        assert change(tmp_path, np.random.default_rng(0)) == "nothing"


def test_an_append_may_bring_the_edges_back_that_were_not_asked_for(tmp_path):
    """Where the schema lost the only field of edges."""
    found = fuzz.run(Order(tmp_path, 3, only="6770"))
    assert found.defects == []
    assert found.done["fewer"] == 1


def check(found, count):
    assert found.defects == []
    assert found.done["cases"] == count
    assert found.done["error"] > count // 5
    assert found.done["same"] > count // 20


def crash():
    import os  # noqa: PLC0415
    import signal  # noqa: PLC0415

    os.kill(os.getpid(), signal.SIGBUS)


def hang():
    while True:
        pass


def demand():
    return bytearray(1 << 40)


def read_wrongly():
    return Outcome("wrong", "positions differs")


@pytest.mark.parametrize(
    ("read", "what", "kind"),
    [
        (crash, "killed", "crashed"),
        (hang, "hung", "crashed"),
        (demand, "foreign", "unclear"),
        (read_wrongly, "wrong", "wrong"),
    ],
)
def test_what_is_a_defect(monkeypatch, read, what, kind):
    monkeypatch.setattr(fuzz, "_SECONDS", 1)
    outcome = fuzz._in_child(read)
    assert outcome.what == what
    findings = Findings()
    outcome.base, outcome.done = "plain", "edit: zarr.json"
    fuzz._count(findings, findings.done.__class__(), 1, 2, outcome)
    assert [found for found, _ in findings.defects] == [kind]
    assert "seed 1 case 2 (plain; edit: zarr.json)" in findings.defects[0][1]


@pytest.mark.parametrize(
    ("done", "base", "known"),
    [
        ("flip chunk: core/forces/c/0/0", "plain", True),
        ("edit: zarr.json; pointer: atoms_ptr[3] = 1", "plain", True),
        ("remove: core/forces/c/0/0", "plain", False),
        ("remove: core/forces/c/0/0", "zstd", True),
        ("remove: core/forces/zarr.json", "zstd", False),
        ("resize: core/forces/c/0/0 to 1 bytes", "plain", False),
    ],
)
def test_what_only_checksums_could_tell(done, base, known):
    assert bool(fuzz._not_to_be_known(Outcome("wrong", "", base, done))) is known


def test_differences():
    batch = numbered_batch(range(20))
    truth = fuzz.flattened(batch)
    assert fuzz._difference(batch, truth) == ""
    assert fuzz._difference(numbered_batch(range(7)), truth) == "fewer: 7 samples"
    other = numbered_batch(range(20))
    other["forces"][3, 1] += 1
    assert fuzz._difference(other, truth) == "forces differs"
    shifted = numbered_batch(range(1, 20))
    assert fuzz._difference(shifted, truth) == ":atoms differs"


def test_stores_are_what_they_are_said_to_be(tmp_path):
    names, truths = fuzz._prepared(tmp_path)
    for name in names:
        view = StoreView(tmp_path / "bases" / name)
        found = view.gather(np.arange(view.num_samples))
        assert fuzz._difference(found, truths[name]) == "", name
