"""The numbers of sections, structures and the map are those of the samples."""

import json

import numpy as np
import pytest
from ase.data import covalent_radii

import zarrpipe as zp
from zarrpipe.reporting.contents import Kind
from zarrpipe.reporting.sections.plots import summary
from zarrpipe.reporting.values import distances
from zarrpipe.reporting.values.distances import RADII
from zarrpipe.reporting.values.energies import robust_fit
from zarrpipe.reporting.values.measured import Settings, measured
from zarrpipe.reporting.values.scan import scan, scanned_rows, spread_rows

from .faulty import FEW


@pytest.fixture(scope="module")
def report(faulty):
    return zp.report(faulty.store)


def section(report, name):
    (one,) = [one for one in report.sections if one.name == name]
    return one


def figure(report, name):
    (one,) = [one for part in report.sections for one in part.figures if one.name == name]
    return one


def test_sections_in_their_order(report):
    assert [one.name for one in report.sections] == [
        *("overview", "sizes", "elements", "compositions", "presence", "energies", "forces"),
        *("stress", "volume", "distances", "map", "outliers", "repeated", "groups", "splits"),
    ]


def test_the_name_of_a_store_is_whole(tmp_path):
    for name in ("it's", 'a "store"'):
        sample = zp.AtomicData([[0.0, 0.0, 0.0]], [2])
        with zp.ZarrData(tmp_path / name) as sink:
            sink.write(sample)
        assert zp.report(tmp_path / name).stores == (f"{tmp_path}/{name}",)
    assert zp.report([tmp_path / name] * 2).stores == (f"[{tmp_path}/{name}, {tmp_path}/{name}]",)


def test_facts(report):
    assert report.facts["samples"] == report.samples == report.looked_at == 90
    assert report.facts["atoms"] == 720
    assert report.facts["elements"] == ["Cu", "Pd", "Au", "Pb"]
    assert report.facts["with forces"] == 86
    assert report.facts["largest force (eV/Angstrom)"] > 6000


def test_atoms_and_samples_by_element(report):
    assert figure(report, "elements_atoms").kind is Kind.ELEMENTS
    for name, counts in (("atoms", (360, 240, 119, 1)), ("samples", (60, 30, 30, 1))):
        (series,) = figure(report, f"elements_{name}").series
        assert series.labels == ("Cu", "Pd", "Au", "Pb")
        assert tuple(series.y) == counts


def test_histograms_count_every_force_once(report, faulty):
    every, *by_element = figure(report, "forces").series
    assert every.y.sum() == 8 * 86
    assert sum(one.y.sum() for one in by_element) == every.y.sum()
    assert len(every.x) == len(every.y) + 1
    norms = np.concatenate(
        [np.linalg.norm(one.forces.numpy(), axis=1) for one in faulty.samples if "forces" in one]
    )
    assert np.array_equal(np.histogram(norms, every.x)[0], every.y)


def test_pressures_are_in_gigapascal(clean):
    """As ASE has them, by another way."""
    (series,) = figure(zp.report(clean.store), "pressures").series
    pressures = [-160.2176621 * np.trace(one.stress.numpy()[0]) / 3 for one in clean.samples]
    assert series.x[0] == pytest.approx(min(pressures), rel=1e-6)
    assert series.x[-1] == pytest.approx(max(pressures), rel=1e-6)
    assert series.y.sum() == 90


def test_outliers_of_the_energy_are_the_faults(report):
    (table,) = [one for one in section(report, "outliers").tables if "energy" in one.title]
    assert table.rows[0][0] == "41"
    assert {int(row[0]) for row in table.rows[:4]} == {*FEW["exploded"], *FEW["kcal"]}


def test_reference_energies_are_not_changed_by_the_faults(faulty, clean):
    tables = [section(zp.report(one.store), "elements").tables[0] for one in (faulty, clean)]
    by_element = [{row[0]: float(row[3]) for row in table.rows} for table in tables]
    for symbol, energy in by_element[1].items():
        assert by_element[0][symbol] == pytest.approx(energy, abs=0.05)


def test_the_fit_takes_the_majority():
    random = np.random.default_rng(0)
    counts = np.zeros((300, 119))
    counts[:, [1, 8]] = random.integers(1, 9, (300, 2))
    energies = counts[:, 1] * -13.6 + counts[:, 8] * -432.0
    energies[::3] *= 23.06
    fitted = robust_fit(counts, energies)
    assert fitted[[1, 8]] == pytest.approx([-13.6, -432.0], abs=1e-3)
    assert np.isnan(fitted[6])


def test_structures_are_those_of_the_store(report, faulty):
    shown = report.structures
    assert shown.batch.num_graphs == len(shown.samples) == 90
    for place, sample in enumerate(shown.samples):
        one, other = shown.batch.get_data(place), faulty.samples[sample]
        assert np.array_equal(one.positions.numpy(), other.positions.numpy())
        assert shown.properties["sample"][place] == sample
    first = shown.samples[shown.orders["largest force"]]
    assert first[0] == 41
    assert shown.samples[shown.orders["shortest distance"]][0] == 41
    assert {*shown.samples[shown.orders["most unusual energy"]][:4]} == {41, *FEW["kcal"]}
    named = [sample for one in report.findings for sample in one.samples]
    assert {*named} == {*shown.samples[: len({*named})]}


def test_properties_are_numbers_of_the_samples(report):
    shown, at = report.structures, [*report.structures.samples].index(41)
    assert shown.properties["nearest_distance"][at] == pytest.approx(0.35)
    assert shown.properties["nearest_ratio"][at] == pytest.approx(0.35 / 2.78)
    assert shown.properties["formula"][at] == "Pd8"
    assert shown.properties["config_type"][at] == "palladium"
    assert shown.properties["split"][at] in {"train", "val", "test"}
    assert all(len(values) == 90 for values in shown.properties.values())


def test_the_map_sets_compositions_apart(report):
    points = figure(report, "map")
    assert points.kind is Kind.POINTS
    middles = {one.name: (one.x.mean(), one.y.mean()) for one in points.series}
    assert {*middles} == {f"config_type {kind}" for kind in ("copper", "alloy", "palladium")}
    own = max(max(one.x.std(), one.y.std()) for one in points.series)
    apart = [np.hypot(*np.subtract(a, b)) for a in middles.values() for b in middles.values()]
    assert sorted(apart)[3] > 3 * own
    shown = report.structures
    series = points.series[0]
    place = [*shown.samples].index(series.samples[0])
    assert shown.properties["map_1"][place] == pytest.approx(series.x[0])
    assert shown.properties["map_2"][place] == pytest.approx(series.y[0])


def test_the_same_seed_gives_the_same_report(faulty):
    one, other = (zp.report(faulty.store, max_samples=30, seed=3).to_dict() for _ in range(2))
    assert json.dumps(one) == json.dumps(other)


def test_broken_frames_are_found_among_few_that_are_looked_at(faulty):
    """The suspects are looked at besides the evenly spread ones."""
    report = zp.report(faulty.store, max_samples=1)
    assert "1 frame has blown up" in [one.title for one in report.findings]


def test_plain_types(report):
    plain = json.loads(json.dumps(report.to_dict()))
    assert plain["findings"][0]["severity"] == "error"
    assert plain["structures"].keys() == {"samples", "properties", "units", "orders"}
    assert {*plain} == {
        *("stores", "facts", "findings", "sections", "structures", "looked_at", "samples"),
        "not_checked",
    }


def test_runs_of_samples_of_a_store_with_too_many_atoms(faulty):
    dataset = zp.ZarrDataset(faulty.store)
    rows = scanned_rows(dataset.num_atoms, 240, seed=0)
    assert len(rows) == len({*rows})
    assert (rows // 3).tolist() == [*range(30)]
    values = scan(dataset, 0, most_atoms=240)
    assert not values.complete
    assert np.array_equal(values.rows, rows)
    assert np.array_equal(values.energy, dataset.system_field("energy").reshape(-1)[rows])


def test_medians_near_zero_are_zero(clean):
    side = measured(clean.store, "clean", Settings())
    values = np.array([-2.0, -3e-14, 3.0])
    assert summary([side], {"x": lambda one: values}, "").rows == (("x", "-2", "0", "3", "3"),)


def test_memory_is_bounded_by_samples(faulty):
    rows = scanned_rows(np.ones(5_000, dtype=np.int64), 10_000, 0, most=1024)
    assert len(rows) == 1024
    assert rows.max() > 4_900
    assert len(scan(zp.ZarrDataset(faulty.store), 0, most=30)) == 30


def test_runs_follow_the_order_of_the_store():
    rows = scanned_rows(np.ones(10_000, dtype=np.int64), 1024, seed=0)
    assert len(rows) == 1024
    assert np.count_nonzero(np.diff(rows) == 1) >= 768


def test_neighbours_of_few_atoms_are_held_at_once(clean, monkeypatch):
    """Large samples come in small blocks; with blocks of 256 samples a report took 10 GB."""
    dataset, good = zp.ZarrDataset(clean.store), np.arange(5, 80)
    monkeypatch.setattr(distances, "_BLOCK_ATOMS", 40)
    blocks = [*distances.searchable(dataset, np.arange(90), good)]
    assert max(batch.num_nodes for _, batch in blocks) <= 40 + 8
    assert len(blocks) == 75 * 8 // 40 + 1
    np.testing.assert_array_equal(np.concatenate([here for here, _ in blocks]), good)
    assert [*distances.searchable(dataset, np.arange(90), good[:0])] == []


def test_evenly_spread_samples():
    rng = np.random.default_rng(0)
    assert spread_rows(5, 10, rng).tolist() == [0, 1, 2, 3, 4]
    rows = spread_rows(1000, 10, rng)
    assert (rows // 100).tolist() == [*range(10)]


def test_radii_are_those_of_ase():
    assert np.array_equal(RADII[1:97], covalent_radii[1:97])
    assert np.isnan(RADII[97:]).all()
    assert len(RADII) == 119


def test_growth_over_many_rounds_is_a_line(clean):
    made = [
        zp.AtomicData([[0.0] * 3], [6], energy=-1.0, system={"round": [n // 2], "name": f"{n}"})
        for n in range(100)
    ]
    store = {}
    with zp.ZarrData(store) as sink:
        sink.write(made)
    report = zp.report(store)
    growth = figure(report, "by_round")
    assert growth.kind is Kind.LINES
    assert growth.series[0].x.tolist() == [*range(50)]
    assert growth.series[0].y.tolist() == [*range(2, 101, 2)]
    assert "by_name" not in [one.name for one in section(report, "groups").figures]
    by_round = figure(zp.report(clean.store), "by_round")
    assert by_round.kind is Kind.BARS
    assert by_round.series[0].labels == ("0", "1", "2")
    assert by_round.series[0].y.tolist() == [30, 30, 30]
