"""What notebooks show and complete of batches, systems, datasets and sinks."""

import re

import pytest

from zarrpipe import AtomicData, Batch, ZarrData, ZarrDataset


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
    return title, [re.findall(r"<t[hd]>(.*?)</t[hd]>", row) for row in found]


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
    title, found = rows(sink._repr_html_())
    assert "&lt;b&gt;&amp;.zarr" in title
    assert "0 of 10 samples" in title
    assert len(found) == 1
    with sink:
        sink.write(batch)
        title, found = rows(sink._repr_html_())
    assert "2 of 10 samples" in title
    assert ["round", "system", "int64", "()", "1"] in found
    title, found = rows(ZarrDataset(place, ["energy"], where="round > 3")._repr_html_())
    assert title == "ZarrDataset of 1 sample in 1 store where round &gt; 3"
    assert [row[0] for row in found] == ["field", "positions", "atomic_numbers", "energy"]
    assert found[3] == ["energy", "system", "float64", "(1,)", "eV"]
    assert repr(ZarrDataset(place, ["energy"])) == (
        "<ZarrDataset of 2 samples in 1 store: positions, atomic_numbers, energy>"
    )
