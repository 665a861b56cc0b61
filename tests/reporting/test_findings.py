"""Each deliberate fault is found, names the right samples, and nothing else is called a fault."""

import numpy as np
import pytest
from ase.build import bulk, fcc111

import zarrpipe as zp
from zarrpipe.reporting.contents import Severity

from .faulty import BAR, FEW, KCAL, ORIGINAL, crystals, labelled, spoil, write_crystals

ALL = tuple(range(90))


def found(report, text):
    """The findings whose title has a text."""
    return [one for one in report.findings if text in one.title]


def only(report, text):
    (one,) = found(report, text)
    return one


@pytest.fixture(scope="module")
def report(faulty):
    return zp.report(faulty.store)


@pytest.mark.parametrize(
    ("text", "fault", "severity"),
    [
        ("in another unit, likely bar", "bar", Severity.ERROR),
        ("in another unit, likely kcal/mol", "kcal", Severity.ERROR),
        ("blown up", "exploded", Severity.ERROR),
        ("without forces", "missing", Severity.WARNING),
        ("element in very few samples", "element", Severity.WARNING),
    ],
)
def test_a_fault_of_a_few(report, faulty, text, fault, severity):
    one = only(report, text)
    assert {*one.samples} == {*faulty.faults[fault]}
    assert one.count == len(faulty.faults[fault])
    assert one.severity is severity
    assert one.text
    assert one.way_out


def test_a_repeated_structure_with_another_energy(report):
    one = only(report, "another energy")
    assert {*one.samples} == {ORIGINAL, *FEW["duplicate"]}
    assert one.severity is Severity.ERROR
    assert "Samples 18 = 66" in one.text


def test_nothing_else_is_said(report):
    assert len(report.findings) == 6
    order = [one.severity for one in report.findings]
    assert order == sorted(order, key=list(Severity).index)


def test_numbers_of_the_exploded_frame(report):
    assert (
        "Sample 41: Pd-Pd 0.35 Angstrom (0.13 of the covalent radii)"
        in only(report, "blown up").text
    )


def test_atoms_on_top_of_each_other_without_forces():
    made = crystals()
    spoil(made, {"exploded": FEW["exploded"]})
    del made[41]["forces"], made[41]["energy"]
    assert only(zp.report(written(made)), "blown up").samples == (41,)


def test_the_distance_is_that_of_the_pair_that_is_named():
    """The shortest distance may be that of another pair, whose atoms are smaller."""
    sample = zp.AtomicData(
        [[0.0, 0.0, 0.0], [0.0, 0.0, 2.0], [9.0, 0.0, 0.0], [9.0, 0.0, 0.96]], [55, 55, 8, 1]
    )
    (one,) = zp.report(written_samples([sample])).findings[:1]
    assert "Cs-Cs 2 Angstrom (0.41 of the covalent radii)" in one.text


def test_a_clean_store_has_no_findings(clean):
    assert zp.report(clean.store).findings == ()


@pytest.mark.parametrize("fault", ["bar", "kcal"])
def test_a_fault_of_all(fault):
    report = zp.report(write_crystals({}, {fault: ALL}).store)
    label, said = {"bar": ("stress", "bar"), "kcal": ("forces", "kcal/mol")}[fault]
    one = only(report, f"{label} of all samples")
    assert one.severity is Severity.ERROR
    assert one.count == 90
    assert said in one.text + one.way_out
    assert len(report.findings) == 1


def test_a_stress_with_the_sign_of_a_pressure():
    made = crystals()
    for one in made:
        one["stress"] = -one["stress"]
    report = zp.report(written(made))
    assert only(report, "sign of a pressure").severity is Severity.ERROR
    assert len(report.findings) == 1


def test_vacuum_above_slabs_is_no_pressure():
    """A surface under tension has the less of it the more vacuum is in the cell."""
    made = []
    for serial, vacuum in enumerate(np.linspace(6.0, 20.0, 30)):
        atoms = fcc111("Au", (2, 2, 3), vacuum=vacuum)
        atoms.pbc = True
        atoms.rattle(0.03, seed=serial)
        made.append(labelled(atoms, "slab", 0))
    assert zp.report(written(made)).findings == ()


def test_a_source_in_another_unit():
    """A third of the samples, which no outlier of its own would show."""
    made = crystals()
    spoil(made, {"bar": range(0, 90, 3)})
    one = only(zp.report(written(made)), "in another unit, likely bar")
    assert {*one.samples} == {*range(0, 90, 3)}


def test_labels_that_are_not_finite():
    made = crystals()
    made[4]["energy"] = np.nan
    made[9]["forces"][2, 1] = np.inf
    made[11]["stress"][0, 0] = np.nan
    report = zp.report(written(made))
    for label, sample in (("energy", 4), ("forces", 9), ("stress", 11)):
        one = only(report, f"1 sample with NaN or infinite {label}")
        assert one.samples == (sample,)
        assert one.severity is Severity.ERROR
    assert len(report.findings) == 3


def test_a_stress_without_a_cell():
    made = crystals()
    for place in (2, 50):
        del made[place]["cell"], made[place]["pbc"]
    one = only(zp.report(written(made)), "with a stress but no cell")
    assert one.samples == (2, 50)


def test_a_missing_stress_of_periodic_samples_only():
    made = crystals()
    for place in (2, 50):
        del made[place]["stress"]
    for place in (3, 51):
        del made[place]["stress"], made[place]["cell"], made[place]["pbc"]
    assert only(zp.report(written(made)), "without stress").samples == (2, 50)


def test_labels_that_a_whole_group_lacks():
    """What one kind of calculation does not give is a note."""
    made = crystals()
    for one in made[::3]:
        del one["forces"]
    one = only(zp.report(written(made)), "without forces")
    assert one.severity is Severity.NOTE
    assert "config_type is copper" in one.text
    for one in made[::3]:
        one["system"]["config_type"] = 2000 * "copper"
    one = only(zp.report(written(made)), "without forces")
    assert "config_type is coppercopper" in one.text
    assert len(one.text) < 150


def test_equal_samples_are_a_note():
    made = crystals()
    made[31] = dict(made[1])
    one = only(zp.report(written(made)), "structure of an earlier one")
    assert one.samples == (31, 1)
    assert one.text.startswith("1 = 31;")
    assert one.severity is Severity.WARNING  # more than a per cent


def test_an_energy_that_did_not_converge():
    made = crystals()
    made[20]["energy"] += 30.0
    report = zp.report(written(made))
    one = only(report, "unusual energy")
    assert one.samples == (20,)
    assert len(report.findings) == 1


def lattice(number, energy, serial):
    """A crystal of eight atoms with an energy per atom."""
    atoms = bulk("Cu", cubic=True) * (2, 1, 1)
    return {
        "positions": atoms.positions + np.array([0, 0, 1e-3 * serial]),
        "atomic_numbers": number,
        "cell": atoms.cell.array,
        "pbc": [True] * 3,
        "energy": 8 * energy,
        "forces": np.full((8, 3), 0.1),
    }


def test_a_composition_that_is_far_from_the_others_is_no_outlier_of_its_own():
    """Frames of a relaxation are near each other, and may be 0.3 eV from the references."""
    made = [
        lattice([29] * copper + [79] * (8 - copper), shift, serial)
        for copper, shift in zip(
            range(9), (0, 0.05, 0.02, 0.03, 0.3, 0.01, 0.04, 0, 0), strict=True
        )
        for serial in range(10)
    ]
    made[45]["energy"] += 8 * 0.03
    assert [one.title for one in zp.report(written(made)).findings] == []
    made[45]["energy"] += 8 * 0.2
    assert only(zp.report(written(made)), "unusual energy").samples == (45,)


def test_an_energy_near_zero_fits_in_no_unit():
    """A formation energy that is off is near zero, as all others are, once it is divided by 23."""
    made = [lattice([29] * 8, 1e-3 * (serial % 7), serial) for serial in range(20)]
    made[3]["energy"] = 8 * 0.4
    (one,) = zp.report(written(made)).findings
    assert "unusual energy" in one.title


def test_few_compositions_of_many_elements_have_no_usual_spread():
    """A fit of twelve references goes through most of twenty energies exactly."""
    random = np.random.default_rng(0)
    made = [
        lattice([*random.choice(range(21, 33), 2)] * 4, random.normal(), serial)
        for serial in range(20)
    ]
    assert found(zp.report(written(made)), "unusual energy") == []


def test_atoms_of_no_element():
    made = crystals()
    made[8]["atomic_numbers"][0] = 0
    assert only(zp.report(written(made)), "atoms of no element").samples == (8,)


def test_positions_that_are_not_finite():
    made = crystals()
    made[8]["positions"][0] = np.nan
    report = zp.report(written(made))
    assert only(report, "are NaN or infinite").samples == (8,)
    assert 8 not in report.structures.samples


def test_an_atom_that_has_drifted_away():
    made = crystals()
    del made[8]["cell"], made[8]["pbc"], made[8]["stress"]
    made[8]["positions"][0] += 40.0
    report = zp.report(written(made))
    assert only(report, "far from all others").samples == (8,)


def test_free_atoms_are_left_out_of_the_fit():
    """Their energies are those of atoms outside of matter."""
    made = crystals()
    made += [
        {
            "positions": np.full((1, 3), float(serial)),
            "atomic_numbers": [number],
            "energy": -0.2,
            "system": {"round": [3], "config_type": "isolated_atom"},
        }
        for serial, number in enumerate((29, 79, 46) * 40)
    ]
    report = zp.report(written(made))
    assert report.findings == ()
    (elements,) = [one for one in report.sections if one.name == "elements"]
    energies = {row[0]: float(row[3]) for row in elements.tables[0].rows}
    assert energies == pytest.approx({"Cu": -3.60, "Pd": -5.05, "Au": -2.92}, abs=0.01)
    (table,) = [
        table
        for section in report.sections
        for table in section.tables
        if "free atoms" in table.title
    ]
    assert [*table.rows] == [("Cu", "-0.2"), ("Pd", "-0.2"), ("Au", "-0.2")]


def test_splits_that_overlap():
    """By round, equal structures can be in two splits."""
    made = crystals()
    made[40] = {**made[5], "system": {"round": [1], "config_type": "palladium"}}
    store = written(made)
    report = zp.report(store, split=(0.5, 0.5, 0.0), split_by="round")
    data = zp.ZarrDataModule(store, batch_size=8, split=(0.5, 0.5, 0.0), split_by="round")
    validated = {*data.val_dataset.system_field("round").reshape(-1).tolist()}
    one = only(report, "with the structure of a training sample")
    assert one.severity is Severity.ERROR
    assert one.samples == ((5,) if 0 in validated else (40,))


def test_elements_that_training_lacks(tmp_path):
    store, palladium = written(crystals()), [*range(2, 90, 3)]
    zp.write_split(tmp_path / "val.npy", zp.ZarrDataset(store), palladium)
    report = zp.report(store, split={"val": tmp_path / "val.npy", "test": None})
    one = only(report, "that training lacks")
    assert one.text.startswith("Pd")
    assert {*one.samples} == {*palladium}


def test_the_numbers_are_those_of_the_store_where_a_condition_selects():
    report = zp.report(write_crystals({}).store, where="round == 1")
    assert only(report, "blown up").samples == (41,)
    assert {*only(report, "likely bar").samples} == {31, 52}
    assert report.samples == 30
    assert {41, 31, 52} < {*report.structures.samples.tolist()}
    assert [*report.structures.samples] == report.structures.properties["sample"]


def written(made):
    return written_samples([zp.AtomicData(**one) for one in made])


def written_samples(samples):
    store = {}
    with zp.ZarrData(store) as sink:
        sink.write(samples)
    return store


def test_the_factors_of_the_faults():
    assert pytest.approx(1602176.6, rel=1e-6) == BAR
    assert pytest.approx(23.0605, rel=1e-5) == KCAL


def test_an_element_whose_distances_do_not_fit():
    made = crystals()
    made[4]["atomic_numbers"][2] = 1
    one = only(zp.report(written(made)), "element in very few samples")
    assert one.samples == (4,)
    assert "H in 1 sample (neighbours at 1." in one.text
