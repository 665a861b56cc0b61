"""A sink on a store that exists: go on, refuse or replace; and batches that are stored again."""

import warnings

import numpy as np
import pytest
import zarr
from zarr.codecs import ZstdCodec

from zarrpipe import AtomicDataZarrWriter, ZarrData, ZarrDataset, merge
from zarrpipe.errors import (
    ArgumentError,
    StoreExistsError,
    StoreFormatError,
    StoreLockedError,
)
from zarrpipe.store.write import repetition
from zarrpipe.testing import assert_batches_equal, numbered_batch

AGAIN = pytest.warns(UserWarning, match=r"the \d+ structures of a batch were in .* already")


@pytest.fixture(params=["path", "dict"])
def place(request, tmp_path):
    return {} if request.param == "dict" else tmp_path / "store"


@pytest.fixture
def strict():
    """Makes errors of warnings of batches that are stored again, which other tests ignore."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def write(place, numbers, **options):
    with ZarrData(place, capacity=1000, **options) as sink:
        sink.write(numbered_batch(numbers))


def numbers(place):
    return ZarrDataset(place).system_field("energy").flatten().tolist()


def energies(*ranges):
    return [e for one in ranges for e in numbered_batch(one).energy.flatten().tolist()]


def test_a_store_is_continued(place):
    for if_exists in ("append", "append"):
        write(place, range(3), if_exists=if_exists)
    write(place, range(3, 5))
    assert numbers(place) == energies(range(3), range(3), range(3, 5))


def test_a_store_with_samples_is_refused(place):
    write(place, range(3), if_exists="error")
    with pytest.raises(StoreExistsError, match="3 samples and if_exists='error': give another"):
        ZarrData(place, if_exists="error")
    assert numbers(place) == energies(range(3))
    with ZarrData(place) as sink:
        sink.zero()
    write(place, range(2), if_exists="error")
    assert numbers(place) == energies(range(2))


def test_a_store_is_replaced_and_what_is_removed_is_said(place):
    write(place, range(3))
    group = zarr.open_group(place if isinstance(place, dict) else str(place))
    group.create_array("notes", shape=3, dtype="i4")[:] = 7
    group.attrs["author"] = "somebody"
    message = r"if_exists='replace' removes the 3 samples of .*, with the fields .*forces"
    with pytest.warns(UserWarning, match=message) as said:
        sink = ZarrData(place, if_exists="replace")
    assert said[0].filename == __file__
    assert len(sink) == 0
    with sink:
        sink.write(numbered_batch(range(5, 7)))
    assert_batches_equal(ZarrDataset(place).read([0, 1]), numbered_batch(range(5, 7)))
    group = zarr.open_group(place if isinstance(place, dict) else str(place))
    assert group["notes"][:].tolist() == [7, 7, 7]
    assert group.attrs["author"] == "somebody"


@pytest.mark.usefixtures("strict")
def test_nothing_is_said_where_nothing_is_removed(place):
    write(place, range(3), if_exists="replace")
    assert numbers(place) == energies(range(3))


@pytest.mark.usefixtures("strict")
def test_a_warning_that_is_an_error_leaves_the_store_as_it_was(tmp_path):
    write(tmp_path / "store", range(3))
    with pytest.raises(UserWarning, match="removes the 3 samples"):
        ZarrData(tmp_path / "store", if_exists="replace")
    write(tmp_path / "store", range(3, 5))
    assert numbers(tmp_path / "store") == energies(range(5))


def test_replacing_forgets_units_and_capacity(tmp_path):
    write(tmp_path / "store", range(30))
    with pytest.warns(UserWarning, match="removes the 30 samples"):
        sink = ZarrData(tmp_path / "store", capacity=10, if_exists="replace")
    with sink:
        sink.write(numbered_batch(range(2)))
    assert sink.capacity == 10


def test_only_a_store_of_ours_is_replaced(tmp_path):
    foreign = zarr.create_group(str(tmp_path / "foreign"))
    foreign.create_array("data", shape=2, dtype="i4")[:] = 3
    with pytest.raises(StoreFormatError, match="zarrpipe did not write"):
        ZarrData(tmp_path / "foreign", if_exists="replace")
    assert foreign["data"][:].tolist() == [3, 3]
    things = tmp_path / "things"
    things.mkdir()
    (things / "thesis.tex").write_text("chapter 1")
    with (
        ZarrData(things, if_exists="replace") as sink,
        pytest.raises(StoreExistsError, match="other things in it"),
    ):
        sink.write(numbered_batch(range(2)))
    assert (things / "thesis.tex").read_text() == "chapter 1"


def test_a_store_that_another_writer_has_is_not_replaced(tmp_path):
    with ZarrData(tmp_path / "store") as writer:
        writer.write(numbered_batch(range(3)))
        with pytest.raises(StoreLockedError):
            ZarrData(tmp_path / "store", if_exists="replace")
        assert len(writer) == 3


def test_another_word_is_refused_before_anything_is_removed(place):
    write(place, range(3))
    with pytest.raises(ArgumentError, match="if_exists='overwrite', expected one of append, error"):
        ZarrData(place, if_exists="overwrite")
    with pytest.raises(ArgumentError, match="capacity=0"):
        ZarrData(place, capacity=0, if_exists="replace")
    assert numbers(place) == energies(range(3))


def test_a_script_that_is_run_again_is_told_once(place):
    write(place, range(20))
    with AGAIN as said, ZarrData(place, capacity=1000) as sink:
        sink.write(numbered_batch(range(5, 9)))
        sink.write(numbered_batch(range(9, 12)))
        sink.write(numbered_batch(range(5, 9)))
    assert len(said) == 1
    assert said[0].filename == __file__
    assert len(ZarrDataset(place)) == 31


def test_a_cell_that_is_run_again_is_told_once(place):
    batches = [numbered_batch(range(start, start + 4)) for start in range(0, 20, 4)]
    with AGAIN as said, ZarrData(place, capacity=1000) as sink:
        for _ in range(3):
            for batch in batches:
                sink.write(batch)
    assert len(said) == 1


@pytest.mark.usefixtures("strict")
def test_other_batches_are_stored_in_silence(place):
    write(place, range(20))
    with ZarrData(place, capacity=1000) as sink:
        sink.write(numbered_batch([5, 6, 40]))  # one is new
        sink.write(numbered_batch([41]))
        sink.write(numbered_batch([41, 42]))
        drained = sink.drain()
        sink.write(drained)  # nothing of it is stored any more
        sink.write(numbered_batch([]))


@pytest.mark.usefixtures("strict")
def test_a_merged_store_may_be_continued(tmp_path):
    write(tmp_path / "one", range(5))
    merge(tmp_path / "one", tmp_path / "whole")
    write(tmp_path / "whole", range(5, 8))


def test_deleted_structures_may_be_stored_again(tmp_path, strict):
    write(tmp_path / "store", range(5))
    with AtomicDataZarrWriter(tmp_path / "store") as writer:
        writer.delete([1, 2])
    write(tmp_path / "store", [1, 2])
    with warnings.catch_warnings(), AGAIN:
        write(tmp_path / "store", [1, 2])


def test_of_large_stores_both_ends_are_looked_at(tmp_path, monkeypatch, strict):
    monkeypatch.setattr(repetition, "_MAPPED", 8)
    write(tmp_path / "store", range(30))
    write(tmp_path / "store", [12, 13])
    for again in ([28, 29], [0, 3]):
        with warnings.catch_warnings(), AGAIN:
            write(tmp_path / "store", again)


@pytest.mark.usefixtures("strict")
def test_of_ids_that_have_to_be_decoded_those_of_small_stores_are_looked_at(tmp_path, monkeypatch):
    packed = {"config": {"meta": {"compressors": [ZstdCodec()]}}}
    write(tmp_path / "store", range(6), **packed)
    with warnings.catch_warnings(), AGAIN:
        write(tmp_path / "store", [2, 3], **packed)
    monkeypatch.setattr(repetition, "_FETCHED", 4)
    write(tmp_path / "store", [2, 3], **packed)


@pytest.mark.usefixtures("strict")
def test_ids_that_cannot_be_read_do_not_fail_a_write(tmp_path, monkeypatch):
    write(tmp_path / "store", range(6))

    def failing(view, ids, count):
        raise OSError("the network is down")

    monkeypatch.setattr("zarrpipe.sink.are_stored", failing)
    write(tmp_path / "store", range(6))
    assert numbers(tmp_path / "store") == energies(range(6), range(6))


def test_the_first_structures_of_so_many_batches_are_remembered(place, monkeypatch, strict):
    monkeypatch.setattr(repetition, "_REMEMBERED", 3)
    with ZarrData(place, capacity=1000) as sink:
        for number in range(5):
            sink.write(numbered_batch([number]))
        sink.write(numbered_batch([4]))
        with warnings.catch_warnings(), AGAIN:
            sink.write(numbered_batch([2]))


def test_ids_of_the_batch_are_returned_by_the_writer(place):
    with ZarrData(place) as sink:
        ids, before = sink._write(numbered_batch(range(4)))
        assert before == 0
        ids = np.concatenate([ids, sink._write(numbered_batch(range(4, 6)))[0]])
    assert ZarrDataset(place).ids.tolist() == ids.tolist()
