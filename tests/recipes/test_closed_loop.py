"""The closed loop, tiny: the life of its labels, kills at any moment, and an oracle that fails."""

import csv
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from ase.calculators.calculator import CalculationFailed
from ase.calculators.emt import EMT

import closed_loop
import zarrpipe as zp
from closed_loop import HEADER, Settings, main, read_settings
from zarrpipe.ml import load
from zarrpipe.testing import assert_batches_equal

LOOP = Path(closed_loop.__file__)
TINY = {
    "labels": (6, 4),
    "rounds": 2,
    "members": 2,
    "steps": 4,
    "batch_size": 3,
    "walkers": 3,
    "snapshots": 3,
    "stride": 2,
    "ceiling": 1e9,
    "test_frames": 3,
}

pytestmark = [
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::RuntimeWarning"),
]


class Killed(BaseException):
    """Stands for a kill: nothing in the recipe catches it."""


def here(function, *arguments, chunksize=1):
    """Map of a pool, in this process."""
    del chunksize
    return [function(*given) for given in zip(*arguments, strict=False)]


def labelled(out):
    return zp.ZarrData(out / "labelled.zarr").read()


@pytest.fixture(autouse=True)
def _quick_oracle(monkeypatch):
    monkeypatch.setattr(closed_loop, "oracle", EMT)
    monkeypatch.setattr(closed_loop, "finish", lambda _: None)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Directory of a run that nothing disturbed."""
    out, threads = tmp_path_factory.mktemp("whole"), torch.get_num_threads()
    torch.set_num_threads(1)  # sums in another order differ in the last bit
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(closed_loop, "oracle", EMT)
        patch.setattr(closed_loop, "finish", lambda _: None)
        main(Settings(out, **TINY), here)
    torch.set_num_threads(threads)
    return out


def test_each_label_has_its_life(whole):
    found = labelled(whole)
    assert found["round"].flatten().tolist() == [0] * 6 + [1] * 4 + [2] * 4
    assert list(found.strings("selected_by")) == ["dynamics of the oracle"] * 6 + ["diverse"] * 8
    assert set(found.strings("source")) == {"500 K", "650 K", "800 K"}
    assert set(found.strings("status")) == {"labelled"}
    deviation = found["deviation"].flatten().numpy()
    assert np.isnan(deviation[:6]).all()
    assert (deviation[6:] > 0).all()
    for number in (1, 2):
        members = [whole / f"checkpoints/round-{number - 1}-member-{m}.ckpt" for m in (0, 1)]
        models = set(found.index_select(found["round"].flatten() == number).strings("model"))
        assert models == {load(members).fingerprint()}
    with zp.ZarrData(whole / "labelled.zarr") as sink:
        assert [mark.count for mark in sink.marks.values()] == [6, 10, 14]
    newest = zp.ZarrDataset(whole / "labelled.zarr", where="round == 2 and status == 'labelled'")
    assert len(newest) == 4


def test_labels_are_those_of_the_oracle(whole):
    for atoms in zp.adapters.to_ase(labelled(whole)):
        stated = atoms.get_potential_energy(), atoms.get_forces()
        atoms.calc = EMT()
        assert stated[0] == pytest.approx(atoms.get_potential_energy(), abs=1e-9)
        assert stated[1] == pytest.approx(atoms.get_forces(), abs=1e-5)


def test_the_table_has_a_row_for_each_round(whole):
    with (whole / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert tuple(rows[0]) == HEADER
    assert [(row["round"], row["labels"]) for row in rows] == [("0", "6"), ("1", "10"), ("2", "14")]
    assert all(float(row[name]) > 0 for row in rows for name in HEADER[3:])


def test_killed_at_ten_moments_it_gives_the_same_labels(whole, tmp_path, monkeypatch):
    """Before a task of the pool, or before or after a change of a store."""
    left = [0]

    def step():
        left[0] -= 1
        if left[0] == 0:
            raise Killed

    def killable(name):
        usual = getattr(zp.ZarrData, name)

        def call(sink, *given, **more):
            step()
            answer = usual(sink, *given, **more)
            step()
            return answer

        return call

    def run(function, *arguments, **more):
        for given in zip(*arguments, strict=False):
            step()
            yield from here(function, *([one] for one in given), **more)

    for name in ("write", "mark", "drain", "zero"):
        monkeypatch.setattr(zp.ZarrData, name, killable(name))
    moments = np.random.default_rng(0).integers(3, 14, 10).tolist()
    for moment in moments:
        left[0] = moment
        with pytest.raises(Killed):
            main(Settings(tmp_path, **TINY), run)
    left[0] = 0
    main(Settings(tmp_path, **TINY), run)
    assert_batches_equal(labelled(tmp_path), labelled(whole))
    assert (tmp_path / "metrics.csv").read_text() == (whole / "metrics.csv").read_text()
    left[0] = 0
    main(Settings(tmp_path, **TINY), run)  # there is nothing left to do
    assert_batches_equal(labelled(tmp_path), labelled(whole))


def test_a_candidate_that_cannot_be_labelled_is_set_aside_with_the_reason(
    whole, tmp_path, monkeypatch
):
    calls = []

    class Failing(EMT):
        def calculate(self, atoms=None, *given):
            calls.append(atoms)
            if len(calls) == 5:
                raise CalculationFailed("no convergence")
            super().calculate(atoms, *given)

    frames = closed_loop.reference_frames
    monkeypatch.setattr(closed_loop, "reference_frames", lambda *given: with_emt(frames, given))

    def with_emt(function, given):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(closed_loop, "oracle", EMT)
            return function(*given)

    for kelvin in (500, 800):
        zp.copy(whole / f"test-{kelvin}.zarr", tmp_path / f"test-{kelvin}.zarr")
    monkeypatch.setattr(closed_loop, "oracle", Failing)
    main(Settings(tmp_path, **(TINY | {"rounds": 0})), here)
    assert labelled(tmp_path).num_graphs == 5
    failed = zp.ZarrData(tmp_path / "failed.zarr").read()
    assert list(failed.strings("status")) == ["failed: CalculationFailed"]
    first = labelled(whole).index_select(range(6))
    assert failed.positions.equal(first.index_select([4]).positions)
    expected = first.index_select([0, 1, 2, 3, 5])
    assert labelled(tmp_path).forces.equal(expected.forces)


def test_a_committee_that_is_trusted_nowhere_is_named(whole, tmp_path):
    for kelvin in (500, 800):
        zp.copy(whole / f"test-{kelvin}.zarr", tmp_path / f"test-{kelvin}.zarr")
    with pytest.raises(RuntimeError, match="no frame of round 1 deviates by less than 0"):
        main(Settings(tmp_path, **(TINY | {"ceiling": 0.0})), here)
    assert labelled(tmp_path).num_graphs == 6


@pytest.mark.parametrize("rule", ["random", "deviation", "farthest"])
def test_other_rules_begin_with_the_same_labels(whole, tmp_path, rule):
    for kelvin in (500, 800):
        zp.copy(whole / f"test-{kelvin}.zarr", tmp_path / f"test-{kelvin}.zarr")
    main(Settings(tmp_path, rule=rule, **(TINY | {"rounds": 1})), here)
    found = labelled(tmp_path)
    first = labelled(whole).index_select(range(6))
    assert found.index_select(range(6)).forces.equal(first.forces)
    assert list(found.strings("selected_by"))[6:] == [rule] * 4


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--labels", "[2, 4]"], "labels"),
        (["--rounds", "-1"], "rounds"),
        (["--rule", "best"], "rule"),
    ],
)
def test_wrong_settings_are_refused(arguments, told):
    with pytest.raises(ValueError, match=told):
        read_settings(arguments)


@pytest.mark.slow
def test_the_command_draws_its_figures(tmp_path):
    command = [sys.executable, str(LOOP), "--out", str(tmp_path / "run"), "--rounds", "1"]
    for name in ("members", "steps", "walkers", "snapshots", "stride", "test_frames"):
        command += [f"--{name}", str(TINY[name])]
    done = subprocess.run(
        [*command, "--labels", "[6, 4]", "--ceiling", "1e9"],
        check=True,
        capture_output=True,
        text=True,
        timeout=900,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert "report.html" in done.stdout
    for name in ("learning_curve.png", "report.html", "metrics.csv"):
        assert (tmp_path / "run" / name).stat().st_size > 100
    assert len(zp.ZarrDataset(tmp_path / "run" / "labelled.zarr")) == 10
