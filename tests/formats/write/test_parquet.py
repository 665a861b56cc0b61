"""Parquet as pyarrow reads it: a row for each system, null for what it lacks."""

import json

import numpy as np
import pytest

import zarrpipe as zp

parquet = pytest.importorskip("pyarrow.parquet")


def test_rows_are_the_samples(place, samples, tmp_path):
    written = zp.write_out(place, tmp_path / "out.parquet")
    assert written.left_out == {}
    rows = parquet.read_table(written.path).to_pylist()
    for row, sample in zip(rows, samples, strict=True):
        for name, found in row.items():
            if name not in sample:
                assert found is None, name
            elif sample.roles[name].categories is not None:
                assert found == sample.strings(name)[0]
            else:
                value = sample[name].numpy()
                value = value if sample.levels[name].has_pointers else value[0]
                is_number = tuple(sample[name].shape[1:]) == (1,)
                shape = value.shape[:-1] if is_number else value.shape
                assert np.shape(found) == shape or not value.size, name
                np.testing.assert_array_equal(np.reshape(found, value.shape), value, err_msg=name)


def test_row_numbers_count_within_a_system(place, tmp_path):
    """The second batch has two samples, so that the last one is not the first of its batch."""
    dataset = zp.ZarrDataset(place).index_select([2, 1, 0])
    table = parquet.read_table(zp.write_out(dataset, tmp_path / "out.parquet").path)
    assert table["neighbor_list"].to_pylist() == [None, [[1, 0]], [[0, 1], [2, 0]]]
    assert table["bond_atoms"].to_pylist() == [None, None, [[0, 1], [1, 2]]]


def test_columns_say_what_they_are(place, tmp_path):
    schema = parquet.read_schema(zp.write_out(place, tmp_path / "out.parquet").path)
    known = {name: json.loads(schema.field(name).metadata[b"zarrpipe"]) for name in schema.names}
    assert known["energy"] == {"level": "system", "shape": [1], "unit": "eV"}
    assert known["temperature"] == {"level": "system", "shape": [], "unit": "K"}
    bonds = {"level": "bond", "shape": [2], "kind": "segmented", "index_of": "atom"}
    assert known["bond_atoms"] == bonds
    assert known["hessian"]["kind"] == "product atom atom"
    types = {name: str(schema.field(name).type) for name in ("energy", "temperature", "mp_id")}
    assert types == {"energy": "double", "temperature": "float", "mp_id": "string"}


def test_pandas_reads_it(place, tmp_path):
    pandas = pytest.importorskip("pandas")
    table = pandas.read_parquet(zp.write_out(place, tmp_path / "out.parquet").path)
    assert table.energy.notna().tolist() == [True, False, True, False, False]
    assert table.config_type.tolist()[:3] == ["bulk phase", 'a "b" = {c}\\d\n', "IsolatedAtom"]
