"""What one of two stores has that the other lacks."""

import numpy as np
import pytest

import zarrpipe as zp
from zarrpipe.reporting.contents import Kind

from .faulty import FEW, crystals
from .test_findings import written


@pytest.fixture(scope="module")
def report(faulty, clean):
    return zp.report(clean.store, faulty.store)


def test_findings_say_which_store(report):
    assert {one.store for one in report.findings} == {1}
    (one,) = [one for one in report.findings if "another energy than in A" in one.title]
    assert {*one.samples} == {*FEW["kcal"]}


def test_contents(report):
    (one,) = [one for one in report.sections if one.name == "comparison"]
    rows = {row[0]: row[1:] for row in one.tables[0].rows}
    # other structures: the exploded one, that of the wrong element, and the one that 18 replaces
    assert rows["structures"] == ("2", "3", "87")
    assert rows["compositions"] == ("1", "0", "3")
    assert rows["elements"] == ("1: Pb", "0", "3: Cu Pd Au")
    assert rows["most frequent of these compositions"][0] == "Au3Cu4Pb (1)"
    (table,) = one.tables[1:]
    assert {(row[0], row[1]) for row in table.rows} == {(f"{n}", f"{n}") for n in FEW["kcal"]}


def test_each_figure_has_both(report):
    for part in report.sections:
        for figure in part.figures:
            assert [one.name[:2] for one in figure.series] == ["A:", "B:"], figure.name
            if figure.kind is Kind.HISTOGRAM:
                assert figure.y_label.startswith("share of")
                assert not figure.log_y
                assert [0.9 < one.y.sum() <= 1.001 for one in figure.series] == [True, True]


def test_structures_of_both(report):
    shown = report.structures
    assert shown.samples.max() >= 90
    stores = np.array(shown.properties["store"])
    assert ((stores == "B") == (shown.samples >= 90)).all()
    assert shown.samples[shown.orders["largest force"][0]] == 90 + 41


def test_a_region_that_the_first_lacks():
    made = crystals()
    copper = written([one for one in made if one["system"]["config_type"] == "copper"])
    report = zp.report(copper, written(made))
    (one,) = [one for one in report.sections if one.name == "comparison"]
    assert "of B 66.7% are farther" in one.text
    (note,) = [one for one in report.findings if one.severity == "note"]
    assert note.text == "Pd, Au"


def test_several_stores_as_one(clean):
    made = crystals()
    halves = [written(made[:40]), written(made[40:])]
    one, other = zp.report(halves), zp.report(clean.store)
    assert one.samples == 90
    for name in ("atoms", "elements", "compositions", "spread of energies (eV/atom)"):
        assert one.facts[name] == other.facts[name]


def test_other_dtypes(clean):
    made = crystals()
    for one in made:
        for name in ("positions", "forces", "cell", "stress"):
            one[name] = np.asarray(one[name], dtype=np.float32)
    report = zp.report(clean.store, written(made))
    assert report.structures.batch.num_graphs > 100
