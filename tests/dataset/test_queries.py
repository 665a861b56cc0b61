"""A dataset of the samples that meet a condition, the first samples of an order, and tables."""

import pickle
import sys

import numpy as np
import pytest
import torch

from zarrpipe import Batch, ZarrData, ZarrDataset, merge
from zarrpipe.errors import ArgumentError, ArgumentTypeError, MissingLibraryError, SchemaError
from zarrpipe.testing import assert_batches_equal


@pytest.fixture(scope="module")
def rounds(tmp_path_factory, data):
    """Two stores of 30 and 20 samples; `round` is serial % 4, `heat` has equal values and a NaN."""
    places, batches = [], []
    for tag, count in enumerate((30, 20)):
        batch = data.batch(count, tag=tag)
        serial = np.arange(count)
        batch.add_field("round", torch.from_numpy((serial % 4).astype(np.int16)), "system")
        batch.add_field("dipole", torch.from_numpy(np.outer(serial, [1.0, 2.0, 3.0])))
        heat = np.round(np.sin(serial * 7.0) * 3)
        heat[4] = np.nan
        batch.add_field("heat", torch.from_numpy(heat), "system")
        place = tmp_path_factory.mktemp("queries") / "store"
        with ZarrData(place) as sink:
            sink.write(batch.without("energy") if tag else batch)
        places.append(place)
        batches.append(batch)
    return places, batches


@pytest.fixture(params=["whole", "pieces"])
def blocks(request, monkeypatch):
    if request.param == "pieces":
        monkeypatch.setattr("zarrpipe.dataset.table.BLOCK", 8)


@pytest.mark.usefixtures("blocks")
@pytest.mark.parametrize("column", ["heat", "round", "-heat", "num_atoms", "abs(heat) + round"])
@pytest.mark.parametrize("n", [0, 1, 7, 49, 1000])
def test_the_first_of_an_order_are_those_of_a_stable_sort(rounds, column, n):
    places, batches = rounds
    dataset = ZarrDataset(places)
    heat = np.concatenate([batch["heat"].numpy() for batch in batches])
    number = np.concatenate([batch["round"].numpy() for batch in batches]).astype(np.int64)
    values = {
        "heat": heat,
        "round": number,
        "-heat": -heat,
        "num_atoms": dataset.num_atoms,
        "abs(heat) + round": abs(heat) + number,
    }[column]
    known = np.flatnonzero(~np.isnan(values))
    ascending = sorted(known.tolist(), key=lambda place: (values[place], place))
    descending = sorted(known.tolist(), key=lambda place: (-values[place], place))
    assert dataset.nsmallest(column, n).tolist() == ascending[:n]
    found = dataset.nlargest(column, n)
    assert found.dtype == np.int64
    assert found.tolist() == descending[:n]


def test_samples_without_a_value_are_in_no_order(rounds):
    places, batches = rounds
    energy = batches[0].energy.flatten().numpy()
    dataset = ZarrDataset(places)
    assert dataset.nlargest("energy", 100).tolist() == np.argsort(-energy).tolist()
    part = dataset.index_select([45, 3, 29, 7])
    expected = np.argsort([np.inf, energy[3], energy[29], energy[7]])[:2]
    assert part.nsmallest("energy", 2).tolist() == expected.tolist()


def test_what_has_no_order_is_refused(rounds):
    dataset = ZarrDataset(rounds[0])
    with pytest.raises(SchemaError, match=r"column='max_farce', .* mean 'max_force'"):
        dataset.nlargest("max_farce", 1)
    with pytest.raises(SchemaError, match="'formula' has strings"):
        dataset.nlargest("formula", 1)
    with pytest.raises(SchemaError, match=r"'dipole' .* has not one number"):
        dataset.nlargest("dipole", 1)
    with pytest.raises(ArgumentTypeError, match="column is 3, expected a text such as 'max_force'"):
        dataset.nlargest(3, 1)
    with pytest.raises(ArgumentError, match="n is -1, expected an integer of at least 0"):
        dataset.nsmallest("heat", -1)


def test_a_dataset_of_a_condition_is_the_selection_by_it(rounds):
    places, _ = rounds
    whole = ZarrDataset(places)
    index = whole.where("round >= 2 and has(heat)")
    dataset = ZarrDataset(places, where="round >=  2 and has(heat)")
    assert len(dataset) == len(index) > 0
    assert_batches_equal(dataset.read(np.arange(len(index))), whole.read(index))
    assert dataset.ids.tolist() == whole.ids_of(index).tolist()
    assert dataset.where("round == 3").tolist() == [
        place for place, row in enumerate(index) if whole.system_field("round", [row])[0] == 3
    ]
    copy = pickle.loads(pickle.dumps(dataset))
    assert copy.ids.tolist() == dataset.ids.tolist()
    assert ZarrDataset(places, where="round > 3").where("num_atoms > 0").tolist() == []
    with pytest.raises(SchemaError, match="did you mean 'round'"):
        ZarrDataset(places, where="rund > 3")


def test_a_dataset_of_a_condition_takes_in_what_meets_it(tmp_path, data):
    places = [tmp_path / "a", tmp_path / "b"]

    def write(place, tag, numbers):
        batch = data.batch(len(numbers), tag=tag)
        batch.add_field("round", torch.tensor(numbers), "system")
        data.append(place, batch)

    write(places[0], 0, [1, 2, 3, 4])
    write(places[1], 1, [4, 1])
    dataset = ZarrDataset(places, where="round >= 3")
    assert dataset.system_field("serial").flatten().tolist() == [2, 3, 1000]
    state = dataset.state_dict()
    part = dataset.index_select([0, 2])
    write(places[0], 2, [0, 9, 3])
    write(places[1], 3, [1])
    assert dataset.refresh() == 2
    assert part.refresh() == 0
    assert len(part) == 2
    expected = [2, 3, 1000, 2001, 2002]
    assert dataset.system_field("serial").flatten().tolist() == expected
    assert dataset.refresh() == 0
    dataset.load_state_dict(state)
    assert dataset.system_field("serial").flatten().tolist() == [2, 3, 1000]
    assert dataset.refresh() == 2
    other = ZarrDataset(places, where="round >= 3")  # store after store
    later = dataset.state_dict()
    assert other.system_field("serial").flatten().tolist() == [2, 3, 2001, 2002, 1000]
    other.load_state_dict(later)
    assert other.system_field("serial").flatten().tolist() == expected
    with pytest.raises(ArgumentError, match="a dataset with where='round >= 3', this one has"):
        ZarrDataset(places).load_state_dict(state)


def test_blocks_of_a_dataset_of_a_condition_count_its_samples(rounds):
    dataset = ZarrDataset(rounds[0], where="round >= 2")
    bounds = dataset.blocks().bounds
    assert (bounds[0], bounds[-1]) == (0, len(dataset))
    assert (np.diff(bounds) > 0).all()
    assert dataset.blocks(5).bounds[-1] == 5


@pytest.mark.usefixtures("blocks")
def test_a_table_has_the_values_of_each_sample(rounds):
    pandas = pytest.importorskip("pandas")
    places, batches = rounds
    dataset = ZarrDataset(places)
    table = dataset.to_pandas()
    assert table.columns.tolist() == [
        "num_atoms",
        *[name for name in dataset.schema if name in ("energy", "serial", "round", "heat")],
    ]
    assert table.index.equals(pandas.RangeIndex(50))
    assert table.num_atoms.tolist() == dataset.num_atoms.tolist()
    serial = torch.cat([batch["serial"].flatten() for batch in batches]).tolist()
    assert table.serial.tolist() == serial
    assert table["round"].dtype == np.int16
    assert table.energy[:30].tolist() == batches[0].energy.flatten().tolist()
    assert table.energy[30:].isna().all()
    assert np.array_equal(table.heat, np.concatenate([b["heat"] for b in batches]), equal_nan=True)
    spread = dataset.index_select([31, 2]).to_pandas(["dipole", "num_edges", "dipole"])
    assert spread.columns.tolist() == ["dipole_0", "dipole_1", "dipole_2", "num_edges"]
    assert spread.iloc[:, :3].to_numpy().tolist() == [[1.0, 2.0, 3.0], [2.0, 4.0, 6.0]]
    assert spread.num_edges.tolist() == dataset.num_edges[[31, 2]].tolist()


def test_numbers_that_are_missing_are_missing_in_a_table(tmp_path, data):
    pandas = pytest.importorskip("pandas")
    batch = data.batch(2)
    data.append(tmp_path / "store", batch)
    more = data.batch(2, tag=1)
    more.add_field("round", torch.tensor([3, 4]), "system")
    more.add_field("converged", torch.tensor([True, False]), "system")
    data.append(tmp_path / "store", more)
    table = ZarrDataset(tmp_path / "store").to_pandas(["round", "converged"])
    assert table["round"].dtype == pandas.Int64Dtype()
    assert table["round"].isna().tolist() == [True, True, False, False]
    assert table["round"][2:].tolist() == [3, 4]
    assert table.converged.dtype == pandas.BooleanDtype()
    assert table.converged[2:].tolist() == [True, False]
    assert table.converged.isna().sum() == 2


def test_a_table_of_what_has_no_row_for_each_sample_is_refused(rounds, monkeypatch):
    dataset = ZarrDataset(rounds[0])
    with pytest.raises(SchemaError, match=r"field 'forces' at level 'atom' has not one row for"):
        dataset.to_pandas(["forces"])
    with pytest.raises(SchemaError, match=r"no store has a field 'energies' \(did you mean 'energ"):
        dataset.to_pandas(["energies"])
    with pytest.raises(ArgumentTypeError, match="fields is 'energy', expected a list of names"):
        dataset.to_pandas("energy")
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(MissingLibraryError, match=r"'pandas' is needed .*zarrpipe\[import\]"):
        dataset.to_pandas()


@pytest.fixture
def kinds(tmp_path, data):
    """Two stores whose vocabularies differ, one without strings, and the string of each sample."""
    given = [["bulk", "slab", "bulk", "two  words"], ["slab", "it's", "bulk"], [None, None]]
    places = []
    for tag, strings in enumerate(given):
        batch = data.batch(len(strings), tag=tag)
        systems = batch.to_data_list()
        for system, kind in zip(systems, strings, strict=True):
            if kind is not None:
                system.add_field("kind", [kind], "system")
        places.append(tmp_path / str(tag))
        data.append(places[-1], Batch.from_data_list(systems))
    data.append(places[1], data.batch(1, tag=9))  # lacks the field
    return places, [*given[0], *given[1], None, *given[2]]


STRINGS = {
    "kind == 'bulk'": lambda kind: kind == "bulk",
    "'slab' == kind": lambda kind: kind == "slab",
    "kind != 'bulk'": lambda kind: kind is not None and kind != "bulk",
    "not kind == 'bulk'": lambda kind: kind is not None and kind != "bulk",
    "kind in ('slab', 'two  words', 'none of them')": lambda kind: kind in ("slab", "two  words"),
    "kind not in ['slab', 'bulk']": lambda kind: kind not in ("slab", "bulk", None),
    'kind == "it\'s" and num_atoms > 0': lambda kind: kind == "it's",
    "kind == 'other'": lambda kind: False,
    "has(kind)": lambda kind: kind is not None,
}


@pytest.mark.parametrize("text", STRINGS)
def test_strings_are_compared_in_the_vocabulary_of_each_store(kinds, text, tmp_path):
    places, strings = kinds
    wanted = [place for place, kind in enumerate(strings) if STRINGS[text](kind)]
    assert ZarrDataset(places).where(text).tolist() == wanted
    assert merge(places, tmp_path / "merged", where=text) == len(wanted)
    if wanted:
        merged = ZarrDataset(tmp_path / "merged").to_pandas(["kind"]).kind
        assert merged.tolist() == [strings[place] for place in wanted]


def test_a_table_has_strings_as_a_categorical(kinds):
    pandas = pytest.importorskip("pandas")
    places, strings = kinds
    table = ZarrDataset(places).to_pandas()
    assert isinstance(table.kind.dtype, pandas.CategoricalDtype)
    assert table.kind.isna().tolist() == [kind is None for kind in strings]
    assert table.kind.dropna().tolist() == [kind for kind in strings if kind is not None]
    assert {*table.kind.cat.categories} == {*strings} - {None}


def test_strings_have_no_order_and_are_no_numbers(kinds):
    dataset = ZarrDataset(kinds[0])
    for text in ("kind < 3", "kind + 1 == 2"):
        with pytest.raises(SchemaError, match="'kind' has strings: compare it with one"):
            dataset.where(text)
    with pytest.raises(SchemaError, match="'kind' has strings"):
        dataset.nlargest("kind", 1)
    with pytest.raises(SchemaError, match="did you mean 'kind'"):
        dataset.where("kinds == 'bulk'")
