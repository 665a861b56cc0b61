"""Units: the registry's are ASE's, own ones are stated once and kept."""

import pytest
import torch
import zarr

from zarrpipe import AtomicData, AtomicDataZarrWriter, ZarrData, ZarrDataset, compact, merge
from zarrpipe.errors import SchemaError, StoreFormatError
from zarrpipe.store.reader import AtomicDataZarrReader
from zarrpipe.testing import unchanged

KELVIN = {"units": {"temperature": "K", "energy": "eV"}}
SMALL = {group: {"chunk_size": 5} for group in ("meta", "core", "custom")}


@pytest.fixture(params=["path", "dict"])
def place(request, tmp_path):
    return lambda name: tmp_path / name if request.param == "path" else {}


def warm(value: float) -> AtomicData:
    return AtomicData([[0.0, 0.0, 0.0]], [2], energy=-1.0, system={"temperature": [[value]]})


def fill(store, value=300.0, units=None):
    with ZarrData(store, config=SMALL | (units or {})) as sink:
        sink.write(warm(value))
    return store


def test_a_unit_is_stored_and_read(place):
    store = fill(place("store"), units=KELVIN)
    expected = {"positions": "Angstrom", "energy": "eV", "temperature": "K"}
    assert ZarrDataset(store).units == expected
    assert AtomicDataZarrReader(store).units == expected
    own = zarr.open_group(store, mode="r").attrs["zarrpipe"]
    assert own["units"] == expected
    fill(store, 310.0)  # a later writer need not say it again
    fill(store, 320.0, KELVIN)
    assert ZarrDataset(store).units == expected
    assert ZarrData(store).read().temperature.tolist() == [[300.0], [310.0], [320.0]]


def test_another_unit_is_refused_before_a_byte_is_written(place):
    store = fill(place("store"), units=KELVIN)
    other = {"units": {"temperature": "degC"}}
    match = "'temperature' is given the unit 'degC', the store has 'K': convert the values"
    with unchanged(store), pytest.raises(SchemaError, match=match):
        ZarrData(store, config=other)
    changes = [
        lambda writer: writer.append(warm(20.0)),
        lambda writer: writer.delete([0]),
        lambda writer: writer.defragment(),
    ]
    for change in changes:
        with unchanged(store), pytest.raises(SchemaError, match=match):
            change(AtomicDataZarrWriter(store, other))
    with unchanged(store), pytest.raises(SchemaError, match=match):
        compact(store, config=other)


def test_a_unit_is_stated_later(place):
    """By the next writer that names it, of a field that had none."""
    store = fill(place("store"))
    assert "temperature" not in ZarrDataset(store).units
    fill(store, 310.0, KELVIN)
    assert ZarrDataset(store).units["temperature"] == "K"
    with pytest.raises(SchemaError, match="the store has 'K'"):
        ZarrData(store, config={"units": {"temperature": "mK"}})


def test_a_field_that_comes_later_has_its_unit(place):
    store = place("store")
    with ZarrData(store, config=SMALL | KELVIN) as sink:
        sink.write(AtomicData([[0.0, 0.0, 0.0]], [2]))
        assert ZarrDataset(store).units == {"positions": "Angstrom"}
        sink.write(warm(5.0))
    assert ZarrDataset(store).units["temperature"] == "K"
    with AtomicDataZarrWriter(store, SMALL | {"units": {"gap": "meV"}}) as writer:
        writer.add_custom("gap", [1.0, 2.0], "system")
    assert ZarrDataset(store).units["gap"] == "meV"


def test_units_outlast_upkeep(place):
    store = fill(place("store"), units=KELVIN)
    fill(store, 310.0)
    with AtomicDataZarrWriter(store, SMALL) as writer:
        writer.delete([0])
        writer.defragment()
    assert ZarrDataset(store).units["temperature"] == "K"
    compact(store, progress=False)
    assert ZarrDataset(store).units["temperature"] == "K"
    with ZarrData(store, config=SMALL) as sink:
        assert sink.drain().temperature.tolist() == [[310.0]]
        sink.write(warm(1.0))
    assert "temperature" not in ZarrDataset(store).units  # a store that was emptied is new


def test_stores_of_different_units(place):
    """Neither merged nor read as one; the error names both."""
    kelvin, celsius, silent = place("kelvin"), place("celsius"), place("silent")
    fill(kelvin, units=KELVIN)
    fill(celsius, units={"units": {"temperature": "degC"}})
    fill(silent)
    with pytest.raises(SchemaError, match=r"unit 'degC', a store before it .* and 'K': convert"):
        ZarrDataset([kelvin, celsius])
    target = place("target")
    with pytest.raises(SchemaError, match=r"in 'K' in .* in 'degC' in .*: rewrite one"):
        merge([kelvin, celsius], target, progress=False)
    with pytest.raises(SchemaError, match=r"in 'K' in .* without a unit in .*compact\(store"):
        merge([kelvin, silent], target, progress=False)
    compact(silent, config={"units": {"temperature": "K"}}, progress=False)
    assert merge([kelvin, silent], target, progress=False) == 2
    assert ZarrDataset(target).units["temperature"] == "K"
    assert ZarrDataset([kelvin, silent]).units["temperature"] == "K"


def test_a_store_in_other_units_than_the_registry(place):
    """It is not read as if it were in eV, by anything."""
    store = fill(place("store"))
    group = zarr.open_group(store, mode="r+")
    own = dict(group.attrs["zarrpipe"])
    group.attrs["zarrpipe"] = own | {"units": {"energy": "kcal/mol"}}
    opens = [ZarrData, ZarrDataset, AtomicDataZarrReader]
    opens.append(lambda place: AtomicDataZarrWriter(place).append(warm(1.0)))
    opens.append(lambda place: merge([place], {}, progress=False))
    for open_store in opens:
        with unchanged(store), pytest.raises(StoreFormatError, match=r"'energy' in kcal/mol.* eV"):
            open_store(store)


def test_a_batch_has_values_and_no_units(place):
    """What is read is what was written; nothing is converted."""
    store = fill(place("store"), units=KELVIN)
    assert torch.equal(ZarrDataset(store)[0].temperature, torch.tensor([[300.0]]))
