"""`to_dict`: plain values, which are those of `to_pandas`."""

import math

import numpy as np
import pytest

import zarrpipe as zp
from zarrpipe.errors import SchemaError


def systems(tag, count):
    """Systems of which some lack an energy, a string or a moment."""
    random, made = np.random.default_rng(tag), []
    for serial in range(count):
        own = {"serial": [serial + 100 * tag]}
        if serial % 2:
            own["kind"] = f"kind {serial % 3}"
        if serial % 4:
            own["moment"] = random.normal(size=(1, 3))
        fields = {} if serial % 3 == 0 else {"energy": float(random.normal())}
        numbers = random.choice([1, 8], size=2)
        made.append(zp.AtomicData(random.normal(size=(2, 3)), numbers, system=own, **fields))
    return made


@pytest.fixture
def dataset():
    stores = [{}, {}]
    for tag, store in enumerate(stores):
        with zp.ZarrData(store) as sink:
            sink.write(systems(tag, 9))
    return zp.ZarrDataset(stores)


def test_values_are_plain(dataset):
    made = [*systems(0, 9), *systems(1, 9)]
    columns = dataset.to_dict(["kind", "energy", "moment", "serial", "formula", "num_atoms"])
    assert [*columns] == ["kind", "energy", "moment", "serial", "formula", "num_atoms"]
    for place, one in enumerate(made):
        serial = place % 9
        assert columns["kind"][place] == (f"kind {serial % 3}" if serial % 2 else None)
        assert columns["energy"][place] == (one.energy.item() if serial % 3 else None)
        assert columns["moment"][place] == (one["moment"][0].tolist() if serial % 4 else None)
        assert columns["serial"][place] == serial + 100 * (place // 9)
    assert {type(value) for value in columns["serial"]} == {int}
    table = dataset.to_pandas(["formula", "num_atoms"])
    assert columns["formula"] == table.formula.tolist()
    assert columns["num_atoms"] == table.num_atoms.tolist()


def test_a_selection_keeps_its_order(dataset):
    whole = dataset.to_dict(["serial", "kind"])
    some = dataset.index_select([17, 2, 2, 9]).to_dict(["serial", "kind"])
    assert some == {name: [values[row] for row in (17, 2, 2, 9)] for name, values in whole.items()}
    assert dataset.index_select([]).to_dict(["serial", "kind"]) == {"serial": [], "kind": []}


def test_the_default_is_that_of_to_pandas(dataset):
    assert (
        [*dataset.to_dict()]
        == [*dataset.to_pandas().columns]
        == ["num_atoms", "energy", "serial", "kind"]
    )


def test_nan_that_a_sample_has_stays():
    store = {}
    with zp.ZarrData(store) as sink:
        sink.write(zp.AtomicData([[0.0] * 3], [1], energy=math.nan))
    (energy,) = zp.ZarrDataset(store).to_dict(["energy"])["energy"]
    assert math.isnan(energy)


def test_what_is_no_column(dataset):
    with pytest.raises(SchemaError, match="did you mean 'energy'"):
        dataset.to_dict(["enrgy"])
    with pytest.raises(SchemaError, match="has not one row for each sample"):
        dataset.to_dict(["positions"])
