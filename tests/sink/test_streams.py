"""A sink writes datasets and iterables block by block."""

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Subset

from zarrpipe import AtomicData, AtomicDataZarrWriter, Batch, ZarrData, ZarrDataset
from zarrpipe.adapters import assemble
from zarrpipe.errors import ArgumentError, ArgumentTypeError, StoreFullError
from zarrpipe.testing import assert_batches_equal, numbered_batch


@pytest.fixture
def source(tmp_path):
    """A store of 40 samples, and the batch that is in it."""
    batch = numbered_batch(range(40))
    with ZarrData(tmp_path / "source") as sink:
        sink.write(batch)
    return tmp_path / "source", batch


@pytest.fixture
def appends(monkeypatch):
    """Number of samples of each append."""
    counts = []
    append = ZarrData._append

    def counted(self, batch):
        counts.append(batch.num_graphs)
        return append(self, batch)

    monkeypatch.setattr(ZarrData, "_append", counted)
    return counts


def stored(place):
    return ZarrDataset(place).read(slice(None))


STREAMS = {
    "dataset": lambda dataset, batch: dataset,
    "subset": lambda dataset, batch: Subset(dataset, range(40)),
    "loader": lambda dataset, batch: DataLoader(dataset, batch_size=7),
    "generator": lambda dataset, batch: (batch.get_data(place) for place in range(40)),
    "batches": lambda dataset, batch: iter([batch.index_select(slice(0, 1)), batch[1:40]]),
    "lists": lambda dataset, batch: iter([[], batch.to_data_list()[:9], batch.to_data_list()[9:]]),
    "map": lambda dataset, batch: map(batch.get_data, range(40)),
    "set": lambda dataset, batch: {None: batch}.values(),
}


@pytest.mark.parametrize("kind", STREAMS)
def test_a_stream_is_stored_in_its_order(source, tmp_path, kind, appends):
    place, batch = source
    with ZarrData(tmp_path / "copy") as sink:
        sink.write(STREAMS[kind](ZarrDataset(place), batch))
    assert_batches_equal(stored(tmp_path / "copy"), batch)
    assert sum(appends) == 40
    if kind in ("dataset", "subset", "generator", "map"):
        assert appends == [1, 2, 4, 8, 16, 9]


def test_what_a_dataset_reads_is_what_is_written(source, tmp_path):
    place, batch = source

    def negative(read: Batch) -> Batch:
        return read.add_field("energy", -read.energy)

    fields = ["energy"]
    dataset = ZarrDataset(place, fields, transform=negative, where="energy > 0")
    index = np.flatnonzero(batch.energy.flatten() > 0)
    with ZarrData(tmp_path / "copy") as sink:
        sink.write(dataset)
    copy = stored(tmp_path / "copy")
    assert {*copy.fields} == {"positions", "atomic_numbers", "energy"}
    assert torch.equal(copy.energy, -batch.energy[index])


def test_blocks_are_of_bounded_size(source, tmp_path, appends, monkeypatch):
    place, batch = source
    least = min(sum(v.nbytes for v in one.fields.values()) for one in batch.to_data_list())
    monkeypatch.setattr(assemble, "_BLOCK_BYTES", 5 * least)
    with ZarrData(tmp_path / "copy") as sink:
        sink.write(ZarrDataset(place))
    assert sum(appends) == 40
    assert max(appends) <= 5
    assert_batches_equal(stored(tmp_path / "copy"), batch)


def test_what_came_before_an_error_is_stored(source, tmp_path):
    _, batch = source

    def failing():
        for place in range(10):
            yield batch.get_data(place)
        raise KeyError("the source failed")

    with ZarrData(tmp_path / "copy") as sink:
        with pytest.raises(KeyError, match="the source failed"):
            sink.write(failing())
        assert len(sink) == 7  # 1, 2 and 4; the fourth block was not whole
        sink.write(batch.get_data(place) for place in range(7, 40))
    assert_batches_equal(stored(tmp_path / "copy"), batch)


def test_the_sink_may_be_used_while_it_is_written_to(source, tmp_path):
    _, batch = source
    with ZarrData(tmp_path / "copy") as sink:
        lengths = []

        def noting():
            for place in range(7):
                lengths.append(len(sink))
                yield batch.get_data(place)

        sink.write(noting())
    assert lengths == [0, 1, 1, 3, 3, 3, 3]


def test_a_dataset_for_which_there_is_no_room_is_refused_whole(source, tmp_path):
    place, batch = source
    with ZarrData(tmp_path / "copy", capacity=45) as sink:
        sink.write(batch[:6])
        with pytest.raises(StoreFullError, match="6 of 45 samples are stored and 40 more were"):
            sink.write(ZarrDataset(place))
        assert len(sink) == 6
        with pytest.raises(StoreFullError):
            sink.write(batch.get_data(number % 40) for number in range(100))
        assert len(sink) == 37  # and 1, 2, 4, 8 and 16
        with pytest.raises(ArgumentError, match="mask is given for a ZarrDataset"):
            sink.write(ZarrDataset(place), mask=[True] * 40)


def test_an_empty_stream_writes_nothing(tmp_path):
    with ZarrData(tmp_path / "copy") as sink:
        sink.write(iter([]))
        sink.write(iter([[]]))
        assert len(sink) == 0
    assert not (tmp_path / "copy").exists()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("other.zarr", r"type str: .*ZarrDataset opens the store at a path"),
        ({"positions": [[0.0, 0.0, 0.0]]}, r"AtomicData\(\*\*fields\) makes a system"),
        (np.zeros((3, 3)), "type numpy.ndarray"),
        (torch.zeros(3, 3), "type torch.Tensor"),
        (iter([1, 2]), "type int"),
        (3, "type int"),
    ],
)
def test_what_is_no_stream_of_samples_is_refused(tmp_path, given, message):
    with ZarrData(tmp_path / "copy") as sink, pytest.raises(ArgumentTypeError, match=message):
        sink.write(given)


def test_a_list_is_one_batch(tmp_path, appends):
    helium = [AtomicData([[0.0, 0.0, float(place)]], [2]) for place in range(5)]
    with ZarrData(tmp_path / "copy") as sink:
        sink.write(helium)
    assert appends == [5]


def test_a_writer_step_by_step_takes_no_stream(tmp_path):
    message = r"list\(\.\.\.\), or give it to a sink's write"
    with (
        AtomicDataZarrWriter(tmp_path / "copy") as writer,
        pytest.raises(ArgumentTypeError, match=message),
    ):
        writer.write(one for one in [AtomicData([[0.0, 0.0, 0.0]], [2])])
