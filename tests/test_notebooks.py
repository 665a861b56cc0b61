"""What notebooks show and complete of batches, systems, datasets and sinks."""

import importlib.util
import json
import re
import sys

import numpy as np
import pytest

import zarrpipe as zp
from zarrpipe import AtomicData, Batch, ZarrData, ZarrDataset
from zarrpipe.errors import ArgumentError, MissingLibraryError, SampleIndexError
from zarrpipe.testing import numbered_batch
from zarrpipe.training.statistics import measure


@pytest.fixture
def batch():
    systems = [
        AtomicData([[0.0, 0.0, 0.0]], [1], energy=-13.6, system={"round": [3]}),
        AtomicData([[0.0, 0.0, 0.0], [0.0, 0.0, 1.0]], [8, 1], system={"round": [4]}),
    ]
    return Batch.from_data_list(systems)


def rows(html):
    """Title of a table, and its rows."""
    title = re.search(r"<p>(.*?)</p>", html).group(1)
    found = re.findall(r"<tr>(.*?)</tr>", html)
    return title, [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row) for row in found]


def facts(html):
    """The line under the title."""
    return re.findall(r"<p>(.*?)</p>", html)[1].split("; ")


def test_fields_are_completed(batch):
    for one in (batch, batch[0], Batch.concatenate([batch])):
        assert {"energy", "round", "positions", "num_nodes", "to"} <= {*dir(one)}
        assert "forces" not in dir(one)
    assert "energy" not in dir(batch[1])


def test_a_batch_that_is_only_bytes_is_shown_and_completed(batch):
    store = {}
    with ZarrData(store) as sink:
        sink.write(batch)
    read = ZarrDataset(store).read([0, 1])
    assert "energy" in dir(read)
    assert rows(ZarrDataset(store).read([0, 1])._repr_html_())[1][0][0] == "field"


def test_a_batch_is_shown_as_a_table(batch):
    title, found = rows(batch._repr_html_())
    assert title == "Batch(num_graphs=2, num_nodes=3, num_edges=0) on cpu"
    assert found[0] == ["field", "level", "dtype", "shape", "unit", "systems with it"]
    by_name = {row[0]: row[1:] for row in found[1:]}
    assert by_name["positions"] == ["atom", "float32", "(3, 3)", "Angstrom", "2"]
    assert by_name["energy"] == ["system", "float64", "(2, 1)", "eV", "1"]
    assert by_name["round"] == ["system", "int64", "(2,)", "", "2"]
    title, found = rows(batch[0]._repr_html_())
    assert title == "AtomicData(num_graphs=1, num_nodes=1, num_edges=0) on cpu"
    assert [row[0] for row in found[1:]] == [*batch[0].fields]


def test_a_dataset_and_a_sink_are_shown_as_tables(batch, tmp_path):
    place = tmp_path / "<b>&.zarr"
    sink = ZarrData(place, capacity=10, config={"units": {"round": "1"}})
    assert "nothing is stored in" in facts(sink._repr_html_())[0]
    title, found = rows(sink._repr_html_())
    assert "&lt;b&gt;&amp;.zarr" in title
    assert "0 of 10 samples" in title
    assert len(found) == 1
    with sink:
        sink.write(batch)
        title, found = rows(sink._repr_html_())
    assert "2 of 10 samples" in title
    assert ["round", "system", "int64", "()", "1", "2"] in found
    assert ["energy", "system", "float64", "(1,)", "eV", "1"] in found
    atoms, elements, where, size = facts(sink._repr_html_())
    assert (atoms, elements) == ("3 atoms", "H 2, O 1")
    assert where.endswith("&lt;b&gt;&amp;.zarr")
    assert re.fullmatch(r"[\d.]+ kB", size)
    title, found = rows(ZarrDataset(place, ["energy"], where="round > 3")._repr_html_())
    assert title == "ZarrDataset of 1 sample in 1 store where round &gt; 3"
    assert [row[0] for row in found] == ["field", "positions", "atomic_numbers", "energy"]
    assert found[3] == ["energy", "system", "float64", "(1,)", "eV", "0"]
    chosen = ZarrDataset(place, ["energy"], where="round > 3")._repr_html_()
    assert facts(chosen)[0] == "2 atoms, of stores of 2 samples: 3 atoms"
    assert repr(ZarrDataset(place, ["energy"])) == (
        "<ZarrDataset of 2 samples in 1 store: positions, atomic_numbers, energy>"
    )


def test_elements_are_shown_of_batches_and_systems(batch):
    assert facts(batch._repr_html_()) == ["H 2, O 1"]
    assert facts(batch[0]._repr_html_()) == ["H 1"]
    strings = AtomicData([[0.0] * 3], [1], system={"kind": "gas"})
    assert ["kind", "system", "string", "(1,)", "", "1"] in rows(strings._repr_html_())[1]


def test_elements_of_a_large_store_are_those_of_what_is_kept_and_some_more(tmp_path, monkeypatch):
    monkeypatch.setattr("zarrpipe.store.summary._MOST_COUNTED", 3)
    helium = [AtomicData([[0.0] * 3], [2], energy=0.0)] * 5
    with ZarrData(tmp_path / "run") as sink:
        sink.write(helium)
        assert facts(sink._repr_html_())[1] == "He 3 (in 3 of 5 samples)"
    with ZarrData(tmp_path / "run") as sink:  # 5 are in the sums that were kept at the close
        sink.write([AtomicData([[0.0] * 3], [10], energy=0.0)] * 4)
        assert facts(sink._repr_html_())[1] == "He 5, Ne 3 (in 8 of 9 samples)"
    assert facts(ZarrDataset(tmp_path / "run")._repr_html_())[1] == "He 5, Ne 4"
    two = ZarrDataset([tmp_path / "run", tmp_path / "run"])
    assert facts(two._repr_html_())[:2] == ["18 atoms", "He 10, Ne 8"]


def test_statistics_and_facts_of_a_store_are_shown_as_their_tables(tmp_path):
    with ZarrData(tmp_path / "<run>") as sink:
        sink.write(numbered_batch(range(6)))
    for shown in (
        zp.info(tmp_path / "<run>"),
        measure(ZarrDataset(tmp_path / "<run>")).statistics(),
    ):
        html = shown._repr_html_()
        for table in shown.tables():
            title, found = rows(table._repr_html_())
            assert title == table.title.replace("<", "&lt;").replace(">", "&gt;")
            cells = [*([table.header] if table.header else []), *table.rows]
            assert found == [[*row] for row in cells]
            assert table._repr_html_() in html


@pytest.fixture
def crystal():
    """A batch of a molecule and a crystal with forces."""
    forces = np.array([[0.0, 0.0, 3.0], [0.0, -1.0, 0.0]])
    cell = {"cell": np.diag([3.0, 4.0, 5.0]), "pbc": [True] * 3, "energy": -1.5}
    return Batch.from_data_list(
        [
            AtomicData([[0.0] * 3], [2]),
            AtomicData([[0.0] * 3, [1.5, 2.0, 2.5]], [55, 17], forces=forces, **cell),
        ]
    )


@pytest.mark.filterwarnings("ignore:chemiscope.show only displays a widget:UserWarning")
def test_chemiscope_shows_a_structure_its_cell_and_its_forces(crystal, tmp_path):
    pytest.importorskip("chemiscope")
    pytest.importorskip("ase")
    with ZarrData(tmp_path / "run") as sink:
        sink.write(crystal)
    views = (crystal.view(1), crystal[1].view(), ZarrDataset(tmp_path / "run").view(-1))
    one, *others = (json.loads(view.value) for view in views)
    names = [found.pop("meta")["name"] for found in (one, *others)]
    assert names == ["system 1, ClCs, -1.5 eV", "ClCs, -1.5 eV", "sample 1, ClCs, -1.5 eV"]
    assert others == [one, one]
    (structure,) = one["structures"]
    assert structure["names"] == ["Cs", "Cl"]
    assert structure["cell"] == [3.0, 0.0, 0.0, 0.0, 4.0, 0.0, 0.0, 0.0, 5.0]
    assert structure["z"] == [0.0, 2.5]
    arrows = one["shapes"]["forces"]["parameters"]["atom"]
    assert arrows == [{"vector": [0.0, 0.0, 1.5]}, {"vector": [0.0, -0.5, 0.0]}]
    molecule = json.loads(crystal.view().value)
    assert molecule["structures"][0]["names"] == ["He"]
    assert "shapes" not in molecule


def test_ase_shows_html_in_a_notebook(crystal, monkeypatch):
    pytest.importorskip("ase")
    pytest.importorskip("IPython")
    monkeypatch.setitem(sys.modules, "ipykernel", object())
    assert crystal.view(1, viewer="ase").data.count("<sphere") == 2


def test_ase_needs_a_display_for_its_window(crystal, monkeypatch):
    pytest.importorskip("ase")
    monkeypatch.delitem(sys.modules, "ipykernel", raising=False)
    monkeypatch.setattr(sys, "platform", "linux")
    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ArgumentError, match="viewer='ase' opens a window, and there is no display"):
        crystal.view(1, viewer="ase")
    monkeypatch.setenv("DISPLAY", ":0")
    monkeypatch.setattr("ase.visualize.view", lambda atoms, viewer: (len(atoms), viewer))
    assert crystal.view(1, viewer="ase") == (2, "ase")


def test_text_is_aligned_left_and_numbers_right(batch):
    sides = re.findall(r'<t[hd] style="text-align: (\w+)">', batch._repr_html_())
    assert sides == [*["left"] * 5, "right"] * (1 + len(batch.fields))


def test_py3dmol_is_given_the_structure(crystal, monkeypatch):
    pytest.importorskip("ase")

    class View:
        def __init__(self, **_):
            self.models, self.cells = [], 0

        def addModel(self, text, form):
            self.models.append((text, form))

        def setStyle(self, style):
            pass

        def addUnitCell(self):
            self.cells += 1

        def zoomTo(self):
            pass

    fake = type("py3Dmol", (), {"view": View})
    monkeypatch.setitem(sys.modules, "py3Dmol", fake)
    ((text, form),) = crystal.view(1, viewer="py3dmol").models
    assert form == "cif"
    assert re.search(r"_cell_length_b +4\.0", text)
    assert re.search(r"Cl +Cl1 +1\.0 +0\.5\d* +0\.5\d* +0\.5\d*", text)
    shown = crystal.view(0, viewer="py3dmol")
    assert (shown.cells, shown.models[0][1]) == (0, "xyz")
    assert shown.models[0][0].split() == ["1", "He", *["0.000000000000000"] * 3]


def test_what_cannot_be_shown(crystal, monkeypatch):
    with pytest.raises(ArgumentError, match="viewer='vmd', expected one of chemiscope, py3dmol"):
        crystal.view(1, viewer="vmd")
    for index in (2, -3, 0.5, True):
        with pytest.raises(SampleIndexError):
            crystal.view(index)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingLibraryError, match=r"pip install 'zarrpipe\[report\]'"):
        crystal.view(1)
    monkeypatch.setitem(sys.modules, "py3Dmol", None)
    with pytest.raises(MissingLibraryError, match=r"zarrpipe\[report\]"):
        crystal.view(1, viewer="py3dmol")
