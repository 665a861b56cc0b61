"""Fields that are searched for NaN, labels that are missing, and what is not checked."""

import numpy as np
import pytest

import zarrpipe as zp
from zarrpipe.reporting.values import measured

from .faulty import crystals
from .test_findings import found, only, written, written_samples


def with_fields(bad):
    """Crystals with a virial, a dipole, charges and own fields, of which some have NaN."""
    samples = []
    for serial, one in enumerate(crystals()):
        fields = {
            "virial": np.ones((3, 3)),
            "dipole": np.ones(3),
            "charges": np.ones(8),
            "gap": np.ones(1),
            "moment": np.ones((8, 3)),
        }
        for name, place in bad.items():
            if place == serial:
                fields[name].reshape(-1)[-1] = np.nan
        own, moment = {"gap": fields.pop("gap")}, fields.pop("moment")
        sample = zp.AtomicData(**{**one, **fields, "system": {**one["system"], **own}})
        sample.add_field("moment", moment, "atom")
        samples.append(sample)
    return written_samples(samples)


def test_every_field_of_floats_is_searched():
    bad = {"virial": 4, "dipole": 9, "charges": 11, "gap": 20, "moment": 31}
    report = zp.report(with_fields(bad))
    for name, place in bad.items():
        one = only(report, f"NaN or infinite {name}")
        assert one.samples == (place,)
        assert one.severity.value == ("warning" if name in ("gap", "moment") else "error")
    assert found(zp.report(with_fields({})), "NaN") == []


@pytest.mark.parametrize(("name", "named"), [("momenta", 0), ("virial", 1)])
def test_only_labels_are_missing(name, named):
    made = crystals()
    for one in made[10:]:
        one[name] = np.ones((8, 3) if name == "momenta" else (3, 3))
    assert len(found(zp.report(written(made)), f"without {name}")) == named


def test_what_is_not_checked(clean, monkeypatch):
    monkeypatch.setattr(measured, "_SUSPECTS", 3)
    report = zp.report(clean.store, max_samples=5)
    said = "; ".join(report.not_checked)
    assert "all energies share" in said
    assert f"distances in {90 - report.looked_at} samples (not searched)" in said
    assert "sign" not in said
    monkeypatch.undo()
    made = crystals()
    for one in made:
        one["cell"] = made[0]["cell"]
    report = zp.report(written(made))
    assert "sign of the stress (volumes do not vary within a composition)" in report.not_checked
    assert "distances" not in "; ".join(report.not_checked)
    both = zp.report(clean.store, clean.store).not_checked
    assert {one[:5] for one in both} == {"of A:", "of B:"}
