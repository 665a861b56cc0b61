"""Marks: names for the samples of a moment, kept through appends and rewrites."""

import warnings

import numpy as np
import pytest
import zarr

import zarrpipe as zp
from reliability.truth import everything, numbers_of, samples, serials, wrong_values
from zarrpipe.errors import ArgumentError, ArgumentTypeError, StoreEmptyError, StoreFormatError


def batch(start, count=5):
    return samples(numbers_of(start, count))


def numbers(*starts, count=5):
    return [n for start in starts for n in numbers_of(start, count).tolist()]


def check_values(store, at, expected):
    """Compare the samples at a mark with the numbers that they must have."""
    dataset = zp.ZarrDataset(store, at=at)
    assert len(dataset) == len(expected)
    found = dataset.read(np.arange(len(dataset)))
    assert serials(found) == expected
    assert wrong_values(found) is None


@pytest.fixture(params=["local", "dict"])
def store(request, tmp_path):
    return tmp_path / "store.zarr" if request.param == "local" else {}


@pytest.fixture
def marked(store):
    """Store with a mark after each of two batches, and a third batch."""
    with zp.ZarrData(store) as sink:
        sink.write(batch(0))
        assert sink.mark("round-0", note="by hand") == 5
        sink.write(batch(100))
        assert sink.mark("round-1") == 10
        sink.write(batch(200))
    return store


def test_a_mark_names_what_was_stored(marked):
    check_values(marked, "round-0", numbers(0))
    check_values(marked, "round-1", numbers(0, 100))
    with zp.ZarrData(marked) as sink:
        assert sink.marks["round-0"].note == "by hand"
        assert {name: mark.count for name, mark in sink.marks.items()} == {
            "round-0": 5,
            "round-1": 10,
        }
    assert zp.ZarrDataset(marked).marks[0]["round-1"].samples == 10


def test_what_is_buffered_is_marked_too(store):
    with zp.ZarrData(store, buffer=100, buffer_seconds=600) as sink:
        sink.write(batch(0))
        assert sink.mark("now") == 5
    check_values(store, "now", numbers(0))


def test_marks_are_there_after_a_writer_that_was_never_closed(tmp_path):
    sink = zp.ZarrData(tmp_path / "s.zarr")
    sink.write(batch(0))
    sink.mark("a")
    sink.write(batch(100))
    check_values(tmp_path / "s.zarr", "a", numbers(0))
    sink.close()


def test_a_mark_can_be_repeated_and_not_moved(marked):
    with zp.ZarrData(marked) as sink:
        assert sink.mark("now") == 15
        before = sink.marks["now"]
        assert sink.mark("now", note="again") == 15
        assert sink.marks["now"] == before
        with pytest.raises(ArgumentError, match=r"has a mark 'round-0' of 5 samples, .* 15"):
            sink.mark("round-0")
    check_values(marked, "round-0", numbers(0))


@pytest.mark.parametrize("name", ["", "a b", "../x", ".x", "x" * 101, 3, None])
def test_names_that_a_mark_cannot_have(marked, name):
    with zp.ZarrData(marked) as sink:
        with pytest.raises(ArgumentError, match="cannot be the name of a mark"):
            sink.mark(name)
        assert set(sink.marks) == {"round-0", "round-1"}


def test_a_note_is_a_text(marked):
    with zp.ZarrData(marked) as sink, pytest.raises(ArgumentTypeError, match="expected a text"):
        sink.mark("x", note=3)


def test_nothing_to_mark(store):
    with zp.ZarrData(store) as sink:
        assert sink.marks == {}
        with pytest.raises(StoreEmptyError, match="nothing to mark"):
            sink.mark("x")


def test_an_unknown_mark(marked):
    with pytest.raises(ArgumentError, match="no mark 'x', it has round-0, round-1"):
        zp.ZarrDataset(marked, at="x")


def test_a_store_without_marks(store):
    with zp.ZarrData(store) as sink:
        sink.write(batch(0))
    with pytest.raises(ArgumentError, match=r"it has none: make one with ZarrData.mark"):
        zp.ZarrDataset(store, at="x")


def test_emptying_a_store_removes_its_marks(marked):
    with zp.ZarrData(marked) as sink:
        sink.zero()
        sink.write(batch(300))
        assert sink.marks == {}
        assert sink.mark("round-0") == 5
    check_values(marked, "round-0", numbers(300))


def test_a_deletion_after_a_mark_is_said(marked):
    with zp.AtomicDataZarrWriter(marked) as writer:
        writer.delete([12])
    with pytest.raises(StoreFormatError, match=r"1 samples of .* were deleted since the mark"):
        zp.ZarrDataset(marked, at="round-0")
    with zp.ZarrData(marked) as sink:
        assert sink.mark("after") == 14
        sink.write(batch(400))
    expected = [n for n in numbers(0, 100, 200) if n != numbers(200)[2]]
    check_values(marked, "after", expected)
    with pytest.warns(UserWarning, match="marks round-0, round-1 are not kept"):
        zp.compact(marked)
    check_values(marked, "after", expected)
    with zp.ZarrData(marked) as sink:
        assert set(sink.marks) == {"after"}
        assert sink.marks["after"].deleted == 0


def test_rewrites_in_order_keep_marks(marked, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        zp.compact(marked)
        zp.merge(marked, tmp_path / "merged.zarr")
        zp.copy(marked, tmp_path / "copy.zarr")
        zp.merge(marked, tmp_path / "fields.zarr", fields=["energy", "forces"])
    for place in (marked, tmp_path / "merged.zarr", tmp_path / "copy.zarr"):
        check_values(place, "round-0", numbers(0))
        check_values(place, "round-1", numbers(0, 100))
    assert len(zp.ZarrDataset(tmp_path / "fields.zarr", at="round-1")) == 10


def test_of_several_stores_the_marks_of_the_first_are_kept(marked, tmp_path):
    other = tmp_path / "other.zarr"
    with zp.ZarrData(other) as sink:
        sink.write(batch(300))
        sink.mark("theirs")
        sink.write(batch(400))
    with pytest.warns(UserWarning, match="the marks theirs are not kept"):
        zp.merge([marked, other], tmp_path / "merged.zarr")
    check_values(tmp_path / "merged.zarr", "round-1", numbers(0, 100))
    dataset = zp.ZarrDataset([marked, other], at=["round-0", "theirs"])
    assert serials(dataset.read(range(len(dataset)))) == numbers(0, 300)
    with pytest.raises(ArgumentError, match="no mark 'theirs'"):
        zp.ZarrDataset([marked, other], at="theirs")
    with pytest.raises(ArgumentError, match="or one for each of 2 stores"):
        zp.ZarrDataset([marked, other], at=["theirs"])


def test_another_order_would_lose_marks(marked, tmp_path):
    with pytest.raises(ArgumentError, match=r"has marks \(round-0, round-1\)"):
        zp.compact(marked, shuffle=1)
    assert serials(everything(marked)) == numbers(0, 100, 200)
    for options in ({"shuffle": 1}, {"where": "num_atoms > 0"}):
        target = tmp_path / next(iter(options))
        with pytest.warns(UserWarning, match="the marks round-0, round-1 are not kept"):
            zp.merge(marked, target, **options)
        assert zp.ZarrDataset(target).marks == ({},)


def test_info_lists_marks(marked):
    facts = zp.info(marked)
    assert facts.marks["round-0"].samples == 5
    assert "5 samples" in str(facts)
    assert ": by hand" in str(facts)
    assert facts.to_dict()["marks"]["round-1"]["samples"] == 10


@pytest.mark.parametrize(
    "damage", [[], {"a": 3}, {"a": {"samples": -1}}, {"a": {"samples": 2, "deleted": 3}}]
)
def test_damaged_marks_are_said(tmp_path, damage):
    store = tmp_path / "s.zarr"
    with zp.ZarrData(store) as sink:
        sink.write(batch(0))
    group = zarr.open_group(store)
    group.attrs["zarrpipe"] = {**group.attrs["zarrpipe"], "marks": damage}
    with pytest.raises(StoreFormatError, match="'marks' of the attributes"):
        zp.ZarrDataset(store)


def test_a_mark_of_more_samples_than_are_there_is_refused(tmp_path):
    store = tmp_path / "s.zarr"
    with zp.ZarrData(store) as sink:
        sink.write(batch(0))
        sink.mark("a")
    group = zarr.open_group(store)
    mark = {"samples": 50, "deleted": 0, "time": 0.0, "note": None}
    group.attrs["zarrpipe"] = {**group.attrs["zarrpipe"], "marks": {"a": mark}}
    with pytest.raises(StoreFormatError, match="names 50 samples"):
        zp.ZarrDataset(store, at="a")
