"""Exports that `read_into` reads again have the samples of the store that they came from."""

import numpy as np
import pytest
import torch

import zarrpipe as zp

LABELS = ("energy", "forces", "stress", "virial", "dipole", "charges", "charge")
OWN = ("temperature", "round", "is_relaxed", "polar", "k_points", "run_id", "magmoms")
SAME = ("positions", "cell", "atomic_masses", "momenta", *LABELS, *OWN)


def check_same(after, before, names, tolerance):
    assert torch.equal(after.atomic_numbers, before.atomic_numbers)
    for name in names:
        if name not in before:
            empty = name == "cell" and not after[name].any()
            assert name not in after or empty, name
            continue
        found, expected = after[name].numpy().reshape(-1), before[name].numpy().reshape(-1)
        np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance, err_msg=name)
    pbc = before.pbc if "pbc" in before else torch.zeros(1, 3, dtype=torch.bool)
    assert torch.equal(after.pbc, pbc)
    for name in ("config_type", "mp_id"):
        assert (name in after) is (name in before)
        if name in before:
            assert after.strings(name) == before.strings(name)


@pytest.mark.parametrize("suffix", ["xyz", "traj", "db", "aselmdb"])
def test_samples_come_back(place, samples, tmp_path, suffix):
    if suffix == "aselmdb":
        pytest.importorskip("ase_db_backends.aselmdb")
    written = zp.write_out(place, tmp_path / f"out.{suffix}")
    zp.read_into(tmp_path / "again", written.path)
    again = zp.ZarrDataset(tmp_path / "again")
    assert len(again) == len(samples)
    for index, before in enumerate(samples):
        after = again[index]
        if suffix == "db" and index == 3:
            assert "energy" not in after  # SQLite has no NaN
            continue
        names = SAME if suffix == "traj" else (*SAME, "group", "hirshfeld")
        check_same(after, before, names, 5.1e-9 if suffix == "xyz" else 0.0)
    assert suffix not in ("db", "aselmdb") or again.units["temperature"] == "K"
    assert again.where("isolated_atom").tolist() == [2]
