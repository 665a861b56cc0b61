"""Conditions on samples, over real stores: presence, values, several stores, growth."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from zarrpipe import AtomicDataZarrWriter, ZarrData
from zarrpipe.dataset.zarr_dataset import ZarrDataset
from zarrpipe.errors import ArgumentError, ArgumentTypeError, SchemaError
from zarrpipe.store.query.conditions import Condition


def rounds(data, count, tag, *, labelled=True, **system):
    """Batch of samples, `serial` from 1000 * tag, with some further fields at system level."""
    batch = data.batch(count, tag=tag)
    for name, value in system.items():
        batch.add_field(name, torch.as_tensor(value).reshape(count, -1), "system")
    return batch if labelled else batch.without("forces", "energy")


def test_presence_is_of_the_samples_that_are_asked_for(tmp_path, data):
    nullable, whole, without = (tmp_path / name for name in "abc")
    data.append(nullable, data.batch(4, tag=0))
    data.append(nullable, rounds(data, 3, 1, labelled=False))
    data.append(whole, data.batch(2, tag=2))
    data.append(without, rounds(data, 2, 3, labelled=False))
    dataset = ZarrDataset([nullable, whole, without])
    expected = np.array([True] * 4 + [False] * 3 + [True] * 2 + [False] * 2)
    assert np.array_equal(dataset.present("forces"), expected)
    index = [10, 0, 5, 8, 5]
    assert np.array_equal(dataset.present("forces", index), expected[index])
    assert np.array_equal(dataset.index_select(index).present("energy"), expected[index])
    assert not dataset.present("stress").any()
    with pytest.raises(SchemaError, match="no store has a field 'force'"):
        dataset.present("force")


@pytest.fixture(scope="module")
def labelled(tmp_path_factory, data):
    """A store of 30 samples: `round` 0 to 4, a float, a bool, and energies for the even ones."""
    batch = data.batch(30)
    serial = np.arange(30)
    batch.add_field("round", torch.from_numpy((serial // 6).astype(np.int8))[:, None], "system")
    heat = torch.linspace(0.0, 2.9, 30, dtype=torch.float32)[:, None]
    batch.add_field("heat", heat, "system")
    batch.add_field("converged", torch.from_numpy(serial % 3 == 0)[:, None], "system")
    path = tmp_path_factory.mktemp("where") / "labelled"
    with ZarrData(path, capacity=100) as sink:
        for number in serial:
            one = batch.index_select([int(number)])
            sink.write(one if number % 2 == 0 else one.without("energy"))
    return ZarrDataset(path), batch


CONDITIONS = {
    "round >= 3": lambda of: of.round >= 3,
    "1 <= round < 3": lambda of: 1 <= of.round < 3,
    "round in (0, 4)": lambda of: of.round in (0, 4),
    "round not in [0, 4, -1]": lambda of: of.round not in (0, 4),
    "not converged and round == 2": lambda of: not of.converged and of.round == 2,
    "converged == False or num_atoms > 4": lambda of: not of.converged or of.num_atoms > 4,
    "num_edges / num_atoms <= 0.5": lambda of: of.num_edges / of.num_atoms <= 0.5,
    "num_edges % num_atoms == 1": lambda of: of.num_edges % of.num_atoms == 1,
    "10 % (round - 2) == 0": lambda of: of.round != 2 and 10 % (of.round - 2) == 0,
    "1 / (round - 2) != 7": lambda of: of.round != 2,
    "round * 100 >= 300": lambda of: of.round >= 3,
    "-round + 2 < +0": lambda of: of.round > 2,
    "abs(round - 2) == 1": lambda of: abs(of.round - 2) == 1,
    "heat in (0.1, 0.3)": lambda of: of.serial in (1, 3),
    "heat <= 0.1": lambda of: of.serial <= 1,
    "round < 99999999999999999999": lambda of: True,
    "has(energy)": lambda of: of.energy is not None,
    "not has(energy)": lambda of: of.energy is None,
    "has(forces) and has(num_atoms)": lambda of: True,
    "has(stress)": lambda of: False,
    "energy < 0": lambda of: of.energy is not None and of.energy < 0,
    "not energy < 0": lambda of: of.energy is not None and not of.energy < 0,
    "not not energy < 0": lambda of: of.energy is not None and of.energy < 0,
    "energy < 0 or round == 1": lambda of: (
        (of.energy is not None and of.energy < 0) or of.round == 1
    ),
    "not (energy < 0 and round == 1)": lambda of: (
        of.round != 1 or (of.energy is not None and not of.energy < 0)
    ),
    "energy < 0 and round == 1": lambda of: (
        of.energy is not None and of.energy < 0 and of.round == 1
    ),
    "not has(energy) or energy < 0": lambda of: of.energy is None or of.energy < 0,
    "serial < 3 < 2": lambda of: False,
    "1 < 2": lambda of: True,
    "True": lambda of: True,
    "round >=\n  3": lambda of: of.round >= 3,
}


@pytest.mark.parametrize("text", CONDITIONS)
def test_a_condition_says_of_each_sample_what_python_says(labelled, text):
    dataset, batch = labelled
    expected = []
    for number in range(30):
        sample = batch.get_data(number)
        of = SimpleNamespace(
            serial=number,
            round=int(sample.round),
            converged=bool(sample.converged),
            num_atoms=len(sample.positions),
            num_edges=len(sample.neighbor_list),
            energy=None if number % 2 else float(sample.energy),
        )
        if CONDITIONS[text](of):
            expected.append(number)
    found = dataset.where(text)
    assert found.dtype == np.int64
    assert found.tolist() == expected
    index = [29, 3, 4, 3, -1, 0]
    wanted = [number for number in (29, 3, 4, 3, 29, 0) if number in expected]
    assert (dataset.where(text, index) % 30).tolist() == wanted
    part = dataset.index_select(np.arange(5, 30, 3))
    assert part.where(text).tolist() == [k for k in range(len(part)) if 5 + 3 * k in expected]


@pytest.mark.parametrize(
    ("text", "kind", "message"),
    [
        ("round >=", ArgumentError, r"it ends after 'round >=' \(character 8\), where more has"),
        ("", ArgumentError, "where is empty, expected a text such as"),
        ("round", ArgumentError, r"at 'round' \(character 1\): is a number"),
        ("has(energy) and round + 1", ArgumentError, r"at 'round \+ 1' \(character 17\): is a nu"),
        (
            "rounds >= 3",
            SchemaError,
            r"at 'rounds' \(character 1\): no store has .*'rounds'.*round",
        ),
        ("round >= 3 and has(enrgy)", SchemaError, r"at 'enrgy' \(character 20\): no store has"),
        ("forces < 3", SchemaError, r"at 'forces' .* level 'atom' .* has\(forces\) says"),
        ("stress < 3", SchemaError, r"rows of shape \(3, 3\) has not one number"),
        ("round in 3", ArgumentError, r"at '3' \(character 10\): expected numbers to be in"),
        ("round in (serial, 2)", ArgumentError, "expected numbers to be in"),
        ("(1, 2) < round", ArgumentError, r"at '\(1, 2\)' \(character 1\): is not allowed in"),
        ("round < (1, 2)", ArgumentError, r"at '\(1, 2\)' \(character 9\): is not allowed in"),
        (
            "round == 'three'",
            SchemaError,
            r"at 'round' .*1\): 'round' has no strings: compare",
        ),
        ("'three'", ArgumentError, "a string can only be compared with a column"),
        ("has_element(29)", ArgumentError, "expected a symbol in quotes"),
        ("has_element('cu')", ArgumentError, r"no symbol of an element \(did you mean 'Cu'\?\)"),
        ("formula == 'H2(OH)'", ArgumentError, r"\(character 12\): 'H2\(OH\)' is no formula"),
        (
            "formula in ('H2O', 3)",
            ArgumentError,
            "a string can only be compared with a column",
        ),
        ("formula < 'H2O'", ArgumentError, "a string can only be compared with a column"),
        ("1 < formula < 3", SchemaError, r"'formula' has strings: compare it with one"),
        ("formula", SchemaError, r"'formula' has strings"),
        ("max_forces > 3", SchemaError, r"no store has a field 'max_forces' \(did you mean 'max_f"),
        ("round ** 2 < 3", ArgumentError, r"at 'round \*\* 2' \(character 1\): is not allowed in"),
        ("round // 2 < 3", ArgumentError, "is not allowed in a condition"),
        ("round is 2", ArgumentError, "is not allowed in a condition"),
        ("has(forces) & (round < 2)", ArgumentError, "expected 'and' for '&'"),
        ("has(forces) | (round < 2)", ArgumentError, "expected 'or' for '|'"),
        ("~has(forces)", ArgumentError, "expected 'not' for '~'"),
        ("round == None", ArgumentError, r"expected has\(field\), or not has\(field\)"),
        ("formula in 'H2O'", ArgumentError, r"needs a list, as in formula in \('H2O',\)"),
        ("formula not in ('H2O')", ArgumentError, r"needs a list, as in formula in \('H2O',\)"),
        ("formula == H2O", SchemaError, "a string is put in quotes: 'H2O'"),
        ("forces > 1", SchemaError, "max_force is the largest norm of each"),
        ("batch.round < 3", ArgumentError, "is not allowed in a condition"),
        ("round[0] < 3", ArgumentError, "is not allowed in a condition"),
        ("(lambda: True)()", ArgumentError, r"expected has\(field\), abs\(number\) or"),
        ("__import__('os').getcwd()", ArgumentError, r"expected has\(field\), abs\(number\) or"),
        ("has('energy')", ArgumentError, r"expected the name of a field in has\(\)"),
        ("has(energy, forces)", ArgumentError, r"expected has\(field\), abs\(number\) or"),
        ("é_é == 1 and round", SchemaError, r"at 'é_é' \(character 1\)"),
        ("round > 'é' or round > 1j", ArgumentError, r"\"'é'\" \(character 9\)"),
        ("round % 0 == 1", ArgumentError, r"at 'round % 0' \(character 1\): divides by zero"),
        ("round + 99999999999999999999 > 0", ArgumentError, "a number that no field can have"),
        ("not " * 60 + "converged", ArgumentError, "more than 50 levels deep"),
        ("(" * 300 + "round" + ")" * 300 + " > 1", ArgumentError, "no expression|cannot be read"),
    ],
)
def test_what_is_no_condition_is_said_with_its_place(labelled, text, kind, message):
    with pytest.raises(kind, match=message):
        labelled[0].where(text)


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("  round  >=\n\t3 ", "round >= 3"),
        ("kind  ==  'two  spaces'", "kind == 'two  spaces'"),
        ('kind  ==  "it\'s  a"  and  round  > 3', 'kind == "it\'s  a" and round > 3'),
        (r"kind  ==  'it\'s  a'  and  1", r"kind == 'it\'s  a' and 1"),
    ],
)
def test_spaces_count_in_quotes_alone(text, normal):
    assert Condition.of(text).text == normal


def test_a_condition_is_a_text(labelled):
    with pytest.raises(ArgumentTypeError, match=r"where is 3, expected a text"):
        labelled[0].where(3)


def test_stores_that_lack_a_field_have_no_value_of_it(tmp_path, data):
    places = [tmp_path / "old", tmp_path / "new"]
    data.append(places[0], data.batch(5, tag=0))
    data.append(places[1], rounds(data, 6, 1, round=[0, 1, 2, 0, 1, 2]))
    dataset = ZarrDataset(places)
    assert dataset.where("round >= 1").tolist() == [6, 7, 9, 10]
    assert dataset.where("not round >= 1").tolist() == [5, 8]
    assert dataset.where("not has(round) or round == 2").tolist() == [*range(5), 7, 10]
    # The sample comes last, whichever store it is in; the field is new to its store.
    data.append(places[0], rounds(data, 2, 2, round=[2, 0]))
    dataset.refresh()
    assert dataset.where("round == 2").tolist() == [7, 10, 11]
    assert dataset.where("not has(round)").tolist() == list(range(5))
    assert dataset.where("num_atoms < 100 and serial >= 2000").tolist() == [11, 12]


def test_what_is_true_or_false_may_be_a_field_that_a_store_lacks(tmp_path, data):
    places = [tmp_path / "old", tmp_path / "new"]
    data.append(places[0], data.batch(2, tag=0))
    data.append(places[1], rounds(data, 3, 1, converged=[True, False, True]))
    dataset = ZarrDataset(places)
    assert dataset.where("converged").tolist() == [2, 4]
    assert dataset.where("not converged").tolist() == [3]
    assert dataset.where("not has(converged) or converged").tolist() == [0, 1, 2, 4]
    old, schema = ZarrDataset(places[0]), dataset.schema
    assert old.where("not has(converged) or converged", beside=schema).tolist() == [0, 1]
    assert old.where("converged", [1, 0], beside=schema).tolist() == []
    with pytest.raises(SchemaError, match="no store has a field 'converged'"):
        old.where("converged")


def test_deleted_samples_are_left_out(tmp_path, data):
    data.append(tmp_path / "store", rounds(data, 10, 0, round=np.arange(10)))
    with AtomicDataZarrWriter(tmp_path / "store") as writer:
        writer.delete([0, 5, 6])
    dataset = ZarrDataset(tmp_path / "store")
    assert dataset.where("round in (4, 5, 7)").tolist() == [3, 4]
    assert (dataset.where("num_atoms >= 3") == np.flatnonzero(dataset.num_atoms >= 3)).all()
    assert (
        dataset.where("num_edges == 0").tolist() == np.flatnonzero(dataset.num_edges == 0).tolist()
    )


def test_only_the_fields_that_are_named_are_read(labelled, monkeypatch):
    dataset, read = labelled[0], set()
    snapshot = type(dataset._stores.views[0].snapshot)
    rows = snapshot.rows

    def noted(self, path, count):
        read.add(path)
        return rows(self, path, count)

    monkeypatch.setattr(snapshot, "rows", noted)
    dataset.where("round < 3 and has(energy) and num_atoms < 3")
    assert read == {"custom/round", "present/energy", "meta/atoms_ptr"}


def test_an_empty_store_has_none(tmp_path, data):
    data.append(tmp_path / "store", data.batch(3))
    with AtomicDataZarrWriter(tmp_path / "store") as writer:
        writer.delete([0, 1, 2])
    assert ZarrDataset(tmp_path / "store").where("num_atoms > 0 or energy < 0").tolist() == []
