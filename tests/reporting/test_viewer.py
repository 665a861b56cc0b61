"""What a page gives to chemiscope."""

import base64
import gzip
import json
from dataclasses import replace

import numpy as np
import pytest

from zarrpipe import AtomicData, Batch
from zarrpipe.reporting import viewer
from zarrpipe.reporting.contents import Structures
from zarrpipe.reporting.viewer import chemiscope_script, dataset, packed, that_fit, to_json

from . import examples


def test_structures_are_those_of_the_batch():
    found = dataset(examples.waters(4))
    assert [one["size"] for one in found["structures"]] == [3] * 4
    second = found["structures"][1]
    assert second["names"] == ["O", "H", "H"]
    np.testing.assert_allclose(
        np.c_[second["x"], second["y"], second["z"]], examples.WATER * (1, 2, 1)
    )
    assert second["cell"] == [6, 0, 0, 0, 6, 0, 0, 0, 6]
    assert "cell" not in found["structures"][0]  # not periodic
    assert found["properties"]["max force"] == {
        "target": "structure",
        "values": [0.9, 1.8, 2.7, 3.6],
        "units": "eV/Å",
    }
    assert found["properties"]["energy off"]["values"] == [None, -1.0, 0.0, 1.0]
    assert "source" not in found["properties"]
    assert found["settings"]["map"]["x"] == {"property": "map 1"}
    json.loads(to_json(found))


def test_longest_arrow_is_the_largest_force():
    arrows = dataset(examples.waters(2))["shapes"]["forces"]["parameters"]["atom"]
    lengths = np.array([one["scale"] for one in arrows])
    forces = np.linalg.norm(examples.WATER, axis=1)
    np.testing.assert_allclose(lengths[:3], 1.8 * forces / forces.max(), atol=1e-3)
    direction = examples.WATER[1] / forces[1]
    np.testing.assert_allclose(arrows[1]["vector"], direction, atol=1e-3)


def test_missing_forces_have_no_arrows():
    samples = [AtomicData([[0.0, 0.0, 0.0]], [1]), AtomicData([[0.0, 0.0, 0.0]], [1])]
    without = Structures(Batch.from_data_list(samples), np.arange(2), {})
    assert "shapes" not in dataset(without)
    samples[1] = AtomicData([[0.0, 0.0, 0.0]], [1], forces=[[0.0, 0.0, 2.0]])
    some = Structures(Batch.from_data_list(samples), np.arange(2), {})
    arrows = dataset(some)["shapes"]["forces"]["parameters"]["atom"]
    assert arrows[0]["scale"] < 0.02 < arrows[1]["scale"]


def test_atoms_without_a_place_are_left_out():
    positions = [[0.0, 0.0, 0.0], [np.nan, 0.0, 0.0], [0.0, 0.0, 1.0], [1e7, 0.0, 0.0]]
    one = AtomicData(positions, [1, 6, 8, 7])
    found = dataset(Structures(Batch.from_data_list([one]), np.arange(1), {}))["structures"]
    assert found[0]["names"] == ["H", "O"]
    assert found[0]["size"] == 2


def test_a_page_holds_the_worst_of_each_order(monkeypatch):
    monkeypatch.setattr(viewer, "_MOST_ATOMS", 12)
    fitting = that_fit(examples.waters(8))
    assert fitting.samples.tolist() == [0, 10, 60, 70]
    assert fitting.orders["largest force"].tolist() == [3, 2, 1, 0]
    assert fitting.properties["sample"] == [0, 10, 60, 70]
    assert fitting.batch.num_graphs == 4
    np.testing.assert_allclose(fitting.batch.forces[-3:].numpy(), 8 * examples.WATER)
    monkeypatch.setattr(viewer, "_MOST_ATOMS", 24)
    whole = examples.waters(8)
    assert that_fit(whole) is whole


def test_colours_are_of_the_middle_of_the_values():
    energies = np.r_[np.linspace(-1, 1, 99), 1e6].tolist()
    structures = examples.waters(100)
    properties = {**structures.properties, "energy_off": energies}
    colour = dataset(replace(structures, properties=properties))["settings"]["map"]["color"]
    assert colour["property"] == "energy off"
    assert colour["min"] == -1
    assert 1 < colour["max"] < 5


def test_script_of_chemiscope_comes_with_its_licence():
    pytest.importorskip("chemiscope")
    script = chemiscope_script()
    assert "DefaultVisualizer" in script.text
    assert "chemiscope developers" in script.licence
    assert "Redistribution" in script.licence


def test_packed_text_comes_back_and_ends_no_element():
    text = "</script><!-- é 中" * 9
    assert gzip.decompress(base64.b64decode(packed(text))).decode() == text
    assert not set(packed(text)) & set("<>&'\"")
