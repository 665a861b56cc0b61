"""What `PygFiles` reads is what PyG's own data sets hold."""

import pickle

import numpy as np
import pytest
import torch

from zarrpipe.errors import SourceError
from zarrpipe.formats.read.files.pyg_files import PygFiles, TrustedPygFiles, recognises
from zarrpipe.formats.read.frames import Entry

SYSTEM, ATOM, EDGE = "system", "atom", "edge"


@pytest.fixture
def library(load):
    return load("torch_geometric.data")


@pytest.fixture
def graph(library):
    def make(i, n, **more):
        generator = torch.Generator().manual_seed(i)
        edges = 2 * n + i % 2
        found = library.Data(
            pos=torch.rand(n, 3, generator=generator),
            z=torch.randint(1, 90, (n,), generator=generator),
            edge_index=torch.randint(0, n, (2, edges), generator=generator),
            edge_attr=torch.rand(edges, 4, generator=generator),
            cell_offsets=torch.randint(-1, 2, (edges, 3), generator=generator),
            y=torch.rand(1, generator=generator, dtype=torch.float64),
            force=torch.rand(n, 3, generator=generator),
            cell=torch.rand(1, 3, 3, generator=generator),
            pbc=torch.tensor([[True, i % 2 == 0, False]]),
            natoms=n,
            targets=torch.rand(1, 19, generator=generator),
            dipole=torch.rand(3, generator=generator),
            name=f"graph {i}",
            count=i,
            **more,
        )
        if i % 3 == 0:
            del found.y
        return found

    return make


def check_all(found, graphs, assert_same):
    assert not found.failures
    assert not found.scan.failures
    assert [frame.number for frame in found.frames] == list(range(len(graphs)))
    for frame, graph in zip(found.frames, graphs, strict=True):
        values = {
            Entry(EDGE, "neighbor_list"): graph.edge_index.T,
            Entry(EDGE, "edge_attr"): graph.edge_attr,
            Entry(EDGE, "neighbor_list_shifts"): graph.cell_offsets,
            Entry(ATOM, "force"): graph.force,
            Entry(SYSTEM, "targets"): graph.targets[0],
            Entry(SYSTEM, "dipole"): graph.dipole,
            Entry(SYSTEM, "name"): graph.name,
            Entry(SYSTEM, "count"): graph.count,
        }
        if "y" in graph:
            values[Entry(SYSTEM, "y")] = graph.y[0]
        assert_same(frame, graph.z, graph.pos, graph.cell[0], graph.pbc[0], values)


@pytest.mark.parametrize("sizes", [[3], [3, 1, 7]])
@pytest.mark.parametrize("form", ["saved", "pair", "list", "dicts", "legacy", "batch"])
def test_graphs_are_what_pyg_holds(
    form, sizes, library, tmp_path, graph, read_all, assert_same, recwarn
):
    path = tmp_path / "processed.pt"
    graphs = [graph(3 * i + 1, sizes[i % len(sizes)]) for i in range(40)]  # all with y
    reader = PygFiles()
    if form == "saved":
        library.InMemoryDataset.save(graphs, str(path))
    elif form == "pair":
        torch.save(library.InMemoryDataset.collate(graphs), path)
    elif form == "list":
        graphs = [graph(i, sizes[i % len(sizes)]) for i in range(520)]  # some without y
        torch.save(graphs, path)
    elif form == "dicts":
        torch.save([one.to_dict() for one in graphs], path)
    elif form == "legacy":
        torch.save(graphs, path, _use_new_zipfile_serialization=False)
    else:
        torch.save(library.Batch.from_data_list(graphs), path)
        reader = TrustedPygFiles()
    assert recognises(path) is (form != "dicts")
    found = read_all(reader, path)
    assert not found.left_out
    check_all(found, graphs, assert_same)


@pytest.mark.parametrize("form", ["saved", "alone"])
def test_a_file_of_one_graph(form, library, tmp_path, graph, read_all, assert_same):
    path, one = tmp_path / "one.pt", graph(1, 4)
    if form == "saved":
        library.InMemoryDataset.save([one], str(path))
    else:
        torch.save(one, path)
    check_all(read_all(PygFiles(), path), [one], assert_same)


def test_the_level_of_an_attribute_is_proven_or_told(library, tmp_path, graph, read_all):
    path = tmp_path / "processed.pt"
    library.InMemoryDataset.save([graph(1, n, spread=torch.arange(n)) for n in (3, 4)], str(path))
    first = read_all(PygFiles(), path).frames[0]
    np.testing.assert_array_equal(first.values[Entry(ATOM, "spread")], [0, 1, 2])

    library.InMemoryDataset.save([graph(1, 3, spread=torch.arange(3)) for _ in (0, 1)], str(path))
    found = read_all(PygFiles(), path)
    assert set(found.left_out) == {Entry(SYSTEM, "spread")}
    for level in (ATOM, SYSTEM):
        found = read_all(PygFiles(levels={"spread": level}), path)
        np.testing.assert_array_equal(found.frames[0].values[Entry(level, "spread")], [0, 1, 2])


def test_attributes_without_a_place_in_a_store_are_told(library, tmp_path, graph, read_all):
    path = tmp_path / "list.pt"
    torch.save([graph(1, 3, face=torch.tensor([[0], [1], [2]]), more={"a": 1})], path)
    found = read_all(PygFiles(), path)
    assert "numbers of nodes" in found.left_out[Entry(SYSTEM, "face")]
    assert found.left_out[Entry(SYSTEM, "more")] == "is neither numbers nor a string"


class Mine:
    """An object of the user's own."""


def test_foreign_objects_are_refused_unless_the_file_is_trusted(
    library, tmp_path, graph, read_all, assert_same
):
    one = graph(1, 3)
    one.object = Mine()
    path = tmp_path / "own.pt"
    torch.save([one], path)
    assert recognises(path)
    with pytest.raises(SourceError, match=r"Mine, and .*'pyg-trusted'"):
        PygFiles().scan(str(path))
    found = read_all(TrustedPygFiles(), path)
    del one.object
    check_all(found, [one], assert_same)
    assert found.left_out == {Entry(SYSTEM, "object"): "is neither numbers nor a string"}


def test_bad_graphs_and_files_that_were_cut_off(library, tmp_path, graph, read_all):
    graphs = [graph(i, 3) for i in range(6)]
    del graphs[1].z
    graphs[4].force = torch.zeros(2, 3)
    path = tmp_path / "list.pt"
    torch.save([*graphs, torch.zeros(3)], path)
    found = read_all(PygFiles(), path)
    assert [frame.number for frame in found.frames] == [0, 2, 3, 5]
    reasons = {failure.frame: failure.reason for failure in found.failures}
    assert "no z or atomic_numbers" in reasons[1]
    assert "each of 3 atoms" in reasons[4]
    assert "is Tensor, expected Data" in reasons[6]
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    (failure,) = PygFiles().scan(str(path)).failures
    assert failure.reason


def test_other_files_are_not_recognised(tmp_path):
    torch.save({"model": torch.zeros(3)}, tmp_path / "model.pt")
    (tmp_path / "text.pt").write_text("text")
    (tmp_path / "pickle.pkl").write_bytes(pickle.dumps([1]))
    assert not any(recognises(path) for path in tmp_path.iterdir())
