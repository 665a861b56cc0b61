"""Cards as mlcroissant itself reads and checks them."""

import hashlib
import json
import shutil

import pytest

import zarrpipe as zp
from zarrpipe.errors import ArgumentError, StoreExistsError, StoreNotFoundError

from .conftest import library

pytestmark = pytest.mark.filterwarnings("ignore:ConjunctiveGraph is deprecated")

GIVEN = {
    "license": "CC-BY-4.0",
    "url": "https://example.org/data",
    "creators": ["Ada Example"],
    "cite_as": "@misc{example}",
    "version": "1.0.0",
    "date_published": "2026-11-30",
}


@pytest.fixture(scope="module")
def croissant():
    return library("mlcroissant")


def test_a_card_is_valid_and_has_what_the_store_has(place, croissant, tmp_path, caplog):
    store = shutil.copytree(place, tmp_path / "data.zarr")
    written = zp.write_card(store, **GIVEN)
    assert written.path == tmp_path / "data.zarr.croissant.json"
    assert (written.format, written.num_samples, written.left_out) == ("croissant", 5, {})
    found = croissant.Dataset(str(written.path)).metadata
    assert not found.ctx.issues.errors
    assert not found.ctx.issues.warnings
    assert not caplog.records
    assert (found.name, found.license, found.version) == ("data", ["CC-BY-4.0"], "1.0.0")
    assert found.creators[0].name == "Ada Example"
    records = {one.id: {own.name: own for own in one.fields} for one in found.record_sets}
    assert {*records} == {"atom", "edge", "system", "bond", "pair", "run"}
    energy, stress = records["system"]["energy"], records["system"]["stress"]
    assert energy.description == "Array core/energy. Unit: eV. 3 of 5 samples have it."
    assert stress.array_shape_tuple == (3, 3)
    assert [str(one) for one in energy.data_types] == [str(croissant.DataType.FLOAT64)]
    assert "bulk phase" in records["system"]["config_type"].description
    files = {one.id: one for one in found.distribution}
    assert "data.zarr/core/energy/**" in files["system-arrays"].includes
    assert files["bond-arrays"].includes == ["data.zarr/levels/bond/bond_atoms/**"]
    root = (store / "zarr.json").read_bytes()
    assert files["zarr.json"].sha256 == hashlib.sha256(root).hexdigest()
    assert len([*store.glob("core/energy/**")]) > 1


def test_what_is_recommended_and_missing_is_told(place, croissant, tmp_path, caplog):
    store = shutil.copytree(place, tmp_path / "data.zarr")
    written = zp.write_card(store, tmp_path / "card.json", license="MIT")
    expected = {"url", "creators", "cite_as", "version", "date_published"}
    assert {*written.left_out} == expected
    assert not caplog.records
    card = json.loads((tmp_path / "card.json").read_text())
    assert card["description"].startswith("5 atomic systems with 12 atoms of ")
    with pytest.raises(StoreExistsError):
        zp.write_card(store, tmp_path / "card.json")
    zp.write_card(store, tmp_path / "card.json", name="other", overwrite=True)
    assert json.loads((tmp_path / "card.json").read_text())["name"] == "other"


def test_wrong_places_and_properties(place, croissant, tmp_path, monkeypatch):
    store = shutil.copytree(place, tmp_path / "data.zarr")
    with pytest.raises(ArgumentError, match="beside the store"):
        zp.write_card(store, tmp_path / "sub" / "card.json")
    with pytest.raises(StoreNotFoundError):
        zp.write_card(tmp_path / "nothing.zarr")
    with pytest.raises(ArgumentError, match="not a local store"):
        zp.write_card({})
    with pytest.raises(ArgumentError, match="not valid Croissant"):
        zp.write_card(store, date_published="yesterday")

    def refused(**_):
        raise croissant.ValidationError("as read")

    with monkeypatch.context() as patch:
        patch.setattr(croissant.Metadata, "from_json", refused)
        with pytest.raises(ArgumentError, match="not valid Croissant: as read"):
            zp.write_card(store)
    assert not (tmp_path / "data.zarr.croissant.json").exists()
